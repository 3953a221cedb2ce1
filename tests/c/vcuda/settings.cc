// SPDX-License-Identifier: Apache-2.0
// settings: what the tests choose by environment variables; and the seeded random numbers.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"

// A wrong value ends the process: it is a mistake in a test, not one that a user can make.
static uint64_t number(const char *name, uint64_t otherwise, uint64_t most) {
    const char *text = getenv(name);
    if (text == nullptr || *text == 0) return otherwise;
    char *end = nullptr;
    errno = 0;
    unsigned long long n = strtoull(text, &end, 10);
    if (*end != 0 || errno != 0 || n > most) {
        fprintf(stderr, "vcuda: %s: got %s, expected a number up to %llu\n", name, text,
                (unsigned long long)most);
        abort();
    }
    return n;
}

// How many of them CUDA shows: numbers up to the first that names none.
static int shown(int devices) {
    const char *text = getenv("CUDA_VISIBLE_DEVICES");
    if (text == nullptr) return devices;
    int count = 0;
    for (const char *at = text; *at >= '0' && *at <= '9' && atoi(at) < devices;) {
        count++;
        at += strcspn(at, ",");
        if (*at == ',') at++;
    }
    return count;
}

static vcuda_settings read_settings() {
    vcuda_settings s;
    s.seed = number("PACELINE_VCUDA_SEED", 0, UINT32_MAX);
    s.worker = number("PACELINE_VCUDA_WORKER", 0, 1) != 0;
    s.devices = shown((int)number("PACELINE_VCUDA_DEVICES", 1, 64));
    s.memory = number("PACELINE_VCUDA_MEMORY", (uint64_t)4 << 30, (uint64_t)1 << 40);
    s.dropped_waits = (int)number("PACELINE_VCUDA_DROPPED_WAITS", 0, 2);
    return s;
}

const vcuda_settings &vcuda_get_settings() {
    static const vcuda_settings settings = read_settings();
    return settings;
}

uint64_t vcuda_random::next() {
    state += 0x9e3779b97f4a7c15u;
    uint64_t z = state;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

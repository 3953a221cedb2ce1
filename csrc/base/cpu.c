// SPDX-License-Identifier: Apache-2.0
// cpu: which instruction sets this processor has and the system lets us use, so that one build
// serves every x86-64. PACELINE_CPU_ISA=baseline|avx2|avx512 hides the newer ones (for tests).
// Asked once; any thread.
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

static pl_cpu_features features;
static char cpu_name[64] = "unknown processor";
static pthread_once_t once = PTHREAD_ONCE_INIT;

#if defined(__x86_64__)
#include <cpuid.h>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

// Linux hands out the 8 KiB of AMX tile state only on request (arch_prctl, since 5.16).
static bool amx_permitted(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
#else
static bool amx_permitted(void) { return false; }
#endif

static uint64_t xcr0(void) {
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return ((uint64_t)hi << 32) | lo;
}

static bool has(uint32_t word, int bit) { return (word >> bit) & 1u; }

static void read_features(void) {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    if (!has(c, 27)) return;  // OSXSAVE: else the system saves no vector registers beyond SSE
    bool fma = has(c, 12), f16c = has(c, 29);
    uint64_t saved = xcr0();
    bool ymm = (saved & 0x6) == 0x6;
    bool zmm = (saved & 0xe6) == 0xe6;
    bool tiles = (saved & 0x60000) == 0x60000;
    uint32_t b7, c7, d7, a71 = 0, b71, c71, d71;
    if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) return;
    if (a >= 1) (void)__get_cpuid_count(7, 1, &a71, &b71, &c71, &d71);
    features.avx2_fma = ymm && fma && f16c && has(b7, 5);
    // F, DQ, CD, BW, VL: the set that every AVX-512 server since Skylake has.
    features.avx512 = zmm && features.avx2_fma && has(b7, 16) && has(b7, 17) && has(b7, 28) &&
                      has(b7, 30) && has(b7, 31);
    features.avx512_bf16 = features.avx512 && has(a71, 5);
    features.avx512_fp16 = features.avx512 && has(d7, 23);
    features.amx_bf16 = features.avx512 && tiles && has(d7, 22) && has(d7, 24) && amx_permitted();
}

static void read_name(void) {
    uint32_t r[12];
    for (uint32_t i = 0; i < 3; i++) {
        uint32_t *p = r + 4 * i;
        if (!__get_cpuid(0x80000002u + i, p, p + 1, p + 2, p + 3)) return;
    }
    memcpy(cpu_name, r, sizeof r);
    cpu_name[sizeof r] = '\0';
    char *first = cpu_name + strspn(cpu_name, " ");
    memmove(cpu_name, first, strlen(first) + 1);
    for (size_t n = strlen(cpu_name); n > 0 && cpu_name[n - 1] == ' '; n--) cpu_name[n - 1] = '\0';
}
#else
static void read_features(void) {}
static void read_name(void) {}
#endif

static void detect(void) {
    read_features();
    read_name();
    const char *limit = getenv("PACELINE_CPU_ISA");
    if (!limit) return;
    bool baseline = strcmp(limit, "baseline") == 0, avx2 = strcmp(limit, "avx2") == 0;
    if (baseline) features.avx2_fma = false;
    if (baseline || avx2) features.avx512 = false;
    if (baseline || avx2 || strcmp(limit, "avx512") == 0) {
        features.avx512_bf16 = features.avx512_fp16 = features.amx_bf16 = false;
    }
}

const pl_cpu_features *pl_cpu(void) {
    (void)pthread_once(&once, detect);
    return &features;
}

const char *pl_cpu_name(void) {
    (void)pthread_once(&once, detect);
    return cpu_name;
}

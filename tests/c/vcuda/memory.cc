// SPDX-License-Identifier: Apache-2.0
// memory: of the device and page-locked memory of the host. All of the device's lies in one
// reserved range of addresses that nobody may touch but while a task runs; an address is never
// given twice, so that what touches freed memory faults. Each allocation has pages of its own, is
// filled with 0xFF (NaN), and ends in a zone that is looked at for writes past the end.
#include <string.h>
#include <sys/mman.h>

#include <map>
#include <mutex>
#include <vector>

#include "device.h"

namespace {

enum { PAGE = 4096, ZONE = 256, ZONE_BYTE = 0xA5 };
const size_t MOST_BYTES = (size_t)1 << 40, LEAST_BYTES = (size_t)1 << 32;

struct allocation {
    size_t nbytes, span;
    bool pinned;
    char *end(char *start) const { return start + nbytes; }
};

std::mutex &lock = *new std::mutex;  // like `live` not ended with the process: a worker may run
char *arena;
size_t arena_bytes, arena_used, in_use;
bool accessible;
std::map<char *, allocation> &live = *new std::map<char *, allocation>;

// As large as there is room for (ThreadSanitizer leaves less).
bool open_arena() {
    for (size_t room = MOST_BYTES; arena == nullptr && room >= LEAST_BYTES; room /= 2) {
        void *p =
            mmap(nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) continue;
        arena = (char *)p;
        arena_bytes = room;
    }
    return arena != nullptr;
}

void protect(char *start, size_t span, bool allowed) {
    mprotect(start, span, allowed ? PROT_READ | PROT_WRITE : PROT_NONE);
}

size_t zone_bytes(const allocation &a) { return a.span - a.nbytes; }

const char *check_zone(char *start, const allocation &a) {
    const unsigned char *zone = (const unsigned char *)a.end(start);
    for (size_t i = 0; i < zone_bytes(a); i++) {
        if (zone[i] != ZONE_BYTE) return "memory was written past the end of an allocation";
    }
    return nullptr;
}

char *take_pages(size_t span, bool pinned) {
    if (pinned) {
        void *p = mmap(nullptr, span, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return p == MAP_FAILED ? nullptr : (char *)p;
    }
    if (!open_arena() || span > arena_bytes - arena_used) return nullptr;
    char *start = arena + arena_used;
    arena_used += span;
    protect(start, span, true);
    return start;
}

bool inside(const void *p, size_t nbytes, bool pinned) {
    std::lock_guard<std::mutex> hold(lock);
    auto it = live.upper_bound((char *)p);
    if (it == live.begin()) return false;
    --it;
    return it->second.pinned == pinned && (const char *)p + nbytes <= it->second.end(it->first);
}

}  // namespace

cudaError_t vcuda_malloc(size_t nbytes, bool pinned, void **out) {
    *out = nullptr;
    vcuda_catch_faults();
    if (nbytes == 0) return pinned ? cudaErrorInvalidValue : cudaSuccess;
    std::lock_guard<std::mutex> hold(lock);
    size_t limit = vcuda_get_settings().memory;
    if (!pinned && (nbytes > limit || in_use > limit - nbytes)) return cudaErrorMemoryAllocation;
    allocation a = {nbytes, (nbytes + ZONE + PAGE - 1) / PAGE * PAGE, pinned};
    char *start = take_pages(a.span, pinned);
    if (start == nullptr) return cudaErrorMemoryAllocation;
    memset(start, 0xFF, nbytes);
    memset(a.end(start), ZONE_BYTE, zone_bytes(a));
    if (!pinned) {
        protect(start, a.span, accessible);
        in_use += nbytes;
    }
    live[start] = a;
    *out = start;
    return cudaSuccess;
}

cudaError_t vcuda_free(void *p, bool pinned) {
    if (p == nullptr) return cudaSuccess;
    std::lock_guard<std::mutex> hold(lock);
    auto it = live.find((char *)p);
    if (it == live.end() || it->second.pinned != pinned) return cudaErrorInvalidValue;
    allocation a = it->second;
    live.erase(it);
    if (pinned) {
        const char *problem = check_zone((char *)p, a);
        protect((char *)p, a.span, false);  // kept: whoever still copies from it faults
        madvise(p, a.span, MADV_DONTNEED);
        if (problem != nullptr) vcuda_lose(cudaErrorIllegalAddress, problem);
        return cudaSuccess;
    }
    protect((char *)p, a.span, true);
    const char *problem = check_zone((char *)p, a);
    madvise(p, a.span, MADV_DONTNEED);
    protect((char *)p, a.span, false);
    in_use -= a.nbytes;
    if (problem != nullptr) vcuda_lose(cudaErrorIllegalAddress, problem);
    return cudaSuccess;
}

size_t vcuda_memory_in_use(void) {
    std::lock_guard<std::mutex> hold(lock);
    return in_use;
}

// One call per run of allocations that nothing freed parts.
void vcuda_access(bool allowed) {
    std::lock_guard<std::mutex> hold(lock);
    if (accessible == allowed) return;
    accessible = allowed;
    char *start = nullptr, *end = nullptr;
    for (const auto &one : live) {
        if (one.second.pinned) continue;
        if (one.first != end) {
            if (start != nullptr) protect(start, (size_t)(end - start), allowed);
            start = one.first;
        }
        end = one.first + one.second.span;
    }
    if (start != nullptr) protect(start, (size_t)(end - start), allowed);
}

bool vcuda_is_accessible(void) {
    std::lock_guard<std::mutex> hold(lock);
    return accessible;
}

bool vcuda_in_arena(const void *p) {
    return arena != nullptr && (const char *)p >= arena && (const char *)p < arena + arena_bytes;
}

const char *vcuda_check_zones(void) {
    std::lock_guard<std::mutex> hold(lock);
    for (const auto &one : live) {
        const char *problem = check_zone(one.first, one.second);
        if (problem != nullptr) return problem;
    }
    return nullptr;
}

bool vcuda_is_device(const void *p, size_t nbytes) { return inside(p, nbytes, false); }
bool vcuda_is_pinned(const void *p, size_t nbytes) { return inside(p, nbytes, true); }

// SPDX-License-Identifier: Apache-2.0
// Private to the allocator: the header before each block, and its two levels. Which locks: small
// (alloc_small.c) may take large's while it holds its own; large's is a leaf.
#ifndef PL_BASE_ALLOC_INTERNAL_H
#define PL_BASE_ALLOC_INTERNAL_H

#include "base/base.h"

// Under AddressSanitizer and in debug builds every block is the system's own, so that a use after
// free is seen.
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PL_ALLOC_CACHED 0
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(PL_DEBUG)
#undef PL_ALLOC_CACHED
#define PL_ALLOC_CACHED 0
#endif
#ifndef PL_ALLOC_CACHED
#define PL_ALLOC_CACHED 1
#endif

enum {
    PL_ALLOC_ALIGN = 64,
    PL_ALLOC_SMALL_BYTES = 16 << 10,  // the largest request that is small
    PL_ALLOC_PER_OCTAVE = 8           // size classes between two powers of two
};

#define PL_ALLOC_USED 0x70616365u
#define PL_ALLOC_FREE 0x6c696e65u
#define PL_ALLOC_BUSY 0x62757379u  // not in a list, but nobody's: its pages are being given back

// Stands in the 64 bytes before each block. The links are used only while the block is free.
typedef struct pl__block {
    size_t nbytes;                  // as asked for
    size_t total;                   // with this header
    struct pl__block *next, *prev;  // in its list
    struct pl__block *below;        // large: the block that ends where this begins, or NULL
    void *home;                     // the arena or slab that it was cut from
    uint32_t magic;
    int16_t size_class;  // small: its class; large: -1
    bool given;          // large and free: its pages are the system's again
} pl__block;
_Static_assert(sizeof(pl__block) <= PL_ALLOC_ALIGN, "the header must fit before the block");

// The class of a size and the largest size in it: one class every 64 bytes up to 512, then eight
// per power of two.
static inline int pl__size_class(size_t nbytes, size_t *class_bytes) {
    if (nbytes <= 512) {
        int c = nbytes == 0 ? 0 : (int)((nbytes - 1) / PL_ALLOC_ALIGN);
        *class_bytes = (size_t)(c + 1) * PL_ALLOC_ALIGN;
        return c;
    }
    // 2^k < nbytes <= 2^(k+1), cut into eight steps of 2^(k-3) >= 64.
    int k = 63 - __builtin_clzll((unsigned long long)(nbytes - 1));
    size_t step = (size_t)1 << (k - 3);
    size_t eighth = (nbytes - 1 - ((size_t)1 << k)) / step;
    *class_bytes = ((size_t)1 << k) + (eighth + 1) * step;
    return 8 + (k - 9) * PL_ALLOC_PER_OCTAVE + (int)eighth;
}

// Blocks of either level, marked used or free by these. NULL: the system has no more memory.
pl__block *pl__small_take(size_t nbytes);
void pl__small_give(pl__block *b);
void pl__small_trim(void);  // this thread's cache, then whole free slabs, to the large level
void pl__small_lock(void);  // both locks, around a fork
void pl__small_unlock(void);

pl__block *pl__large_take(size_t nbytes);
void pl__large_give(pl__block *b);
void pl__large_trim(size_t keep);  // until at most `keep` bytes are cached
size_t pl__large_cached(void);
size_t pl__large_held(void);
void pl__large_set_limit(size_t nbytes);  // more than that is not kept cached
void pl__large_lock(void);
void pl__large_unlock(void);

// The memory limit of the control groups that a file like /proc/self/cgroup names, whose trees are
// below `root`; SIZE_MAX: none.
size_t pl__group_limit(const char *groups, const char *root);

#endif

// SPDX-License-Identifier: Apache-2.0
// What cache.c and cache_blocks.c share: blocks, and the lists they stand in.
//
// Note [clean blocks]: other streams may still use a freed block; it is clean once none does, or
// once its own stream waits for them. Only clean blocks grow together: a request is not held up by
// what happened to a neighbour of its block.
#ifndef PL_CUDA_CACHE_INTERNAL_H
#define PL_CUDA_CACHE_INTERNAL_H

#include "cuda/cache.h"

enum { PL__PLACES = 4096, PL__SIZES = 64 * 16, PL__STREAMS = 160 };

// Another stream that used a block: by `done` it has, once the block is free.
typedef struct pl__user {
    struct pl__user *next;
    pl_stream *stream;
    pl_event *done;
} pl__user;

typedef struct pl__block {
    struct pl__block *next, **link;     // of its place or its size, and what points here
    struct pl__block *before, *behind;  // neighbours in its segment; both NULL: a whole one
    char *data;
    size_t nbytes;
    pl_stream *stream;
    const char *tag;  // NULL: free
    bool of_small;    // its segment is one for small requests
    pl__user *users;
} pl__block;

// Blocks in use are found by their address, free ones by their size.
struct pl_cuda_cache {
    pl_runtime *r;
    bool whole;
    int64_t unclean;  // free blocks
    pl__block *held[PL__PLACES];
    pl__block *free[PL__SIZES];
    uint64_t filled[PL__SIZES / 64];  // a bit for each list of `free` that has a block
    pl_device_memory stats;
    pl_stream *others[PL__STREAMS];  // told by _used, each once
    int n_others;
    pl_event **spare;  // events that no block holds
    int spares, spare_room;
};

size_t pl__cache_segment(const pl_cuda_cache *c, size_t nbytes);  // the size to ask for
bool pl__cache_is_small(size_t nbytes);  // it shares the segments for small requests
pl__block **pl__cache_place(pl_cuda_cache *c, const void *p);
void pl__cache_link(pl__block **list, pl__block *b);
void pl__cache_unlink(pl__block *b);
// A free block, in the list of its size.
void pl__cache_put(pl_cuda_cache *c, pl__block *b);
void pl__cache_take(pl_cuda_cache *c, pl__block *b);  // out of it
// The tightest free block of s for a request of nbytes, still in its list; NULL: none.
pl__block *pl__cache_best(pl_cuda_cache *c, size_t nbytes, const pl_stream *s);
// What a free block has beyond nbytes becomes a free block behind it, if that is of use.
pl_status pl__cache_split(pl_cuda_cache *c, pl__block *b, size_t nbytes) PL_MUST_USE;
// A free, clean block grows together with such neighbours.
void pl__cache_merge(pl_cuda_cache *c, pl__block *b);

pl_status pl__cache_event(pl_cuda_cache *c, pl_event **out) PL_MUST_USE;
// Its first user is done with b, or waited for.
void pl__cache_forget(pl_cuda_cache *c, pl__block *b);
// Blocks whose other streams are done become clean; wait: the host waits for all of them.
pl_status pl__cache_settle(pl_cuda_cache *c, bool wait) PL_MUST_USE;

#endif

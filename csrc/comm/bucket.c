// SPDX-License-Identifier: Apache-2.0
// Reduction of one bucket of gradients, in place in memory that all ranks see. Runs on the comm
// thread or, with `sync`, on the caller's.
//
// The ranks meet, publishing which parameters each has used, and compare. Then each owner folds
// its slice of everybody's bucket and writes the result into everybody's bucket: no copy, each
// element read once and written once per rank. A step ends it: nobody reads before all have
// written. A rank that fails between the meeting and the end leaves the bucket half reduced:
// gradients are undefined after a failure (Note [private after failure], segment.c).
#include <string.h>

#include "comm/internal.h"
#include "comm/reduce.h"

size_t pl__used_bytes(const pl__call *call) { return ((size_t)call->n_params + 63) / 64 * 8; }

void pl__unite_used(pl_group *g, pl__call *call) {
    size_t words = pl__used_bytes(call) / 8;
    for (int i = 1; i < g->world; i++) {
        const char *theirs = pl__met_payload(g, call, (g->rank + i) % g->world, words * 8);
        for (size_t k = 0; k < words; k++) {
            uint64_t word;
            memcpy(&word, theirs + 8 * k, sizeof word);
            call->used[k] |= word;
        }
    }
}

// Between machines the buckets are not shared: they go through the arenas like any buffer.
static pl_status move_staged(pl_group *g, pl__call *call) {
    call->in = call->out = (char *)call->seg->parts[g->rank] + call->offset;
    PL_TRY(pl__staged_move(g, call));
    pl__unite_used(g, call);
    return PL_OK;
}

// The first element that `rank` owns: of a line, or of a block where there are blocks.
static int64_t slice_begin(const pl_group *g, const pl__call *call, int rank) {
    int64_t line = PL__LINE / (int64_t)pl_dtype_size(call->dtype);
    int64_t lines = (call->count + line - 1) / line, at = lines * rank / g->world * line;
    if (at > call->count) at = call->count;
    if (rank == 0 || rank == g->world || call->n_blocks == 0) return at;
    int64_t low = 0, high = call->n_blocks;  // the first block that begins at or behind it
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (call->blocks[middle] < at) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return call->blocks[low];
}

static void fold_range(pl_group *g, pl__call *call, int64_t b, int64_t e) {
    void *parts[PL_MAX_RANKS];
    size_t skip = call->offset + (size_t)b * pl_dtype_size(call->dtype);
    for (int r = 0; r < g->world; r++) parts[r] = (char *)call->seg->parts[r] + skip;
    pl__reduce((const void *const *)parts, g->world, parts, g->world, e - b, call->dtype,
               call->redop);
}

// Block by block, each measured while it is in the cache.
static void fold_blocks(pl_group *g, pl__call *call, int64_t b, int64_t e) {
    size_t size = pl_dtype_size(call->dtype);
    const char *mine = (const char *)call->seg->parts[g->rank] + call->offset;
    for (int64_t i = 0; i < call->n_blocks && call->blocks[i] < e; i++) {
        int64_t at = call->blocks[i], n = call->blocks[i + 1] - at;
        if (at < b) continue;
        fold_range(g, call, at, at + n);
        double found = call->measure(mine + (size_t)at * size, n, call->dtype);
        for (int r = 0; r < g->world; r++) {
            memcpy((char *)call->seg->parts[r] + call->measures + 8 * (size_t)i, &found, 8);
        }
    }
}

void pl__bucket_fold(pl_group *g, pl__call *call) {
    int64_t b = slice_begin(g, call, g->rank), e = slice_begin(g, call, g->rank + 1);
    if (e > b && call->measure) {
        fold_blocks(g, call, b, e);
    } else if (e > b) {
        fold_range(g, call, b, e);
    }
    pl__unite_used(g, call);
}

pl_status pl__bucket_move(pl_group *g, pl__call *call) {
    if (g->net) return move_staged(g, call);
    pl__bucket_fold(g, call);
    return pl__step(g, call);
}

// A bucket lies in memory that all ranks see.
static pl_status check_segment(const pl_group *g, const pl_bucket_call *c) {
    size_t size = pl_dtype_size(c->dtype);
    if (c->count < 0 || c->offset_bytes > c->seg->filled || c->offset_bytes % PL__LINE ||
        (uint64_t)c->count > (c->seg->filled - c->offset_bytes) / size) {
        return pl_fail(PL_EINVAL,
                       "[reduce_bucket] bucket %d: got %lld elements of %zu bytes at byte %zu, "
                       "expected a multiple of %d bytes and all of it inside %zu bytes",
                       c->bucket, (long long)c->count, size, c->offset_bytes, PL__LINE,
                       c->seg->filled);
    }
    if (c->n_blocks < 0 || c->measures % 8 ||
        c->measures + 8 * (size_t)c->n_blocks > c->seg->filled) {
        return pl_fail(PL_EINVAL,
                       "[reduce_bucket] bucket %d: got measures of %lld blocks at byte %zu, "
                       "expected a multiple of 8 bytes and all of them inside %zu bytes",
                       c->bucket, (long long)c->n_blocks, c->measures, c->seg->filled);
    }
    if (c->seg->world != g->world || c->seg->rank != g->rank) {
        return pl_fail(PL_EINVAL, "[reduce_bucket] the segment belongs to another group");
    }
    return PL_OK;
}

static pl_status check(const pl_group *g, const pl_bucket_call *c) {
    PL_TRY(pl__reduce_check("reduce_bucket", c->dtype, c->op));
    if (c->op != PL_RED_SUM && c->op != PL_RED_MEAN) {
        return pl_fail(PL_EINVAL, "[reduce_bucket] wrong reduction: got %s, expected sum or mean",
                       pl__redop_name(c->op));
    }
    if (c->n_params < 0 || c->n_params > PL__SMALL_BYTES * 8) {
        return pl_fail(PL_EINVAL, "[reduce_bucket] bucket %d: got %d parameters, expected 0 to %d",
                       c->bucket, c->n_params, PL__SMALL_BYTES * 8);
    }
    return c->seg ? check_segment(g, c) : PL_OK;
}

pl_status pl_group_reduce_bucket(pl_group *g, const pl_bucket_call *c, pl_site site,
                                 pl_work **out) {
    if (out) *out = NULL;
    PL_TRY(check(g, c));
    pl__call call = {
        .op = PL__OP_BUCKET,
        .dtype = c->dtype,
        .redop = c->op,
        .root = c->bucket,
        .count = c->count,
        .extra = (uint32_t)c->n_params,
        .site = site,
        .in = c->data,
        .out = c->data,
        .device = c->device,
        .seg = c->seg,
        .offset = c->offset_bytes,
        .used = c->used,
        .n_params = c->n_params,
        .n_blocks = c->n_blocks,
        .blocks = c->blocks,
        .measures = c->measures,
        .measure = c->measure,
    };
    if (c->sync) return pl__run_sync(g, &call);
    if (c->polled && c->seg && !g->net) return pl__poll_later(g, &call, out);
    return pl__queue(g, &call, out);
}

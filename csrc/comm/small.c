// SPDX-License-Identifier: Apache-2.0
// Collectives whose data fits beside the fingerprint: the meeting itself carries it. Every rank
// reads what it needs from the records and folds all of it itself, in the order of the tree, so
// the bits agree although each computes its own copy. One exchange of one cache line per rank.
#include <string.h>

#include "comm/internal.h"
#include "comm/reduce.h"

#define FOLD_BYTES (64 * 1024)  // all ranks' payloads in one go; more ranks fold in pieces

// Bytes that one rank contributes to the collective.
static size_t contribution(const pl_group *g, const pl__call *call) {
    size_t n = (size_t)call->count * pl_dtype_size(call->dtype);
    return call->op == PL__OP_REDUCE_SCATTER ? n * (size_t)g->world : n;
}

bool pl__is_small(const pl_group *g, const pl__call *call) {
    // First the count alone: world * count * 8 must not overflow in contribution().
    return call->count <= PL__SMALL_BYTES && contribution(g, call) <= PL__SMALL_BYTES;
}

size_t pl__small_bytes(const pl_group *g, const pl__call *call) {
    if (call->op == PL__OP_BARRIER) return 0;
    if (call->op == PL__OP_BROADCAST && call->root != g->rank) return 0;
    return contribution(g, call);
}

// Folds `count` elements that stand `skip` bytes into every rank's payload, into out.
static void fold(pl_group *g, pl__call *call, size_t skip, void *out) {
    _Alignas(64) unsigned char all[FOLD_BYTES];
    const void *src[PL_MAX_RANKS];
    size_t size = pl_dtype_size(call->dtype), total = (size_t)call->count * size;
    size_t room = FOLD_BYTES / (size_t)g->world / 64 * 64;  // >= 256 bytes at 256 ranks
    unsigned char whole[PL__SMALL_BYTES];
    for (size_t at = 0; at < total; at += room) {
        size_t n = total - at < room ? total - at : room;
        for (int r = 0; r < g->world; r++) {
            src[r] = all + (size_t)r * room;
            if (skip + at == 0) {
                pl__met_payload(g, call, r, all + (size_t)r * room, n);
            } else {
                pl__met_payload(g, call, r, whole, skip + at + n);
                memcpy(all + (size_t)r * room, whole + skip + at, n);
            }
        }
        void *dst[1] = {(char *)out + at};
        pl__reduce(src, g->world, dst, 1, (int64_t)(n / size), call->dtype, call->redop);
    }
}

void pl__small_move(pl_group *g, pl__call *call) {
    size_t n = (size_t)call->count * pl_dtype_size(call->dtype);
    if (n == 0) return;
    switch (call->op) {
        case PL__OP_ALL_REDUCE:
            fold(g, call, 0, call->out);
            return;
        case PL__OP_REDUCE:
            if (call->root == g->rank) fold(g, call, 0, call->out);
            return;
        case PL__OP_REDUCE_SCATTER:
            fold(g, call, n * (size_t)g->rank, call->out);
            return;
        case PL__OP_ALL_GATHER:
            for (int r = 0; r < g->world; r++) {
                pl__met_payload(g, call, r, (char *)call->out + n * (size_t)r, n);
            }
            return;
        case PL__OP_BROADCAST:
            if (call->root != g->rank) pl__met_payload(g, call, call->root, call->out, n);
            return;
        default:
            return;
    }
}

// SPDX-License-Identifier: Apache-2.0
// Collectives whose data fits beside the fingerprint: the meeting itself carries it. Every rank
// reads what it needs from the records and folds all of it itself, in the order of the tree, so
// the bits agree although each computes its own copy. One exchange of one cache line per rank.
#include <string.h>

#include "comm/internal.h"
#include "comm/reduce.h"

// Bytes that one rank contributes to the collective.
static size_t contribution(const pl_group *g, const pl__call *call) {
    size_t n = (size_t)call->count * pl_dtype_size(call->dtype);
    bool rows = call->op == PL__OP_REDUCE_SCATTER || call->op == PL__OP_SCATTER;
    return rows ? n * (size_t)g->world : n;
}

bool pl__is_small(const pl_group *g, const pl__call *call) {
    // First the count alone: world * count * 8 must not overflow in contribution().
    return call->count <= PL__SMALL_BYTES && contribution(g, call) <= PL__SMALL_BYTES;
}

size_t pl__small_bytes(const pl_group *g, const pl__call *call) {
    if (call->op == PL__OP_BARRIER) return 0;
    bool from_root = call->op == PL__OP_BROADCAST || call->op == PL__OP_SCATTER;
    if (from_root && call->root != g->rank) return 0;
    return contribution(g, call);
}

// Folds `count` elements that stand `skip` bytes into every rank's payload, into out.
static void fold(pl_group *g, pl__call *call, size_t skip, void *out) {
    const void *src[PL_MAX_RANKS];
    size_t nbytes = contribution(g, call);
    for (int r = 0; r < g->world; r++) {
        src[r] = (const char *)pl__met_payload(g, call, r, nbytes) + skip;
    }
    pl__reduce(src, g->world, &out, 1, call->count, call->dtype, call->redop);
}

void pl__small_move(pl_group *g, pl__call *call) {
    size_t n = (size_t)call->count * pl_dtype_size(call->dtype);
    const char *mine;
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
        case PL__OP_SCATTER:
            mine = pl__met_payload(g, call, call->root, n * (size_t)g->world);
            memcpy(call->out, mine + n * (size_t)g->rank, n);
            return;
        case PL__OP_GATHER:
            if (call->root != g->rank) return;
            // fall through
        case PL__OP_ALL_GATHER:
            for (int r = 0; r < g->world; r++) {
                memcpy((char *)call->out + n * (size_t)r, pl__met_payload(g, call, r, n), n);
            }
            return;
        case PL__OP_BROADCAST:
            if (call->root != g->rank) {
                memcpy(call->out, pl__met_payload(g, call, call->root, n), n);
            }
            return;
        default:
            return;
    }
}

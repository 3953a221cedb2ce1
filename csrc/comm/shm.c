// SPDX-License-Identifier: Apache-2.0
// The shared-memory transport: which of its ways a collective takes. Knows the group's memory;
// decides nothing that the ranks could decide differently.
#include "comm/internal.h"

static pl_status meet(pl_group *g, pl__call *call) {
    if (call->op == PL__OP_BUCKET) {
        return pl__meet(g, call, call->used, pl__used_bytes(call));
    }
    if (call->op == PL__OP_ALL_TO_ALL) return pl__meet(g, call, call->splits, pl__splits_bytes(g));
    bool apart = call->op == PL__OP_SEGMENT || call->op == PL__OP_GROUP_NEW || pl__on_device(call);
    if (apart || !pl__is_small(g, call)) {
        return pl__meet(g, call, NULL, 0);
    }
    return pl__meet(g, call, call->in, pl__small_bytes(g, call));
}

static pl_status move(pl_group *g, pl__call *call) {
    switch (call->op) {
        case PL__OP_BUCKET:
            return pl__bucket_move(g, call);
        case PL__OP_ALL_TO_ALL:
            return pl__all_to_all_move(g, call);
        case PL__OP_SEGMENT:
        case PL__OP_GROUP_NEW:
        case PL__OP_BARRIER:
            return PL_OK;
        default:
            break;
    }
    if (!pl__is_small(g, call)) return pl__staged_move(g, call);
    pl__small_move(g, call);
    return PL_OK;
}

const pl__transport pl__shm_transport = {
    .name = "shared memory",
    .meet = meet,
    .move = move,
    .send = pl__shm_send,
    .recv = pl__shm_recv,
};

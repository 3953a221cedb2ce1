// SPDX-License-Identifier: Apache-2.0
// What each collective is in NCCL's words. Puts it on the group's stream and waits for nothing but
// NCCL's own start. Runs on the thread inside the group, after the meeting.
//
// What only moves data goes as bytes. Sums of bf16 and f16 are rounded at every hop, and the order
// of a sum is NCCL's: the same on all ranks and in every run of the same job, but not the tree of
// the CPU (reduce.h).
#include "comm/device.h"

#include <stdlib.h>
#include <string.h>

static int type_of(pl_dtype dt) {
    static const int types[PL_DTYPE_COUNT] = {
        [PL_BOOL] = PL__NCCL_UINT8,  [PL_U8] = PL__NCCL_UINT8,    [PL_I32] = PL__NCCL_INT32,
        [PL_I64] = PL__NCCL_INT64,   [PL_F16] = PL__NCCL_FLOAT16, [PL_BF16] = PL__NCCL_BFLOAT16,
        [PL_F32] = PL__NCCL_FLOAT32, [PL_F64] = PL__NCCL_FLOAT64,
    };
    return types[dt];
}

static int op_of(pl_dtype dt, pl_redop op) {
    static const int ops[] = {[PL_RED_SUM] = PL__NCCL_SUM,
                              [PL_RED_MEAN] = PL__NCCL_AVG,
                              [PL_RED_MAX] = PL__NCCL_MAX,
                              [PL_RED_MIN] = PL__NCCL_MIN};
    return dt == PL_BOOL && op == PL_RED_SUM ? PL__NCCL_MAX : ops[op];  // a sum of bools is "or"
}

// Rows between pairs of ranks, as one group of messages; sizes in bytes.
typedef struct exchange_rows {
    const char *in;
    char *out;
    size_t row;             // bytes
    const int64_t *splits;  // [2 * world] rows to each, then from each; NULL: one each way
    int to, from;           // the only rank that gets, or gives, something; -1: all do
} exchange_rows;

static bool is_taken(int result) {
    return result == PL__NCCL_SUCCESS || result == PL__NCCL_IN_PROGRESS;
}

static int exchange(const pl__nccl *n, const pl_group *g, const exchange_rows *x,
                    pl__nccl_comm comm, void *stream) {
    const char *in = x->in;
    char *out = x->out;
    int result = n->ncclGroupStart();
    for (int r = 0; r < g->world && is_taken(result); r++) {
        size_t send = x->row * (size_t)(x->splits ? x->splits[r] : 1);
        size_t recv = x->row * (size_t)(x->splits ? x->splits[g->world + r] : 1);
        if ((x->to >= 0 && r != x->to) || (x->from >= 0 && g->rank != x->from)) send = 0;
        if ((x->from >= 0 && r != x->from) || (x->to >= 0 && g->rank != x->to)) recv = 0;
        if (send) result = n->ncclSend(in, send, PL__NCCL_UINT8, r, comm, stream);
        if (recv && is_taken(result)) {
            result = n->ncclRecv(out, recv, PL__NCCL_UINT8, r, comm, stream);
        }
        if (x->to < 0) in += send;
        if (x->from < 0) out += recv;
    }
    int ended = n->ncclGroupEnd();
    return is_taken(result) ? ended : result;
}

static int issue(const pl__nccl *n, const pl_group *g, const pl__call *c, pl__nccl_comm comm,
                 void *stream) {
    size_t count = (size_t)c->count, bytes = count * pl_dtype_size(c->dtype);
    int type = type_of(c->dtype), op = op_of(c->dtype, c->redop);
    exchange_rows x = {c->in, c->out, bytes, NULL, -1, -1};
    switch (c->op) {
        case PL__OP_ALL_REDUCE:
        case PL__OP_BUCKET:
            return n->ncclAllReduce(c->in, c->out, count, type, op, comm, stream);
        case PL__OP_REDUCE:
            return n->ncclReduce(c->in, c->out, count, type, op, c->root, comm, stream);
        case PL__OP_REDUCE_SCATTER:
            return n->ncclReduceScatter(c->in, c->out, count, type, op, comm, stream);
        case PL__OP_ALL_GATHER:
            return n->ncclAllGather(c->in, c->out, bytes, PL__NCCL_UINT8, comm, stream);
        case PL__OP_BROADCAST:
            return n->ncclBroadcast(c->in, c->out, bytes, PL__NCCL_UINT8, c->root, comm, stream);
        case PL__OP_GATHER:
            x.to = c->root;
            return exchange(n, g, &x, comm, stream);
        case PL__OP_SCATTER:
            x.from = c->root;
            return exchange(n, g, &x, comm, stream);
        case PL__OP_ALL_TO_ALL:
            x.splits = c->splits;
            return exchange(n, g, &x, comm, stream);
        default:
            return PL__NCCL_INVALID_USAGE;
    }
}

// One rank needs no NCCL, but may ask for it, to see that it works.
bool pl__device_is_alone(const pl_group *g) {
    const char *asked = g->world == 1 ? getenv("PACELINE_NCCL_ALONE") : NULL;
    return g->world == 1 && !(asked && strcmp(asked, "1") == 0);
}

// What it gets is what it gave.
static pl_status put_alone(pl__device *d, const pl__call *c) {
    int64_t rows = c->op == PL__OP_ALL_TO_ALL ? c->splits[0] : 1;
    size_t bytes = (size_t)(rows * c->count) * pl_dtype_size(c->dtype);
    if (c->in == c->out || bytes == 0) return PL_OK;
    return d->r->copy(d->r, d->stream, PL_COPY_ON_DEVICE, c->out, c->in, bytes);
}

pl_status pl__device_put(pl_group *g, pl__call *call) {
    pl__device *d = atomic_load_explicit(&g->device, memory_order_acquire);
    if (call->op == PL__OP_ALL_TO_ALL) PL_TRY(pl__splits_check(g, call));
    if (pl__device_is_alone(g)) return put_alone(d, call);
    if (call->count == 0) return PL_OK;
    pl_status st = PL_OK;
    pthread_mutex_lock(&d->lock);
    pl__nccl_comm comm = atomic_load_explicit(&d->comm, memory_order_acquire);
    if (comm) {  // else settle says why there is none any more
        int result = issue(d->nccl, g, call, comm, d->r->native(d->r, d->stream));
        st = pl__nccl_status(d->nccl, pl__op_name(call->op), result, comm);
    }
    pthread_mutex_unlock(&d->lock);
    return st == PL_OK ? pl__device_settle(g, call, false) : st;
}

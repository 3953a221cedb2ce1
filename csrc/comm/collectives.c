// SPDX-License-Identifier: Apache-2.0
// The public collectives: arguments are checked here, and nowhere below. A wrong argument is this
// rank's own error: nothing is published, the group stays whole. Runs on the caller's thread.
#include "base/trace.h"
#include "comm/internal.h"
#include "comm/reduce.h"

#define MAX_COUNT (INT64_C(1) << 48)

static pl_status check(const pl_group *g, const pl__call *c) {
    const char *op = pl__op_name(c->op);
    if ((unsigned)c->dtype >= PL_DTYPE_COUNT) {
        return pl_fail(PL_ETYPE, "[%s] unknown dtype: got %d", op, (int)c->dtype);
    }
    if (c->count < 0 || c->count > MAX_COUNT / g->world) {
        return pl_fail(PL_EINVAL, "[%s] wrong count: got %lld, expected 0 to %lld", op,
                       (long long)c->count, (long long)(MAX_COUNT / g->world));
    }
    bool rooted = c->op == PL__OP_REDUCE || c->op == PL__OP_BROADCAST;
    if (rooted && (c->root < 0 || c->root >= g->world)) {
        return pl_fail(PL_EINVAL, "[%s] wrong root: got %d, expected 0 to %d", op, c->root,
                       g->world - 1);
    }
    bool reduces =
        c->op == PL__OP_ALL_REDUCE || c->op == PL__OP_REDUCE || c->op == PL__OP_REDUCE_SCATTER;
    return reduces ? pl__reduce_check(op, c->dtype, c->redop) : PL_OK;
}

static pl_status run(pl_group *g, pl__call *c) {
    PL_TRY(check(g, c));
    return pl__run_sync(g, c);
}

pl_status pl_group_all_reduce(pl_group *g, void *buf, int64_t count, pl_dtype dt, pl_redop op,
                              pl_site site) {
    pl__call c = {.op = PL__OP_ALL_REDUCE,
                  .dtype = dt,
                  .redop = op,
                  .root = -1,
                  .count = count,
                  .site = site,
                  .in = buf,
                  .out = buf};
    return run(g, &c);
}

pl_status pl_group_all_reduce_async(pl_group *g, void *buf, int64_t count, pl_dtype dt, pl_redop op,
                                    pl_site site, pl_work **out) {
    pl__call c = {.op = PL__OP_ALL_REDUCE,
                  .dtype = dt,
                  .redop = op,
                  .root = -1,
                  .count = count,
                  .site = site,
                  .in = buf,
                  .out = buf};
    PL_TRY(check(g, &c));
    return pl__queue(g, &c, out);
}

pl_status pl_group_reduce(pl_group *g, void *buf, int64_t count, pl_dtype dt, pl_redop op, int root,
                          pl_site site) {
    pl__call c = {.op = PL__OP_REDUCE,
                  .dtype = dt,
                  .redop = op,
                  .root = root,
                  .count = count,
                  .site = site,
                  .in = buf,
                  .out = buf};
    return run(g, &c);
}

pl_status pl_group_reduce_scatter(pl_group *g, const void *in, void *out, int64_t count,
                                  pl_dtype dt, pl_redop op, pl_site site) {
    pl__call c = {.op = PL__OP_REDUCE_SCATTER,
                  .dtype = dt,
                  .redop = op,
                  .root = -1,
                  .count = count,
                  .site = site,
                  .in = in,
                  .out = out};
    return run(g, &c);
}

pl_status pl_group_all_gather(pl_group *g, const void *in, void *out, int64_t count, pl_dtype dt,
                              pl_site site) {
    pl__call c = {.op = PL__OP_ALL_GATHER,
                  .dtype = dt,
                  .root = -1,
                  .count = count,
                  .site = site,
                  .in = in,
                  .out = out};
    return run(g, &c);
}

pl_status pl_group_broadcast(pl_group *g, void *buf, int64_t count, pl_dtype dt, int root,
                             pl_site site) {
    pl__call c = {.op = PL__OP_BROADCAST,
                  .dtype = dt,
                  .root = root,
                  .count = count,
                  .site = site,
                  .in = buf,
                  .out = buf};
    return run(g, &c);
}

pl_status pl_group_barrier(pl_group *g, pl_site site) {
    pl__call c = {.op = PL__OP_BARRIER, .dtype = PL_U8, .root = -1, .site = site};
    return run(g, &c);
}

static pl_status check_message(pl_group *g, pl__call *c) {
    c->seq = atomic_load_explicit(&g->seq, memory_order_relaxed);  // of the next collective
    PL_TRY(check(g, c));
    if (c->root < 0 || c->root >= g->world || c->root == g->rank) {
        return pl_fail(PL_EINVAL, "[%s] wrong peer: got rank %d, expected another rank of 0 to %d",
                       pl__op_name(c->op), c->root, g->world - 1);
    }
    return pl__group_enter(g, c);
}

pl_status pl_group_send(pl_group *g, const void *buf, int64_t count, pl_dtype dt, int dst, int tag,
                        pl_site site) {
    pl__call c = {.op = PL__OP_SEND,
                  .dtype = dt,
                  .root = dst,
                  .tag = tag,
                  .count = count,
                  .site = site,
                  .in = buf};
    PL_TRY(check_message(g, &c));
    int64_t since = pl_trace_begin();
    pl_status st = g->transport->send(g, &c);
    pl_trace_end(since, PL_TRACE_COMM, "send");
    return st;
}

pl_status pl_group_recv(pl_group *g, void *buf, int64_t count, pl_dtype dt, int src, int tag,
                        pl_site site) {
    pl__call c = {.op = PL__OP_RECV,
                  .dtype = dt,
                  .root = src,
                  .tag = tag,
                  .count = count,
                  .site = site,
                  .out = buf};
    PL_TRY(check_message(g, &c));
    int64_t since = pl_trace_begin();
    pl_status st = g->transport->recv(g, &c);
    pl_trace_end(since, PL_TRACE_COMM, "recv");
    return st;
}

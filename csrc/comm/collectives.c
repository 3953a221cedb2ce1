// SPDX-License-Identifier: Apache-2.0
// The public collectives: arguments are checked here, and nowhere below. A wrong argument is this
// rank's own error: nothing is published, the group stays whole. Runs on the caller's thread.
#include "base/trace.h"
#include "comm/internal.h"
#include "comm/reduce.h"

#define MAX_COUNT (INT64_C(1) << 48)

static bool is_rooted(pl__op op) {
    return op == PL__OP_REDUCE || op == PL__OP_BROADCAST || op == PL__OP_GATHER ||
           op == PL__OP_SCATTER;
}

static pl_status check(const pl_group *g, const pl__call *c) {
    const char *op = pl__op_name(c->op);
    if ((unsigned)c->dtype >= PL_DTYPE_COUNT) {
        return pl_fail(PL_ETYPE, "[%s] unknown dtype: got %d", op, (int)c->dtype);
    }
    if (c->count < 0 || c->count > MAX_COUNT / g->world) {
        return pl_fail(PL_EINVAL, "[%s] wrong count: got %lld, expected 0 to %lld", op,
                       (long long)c->count, (long long)(MAX_COUNT / g->world));
    }
    if (is_rooted(c->op) && (c->root < 0 || c->root >= g->world)) {
        return pl_fail(PL_EINVAL, "[%s] wrong root: got %d, expected 0 to %d", op, c->root,
                       g->world - 1);
    }
    bool reduces =
        c->op == PL__OP_ALL_REDUCE || c->op == PL__OP_REDUCE || c->op == PL__OP_REDUCE_SCATTER;
    return reduces ? pl__reduce_check(op, c->dtype, c->redop) : PL_OK;
}

// What every call has. A call has no root and reduces nothing unless its function says so.
static pl__call describe(pl__op op, const void *in, void *out, int64_t count, pl_dtype dt,
                         pl_site site) {
    return (pl__call){
        .op = op, .dtype = dt, .root = -1, .count = count, .site = site, .in = in, .out = out};
}

static pl_status run(pl_group *g, pl__call *c) {
    PL_TRY(check(g, c));
    return pl__run_sync(g, c);
}

static const pl__op ops[PL_COLL_COUNT] = {
    [PL_COLL_ALL_REDUCE] = PL__OP_ALL_REDUCE,
    [PL_COLL_REDUCE] = PL__OP_REDUCE,
    [PL_COLL_REDUCE_SCATTER] = PL__OP_REDUCE_SCATTER,
    [PL_COLL_ALL_GATHER] = PL__OP_ALL_GATHER,
    [PL_COLL_BROADCAST] = PL__OP_BROADCAST,
    [PL_COLL_GATHER] = PL__OP_GATHER,
    [PL_COLL_SCATTER] = PL__OP_SCATTER,
    [PL_COLL_ALL_TO_ALL] = PL__OP_ALL_TO_ALL,
};

pl_status pl_group_collective(pl_group *g, const pl_collective *what, pl_site site, pl_work **out) {
    if ((unsigned)what->kind >= PL_COLL_COUNT) {
        return pl_fail(PL_EINVAL, "[collective] unknown kind: got %d", (int)what->kind);
    }
    pl__call c = describe(ops[what->kind], what->in, what->out, what->count, what->dtype, site);
    c.redop = what->op;
    c.device = what->device;
    if (is_rooted(c.op)) c.root = what->root;
    if (c.op == PL__OP_ALL_TO_ALL) {
        c.splits = what->splits;
        c.site.shape = 0;  // the first dimension is the sum of the splits, which differ rightly
        if (out) return pl_fail(PL_EINVAL, "[all_to_all] cannot be queued");
    }
    if (!out) return run(g, &c);
    PL_TRY(check(g, &c));
    return pl__queue(g, &c, out);
}

pl_status pl_group_all_reduce(pl_group *g, void *buf, int64_t count, pl_dtype dt, pl_redop op,
                              pl_site site) {
    pl__call c = describe(PL__OP_ALL_REDUCE, buf, buf, count, dt, site);
    c.redop = op;
    return run(g, &c);
}

pl_status pl_group_all_reduce_async(pl_group *g, void *buf, int64_t count, pl_dtype dt, pl_redop op,
                                    pl_site site, pl_work **out) {
    pl__call c = describe(PL__OP_ALL_REDUCE, buf, buf, count, dt, site);
    c.redop = op;
    PL_TRY(check(g, &c));
    return pl__queue(g, &c, out);
}

pl_status pl_group_reduce(pl_group *g, void *buf, int64_t count, pl_dtype dt, pl_redop op, int root,
                          pl_site site) {
    pl__call c = describe(PL__OP_REDUCE, buf, buf, count, dt, site);
    c.redop = op;
    c.root = root;
    return run(g, &c);
}

pl_status pl_group_reduce_scatter(pl_group *g, const void *in, void *out, int64_t count,
                                  pl_dtype dt, pl_redop op, pl_site site) {
    pl__call c = describe(PL__OP_REDUCE_SCATTER, in, out, count, dt, site);
    c.redop = op;
    return run(g, &c);
}

pl_status pl_group_all_gather(pl_group *g, const void *in, void *out, int64_t count, pl_dtype dt,
                              pl_site site) {
    pl__call c = describe(PL__OP_ALL_GATHER, in, out, count, dt, site);
    return run(g, &c);
}

pl_status pl_group_broadcast(pl_group *g, void *buf, int64_t count, pl_dtype dt, int root,
                             pl_site site) {
    pl__call c = describe(PL__OP_BROADCAST, buf, buf, count, dt, site);
    c.root = root;
    return run(g, &c);
}

pl_status pl_group_barrier(pl_group *g, pl_site site) {
    pl__call c = describe(PL__OP_BARRIER, NULL, NULL, 0, PL_U8, site);
    return run(g, &c);
}

// ---- Messages -----------------------------------------------------------------------------------

static pl_status check_message(pl_group *g, pl__call *c) {
    c->seq = atomic_load_explicit(&g->seq, memory_order_relaxed);  // of the next collective
    PL_TRY(check(g, c));
    if (c->root < 0 || c->root >= g->world || c->root == g->rank) {
        return pl_fail(PL_EINVAL, "[%s] wrong peer: got rank %d, expected another rank of 0 to %d",
                       pl__op_name(c->op), c->root, g->world - 1);
    }
    return pl__group_enter(g, c);
}

static pl_status post(pl_group *g, pl__call *c) {
    bool sends = c->op == PL__OP_SEND;
    int64_t since = pl_trace_begin();
    pl_status st = sends ? g->transport->send(g, c) : g->transport->recv(g, c);
    pl_trace_end(since, PL_TRACE_COMM, sends ? "send" : "recv");
    return st;
}

// A copy between the host's memory and the device's, in the order of the current stream.
static pl_status copy_over(const pl_device_services *s, pl_copy_kind kind, void *dst,
                           const void *src, size_t nbytes) {
    PL_TRY(s->runtime->copy(s->runtime, pl_device_current(s), kind, dst, src, nbytes));
    return pl_device_wait(s, pl_device_current(s));
}

// Through a buffer of the host. Not NCCL's send and recv: those would wait for each other on the
// device, where a program whose messages and collectives cross, which is legal here, hangs.
static pl_status post_from_device(pl_group *g, pl__call *c, const pl_message *m) {
    const pl_device_services *s = pl_device_find(m->device);
    size_t nbytes = (size_t)m->count * pl_dtype_size(m->dtype);
    void *room = NULL;
    if (!s) return pl_fail(PL_EDEVICE, "[%s] the device is not open", pl__op_name(c->op));
    PL_TRY(pl_alloc(nbytes ? nbytes : 1, &room));
    c->in = c->out = room;
    pl_status st = PL_OK;
    if (m->sends && nbytes) st = copy_over(s, PL_COPY_TO_HOST, room, m->buf, nbytes);
    if (st == PL_OK) st = post(g, c);
    if (st == PL_OK && !m->sends && nbytes) {
        st = copy_over(s, PL_COPY_TO_DEVICE, m->buf, room, nbytes);
    }
    pl_free(room);
    return st;
}

pl_status pl_group_message(pl_group *g, const pl_message *m, pl_site site) {
    pl__op op = m->sends ? PL__OP_SEND : PL__OP_RECV;
    pl__call c = describe(op, m->buf, m->buf, m->count, m->dtype, site);
    c.root = m->peer;
    c.tag = m->tag;
    PL_TRY(check_message(g, &c));
    return m->device.type == PL_CPU ? post(g, &c) : post_from_device(g, &c, m);
}

pl_status pl_group_send(pl_group *g, const void *buf, int64_t count, pl_dtype dt, int dst, int tag,
                        pl_site site) {
    pl_message m = {.sends = true, .count = count, .dtype = dt, .peer = dst, .tag = tag};
    m.buf = (void *)(uintptr_t)buf;
    return pl_group_message(g, &m, site);
}

pl_status pl_group_recv(pl_group *g, void *buf, int64_t count, pl_dtype dt, int src, int tag,
                        pl_site site) {
    pl_message m = {.buf = buf, .count = count, .dtype = dt, .peer = src, .tag = tag};
    return pl_group_message(g, &m, site);
}

// SPDX-License-Identifier: Apache-2.0
// The links of a rank: how it sends its part of the shared memory to the other machines, see
// Note [mirrors] in net.h. Runs on whichever thread is inside the group, and on the watch thread.
//
// A frame is written whole or the link is closed: a wait for room ends with the frame, a failure of
// the group, Ctrl-C, the deadline, or an error of the socket. What cannot be sent is dropped and
// remembered; the wait for the answer then says why none can come.
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "comm/internal.h"

#define PATIENCE_MS 1000  // for a frame that belongs to no call
#define ROOM_MS 20        // between two looks around while the peer takes no more
#define DROPPED_GRACE_NS INT64_C(300000000)  // for the reason why a link was closed to get here

int pl__machine_of(const pl_group *g, int rank) {
    int m = 0;
    while (rank >= g->net->first[m + 1]) m++;
    return m;
}

static int lowest(const pl_group *g, int machine) { return g->net->first[machine]; }

// ---- writing ----------------------------------------------------------------------------------

// Why to stop waiting for room; PL_OK to go on. Takes no lock that a sender could hold.
static bool is_over(pl_group *g, const struct pl__call *call, int64_t deadline, pl_status *st) {
    *st = PL_OK;
    if (pl_now_ns() >= deadline || atomic_load_explicit(&g->broken, memory_order_acquire)) {
        return true;
    }
    if (atomic_load_explicit(&g->control->verdict, memory_order_acquire)) return true;
    if (call && !call->on_comm) *st = pl_check_interrupt();
    return *st != PL_OK;
}

// Takes the first n bytes off the list.
static void advance(struct msghdr *m, size_t n) {
    while (m->msg_iovlen && n >= m->msg_iov->iov_len) {
        n -= m->msg_iov->iov_len;
        m->msg_iov++;
        m->msg_iovlen--;
    }
    if (m->msg_iovlen) {
        m->msg_iov->iov_base = (char *)m->msg_iov->iov_base + n;
        m->msg_iov->iov_len -= n;
    }
}

static void close_link(pl__link *l, int error) {
    l->error = error;
    // The descriptor is closed with the group; the peer's inbox must see the end now.
    (void)shutdown(l->fd, SHUT_RDWR);
    atomic_store_explicit(&l->closed, true, memory_order_release);
}

// The link's lock is held. Closes the link where the frame did not go out whole.
static pl_status write_all(pl_group *g, const struct pl__call *call, pl__link *l,
                           struct msghdr *m) {
    int64_t deadline = pl_now_ns() + (call ? g->timeout_ns : PATIENCE_MS * INT64_C(1000000));
    bool begun = false;
    pl_status st = PL_OK;
    while (m->msg_iovlen) {
        ssize_t n = sendmsg(l->fd, m, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n > 0) {
            begun = true;
            advance(m, (size_t)n);
        } else if (n < 0 && errno != EAGAIN && errno != EINTR && errno != ENOBUFS) {
            close_link(l, errno);
            return PL_OK;
        } else if (is_over(g, call, deadline, &st)) {
            if (begun) close_link(l, 0);
            return st;
        } else {
            struct pollfd p = {.fd = l->fd, .events = POLLOUT};
            (void)poll(&p, 1, ROOM_MS);
        }
    }
    return PL_OK;
}

static void blame_machine(pl_group *g, int machine, int error) {
    char text[512];
    uint64_t dead[PL_MAX_RANKS / 64] = {0};
    int first = lowest(g, machine), last = lowest(g, machine + 1) - 1;
    for (int r = first; r <= last; r++) dead[r / 64] |= UINT64_C(1) << (r % 64);
    snprintf(text, sizeof text,
             "the connection to machine %d (rank%s %d%s%.0d) is lost: %s, after %.1f s without an "
             "answer: the link is cut, the machine is down, or rank %d, which receives there, is "
             "frozen",
             machine, last > first ? "s" : "", first, last > first ? " to " : "",
             last > first ? last : 0, strerror(error), g->net->link_ms / 1e3, first);
    (void)pl__propose(g, PL_EPEER, dead, text);
}

// The other end closed; it says why itself, or its death is seen.
static bool is_hangup(int error) { return error == 0 || error == EPIPE || error == ECONNRESET; }

typedef struct body {
    const void *data[2];
    size_t n[2];
} body;

static pl_status send_frame(pl_group *g, struct pl__call *call, int machine, pl__frame *f,
                            const body *b) {
    pl__link *l = &g->net->links[machine];
    f->magic = PL__CONTROL_MAGIC;
    f->rank = (uint16_t)g->rank;
    f->nbytes = (uint32_t)(b->n[0] + b->n[1]);
    struct iovec iov[3] = {{f, sizeof *f},
                           {(void *)(uintptr_t)b->data[0], b->n[0]},
                           {(void *)(uintptr_t)b->data[1], b->n[1]}};
    struct msghdr m = {.msg_iov = iov, .msg_iovlen = 3};
    pl_status st = PL_OK;
    pthread_mutex_lock(&l->lock);
    bool was_open = !atomic_load_explicit(&l->closed, memory_order_relaxed);
    if (was_open) st = write_all(g, call, l, &m);
    bool closed = atomic_load_explicit(&l->closed, memory_order_relaxed);
    if (call && closed && !l->dropped_ns) l->dropped_ns = pl_now_ns();
    pthread_mutex_unlock(&l->lock);
    if (was_open && closed && !is_hangup(l->error)) blame_machine(g, machine, l->error);
    if (st != PL_OK) return pl__fail_local(g, call, st, "interrupted");
    return PL_OK;
}

static pl_status send_all(pl_group *g, struct pl__call *call, const pl__frame *f, const body *b) {
    for (int i = 1; g->net && i < g->net->n_machines; i++) {
        int machine = (g->net->machine + i) % g->net->n_machines;  // not all at the same one first
        pl__frame copy = *f;
        PL_TRY(send_frame(g, call, machine, &copy, b));
    }
    return PL_OK;
}

// ---- what is sent -----------------------------------------------------------------------------

pl_status pl__net_call(pl_group *g, struct pl__call *call, const pl__fingerprint *fp,
                       const void *payload, size_t nbytes) {
    if (!g->net) return PL_OK;
    pl__frame_call c = {.fingerprint = *fp};
    pl__frame f = {.kind = PL__FRAME_CALL, .value = (uint32_t)(call->seq + 1)};
    body b = {{&c, NULL}, {sizeof c, 0}};
    if (call->site.text) snprintf(c.site, sizeof c.site, "%s", call->site.text);
    if (nbytes && nbytes <= PL__INLINE_BYTES) {
        memcpy(c.inlined, payload, nbytes);
    } else {
        b.data[1] = payload;
        b.n[1] = nbytes;
    }
    return send_all(g, call, &f, &b);
}

pl_status pl__net_step(pl_group *g, struct pl__call *call) {
    pl__frame f = {.kind = PL__FRAME_STEP, .value = g->step};
    return send_all(g, call, &f, &(body){{NULL, NULL}, {0, 0}});
}

pl_status pl__net_area_to(pl_group *g, struct pl__call *call, int machine, int which, size_t skip,
                          size_t n) {
    if (n == 0 || machine == g->net->machine) return PL_OK;
    const char *from = pl__area(g, g->rank, which) + skip;
    pl__frame f = {.kind = PL__FRAME_AREA, .at = (uint64_t)(from - pl__area(g, g->rank, 0))};
    return send_frame(g, call, machine, &f, &(body){{from, NULL}, {n, 0}});
}

pl_status pl__net_area(pl_group *g, struct pl__call *call, int which, size_t skip, size_t n) {
    if (!g->net || n == 0) return PL_OK;
    const char *from = pl__area(g, g->rank, which) + skip;
    pl__frame f = {.kind = PL__FRAME_AREA, .at = (uint64_t)(from - pl__area(g, g->rank, 0))};
    return send_all(g, call, &f, &(body){{from, NULL}, {n, 0}});
}

pl_status pl__net_rows(pl_group *g, struct pl__call *call, int which, size_t n) {
    for (int m = 0; g->net && n && m < g->net->n_machines; m++) {
        size_t rows = (size_t)(lowest(g, m + 1) - lowest(g, m));
        PL_TRY(pl__net_area_to(g, call, m, which, (size_t)lowest(g, m) * n, rows * n));
    }
    return PL_OK;
}

pl_status pl__net_mail(pl_group *g, struct pl__call *call, uint32_t n, size_t nbytes) {
    int dst = call->root;
    if (!pl__is_remote(g, dst)) return PL_OK;
    pl__frame f = {.kind = PL__FRAME_MAIL, .value = n + 1, .at = (uint64_t)dst};
    const void *slot = pl__mail_slot(g, g->rank, dst, n);
    return send_frame(g, call, pl__machine_of(g, dst), &f, &(body){{slot, NULL}, {nbytes, 0}});
}

pl_status pl__net_taken(pl_group *g, struct pl__call *call, uint32_t n) {
    int src = call->root;
    if (!pl__is_remote(g, src)) return PL_OK;
    pl__frame f = {.kind = PL__FRAME_TAKEN, .value = n, .at = (uint64_t)src};
    return send_frame(g, call, pl__machine_of(g, src), &f, &(body){{NULL, NULL}, {0, 0}});
}

void pl__net_state(pl_group *g) {
    char text[PL__TEXT_BYTES];
    pl__frame f = {
        .kind = PL__FRAME_STATE,
        .value = atomic_load_explicit(&g->me->state, memory_order_acquire),
        .at = atomic_load_explicit(&g->me->finished_seq, memory_order_relaxed),
    };
    pl__shared_get_text(text, g->me->failure, sizeof text);
    (void)send_all(g, NULL, &f, &(body){{text, NULL}, {sizeof text, 0}});
}

static pl__frame_proposal proposal_of(const pl_group *g, int rank) {
    const pl__proposal *p = &g->control->slots[rank].proposal;
    pl__frame_proposal out = {.status = atomic_load_explicit(&p->status, memory_order_relaxed)};
    for (int i = 0; i < PL_MAX_RANKS / 64; i++) {
        out.dead[i] = atomic_load_explicit(&p->dead[i], memory_order_relaxed);
    }
    pl__shared_get_text(out.text, p->text, sizeof out.text);
    return out;
}

bool pl__net_offer(pl_group *g) {
    pl__frame f = {.kind = PL__FRAME_OFFER};
    pl__frame_proposal p = proposal_of(g, g->rank);
    (void)send_frame(g, NULL, 0, &f, &(body){{&p, NULL}, {sizeof p, 0}});
    return !atomic_load_explicit(&g->net->links[0].closed, memory_order_relaxed);
}

void pl__net_verdict(pl_group *g, int rank) {
    pl__frame f = {.kind = PL__FRAME_VERDICT, .value = (uint32_t)rank + 1};
    pl__frame_proposal p = proposal_of(g, rank);
    (void)send_all(g, NULL, &f, &(body){{&p, NULL}, {sizeof p, 0}});
}

void pl__net_beat(pl_group *g) {
    for (int m = 0; g->net && m < g->net->n_machines; m++) {
        pl__link *l = &g->net->links[m];
        struct pollfd p = {.fd = l->fd, .events = POLLOUT};
        if (m == g->net->machine || atomic_load_explicit(&l->closed, memory_order_acquire))
            continue;
        // With data under way there is no need for a sign of life, and no room for it.
        if (poll(&p, 1, 0) != 1) continue;
        pl__frame f = {.kind = PL__FRAME_BEAT};
        (void)send_frame(g, NULL, m, &f, &(body){{NULL, NULL}, {0, 0}});
    }
}

pl_status pl__net_look(pl_group *g, const struct pl__call *call, int peer) {
    if (!pl__is_remote(g, peer)) return PL_OK;
    // Acquire: what it had received is there, and the caller has looked for its word since.
    if (atomic_load_explicit(&g->control->receiver_gone, memory_order_acquire)) {
        return pl__blame_finished(g, call, g->first);
    }
    int machine = pl__machine_of(g, peer), there = lowest(g, machine);
    pl__link *l = &g->net->links[machine];
    if (!atomic_load_explicit(&l->closed, memory_order_acquire) || !l->dropped_ns) return PL_OK;
    uint32_t state = atomic_load_explicit(&g->control->slots[there].state, memory_order_acquire);
    if (state == PL__FINISHED) return pl__blame_finished(g, call, there);
    if (state == PL__FAILED) return pl__blame_failed(g, call, there);
    if (pl_now_ns() - l->dropped_ns > DROPPED_GRACE_NS) {
        blame_machine(g, machine, l->error ? l->error : EPIPE);
        return pl__fail_verdict(g, call);
    }
    return PL_OK;
}

// ---- birth and death --------------------------------------------------------------------------

static void set_up_socket(int fd, int link_ms) {
    // A socket pair, in tests, has neither; a cut link is then not noticed, which is all.
    int one = 1;
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &link_ms, sizeof link_ms);
}

pl_status pl__net_start(pl_group *g, const pl_group_options *opt) {
    void *p;
    if (opt->n_machines <= 1) return PL_OK;
    PL_TRY(pl_calloc(sizeof(pl__net) + (size_t)opt->n_machines * sizeof(pl__link), &p));
    pl__net *net = g->net = p;
    net->links = (pl__link *)(void *)(net + 1);
    net->n_machines = opt->n_machines;
    net->link_ms = (int)opt->link_ms;
    for (int m = 0; m < net->n_machines; m++) {
        net->first[m] = opt->machine_first[m];
        if (net->first[m] == g->first) net->machine = m;
        net->links[m].fd = opt->link_fds[m];
        pthread_mutex_init(&net->links[m].lock, NULL);
        if (net->links[m].fd >= 0) set_up_socket(net->links[m].fd, net->link_ms);
    }
    net->first[net->n_machines] = g->world;
    int width = net->first[1];
    bool even = width > 1 && (width & (width - 1)) == 0;
    for (int m = 0; m < net->n_machines; m++) even = even && net->first[m + 1] == (m + 1) * width;
    net->width = even ? width : 0;
    return g->rank == g->first ? pl__inbox_start(g, opt->inbox_fds) : PL_OK;
}

void pl__net_forget_fds(pl_group *g) {
    for (int m = 0; g->net && m < g->net->n_machines; m++) g->net->links[m].fd = -1;
    if (g->net && g->net->inbox) pl__inbox_forget_fds(g->net->inbox);
}

void pl__net_close_fds(pl_group *g) {
    for (int m = 0; g->net && m < g->net->n_machines; m++) {
        if (g->net->links[m].fd >= 0) close(g->net->links[m].fd);
        g->net->links[m].fd = -1;
    }
    if (g->net && g->net->inbox) pl__inbox_close_fds(g->net->inbox);
}

void pl__net_free(pl_group *g) {
    if (!g->net) return;
    for (int m = 0; m < g->net->n_machines; m++) pthread_mutex_destroy(&g->net->links[m].lock);
    pl__inbox_free(g->net->inbox);
    pl_free(g->net);
    g->net = NULL;
}

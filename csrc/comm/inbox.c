// SPDX-License-Identifier: Apache-2.0
// The inbox of a machine: a thread of its lowest rank that receives what the ranks of the other
// machines write, puts it into their mirrors, posts their words and wakes who waits; see
// Note [mirrors] in net.h. Uses no OpenMP, blocks all signals, never allocates, never waits for
// anything but its sockets.
//
// What arrives is checked against what its sender may write before a byte of it is placed; staging
// areas and mailboxes are received in place, the rest through a buffer.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "comm/internal.h"

#define GRACE_NS INT64_C(60000000)  // for those who know more of a death than that a stream ended
#define GRACE_POLL_MS 10
#define IDLE_POLL_MS 1000

typedef struct conn {
    int fd, rank;
    size_t have;       // bytes of the frame so far, header and body
    pl__frame head;    // valid once have >= sizeof head
    char *place;       // where the body goes
    int64_t ended_ns;  // the stream ended; 0 while it has not
    bool settled;      // its end is explained
    bool bad;          // it sent something that is no frame
    unsigned char body[PL__BODY_MAX];
} conn;

struct pl__inbox {
    pthread_t thread;
    bool started;
    int stop_fd, n;
    conn conns[];
};

void *pl__mirror_arena(const pl_group *g, int rank) {
    int index = rank < g->first ? rank : rank - (g->end - g->first);
    size_t slots = sizeof(pl__control) + (size_t)g->world * sizeof(pl__slot);
    return (char *)g->control + slots + (size_t)index * pl__arena_bytes(g->world);
}

// ---- frames -----------------------------------------------------------------------------------

// Where the body of a frame goes, NULL if the frame is not one that its sender may send.
static char *place_of(const pl_group *g, conn *c) {
    const pl__frame *f = &c->head;
    size_t n = f->nbytes, proposal = sizeof(pl__frame_proposal);
    bool arena = atomic_load_explicit(&g->arena, memory_order_acquire) != NULL;
    bool mine = f->at < (uint64_t)g->world && !pl__is_remote(g, (int)f->at);
    if (f->magic != PL__CONTROL_MAGIC || f->rank != c->rank) return NULL;
    bool fits = false;
    switch (f->kind) {
        case PL__FRAME_CALL:
            fits = n >= sizeof(pl__frame_call) && n <= PL__BODY_MAX;
            break;
        case PL__FRAME_AREA:
            if (n > pl__mail_offset() || f->at > pl__mail_offset() - n) return NULL;
            return (char *)pl__mirror_arena(g, c->rank) + f->at;
        case PL__FRAME_MAIL:
            // The slot's own bytes; `value` is one more than its number.
            if (!mine || !arena || n > pl__mail_slot_bytes(g->world)) return NULL;
            return pl__mail_slot(g, c->rank, (int)f->at, f->value - 1);
        case PL__FRAME_TAKEN:
            fits = mine && arena && n == 0;
            break;
        case PL__FRAME_STATE:
            fits = n == PL__TEXT_BYTES && (f->value == PL__FINISHED || f->value == PL__FAILED);
            break;
        case PL__FRAME_OFFER:
            fits = n == proposal && g->net->machine == 0;
            break;
        case PL__FRAME_VERDICT:
            fits = n == proposal && pl__machine_of(g, c->rank) == 0 && f->value >= 1 &&
                   f->value <= (uint32_t)g->world;
            break;
        default:
            fits = n == 0 && (f->kind == PL__FRAME_BEAT || f->kind == PL__FRAME_STEP);
            break;
    }
    return fits ? (char *)c->body : NULL;
}

static void post(pl__slot *s, _Atomic uint32_t *word, uint32_t value) {
    // seq_cst: Note [lost wakeups] in wait.c. As a release it publishes what was placed before.
    atomic_store_explicit(word, value, memory_order_seq_cst);
    if (atomic_load_explicit(&s->sleepers, memory_order_seq_cst)) pl__futex_wake(word, true);
}

static void place_call(pl__slot *s, const conn *c) {
    pl__frame_call call;
    int at = (int)((c->head.value - 1) & 1);
    pl__record *rec = &s->record[at];
    memcpy(&call, c->body, sizeof call);
    call.site[sizeof call.site - 1] = 0;
    pl__shared_put(rec->fingerprint, &call.fingerprint, sizeof call.fingerprint);
    memcpy(rec->inlined, call.inlined, sizeof call.inlined);
    memcpy(s->payload[at], c->body + sizeof call, c->head.nbytes - sizeof call);
    pl__shared_put_text(s->site[at], PL__SITE_BYTES, call.site);
    post(s, &rec->arrived, c->head.value);
}

static void place_state(pl_group *g, pl__slot *s, conn *c) {
    c->body[PL__TEXT_BYTES - 1] = 0;
    pl__shared_put_text(s->failure, PL__TEXT_BYTES, (const char *)c->body);
    atomic_store_explicit(&s->finished_seq, c->head.at, memory_order_relaxed);
    // Release: what belongs to the state was written before.
    atomic_store_explicit(&s->state, c->head.value, memory_order_release);
    pl__wake_all(g);
}

static void place_proposal(pl__slot *s, const conn *c) {
    pl__frame_proposal in;
    memcpy(&in, c->body, sizeof in);
    in.text[sizeof in.text - 1] = 0;
    pl__shared_put_text(s->proposal.text, sizeof s->proposal.text, in.text);
    for (int i = 0; i < PL_MAX_RANKS / 64; i++) {
        atomic_store_explicit(&s->proposal.dead[i], in.dead[i], memory_order_relaxed);
    }
    atomic_store_explicit(&s->proposal.status, (uint32_t)in.status, memory_order_relaxed);
}

static void take_verdict(pl_group *g, const conn *c) {
    int rank = (int)c->head.value - 1;
    if (pl__is_remote(g, rank)) place_proposal(&g->control->slots[rank], c);
    pl__take_verdict(g, rank);
    pl__wake_all(g);
}

// Rank 0's machine decides, and tells everybody what holds.
static void answer_offer(pl_group *g, const conn *c) {
    uint32_t none = 0;
    pl__slot *s = &g->control->slots[c->rank];
    if (atomic_load_explicit(&g->control->verdict, memory_order_acquire) == none) {
        place_proposal(s, c);
        pl__take_verdict(g, c->rank);
    }
    pl__net_verdict(g, (int)atomic_load_explicit(&g->control->verdict, memory_order_acquire) - 1);
    pl__wake_all(g);
}

static void apply(pl_group *g, conn *c) {
    pl__slot *s = &g->control->slots[c->rank];
    // Relaxed: a date for messages. Our clock: the sender's is another machine's.
    atomic_store_explicit(&s->heartbeat_ns, (uint64_t)pl_now_ns(), memory_order_relaxed);
    switch (c->head.kind) {
        case PL__FRAME_CALL:
            place_call(s, c);
            break;
        case PL__FRAME_STEP:
            post(s, &s->step, c->head.value);
            break;
        case PL__FRAME_MAIL:
            post(s, pl__mail_word(g, c->rank, (int)c->head.at, false), c->head.value);
            break;
        case PL__FRAME_TAKEN:
            post(s, pl__mail_word(g, (int)c->head.at, c->rank, true), c->head.value);
            break;
        case PL__FRAME_STATE:
            place_state(g, s, c);
            break;
        case PL__FRAME_OFFER:
            answer_offer(g, c);
            break;
        case PL__FRAME_VERDICT:
            take_verdict(g, c);
            break;
        default:
            break;
    }
}

// ---- streams ----------------------------------------------------------------------------------

static void end_stream(conn *c) {
    c->ended_ns = pl_now_ns();
    (void)shutdown(c->fd, SHUT_RDWR);  // closed with the group
}

// Reads what is there; frames are applied as they become whole.
static void drain(pl_group *g, conn *c) {
    for (;;) {
        size_t head = sizeof c->head, whole = c->have < head ? head : head + c->head.nbytes;
        if (c->have == whole && whole > 0 && c->have >= head) {
            apply(g, c);
            c->have = 0;
            continue;
        }
        char *to = c->have < head ? (char *)&c->head + c->have : c->place + (c->have - head);
        ssize_t n = recv(c->fd, to, whole - c->have, MSG_DONTWAIT);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0) {
            end_stream(c);
            return;
        }
        c->have += (size_t)n;
        if (c->have != head) continue;
        c->place = place_of(g, c);
        if (c->place) continue;
        c->bad = true;
        end_stream(c);
        return;
    }
}

// Why a stream ended: its rank has said so, or others know, or (after a moment) it died.
static void explain(pl_group *g, conn *c) {
    char text[512], seen[256];
    uint32_t state = atomic_load_explicit(&g->control->slots[c->rank].state, memory_order_acquire);
    bool known = state == PL__FINISHED || state == PL__FAILED ||
                 atomic_load_explicit(&g->control->verdict, memory_order_acquire);
    if (!known && !c->bad && pl_now_ns() - c->ended_ns < GRACE_NS) return;
    c->settled = true;
    if (known) return;
    uint64_t dead[PL_MAX_RANKS / 64] = {0};
    dead[c->rank / 64] |= UINT64_C(1) << (c->rank % 64);
    (void)pl__last_seen(g, c->rank, seen, sizeof seen);
    snprintf(text, sizeof text,
             c->bad ? "rank %d (machine %d) sent something that is no frame of paceline, %s"
                    : "rank %d (machine %d) died: its connection ended, %s",
             c->rank, pl__machine_of(g, c->rank), seen);
    (void)pl__propose(g, PL_EPEER, dead, text);
}

static void *inbox_main(void *arg) {
    pl_group *g = arg;
    pl__inbox *in = g->net->inbox;
    struct pollfd fds[PL_MAX_RANKS + 1];
    for (;;) {
        int wait = IDLE_POLL_MS;
        for (int i = 0; i < in->n; i++) {
            conn *c = &in->conns[i];
            if (c->ended_ns && !c->settled) explain(g, c);
            if (c->ended_ns && !c->settled) wait = GRACE_POLL_MS;
            fds[i] = (struct pollfd){.fd = c->ended_ns ? -1 : c->fd, .events = POLLIN};
        }
        fds[in->n] = (struct pollfd){.fd = in->stop_fd, .events = POLLIN};
        if (poll(fds, (nfds_t)in->n + 1, wait) <= 0) continue;
        if (fds[in->n].revents) return NULL;
        for (int i = 0; i < in->n; i++) {
            if (fds[i].revents) drain(g, &in->conns[i]);
        }
    }
}

// ---- birth and death --------------------------------------------------------------------------

pl_status pl__inbox_start(pl_group *g, const int *fds) {
    void *p;
    size_t n = (size_t)(g->world - (g->end - g->first));
    PL_TRY(pl_calloc(sizeof(pl__inbox) + n * sizeof(conn), &p));
    pl__inbox *in = g->net->inbox = p;
    for (int r = 0; r < g->world; r++) {
        if (!pl__is_remote(g, r)) continue;
        in->conns[in->n].rank = r;
        in->conns[in->n++].fd = fds[r];
    }
    in->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (in->stop_fd < 0) return pl_fail(PL_ESYS, "[group_new] eventfd: %s", strerror(errno));
    PL_TRY(pl__thread_start(&in->thread, inbox_main, g));
    in->started = true;
    return PL_OK;
}

void pl__inbox_stop(pl_group *g) {
    pl__inbox *in = g->net ? g->net->inbox : NULL;
    if (!in || !in->started) return;
    uint64_t one = 1;
    while (write(in->stop_fd, &one, sizeof one) < 0 && errno == EINTR) continue;
    pthread_join(in->thread, NULL);
    in->started = false;
}

void pl__inbox_forget_fds(pl__inbox *in) {
    for (int i = 0; i < in->n; i++) in->conns[i].fd = -1;
}

void pl__inbox_close_fds(pl__inbox *in) {
    for (int i = 0; i < in->n; i++) {
        if (in->conns[i].fd >= 0) close(in->conns[i].fd);
        in->conns[i].fd = -1;
    }
    if (in->stop_fd >= 0) close(in->stop_fd);
    in->stop_fd = -1;
}

void pl__inbox_free(pl__inbox *in) { pl_free(in); }

// SPDX-License-Identifier: Apache-2.0
// A group's communicator: how the ranks make it, how it is polled, and how it ends. See
// Note [device collectives] in device.h.
//
// It is made at the first collective on a device, after the meeting: the ranks tell one another
// through the staging areas whether they have NCCL and which, and rank 0 its unique id, so that the
// id goes where everything goes (shared memory, the authenticated links between machines).
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "comm/device.h"

#define LOOK_NS 20000000
#define BUSY_NS 20000                    // polled without a pause for so long
#define PAUSE_NS 200000                  // the longest pause
#define ABORT_NS 100000000               // an abort waits so long for a call that is inside
#define VERDICT_NS INT64_C(1000000000)   // NCCL may see a death before the group does
#define FINALIZE_NS INT64_C(2000000000)  // for what is under way when a group is freed
#define EXITED_NS INT64_C(100000000)     // what an exited peer had sent has come by then
#define GONE_FAR_NS INT64_C(5000000000)  // the same for one whose process cannot be seen

static void pause_for(int64_t *ns) {
    (void)nanosleep(&(struct timespec){0, *ns}, NULL);
    if (*ns < PAUSE_NS) *ns *= 2;
}

// ---- Polling ------------------------------------------------------------------------------------

// NCCL's own state, and its message where that is a failure. *ended: there is no communicator.
static pl_status poll_state(pl__device *d, const char *op, bool *busy, bool *ended) {
    int state = PL__NCCL_SUCCESS;
    pthread_mutex_lock(&d->lock);
    pl__nccl_comm comm = atomic_load_explicit(&d->comm, memory_order_acquire);
    *ended = comm == NULL;
    pl_status st = PL_OK;
    if (comm) {
        st = pl__nccl_status(d->nccl, op, d->nccl->ncclCommGetAsyncError(comm, &state), comm);
        if (st == PL_OK) st = pl__nccl_status(d->nccl, op, state, comm);
    }
    pthread_mutex_unlock(&d->lock);
    *busy = state == PL__NCCL_IN_PROGRESS;
    return st;
}

static pl_status blame_device(pl_group *g, const pl__call *call) {
    char text[256];
    snprintf(text, sizeof text,
             "timed out after %.1f s in group \"%s\": all ranks came to seq %llu, but the device "
             "has not finished it; to wait longer, raise `timeout` of the process group",
             (double)g->timeout_ns / 1e9, g->name, (unsigned long long)call->seq);
    (void)pl__propose(g, PL_ETIME, NULL, text);
    return pl__fail_verdict(g, call);
}

// What can end a wait for NCCL: this process's failure, the verdict, the deadline, Ctrl-C; while
// the ranks join, also a peer that has left.
static pl_status look_around(pl_group *g, pl__call *call, bool joining, int64_t deadline) {
    for (int i = 1; joining && i < g->world; i++) {
        PL_TRY(pl__look_around(g, call, (g->rank + i) % g->world, NULL, 0, INT64_MAX));
    }
    if (atomic_load_explicit(&g->broken, memory_order_acquire)) {
        return pl__fail_local(g, call, PL_ERUNTIME, "the group was closed or interrupted");
    }
    pl__settle(g, false);
    if (atomic_load_explicit(&g->control->verdict, memory_order_acquire)) {
        return pl__fail_verdict(g, call);
    }
    if (pl_now_ns() >= deadline) return blame_device(g, call);
    if (call->on_comm) return PL_OK;
    pl_status st = pl_check_interrupt();
    return st == PL_OK ? PL_OK : pl__fail_local(g, call, st, "interrupted");
}

pl_status pl__device_settle(pl_group *g, pl__call *call, bool joining) {
    pl__device *d = atomic_load_explicit(&g->device, memory_order_acquire);
    int64_t since = pl_now_ns(), looked = since, pause = 10000;
    for (;;) {
        bool busy, ended;
        PL_TRY(poll_state(d, pl__op_name(call->op), &busy, &ended));
        int64_t now = pl_now_ns();
        // Somebody else has aborted it, because the group failed.
        if (ended) return look_around(g, call, joining, now);
        if (!busy) return PL_OK;
        if (now - looked >= LOOK_NS) {
            looked = now;
            PL_TRY(look_around(g, call, joining, since + g->timeout_ns));
        }
        if (now - since > BUSY_NS) pause_for(&pause);
    }
}

pl_status pl__device_failed(pl_group *g, pl__call *call, pl_status st) {
    char message[1024];
    snprintf(message, sizeof message, "%s", pl_error_message());
    if (!atomic_load_explicit(&g->failed, memory_order_acquire)) {
        // A death is the better reason, and the watch thread is about to tell it.
        int64_t until = pl_now_ns() + VERDICT_NS, pause = 100000;
        while (st == PL_EDEVICE && pl_now_ns() < until &&
               !atomic_load_explicit(&g->control->verdict, memory_order_acquire)) {
            pl__settle(g, false);
            pause_for(&pause);
        }
        if (atomic_load_explicit(&g->control->verdict, memory_order_acquire)) {
            st = pl__fail_verdict(g, call);
        } else {
            st = pl__fail_here(g, call, pl_fail(st, "%s", message));
        }
        snprintf(message, sizeof message, "%s", pl_error_message());
    }
    pl__device_abort(g);
    return pl_fail(st, "%s", message);
}

// ---- Joining ------------------------------------------------------------------------------------

// What a rank says of itself before the communicator is made; `obstacle` is empty where it can be.
typedef struct card {
    int32_t version, unused;
    pl__nccl_id id;  // rank 0's
    char obstacle[360];
} card;

static void fill_card(const pl_group *g, pl__device *d, card *c) {
    memset(c, 0, sizeof *c);
    pl_status st = pl__nccl_open(&d->nccl);
    if (st == PL_OK && g->rank == 0) {
        st = pl__nccl_status(d->nccl, "nccl", d->nccl->ncclGetUniqueId(&c->id), NULL);
    }
    if (st == PL_OK) c->version = d->nccl->version;
    else snprintf(c->obstacle, sizeof c->obstacle, "%s", pl_error_message());
}

static pl_status check_cards(const pl_group *g, const pl__call *call, const card *cards) {
    char mine[32], theirs[32];
    for (int r = 0; r < g->world; r++) {
        if (cards[r].obstacle[0]) {
            return pl_fail(PL_EDEVICE,
                           "[%s] tensors on a GPU cannot go between the ranks: rank %d: %.359s",
                           pl__op_name(call->op), r, cards[r].obstacle);
        }
    }
    for (int r = 1; r < g->world; r++) {
        if (cards[r].version == cards[0].version) continue;
        return pl_fail(PL_EDEVICE,
                       "[%s] the ranks have different versions of NCCL: rank 0 has %s, rank %d has "
                       "%s; install one version everywhere",
                       pl__op_name(call->op),
                       pl__nccl_version_text(cards[0].version, mine, sizeof mine), r,
                       pl__nccl_version_text(cards[r].version, theirs, sizeof theirs));
    }
    return PL_OK;
}

// Every rank's card, in memory of its own.
static pl_status exchange_cards(pl_group *g, const pl__call *call, pl__device *d, card **out) {
    card mine;
    void *all;
    fill_card(g, d, &mine);
    PL_TRY(pl_alloc((size_t)g->world * sizeof mine, &all));
    pl__call exchange = *call;
    exchange.op = PL__OP_ALL_GATHER;
    exchange.dtype = PL_U8;
    exchange.root = -1;
    exchange.count = sizeof mine;
    exchange.in = &mine;
    exchange.out = all;
    pl_status st = pl__staged_move(g, &exchange);
    if (st == PL_OK) *out = all;
    else pl_free(all);
    return st;
}

static pl_status join(pl_group *g, pl__call *call, pl__device *d, const pl__nccl_id *id) {
    pl__nccl_config config = {.size = sizeof config,
                              .magic = PL__NCCL_CONFIG_MAGIC,
                              .version = PL__NCCL_CONFIG_VERSION,
                              .blocking = 0};
    pl__nccl_comm comm = NULL;
    bool unused;
    // A call of the run time makes the device this thread's, which NCCL then takes.
    PL_TRY(d->r->event_done(d->r, d->tail, &unused));
    pthread_mutex_lock(&d->lock);
    int result = d->nccl->ncclCommInitRankConfig(&comm, g->world, *id, g->rank, &config);
    atomic_store_explicit(&d->comm, comm, memory_order_release);
    pl_status st = pl__nccl_status(d->nccl, pl__op_name(call->op), result, NULL);
    pthread_mutex_unlock(&d->lock);
    return st == PL_OK ? pl__device_settle(g, call, true) : st;
}

pl_status pl__device_connect(pl_group *g, pl__call *call) {
    pl__device *d = atomic_load_explicit(&g->device, memory_order_acquire);
    card *cards = NULL;
    if (atomic_load_explicit(&d->comm, memory_order_acquire)) return PL_OK;
    PL_TRY(exchange_cards(g, call, d, &cards));
    // An obstacle is told by all ranks alike, and the group stays whole.
    pl_status st = check_cards(g, call, cards);
    if (st == PL_OK) {
        st = join(g, call, d, &cards[0].id);
        if (st != PL_OK) st = pl__device_failed(g, call, st);
    }
    pl_free(cards);
    return st;
}

// ---- The end ------------------------------------------------------------------------------------

static bool is_under_way(pl__device *d) {
    bool done = true;
    pthread_mutex_lock(&d->state_lock);
    if (d->used && d->r->event_done(d->r, d->tail, &done) != PL_OK) done = true;
    pthread_mutex_unlock(&d->state_lock);
    return !done;
}

void pl__device_abort(pl_group *g) {
    pl__device *d = atomic_load_explicit(&g->device, memory_order_acquire);
    if (!d || !atomic_load_explicit(&d->comm, memory_order_acquire)) return;
    if (is_under_way(d)) atomic_store_explicit(&d->worthless, true, memory_order_release);
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += ABORT_NS;
    if (until.tv_nsec >= 1000000000)
        until = (struct timespec){until.tv_sec + 1, until.tv_nsec - 1000000000};
    // Whoever is inside for so long waits for the device: NCCL lets an abort come beside it.
    bool locked = pthread_mutex_timedlock(&d->lock, &until) == 0;
    pl__nccl_comm comm = atomic_exchange_explicit(&d->comm, NULL, memory_order_acq_rel);
    if (comm) (void)d->nccl->ncclCommAbort(comm);
    if (locked) pthread_mutex_unlock(&d->lock);
}

// Lets what is under way come to its end, for a moment.
static bool finalize(pl_group *g, pl__device *d) {
    int64_t until = pl_now_ns() + FINALIZE_NS, pause = 10000;
    pl__nccl_comm comm = atomic_load_explicit(&d->comm, memory_order_acquire);
    bool busy = true, ended = false, failed = false;
    while (is_under_way(d) && pl_now_ns() < until && !failed) {
        failed = atomic_load_explicit(&g->control->verdict, memory_order_acquire) != 0;
        pause_for(&pause);
    }
    if (failed || is_under_way(d)) return false;
    if (pl__nccl_status(d->nccl, "nccl", d->nccl->ncclCommFinalize(comm), comm) != PL_OK) {
        return false;
    }
    while (busy && !ended && pl_now_ns() < until) {
        if (poll_state(d, "nccl", &busy, &ended) != PL_OK) return false;
        if (busy) pause_for(&pause);
    }
    return !busy && !ended;
}

void pl__device_end(pl_group *g) {
    pl__device *d = atomic_load_explicit(&g->device, memory_order_acquire);
    if (!atomic_load_explicit(&d->comm, memory_order_acquire)) return;
    bool whole = !atomic_load_explicit(&g->failed, memory_order_acquire) &&
                 !atomic_load_explicit(&g->control->verdict, memory_order_acquire);
    if (!whole || !finalize(g, d)) {
        pl__device_abort(g);
        return;
    }
    pl__nccl_comm comm = atomic_exchange_explicit(&d->comm, NULL, memory_order_acq_rel);
    if (comm) (void)d->nccl->ncclCommDestroy(comm);
}

// ---- A host that waits for the device -----------------------------------------------------------

// A peer that finished in order, whose part is missing: its device has gone with it.
static pl_status look_for_finished(pl_group *g, const pl__call *last, int64_t waited_ns) {
    for (int r = 0; r < g->world; r++) {
        uint32_t state = atomic_load_explicit(&g->control->slots[r].state, memory_order_acquire);
        if (r == g->rank || state != PL__FINISHED) continue;
        bool gone = g->pidfds[r] >= 0 ? waited_ns > EXITED_NS && pl__has_exited(g->pidfds[r])
                                      : waited_ns > GONE_FAR_NS;
        if (gone) return pl__blame_finished(g, last, r);
    }
    return PL_OK;
}

pl_status pl__device_look(void *context, int64_t waited_ns) {
    pl__device *d = context;
    pl_group *g = d->group;
    bool busy, ended;
    if (atomic_load_explicit(&g->forked, memory_order_relaxed)) return PL_OK;
    pthread_mutex_lock(&d->state_lock);
    pl__call last = d->last;
    bool used = d->used;
    pthread_mutex_unlock(&d->state_lock);
    if (!used || (!atomic_load_explicit(&d->worthless, memory_order_acquire) && !is_under_way(d))) {
        return PL_OK;
    }
    pl__settle(g, false);
    pl_status st = pl__group_enter(g, &last);
    if (st == PL_OK && !pl__device_is_alone(g)) {
        st = poll_state(d, pl__op_name(last.op), &busy, &ended);
        if (st != PL_OK) return pl__device_failed(g, &last, st);
        st = look_for_finished(g, &last, waited_ns);
    }
    if (st == PL_OK && waited_ns > g->timeout_ns) st = blame_device(g, &last);
    if (st != PL_OK) {
        char message[2048];
        snprintf(message, sizeof message, "%s", pl_error_message());
        pl__device_abort(g);
        return pl_fail(st, "%s", message);
    }
    return PL_OK;
}

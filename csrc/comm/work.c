// SPDX-License-Identifier: Apache-2.0
// The order of calls: synchronous ones on the caller, queued ones on the group's comm thread.
//
// Collectives must be issued in one order on all ranks, so at most one thread of a process is
// inside a group. A synchronous call first waits until the queue is empty and the comm thread
// idle (`pending` is zero); point-to-point messages have their own channels and do not wait. The
// comm thread starts with the first queued call. It uses no OpenMP, blocks all signals, and is
// joined in pl_group_free (Note [comm thread stays out of OpenMP], comm.h). Polled buckets
// (polled.c) keep the same order: a call of another kind first lets them drain too.
#include <stdio.h>
#include <string.h>

#include "base/trace.h"
#include "comm/internal.h"

#define SLICE_NS 20000000  // between two looks for Ctrl-C
#define TRIES 100          // the comm thread may be about to set it

// The number of a call is its place in the program, also when it waits in the queue.
static void look_at_seq(pl_group *g, pl__call *call) {
    // Relaxed: the caller's thread alone writes it.
    call->seq = atomic_load_explicit(&g->seq, memory_order_relaxed);
}

static void take_seq(pl_group *g, pl__call *call) {
    call->seq = atomic_fetch_add_explicit(&g->seq, 1, memory_order_relaxed);
}

void pl__trace_call(const pl__call *call, int64_t since) {
    pl_trace_event e = {.start_ns = since, .number = call->op == PL__OP_BUCKET ? call->root : -1};
    e.kind = call->on_comm || call->op == PL__OP_BUCKET ? PL_TRACE_BUCKET : PL_TRACE_COMM;
    e.nbytes = call->count * (int64_t)pl_dtype_size(call->dtype);
    strncpy(e.name, pl__op_name(call->op), sizeof e.name - 1);
    pl_trace_put(&e);
}

static pl_status run(pl_group *g, pl__call *call) {
    const pl__transport *by = pl__on_device(call) ? &pl__device_transport : g->transport;
    int64_t since = pl_trace_begin();
    pl_status st = pl__group_enter(g, call);
    int64_t met = pl_trace_begin();
    if (st == PL_OK) st = by->meet(g, call);
    pl_trace_end(met, PL_TRACE_WAIT, "other ranks");
    if (st == PL_OK) st = by->move(g, call);
    if (PL_UNLIKELY(since != 0)) pl__trace_call(call, since);
    return st;
}

// Waits until *word is `until`; Ctrl-C makes the comm thread give up, which ends the wait.
static pl_status wait_local(pl_group *g, const pl__call *call, const _Atomic uint32_t *word,
                            uint32_t until) {
    pl_status interrupted = PL_OK;
    int tries = 0;
    int64_t since = pl_trace_begin();
    for (;;) {
        // Acquire: sees what the comm thread did before it set the word.
        uint32_t seen = atomic_load_explicit(word, memory_order_acquire);
        if (seen == until) {
            pl_trace_end(since, PL_TRACE_WAIT, pl__op_name(call->op));
            return interrupted;
        }
        if (tries++ < TRIES) continue;
        pl__futex_wait(word, seen, SLICE_NS, false);
        if (interrupted != PL_OK) continue;
        pl_status st = pl_check_interrupt();
        if (st != PL_OK) interrupted = pl__fail_local(g, call, st, "interrupted");
    }
}

static pl_status take_turn(pl_group *g, pl__call *call) {
    take_seq(g, call);
    if (PL_UNLIKELY(atomic_load_explicit(&g->pending, memory_order_acquire) != 0)) {
        PL_TRY(wait_local(g, call, &g->pending, 0));
    }
    return PL_OK;
}

pl_status pl__take_turn(pl_group *g, pl__call *call) {
    look_at_seq(g, call);
    PL_TRY(pl__group_enter(g, call));
    return take_turn(g, call);
}

static pl_status run_in_turn(pl_group *g, pl__call *call) {
    PL_TRY(take_turn(g, call));
    if (PL_UNLIKELY(g->polled_unfolded != NULL)) PL_TRY(pl__polled_drain(g));
    return run(g, call);
}

pl_status pl__run_sync(pl_group *g, pl__call *call) {
    look_at_seq(g, call);
    PL_TRY(pl__group_enter(g, call));
    if (PL_LIKELY(!pl__on_device(call))) return run_in_turn(g, call);
    PL_TRY(pl__device_begin(g, call));
    pl_status st = run_in_turn(g, call);
    if (st == PL_OK) st = pl__device_order(call);
    pl__device_forget(call);
    return st;
}

// ---------------------------------------------------------------------------------------------
// The queue.

static void finish(pl_group *g, pl_work *w, pl_status st) {
    w->status = st;
    if (st != PL_OK) snprintf(w->message, sizeof w->message, "%s", pl_error_message());
    // Release: pairs with the acquire in wait_local. `done` first: when a synchronous call finds
    // the queue empty, all that was queued before it is seen done. w may be freed from here on; the
    // address is still good for a wake.
    atomic_store_explicit(&w->done, 1, memory_order_release);
    pl__futex_wake(&w->done, false);
    if (atomic_fetch_sub_explicit(&g->pending, 1, memory_order_release) == 1) {
        pl__futex_wake(&g->pending, false);
    }
}

static pl_work *next_work(pl_group *g) {
    pthread_mutex_lock(&g->queue_lock);
    while (!g->queue_head && !g->comm_stop) pthread_cond_wait(&g->queue_cond, &g->queue_lock);
    pl_work *w = g->queue_head;
    if (w) {
        g->queue_head = w->next;
        if (!g->queue_head) g->queue_tail = NULL;
    }
    pthread_mutex_unlock(&g->queue_lock);
    return w;
}

static pl_status run_queued(pl_group *g, const pl_work *w) {
    pl__call call = w->call;  // who waits for the work reads its own
    return run(g, &call);
}

static void *comm_main(void *arg) {
    pl_group *g = arg;
    pl_work *w;
    // After a stop the rest of the queue fails at once: the group is broken by then.
    while ((w = next_work(g)) != NULL) finish(g, w, run_queued(g, w));
    return NULL;
}

pl_status pl__queue(pl_group *g, const pl__call *call, pl_work **out) {
    pl__call queued = *call;
    look_at_seq(g, &queued);
    PL_TRY(pl__group_enter(g, &queued));
    if (PL_UNLIKELY(g->polled_unfolded != NULL)) PL_TRY(pl__polled_drain(g));
    void *p;
    PL_TRY(pl_calloc(sizeof(pl_work), &p));
    pl_work *w = p;
    if (pl__on_device(&queued)) {
        pl_status begun = pl__device_begin(g, &queued);
        if (begun != PL_OK) {
            pl_free(w);
            return begun;
        }
    }
    w->group = g;
    w->call = queued;
    w->call.on_comm = true;
    pl_status st = PL_OK;
    pthread_mutex_lock(&g->queue_lock);
    if (!g->comm_started) {
        st = pl__thread_start(&g->comm_thread, comm_main, g);
        g->comm_started = st == PL_OK;
    }
    if (st == PL_OK) {
        take_seq(g, &w->call);
        if (g->queue_tail) {
            g->queue_tail->next = w;
        } else {
            g->queue_head = w;
        }
        g->queue_tail = w;
        atomic_fetch_add_explicit(&g->pending, 1, memory_order_relaxed);
        pthread_cond_signal(&g->queue_cond);
    }
    pthread_mutex_unlock(&g->queue_lock);
    if (st != PL_OK) {
        if (pl__on_device(call)) pl__device_forget(&w->call);
        pl_free(w);
        return st;
    }
    pl_live_add(PL_KIND_WORK, 1);
    *out = w;
    return PL_OK;
}

void pl__comm_stop(pl_group *g) {
    if (!g->comm_started) return;
    pthread_mutex_lock(&g->queue_lock);
    g->comm_stop = true;
    pthread_cond_signal(&g->queue_cond);
    pthread_mutex_unlock(&g->queue_lock);
    pthread_join(g->comm_thread, NULL);
    g->comm_started = false;
}

static bool has_run(const pl_work *w) {
    // Acquire: the buffer's new contents are visible to who has seen it done.
    return atomic_load_explicit(&w->done, memory_order_acquire) != 0;
}

pl_status pl_work_wait(pl_work *w) {
    if (!has_run(w)) {
        pl_group *g = w->group;
        if (atomic_load_explicit(&g->forked, memory_order_relaxed)) {
            return pl__group_enter(g, &w->call);
        }
        if (w->polled) return pl__polled_wait(w);
        PL_TRY(wait_local(g, &w->call, &w->done, 1));
    }
    if (w->status == PL_OK) {
        return pl__on_device(&w->call) ? pl__device_order(&w->call) : PL_OK;
    }
    pl__note_failed(w->group);
    return pl_fail(w->status, "%s", w->message);
}

bool pl_work_done(const pl_work *w) {
    if (!has_run(w)) return false;
    return !pl__on_device(&w->call) || w->status != PL_OK || pl__device_done(&w->call);
}

void pl_work_free(pl_work *w) {
    if (!w) return;
    pl_status st = w->polled ? pl_work_wait(w) : PL_OK;
    (void)st;  // whoever wanted to know has waited
    while (!has_run(w) && !atomic_load_explicit(&w->group->forked, memory_order_relaxed)) {
        pl__futex_wait(&w->done, 0, SLICE_NS, false);
    }
    if (pl__on_device(&w->call)) {
        // Whoever gets the buffer's memory next gets it behind the work.
        if (w->status == PL_OK) (void)!pl__device_order(&w->call);
        pl__device_forget(&w->call);
    }
    pl_live_add(PL_KIND_WORK, -1);
    pl_free(w);
}

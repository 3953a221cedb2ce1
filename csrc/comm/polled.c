// SPDX-License-Identifier: Apache-2.0
// Buckets that the caller's own thread reduces, between other things, where no processor is spare
// for the comm thread: two threads on one processor would only take turns, with a switch at each
// wait. Knows the order of calls (work.c); runs on the caller's thread only, so nothing is locked.
//
// The works of a group stand in one list, in the order of calls. A work is published when all
// before it are folded, and folded when all ranks have published it: pl_group_poll goes on with
// both as far as nobody is waited for. To fold is to reduce the own slice and post a step; the
// peers' steps are awaited by pl_work_wait alone, one for many buckets, for nobody reads a bucket
// before. A rank may poll a bucket that another one has given to its comm thread: the words in
// shared memory are the same.
#include <stdio.h>
#include <string.h>

#include "base/trace.h"
#include "comm/internal.h"

static void link_last(pl_group *g, pl_work *w) {
    w->before = g->polled_last;
    if (g->polled_last) {
        g->polled_last->next = w;
    } else {
        g->polled = w;
    }
    g->polled_last = w;
    if (!g->polled_unfolded) g->polled_unfolded = w;
}

// It is done: from here on the group knows nothing of it.
static void finish(pl_group *g, pl_work *w, pl_status st) {
    if (w->before) {
        w->before->next = w->next;
    } else {
        g->polled = w->next;
    }
    if (w->next) {
        w->next->before = w->before;
    } else {
        g->polled_last = w->before;
    }
    if (g->polled_unfolded == w) g->polled_unfolded = w->next;
    w->status = st;
    if (st != PL_OK) snprintf(w->message, sizeof w->message, "%s", pl_error_message());
    atomic_store_explicit(&w->done, 1, memory_order_release);
}

// A failure is the group's: all that is under way shares it.
static pl_status give_up(pl_group *g, pl_status st) {
    while (g->polled) finish(g, g->polled, st);
    return st;
}

void pl__polled_stop(pl_group *g) {
    if (!g->polled) return;
    give_up(g, pl_fail(PL_ERUNTIME, "[reduce_bucket] the group was closed"));
}

static pl_status meet(pl_group *g, pl__call *call) {
    int64_t since = pl_trace_begin();
    pl_status st = pl__meet_await(g, call);
    pl_trace_end(since, PL_TRACE_WAIT, "other ranks");
    return st;
}

static pl_status fold(pl_group *g, pl_work *w) {
    int64_t since = pl_trace_begin();
    pl__bucket_fold(g, &w->call);
    PL_TRY(pl__step_post(g, &w->call));
    w->step = g->step;
    w->folded = true;
    g->polled_unfolded = w->next;
    if (PL_UNLIKELY(since != 0)) pl__trace_call(&w->call, since);
    return PL_OK;
}

// One work: published, and folded where all ranks are there or `wait`. *folded: go on with the
// next.
static pl_status advance(pl_group *g, pl_work *w, bool wait, bool *folded) {
    *folded = false;
    if (!w->published) {
        PL_TRY(pl__group_enter(g, &w->call));
        PL_TRY(pl__meet_post(g, &w->call, w->call.used, pl__used_bytes(&w->call)));
        w->published = true;
    }
    if (!wait && !pl__met_all(g, &w->call)) return PL_OK;
    PL_TRY(meet(g, &w->call));
    PL_TRY(fold(g, w));
    *folded = true;
    return PL_OK;
}

// Up to and with `last`, or as far as it goes without waiting.
static pl_status go_on(pl_group *g, const pl_work *last) {
    bool folded = true;
    while (folded && g->polled_unfolded) {
        pl_work *w = g->polled_unfolded;
        pl_status st = advance(g, w, last != NULL, &folded);
        if (st != PL_OK) return give_up(g, st);
        if (w == last) break;
    }
    return PL_OK;
}

// Those whose last word all ranks have said.
static void finish_reached(pl_group *g) {
    while (g->polled && g->polled->folded && pl__step_reached(g, g->polled->step)) {
        finish(g, g->polled, PL_OK);
    }
}

pl_status pl_group_poll(pl_group *g) {
    if (PL_LIKELY(!g->polled)) return PL_OK;
    if (atomic_load_explicit(&g->forked, memory_order_relaxed)) return PL_OK;
    PL_TRY(go_on(g, NULL));
    finish_reached(g);
    return PL_OK;
}

pl_status pl__polled_drain(pl_group *g) {
    return g->polled_unfolded ? go_on(g, g->polled_last) : PL_OK;
}

pl_status pl__polled_wait(pl_work *w) {
    pl_group *g = w->group;
    int64_t since = pl_trace_begin();
    if (!w->folded) PL_TRY(go_on(g, w));
    pl_status st = pl__step_await(g, &w->call, g->step - w->step);
    pl_trace_end(since, PL_TRACE_WAIT, pl__op_name(w->call.op));
    if (st != PL_OK) return give_up(g, st);
    finish(g, w, PL_OK);
    return PL_OK;
}

pl_status pl__poll_later(pl_group *g, const pl__call *call, pl_work **out) {
    void *p;
    PL_TRY(pl_calloc(sizeof(pl_work), &p));
    pl_work *w = p;
    w->group = g;
    w->call = *call;
    w->polled = true;
    pl_status st = pl__take_turn(g, &w->call);
    if (st != PL_OK) {
        pl_free(w);
        return st;
    }
    pl_live_add(PL_KIND_WORK, 1);
    link_last(g, w);
    *out = w;
    return PL_OK;
}

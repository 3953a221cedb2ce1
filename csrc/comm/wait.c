// SPDX-License-Identifier: Apache-2.0
// Posting a word of this rank's slot, and waiting for one of a peer's. Knows nothing of what the
// words mean. Runs on whichever thread is inside the group.
//
// A wait is a short spin, then sleeps on the futex in slices of 20 ms. Between slices it looks,
// in this order, at: the word (what is complete stays complete, whatever else happened), this
// process's own failure, the verdict, the peer's state, the deadline, Ctrl-C.
//
// Note [lost wakeups]: the sleeper counts itself in `sleepers`, then looks at the word, then
// sleeps; the poster stores the word, then looks at `sleepers`. All four are sequentially
// consistent, so at least one of them sees the other: either the sleeper finds the new value or
// the poster finds the sleeper. The kernel compares the word again under its own lock.
#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "comm/internal.h"

#define SLICE_NS 20000000     // longest sleep without a look around
#define SPIN_CALLER_NS 20000  // about two futex wakeups: the price of sleeping too early
#define SPIN_COMM_NS 2000     // the comm thread shares its core with the backward pass
#define YIELDS 8  // with more ranks than processors; halves the latency of a small call there
#define SPINS_PER_LOOK 32  // pauses between looks at the clock

static inline void cpu_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    __asm__ volatile("" ::: "memory");
#endif
}

void pl__futex_wait(const _Atomic uint32_t *word, uint32_t seen, int64_t timeout_ns, bool shared) {
    struct timespec ts = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    // Any return is fine: the caller looks at the word again (EAGAIN, EINTR, ETIMEDOUT alike).
    (void)syscall(SYS_futex, word, shared ? FUTEX_WAIT : FUTEX_WAIT_PRIVATE, seen, &ts, NULL, 0);
}

void pl__futex_wake(const _Atomic uint32_t *word, bool shared) {
    (void)syscall(SYS_futex, word, shared ? FUTEX_WAKE : FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL,
                  0);
}

void pl__post(pl_group *g, _Atomic uint32_t *word, uint32_t value) {
    // seq_cst both: Note [lost wakeups]. As a release it also publishes what was written before.
    atomic_store_explicit(word, value, memory_order_seq_cst);
    if (PL_UNLIKELY(atomic_load_explicit(&g->me->sleepers, memory_order_seq_cst) != 0)) {
        pl__futex_wake(word, true);
    }
}

static inline bool reached(const _Atomic uint32_t *word, uint32_t value) {
    // Acquire: what the peer wrote before it posted is visible after this.
    return (int32_t)(atomic_load_explicit(word, memory_order_acquire) - value) >= 0;
}

static bool spin(pl_group *g, const pl__call *call, const _Atomic uint32_t *word, uint32_t value) {
    if (g->oversubscribed) {
        // The awaited rank may be waiting for this processor: hand it over before sleeping.
        for (int i = 0; i < YIELDS; i++) {
            (void)sched_yield();
            if (reached(word, value)) return true;
        }
        return false;
    }
    int64_t end = 0, limit = call->on_comm ? SPIN_COMM_NS : SPIN_CALLER_NS;
    for (;;) {
        for (int i = 0; i < SPINS_PER_LOOK; i++) {
            if (reached(word, value)) return true;
            cpu_pause();
        }
        int64_t now = pl_now_ns();
        if (end == 0) end = now + limit;
        if (now >= end) return false;
    }
}

pl_status pl__look_around(pl_group *g, pl__call *call, int peer, const _Atomic uint32_t *word,
                          uint32_t value, int64_t deadline) {
    if (atomic_load_explicit(&g->broken, memory_order_acquire)) {
        return pl__fail_local(g, call, PL_ERUNTIME, "the group was closed or interrupted");
    }
    pl__settle(g, false);
    bool failed = atomic_load_explicit(&g->control->verdict, memory_order_acquire) != 0;
    uint32_t state = atomic_load_explicit(&g->control->slots[peer].state, memory_order_acquire);
    // A peer posts its words before it announces its end, so look at the word once more.
    bool there = word && reached(word, value);
    if (failed && !there) return pl__fail_verdict(g, call);
    if (state == PL__FINISHED && !there) return pl__blame_finished(g, call, peer);
    if (state == PL__FAILED && !there) return pl__blame_failed(g, call, peer);
    if (!there) PL_TRY(pl__net_look(g, call, peer));
    if (pl_now_ns() >= deadline) return pl__blame_late(g, call);
    if (call->on_comm) return PL_OK;
    pl_status st = pl_check_interrupt();
    if (st == PL_OK) return PL_OK;
    return pl__fail_local(g, call, st, "interrupted");
}

pl_status pl__wait_word(pl_group *g, pl__call *call, int peer, const _Atomic uint32_t *word,
                        _Atomic uint32_t *sleepers, uint32_t value) {
    if (PL_LIKELY(reached(word, value)) || spin(g, call, word, value)) return PL_OK;
    int64_t deadline = pl_now_ns() + g->timeout_ns;
    pl_status st = PL_OK;
    while (!reached(word, value)) {
        st = pl__look_around(g, call, peer, word, value, deadline);
        if (st != PL_OK) break;
        atomic_fetch_add_explicit(sleepers, 1, memory_order_seq_cst);
        uint32_t seen = atomic_load_explicit(word, memory_order_seq_cst);
        if ((int32_t)(seen - value) < 0) pl__futex_wait(word, seen, SLICE_NS, true);
        atomic_fetch_sub_explicit(sleepers, 1, memory_order_relaxed);
    }
    return st;
}

static pl_status await_steps(pl_group *g, pl__call *call, int first, int end, uint32_t step) {
    int n = end - first;
    for (int i = 1; i < n; i++) {
        int peer = first + (g->rank - first + i) % n;  // not all at the same rank first
        pl__slot *s = &g->control->slots[peer];
        PL_TRY(pl__wait_word(g, call, peer, &s->step, &s->sleepers, step));
    }
    return PL_OK;
}

pl_status pl__step_post(pl_group *g, pl__call *call) {
    pl__post(g, &g->me->step, ++g->step);
    return pl__net_step(g, call);
}

pl_status pl__step_await(pl_group *g, pl__call *call, uint32_t behind) {
    return await_steps(g, call, 0, g->world, g->step - behind);
}

bool pl__step_reached(const pl_group *g, uint32_t step) {
    for (int r = 0; r < g->world; r++) {
        if (!reached(&g->control->slots[r].step, step)) return false;
    }
    return true;
}

pl_status pl__step(pl_group *g, pl__call *call) {
    PL_TRY(pl__step_post(g, call));
    return pl__step_await(g, call, 0);
}

pl_status pl__step_here(pl_group *g, pl__call *call) {
    pl__post(g, &g->me->step, ++g->step);
    return await_steps(g, call, g->first, g->end, g->step);
}

void pl__wake_all(pl_group *g) {
    for (int r = 0; r < g->world; r++) {
        pl__slot *s = &g->control->slots[r];
        pl__futex_wake(&s->step, true);
        pl__futex_wake(&s->record[0].arrived, true);
        pl__futex_wake(&s->record[1].arrived, true);
    }
    pl__mail_wake(g);
    pl__futex_wake(&g->pending, false);
}

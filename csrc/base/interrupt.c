// SPDX-License-Identifier: Apache-2.0
// interrupt: lets a host stop long work (Ctrl-C). Knows the host by one function pointer. The host
// is asked on the thread that works, at most every 10 ms per thread: a shared pace would let a
// worker thread use up the turns of the only thread on which Python handles signals.
#include <stdatomic.h>

#include "base/base.h"

#define ASK_EVERY_NS 10000000

static _Atomic(pl_interrupt_fn) host_fn;
static _Thread_local int64_t tl_asked_ns;

void pl_set_interrupt(pl_interrupt_fn fn) {
    atomic_store_explicit(&host_fn, fn, memory_order_release);
}

pl_status pl_check_interrupt(void) {
    pl_interrupt_fn fn = atomic_load_explicit(&host_fn, memory_order_acquire);
    if (!fn) return PL_OK;
    int64_t now = pl_now_ns();
    if (now - tl_asked_ns < ASK_EVERY_NS) return PL_OK;
    tl_asked_ns = now;
    return fn();
}

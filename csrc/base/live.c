// SPDX-License-Identifier: Apache-2.0
// live: how many objects of each kind exist, so that a test can assert that none leaked. Knows the
// kinds by number only. Any thread.
#include <stdatomic.h>

#include "base/base.h"

static _Atomic int64_t live_counts[PL_KIND_COUNT];

void pl_live_add(pl_kind kind, int delta) {
    // Relaxed: a statistic; readers look at it when nothing else runs.
    atomic_fetch_add_explicit(&live_counts[kind], delta, memory_order_relaxed);
}

int64_t pl_live(pl_kind kind) {
    return atomic_load_explicit(&live_counts[kind], memory_order_relaxed);
}

const char *pl_kind_name(pl_kind kind) {
    static const char *const names[PL_KIND_COUNT] = {"storage", "tensor",  "node",    "group",
                                                     "work",    "segment", "reducer", "other"};
    return (unsigned)kind < PL_KIND_COUNT ? names[kind] : "?";
}

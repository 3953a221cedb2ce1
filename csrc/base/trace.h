// SPDX-License-Identifier: Apache-2.0
// trace: what a program did when, for a profile. Off by default: a place that may be traced then
// costs one relaxed load. Knows names and numbers only. Any thread.
//
// Each thread that records has a list of events of its own, so that recording takes no lock; a
// thread adds an event when what it tells of has ended, so events of one thread nest properly and
// come in the order of their ends.
#ifndef PL_TRACE_H
#define PL_TRACE_H

#include "base/base.h"

#define PL_TRACE_KIND_MAP(X)                                                 \
    X(OP, "operator")         /* an operator's forward */                    \
    X(BACKWARD, "backward")   /* a node of the backward pass */              \
    X(COMM, "communication")  /* a collective on the thread of its caller */ \
    X(BUCKET, "bucket")       /* a collective on the communication thread */ \
    X(WAIT, "wait")           /* waiting for the communication thread */     \
    X(DATA, "data")           /* getting the next batch */                   \
    X(OPTIMIZER, "optimizer") /* clipping and stepping */                    \
    X(USER, "user")           /* named by the program */

typedef enum pl_trace_kind {
#define X(name, text) PL_TRACE_##name,
    PL_TRACE_KIND_MAP(X)
#undef X
        PL_TRACE_KIND_COUNT
} pl_trace_kind;
const char *pl_trace_kind_name(pl_trace_kind kind);

typedef struct pl_trace_event {
    int64_t start_ns, end_ns;  // pl_now_ns
    int64_t nbytes;            // moved; 0 where that means nothing
    int32_t number;            // of a bucket; -1 where that means nothing
    pl_trace_kind kind;
    char name[32];
    char detail[64];  // shapes of the inputs, if they are recorded; else empty
} pl_trace_event;

extern bool pl__trace_on;  // atomic

// The time at which something begins, or 0 while nothing is traced.
static inline int64_t pl_trace_begin(void) {
    // Relaxed: whether the first event of a session is caught does not matter.
    return PL_UNLIKELY(__atomic_load_n(&pl__trace_on, __ATOMIC_RELAXED)) ? pl_now_ns() : 0;
}
void pl__trace_end(int64_t since, pl_trace_kind kind, const char *name, int64_t nbytes);
// It has ended. since: what pl_trace_begin gave.
static inline void pl_trace_end(int64_t since, pl_trace_kind kind, const char *name) {
    if (PL_UNLIKELY(since != 0)) pl__trace_end(since, kind, name, 0);
}
// For an event with more to tell; start_ns must not be 0. Sets end_ns if it is 0.
void pl_trace_put(pl_trace_event *event);
bool pl_trace_shapes(void);  // whether `detail` is wanted

// Begins a session: forgets the events of the last one. limit: events kept of each thread; what
// comes after is counted only.
void pl_trace_start(bool shapes, int64_t limit);
void pl_trace_stop(void);
// What one thread recorded in the last session. Events that it adds meanwhile may be missed.
typedef struct pl_trace_log {
    int64_t tid;  // the system's; 0 for events of threads for whose log there was no memory
    int64_t n, n_lost;
    pl_trace_event *events;  // [n], in the order of their ends
} pl_trace_log;
// Copies of all logs, oldest thread first; the caller gives them to pl_trace_logs_free.
pl_status pl_trace_read(int *n, pl_trace_log **out) PL_MUST_USE;
void pl_trace_logs_free(int n, pl_trace_log *threads);
// Forgets the caller's own log and those of threads that have ended, and gives their memory back;
// that of other living threads is used again in the next session.
void pl_trace_clear(void);

#endif

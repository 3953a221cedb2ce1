// SPDX-License-Identifier: Apache-2.0
// See trace.h. A thread's events stand in blocks that are never moved, since a reader may look on
// while the thread goes on adding.
//
// Note [trace sessions]: only its thread writes a log, the reader but reads. `count` is stored with
// release after the event and its block, so what lies below a count that was read is whole. A
// thread clears its log at its first event of a new session; start() and read() exclude each other,
// so nobody reads a log of an old session while it is cleared.
#include "base/trace.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BLOCK 1024  // events

typedef struct block {
    struct block *next;
    pl_trace_event events[BLOCK];
} block;

typedef struct thread_log {
    struct thread_log *next;  // guarded by `lock`
    int64_t tid;
    bool ended;        // guarded by `lock`
    uint64_t session;  // atomic: whose events these are
    int64_t count;     // atomic, Note [trace sessions]
    int64_t lost;      // atomic
    block *first, *last;
} thread_log;

bool pl__trace_on;
static bool shapes;       // atomic
static uint64_t session;  // atomic; 0: there was none
static int64_t began;     // atomic: start of the session; what began before is left out
static int64_t limit;     // atomic
static int64_t no_log;    // atomic: events of threads for whose log there was no memory

// Guards the list of logs, and keeps start() out while somebody reads.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static thread_log *logs;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;  // its destructor tells that a thread has ended

const char *pl_trace_kind_name(pl_trace_kind kind) {
    static const char *const names[] = {
#define X(name, text) text,
        PL_TRACE_KIND_MAP(X)
#undef X
    };
    return (unsigned)kind < PL_TRACE_KIND_COUNT ? names[kind] : "?";
}

static void on_thread_end(void *p) {
    thread_log *log = p;
    pthread_mutex_lock(&lock);
    log->ended = true;
    pthread_mutex_unlock(&lock);
}

static void make_key(void) { (void)pthread_key_create(&key, on_thread_end); }

static thread_log *own_log(void) {
    pthread_once(&once, make_key);
    thread_log *log = pthread_getspecific(key);
    if (log) return log;
    void *p;
    if (pl_calloc(sizeof *log, &p) != PL_OK) return NULL;
    log = p;
    log->tid = (int64_t)syscall(SYS_gettid);
    if (pthread_setspecific(key, log) != 0) {
        pl_free(log);
        return NULL;
    }
    pthread_mutex_lock(&lock);
    thread_log **end = &logs;
    while (*end) end = &(*end)->next;
    *end = log;
    pthread_mutex_unlock(&lock);
    return log;
}

// The block for event number n, made or used again; NULL: no memory.
static block *block_for(thread_log *log, int64_t n) {
    if (n % BLOCK != 0) return log->last;
    block *next = n == 0 ? log->first : log->last->next;
    if (!next) {
        void *p;
        if (pl_alloc(sizeof *next, &p) != PL_OK) return NULL;
        next = p;
        next->next = NULL;
        if (n == 0) {
            log->first = next;
        } else {
            log->last->next = next;
        }
    }
    log->last = next;
    return next;
}

void pl_trace_put(pl_trace_event *event) {
    if (event->end_ns == 0) event->end_ns = pl_now_ns();
    if (event->start_ns < __atomic_load_n(&began, __ATOMIC_RELAXED)) return;
    thread_log *log = own_log();
    if (!log) {
        __atomic_fetch_add(&no_log, 1, __ATOMIC_RELAXED);
        return;
    }
    // Acquire: sees the limit of the session it sees.
    uint64_t now = __atomic_load_n(&session, __ATOMIC_ACQUIRE);
    if (log->session != now) {
        __atomic_store_n(&log->count, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&log->lost, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&log->session, now, __ATOMIC_RELEASE);
    }
    int64_t n = log->count;
    block *b = n < __atomic_load_n(&limit, __ATOMIC_RELAXED) ? block_for(log, n) : NULL;
    if (!b) {
        __atomic_fetch_add(&log->lost, 1, __ATOMIC_RELAXED);
        return;
    }
    b->events[n % BLOCK] = *event;
    __atomic_store_n(&log->count, n + 1, __ATOMIC_RELEASE);
}

void pl__trace_end(int64_t since, pl_trace_kind kind, const char *name, int64_t nbytes) {
    pl_trace_event e = {.start_ns = since, .nbytes = nbytes, .number = -1, .kind = kind};
    snprintf(e.name, sizeof e.name, "%s", name);
    pl_trace_put(&e);
}

bool pl_trace_shapes(void) { return __atomic_load_n(&shapes, __ATOMIC_RELAXED); }

void pl_trace_start(bool with_shapes, int64_t events_per_thread) {
    pthread_mutex_lock(&lock);
    __atomic_store_n(&shapes, with_shapes, __ATOMIC_RELAXED);
    __atomic_store_n(&limit, events_per_thread, __ATOMIC_RELAXED);
    __atomic_store_n(&no_log, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&began, pl_now_ns(), __ATOMIC_RELAXED);
    __atomic_fetch_add(&session, 1, __ATOMIC_RELEASE);
    __atomic_store_n(&pl__trace_on, true, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&lock);
}

void pl_trace_stop(void) { __atomic_store_n(&pl__trace_on, false, __ATOMIC_RELAXED); }

static pl_status copy_log(const thread_log *log, pl_trace_log *out) {
    int64_t n = __atomic_load_n(&log->count, __ATOMIC_ACQUIRE), at = 0;
    void *p;
    PL_TRY(pl_alloc((size_t)(n ? n : 1) * sizeof(pl_trace_event), &p));
    *out = (pl_trace_log){.tid = log->tid, .n = n, .events = p};
    out->n_lost = __atomic_load_n(&log->lost, __ATOMIC_RELAXED);
    // A `next` is looked at only where the count says that there is one.
    for (const block *b = NULL; at < n;) {
        b = b ? b->next : log->first;
        int64_t some = n - at < BLOCK ? n - at : BLOCK;
        memcpy(out->events + at, b->events, (size_t)some * sizeof *out->events);
        at += some;
    }
    return PL_OK;
}

void pl_trace_logs_free(int n, pl_trace_log *threads) {
    for (int i = 0; i < n; i++) pl_free(threads[i].events);
    pl_free(threads);
}

pl_status pl_trace_read(int *n, pl_trace_log **out) {
    int n_logs = 0, found = 0;
    void *p = NULL;
    pthread_mutex_lock(&lock);
    uint64_t now = __atomic_load_n(&session, __ATOMIC_RELAXED);
    for (const thread_log *log = logs; log; log = log->next) n_logs++;
    pl_status st = pl_calloc((size_t)(n_logs + 1) * sizeof(pl_trace_log), &p);
    pl_trace_log *all = p;
    for (const thread_log *log = logs; log && st == PL_OK; log = log->next) {
        // Acquire: pairs with the clearing of the log.
        if (now == 0 || __atomic_load_n(&log->session, __ATOMIC_ACQUIRE) != now) continue;
        st = copy_log(log, &all[found]);
        if (st == PL_OK) found++;
    }
    int64_t lost = __atomic_load_n(&no_log, __ATOMIC_RELAXED);
    if (st == PL_OK && lost > 0) all[found++] = (pl_trace_log){.n_lost = lost};
    pthread_mutex_unlock(&lock);
    if (st != PL_OK) {
        pl_trace_logs_free(found, all);
        return st;
    }
    *n = found;
    *out = all;
    return PL_OK;
}

void pl_trace_clear(void) {
    pthread_once(&once, make_key);
    const thread_log *own = pthread_getspecific(key);
    (void)pthread_setspecific(key, NULL);
    pthread_mutex_lock(&lock);
    for (thread_log **at = &logs; *at;) {
        thread_log *log = *at;
        if (!log->ended && log != own) {
            at = &log->next;
            continue;
        }
        *at = log->next;
        for (block *b = log->first, *next; b; b = next) {
            next = b->next;
            pl_free(b);
        }
        pl_free(log);
    }
    pthread_mutex_unlock(&lock);
}

// SPDX-License-Identifier: Apache-2.0
// threads: parallel loops on libgomp's pool, which oneDNN shares. libgomp is opened at run time
// and entered by its own ABI (GOMP_parallel), so that no compiler needs -fopenmp and the same
// binary runs, serially, where there is none. Knows no kernel. Any thread may loop, but each thread
// that does gets a pool of its own: comm's threads stay out (Note [comm thread stays out of
// OpenMP], comm/comm.h). A child of fork() inherits no pool, and entering one hangs: it is serial.
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/base.h"

typedef struct gomp_api {
    void (*parallel)(void (*fn)(void *), void *data, unsigned num_threads, unsigned flags);
    void (*set_num_threads)(int n);
    int (*get_num_threads)(void);
    int (*get_thread_num)(void);
    int (*in_parallel)(void);
} gomp_api;

static gomp_api gomp;
static bool gomp_found;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static atomic_int thread_count;  // set by init_threads, then by pl_set_num_threads
static atomic_bool forked;
// OpenMP keeps its thread count per thread. Where this differs from thread_count, OpenMP (and so
// oneDNN) has not been told yet on this thread.
static _Thread_local int tl_told;

static bool find_symbol(void *lib, const char *name, void *out) {
    *(void **)out = dlsym(lib, name);
    return *(void **)out != NULL;
}

// ThreadSanitizer does not see the barriers of a libgomp that was built without it, and would
// report every loop as a race: there, loops are serial.
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define PL_NO_GOMP 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define PL_NO_GOMP 1
#endif

static void open_gomp(void) {
#ifdef PL_NO_GOMP
    return;
#endif
    void *lib = dlopen("libgomp.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!lib) return;
    gomp_found = find_symbol(lib, "GOMP_parallel", &gomp.parallel) &&
                 find_symbol(lib, "omp_set_num_threads", &gomp.set_num_threads) &&
                 find_symbol(lib, "omp_get_num_threads", &gomp.get_num_threads) &&
                 find_symbol(lib, "omp_get_thread_num", &gomp.get_thread_num) &&
                 find_symbol(lib, "omp_in_parallel", &gomp.in_parallel);
}

// In the child of a fork: only async-signal-safe work. omp_set_num_threads writes one word of this
// thread's own state; it makes oneDNN serial as well.
static void after_fork(void) {
    atomic_store_explicit(&forked, true, memory_order_relaxed);
    tl_told = 1;
    if (gomp_found) gomp.set_num_threads(1);
}

static int default_threads(void) {
    const char *text = getenv("OMP_NUM_THREADS");
    long n = text ? strtol(text, NULL, 10) : 0;  // of a list "4,2" the first counts
    return n >= 1 && n <= 4096 ? (int)n : pl_cpu_count();
}

static void init_threads(void) {
    open_gomp();
    int expected = 0;  // pl_set_num_threads calls init first, so nothing is overwritten
    (void)atomic_compare_exchange_strong(&thread_count, &expected, default_threads());
    (void)pthread_atfork(NULL, NULL, after_fork);
}

int pl_cpu_count(void) {
#if defined(__linux__)
    for (int cpus = 1024; cpus <= 1 << 16; cpus *= 4) {  // the kernel says EINVAL when too small
        cpu_set_t *set = CPU_ALLOC((size_t)cpus);
        if (!set) break;
        size_t size = CPU_ALLOC_SIZE((size_t)cpus);
        int n = sched_getaffinity(0, size, set) == 0 ? CPU_COUNT_S(size, set) : 0;
        CPU_FREE(set);
        if (n > 0) return n;
    }
#endif
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n >= 1 ? (int)n : 1;
}

int pl_num_threads(void) {
    (void)pthread_once(&once, init_threads);
    if (PL_UNLIKELY(atomic_load_explicit(&forked, memory_order_relaxed))) return 1;
    int n = atomic_load_explicit(&thread_count, memory_order_relaxed);
    if (PL_UNLIKELY(tl_told != n)) {
        tl_told = n;
        if (gomp_found) gomp.set_num_threads(n);
    }
    return n;
}

pl_status pl_set_num_threads(int n) {
    if (n < 1) {
        return pl_fail(PL_EINVAL,
                       "[set_num_threads] wrong number of threads: got %d, expected 1 "
                       "or more",
                       n);
    }
    (void)pthread_once(&once, init_threads);
    atomic_store_explicit(&thread_count, n, memory_order_relaxed);
    (void)pl_num_threads();
    return PL_OK;
}

typedef struct loop {
    pl_range_fn fn;
    void *ctx;
    int64_t n, grain, chunks;
    int pieces;
} loop;

static void run_piece(const loop *lp, int piece) {
    int64_t each = lp->chunks / lp->pieces, extra = lp->chunks % lp->pieces;
    int64_t first = piece * each + (piece < extra ? piece : extra);
    int64_t last = first + each + (piece < extra ? 1 : 0);
    int64_t end = last * lp->grain;
    lp->fn(first * lp->grain, end < lp->n ? end : lp->n, lp->ctx);
}

// OpenMP may give fewer threads than asked (OMP_THREAD_LIMIT); each then takes several pieces, so
// the pieces themselves never depend on it.
static void run_thread(void *data) {
    const loop *lp = data;
    int threads = gomp.get_num_threads();
    for (int piece = gomp.get_thread_num(); piece < lp->pieces; piece += threads) {
        run_piece(lp, piece);
    }
}

void pl_parallel_for(int64_t n, int64_t grain, pl_range_fn fn, void *ctx) {
    if (n <= 0) return;
    if (grain < 1) grain = 1;
    int threads = n <= grain ? 1 : pl_num_threads();
    if (threads == 1 || !gomp_found || gomp.in_parallel()) {
        fn(0, n, ctx);
        return;
    }
    int64_t chunks = (n - 1) / grain + 1;
    loop lp = {fn, ctx, n, grain, chunks, chunks < threads ? (int)chunks : threads};
    gomp.parallel(run_thread, &lp, (unsigned)lp.pieces, 0);
}

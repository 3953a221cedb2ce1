// SPDX-License-Identifier: Apache-2.0
// alloc: all host memory of the library, in two levels:
//   small  (<= 16 KiB) by size class, a few free blocks per thread, no lock (alloc_small.c);
//   large  by best fit from one range of huge pages, free neighbours joined (alloc_large.c).
// In the steady state of a training loop neither asks the system for anything. Knows no tensor. Any
// thread may free what another allocated. Under AddressSanitizer and in debug builds nothing is
// cached, so that a use after free is seen.
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc_internal.h"

#define MAX_BYTES ((size_t)1 << 47)  // no x86-64 process can map more

static atomic_size_t in_use, peak;
static _Atomic uint64_t fail_countdown;
static atomic_bool fail_forever;

#if PL_ALLOC_CACHED
static pl__block *take(size_t nbytes) {
    return nbytes <= PL_ALLOC_SMALL_BYTES ? pl__small_take(nbytes) : pl__large_take(nbytes);
}

static void give(pl__block *b) {
    if (b->size_class >= 0) pl__small_give(b);
    else pl__large_give(b);
}

void pl_alloc_trim(void) {
    pl__small_trim();
    pl__large_trim(0);
}

size_t pl_alloc_cached(void) { return pl__large_cached(); }
size_t pl_alloc_held(void) { return pl__large_held(); }

static void init_levels(void) {
    // A quarter of all: more than a training loop's temporaries, less than what would drive other
    // processes into swap.
    pl__large_set_limit(pl_memory_limit() / 4);
    // A fork while another thread holds a lock would leave it locked in the child for ever.
    (void)pthread_atfork(pl__small_lock, pl__small_unlock, pl__small_unlock);
}
#else
static pl__block *take(size_t nbytes) {
    void *p = NULL;
    if (posix_memalign(&p, PL_ALLOC_ALIGN, nbytes + PL_ALLOC_ALIGN) != 0) return NULL;
    pl__block *b = p;
    *b = (pl__block){.total = nbytes + PL_ALLOC_ALIGN, .magic = PL_ALLOC_USED};
    return b;
}

static void give(pl__block *b) {
    b->magic = PL_ALLOC_FREE;
    free(b);
}

void pl_alloc_trim(void) {}
size_t pl_alloc_cached(void) { return 0; }
size_t pl_alloc_held(void) { return pl_alloc_in_use(); }
static void init_levels(void) {}
#endif

__attribute__((constructor)) static void init_alloc(void) {
    const char *oom = getenv("PACELINE_OOM");
    if (oom) atomic_store(&fail_countdown, strtoull(oom, NULL, 10));
    init_levels();
}

static bool must_fail(void) {
    uint64_t n = atomic_load_explicit(&fail_countdown, memory_order_relaxed);
    if (PL_LIKELY(n == 0)) return false;
    while (!atomic_compare_exchange_weak(&fail_countdown, &n, n > 1 ? n - 1 : 0)) {
        if (n == 0) return false;
    }
    if (n != 1) return false;
    if (atomic_load(&fail_forever)) atomic_store(&fail_countdown, 1);
    return true;
}

static void count_in(size_t nbytes) {
    size_t now = atomic_fetch_add_explicit(&in_use, nbytes, memory_order_relaxed) + nbytes;
    size_t most = atomic_load_explicit(&peak, memory_order_relaxed);
    while (now > most && !atomic_compare_exchange_weak_explicit(
                             &peak, &most, now, memory_order_relaxed, memory_order_relaxed)) {
    }
}

static pl_status out_of_memory(size_t nbytes) {
    return pl_fail(PL_ENOMEM,
                   "[alloc] out of host memory: got a request of %zu bytes with %zu in use and "
                   "%zu cached, expected less (a smaller batch or model)",
                   nbytes, pl_alloc_in_use(), pl_alloc_cached());
}

pl_status pl_alloc(size_t nbytes, void **out) {
    *out = NULL;
    if (PL_UNLIKELY(nbytes > MAX_BYTES || must_fail())) return out_of_memory(nbytes);
    pl__block *b = take(nbytes);
    if (PL_UNLIKELY(!b)) {
        pl_alloc_trim();
        b = take(nbytes);
        if (!b) return out_of_memory(nbytes);
    }
    b->nbytes = nbytes;
    count_in(nbytes);
    *out = (char *)b + PL_ALLOC_ALIGN;
    return PL_OK;
}

pl_status pl_calloc(size_t nbytes, void **out) {
    PL_TRY(pl_alloc(nbytes, out));
    memset(*out, 0, nbytes);
    return PL_OK;
}

void pl_free(void *p) {
    if (!p) return;
    pl__block *b = (pl__block *)(void *)((char *)p - PL_ALLOC_ALIGN);
    // Freed twice, or not ours: going on would corrupt the free lists, and there is no caller to
    // tell. Stopping here names the culprit in the traceback.
    if (PL_UNLIKELY(b->magic != PL_ALLOC_USED)) __builtin_trap();
    atomic_fetch_sub_explicit(&in_use, b->nbytes, memory_order_relaxed);
    give(b);
}

// Relaxed throughout: statistics.
size_t pl_alloc_in_use(void) { return atomic_load_explicit(&in_use, memory_order_relaxed); }
size_t pl_alloc_peak(void) { return atomic_load_explicit(&peak, memory_order_relaxed); }
void pl_alloc_reset_peak(void) {
    atomic_store_explicit(&peak, pl_alloc_in_use(), memory_order_relaxed);
}

void pl_alloc_fail_at(uint64_t n, bool forever) {
    atomic_store(&fail_forever, forever);
    atomic_store(&fail_countdown, n);
}

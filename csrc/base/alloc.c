// SPDX-License-Identifier: Apache-2.0
// alloc: all host memory of the library. Three sizes of business:
//   small  (<= 64 KiB) a few free blocks per size class and thread, no lock;
//   large  (> 64 KiB)  one cache for all threads, exact size class only, oldest evicted first;
//   system posix_memalign; blocks of 2 MiB and up are aligned to that and ask for huge pages.
// Knows no tensor. Any thread may free what another allocated. Under AddressSanitizer and in debug
// builds nothing is cached, so that a use after free is seen.
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/base.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define PL_ALLOC_CACHED 0
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(PL_DEBUG)
#undef PL_ALLOC_CACHED
#define PL_ALLOC_CACHED 0
#endif
#ifndef PL_ALLOC_CACHED
#define PL_ALLOC_CACHED 1
#endif

enum {
    ALIGN = 64,
    HUGE_BYTES = 2 << 20,
    SMALL_KEEP_BYTES = 256 << 10,  // kept per class and thread, at least 2 and at most 64 blocks
    CLASSES_PER_OCTAVE = 8,
    // Up to 512 bytes a class every 64; then eight per power of two: 8 + 7 * 8 classes reach
    // 64 KiB (2^9 .. 2^16), 8 + 38 * 8 MAX_BYTES.
    SMALL_CLASSES = 8 + 7 * CLASSES_PER_OCTAVE,
    ALL_CLASSES = 8 + 38 * CLASSES_PER_OCTAVE
};

// Stands in the 64 bytes before each block. The links are used only while the block is cached.
typedef struct header {
    size_t nbytes;                 // as asked for
    size_t class_bytes;            // usable
    struct header *next, *prev;    // in its class
    struct header *newer, *older;  // over all classes (large only)
    int size_class;
    uint32_t magic;
} header;
_Static_assert(sizeof(header) <= ALIGN, "the header must fit before the block");

#define MAX_BYTES ((size_t)1 << 47)  // no x86-64 process can map more
#define MAGIC_USED 0x70616365u
#define MAGIC_FREE 0x6c696e65u

static atomic_size_t in_use, peak, cached;
static _Atomic uint64_t fail_countdown;
static atomic_bool fail_forever;

// ---------------------------------------------------------------------------------------------
// Size classes.

static int class_of(size_t nbytes, size_t *class_bytes) {
#if PL_ALLOC_CACHED
    if (nbytes <= 512) {
        int c = nbytes == 0 ? 0 : (int)((nbytes - 1) / ALIGN);
        *class_bytes = (size_t)(c + 1) * ALIGN;
        return c;
    }
    // 2^k < nbytes <= 2^(k+1), cut into eight steps of 2^(k-3) >= 64.
    int k = 63 - __builtin_clzll((unsigned long long)(nbytes - 1));
    size_t step = (size_t)1 << (k - 3);
    size_t eighth = (nbytes - 1 - ((size_t)1 << k)) / step;
    *class_bytes = ((size_t)1 << k) + (eighth + 1) * step;
    return 8 + (k - 9) * CLASSES_PER_OCTAVE + (int)eighth;
#else
    *class_bytes = nbytes;
    return ALL_CLASSES;
#endif
}

// ---------------------------------------------------------------------------------------------
// System.

static header *system_get(size_t class_bytes) {
    size_t total = class_bytes + ALIGN;
    void *p = NULL;
    size_t align = class_bytes >= HUGE_BYTES ? HUGE_BYTES : ALIGN;
    if (posix_memalign(&p, align, total) != 0) return NULL;
#ifdef MADV_HUGEPAGE
    // Only whole huge pages inside the block: the tail stays in small ones.
    if (class_bytes >= HUGE_BYTES) {
        (void)madvise(p, total / HUGE_BYTES * HUGE_BYTES, MADV_HUGEPAGE);
    }
#endif
    return p;
}

// ---------------------------------------------------------------------------------------------
// Large blocks.

#if PL_ALLOC_CACHED
// large_lock guards large_free, newest, oldest and the links of the blocks in them. It is a leaf:
// nothing else is locked while it is held.
static pthread_mutex_t large_lock = PTHREAD_MUTEX_INITIALIZER;
static header *large_free[ALL_CLASSES];
static header *newest, *oldest;
static size_t large_limit;  // bytes; set once at load

static void large_unlink(header *h) {
    if (h->prev) h->prev->next = h->next;
    else large_free[h->size_class] = h->next;
    if (h->next) h->next->prev = h->prev;
    if (h->newer) h->newer->older = h->older;
    else newest = h->older;
    if (h->older) h->older->newer = h->newer;
    else oldest = h->newer;
    atomic_fetch_sub_explicit(&cached, h->class_bytes, memory_order_relaxed);
}

static header *large_take(int size_class) {
    (void)pthread_mutex_lock(&large_lock);
    header *h = large_free[size_class];
    if (h) large_unlink(h);
    (void)pthread_mutex_unlock(&large_lock);
    return h;
}

// Drops the oldest blocks until at most `keep` bytes are cached. The system calls happen outside
// the lock: munmap of a large block takes long.
static void large_evict(size_t keep) {
    header *victims = NULL;
    (void)pthread_mutex_lock(&large_lock);
    while (oldest && atomic_load_explicit(&cached, memory_order_relaxed) > keep) {
        header *h = oldest;
        large_unlink(h);
        h->next = victims;
        victims = h;
    }
    (void)pthread_mutex_unlock(&large_lock);
    while (victims) {
        header *h = victims;
        victims = h->next;
        free(h);
    }
}

static void large_give(header *h) {
    if (h->class_bytes > large_limit) {
        free(h);
        return;
    }
    (void)pthread_mutex_lock(&large_lock);
    h->prev = NULL;
    h->next = large_free[h->size_class];
    if (h->next) h->next->prev = h;
    large_free[h->size_class] = h;
    h->newer = NULL;
    h->older = newest;
    if (newest) newest->newer = h;
    else oldest = h;
    newest = h;
    size_t now = atomic_fetch_add_explicit(&cached, h->class_bytes, memory_order_relaxed);
    bool over = now + h->class_bytes > large_limit;
    (void)pthread_mutex_unlock(&large_lock);
    if (over) large_evict(large_limit);
}

// ---------------------------------------------------------------------------------------------
// Small blocks: per thread, so no lock. What another thread freed simply stays with that thread,
// up to the limit. tl_state: 0 before the first use, 1 in use, 2 after the thread's destructors
// ran (a later free goes to the system).

typedef struct small_cache {
    header *free[SMALL_CLASSES];
    int16_t count[SMALL_CLASSES];
} small_cache;

static _Thread_local small_cache tl_small;
static _Thread_local int tl_state;
static pthread_key_t exit_key;

static void small_drain(void) {
    for (int c = 0; c < SMALL_CLASSES; c++) {
        while (tl_small.free[c]) {
            header *h = tl_small.free[c];
            tl_small.free[c] = h->next;
            free(h);
        }
        tl_small.count[c] = 0;
    }
}

static void thread_exit(void *unused) {
    (void)unused;
    tl_state = 2;
    small_drain();
}

static header *small_take(int size_class) {
    header *h = tl_small.free[size_class];
    if (!h) return NULL;
    tl_small.free[size_class] = h->next;
    tl_small.count[size_class]--;
    return h;
}

static void small_give(header *h) {
    if (PL_UNLIKELY(tl_state != 1)) {
        // The value only has to be non-NULL for the destructor to run.
        if (tl_state == 2 || pthread_setspecific(exit_key, &tl_small) != 0) {
            free(h);
            return;
        }
        tl_state = 1;
    }
    size_t keep = SMALL_KEEP_BYTES / h->class_bytes;
    if (keep > 64) keep = 64;
    if (keep < 2) keep = 2;
    int c = h->size_class;
    if ((size_t)tl_small.count[c] >= keep) {
        free(h);
        return;
    }
    h->next = tl_small.free[c];
    tl_small.free[c] = h;
    tl_small.count[c]++;
}

// A fork while another thread holds large_lock would leave it locked in the child for ever.
static void fork_prepare(void) { (void)pthread_mutex_lock(&large_lock); }
static void fork_done(void) { (void)pthread_mutex_unlock(&large_lock); }

static header *cache_take(int size_class) {
    return size_class < SMALL_CLASSES ? small_take(size_class) : large_take(size_class);
}

static void cache_give(header *h) {
    if (h->size_class < SMALL_CLASSES) small_give(h);
    else large_give(h);
}

void pl_alloc_trim(void) {
    large_evict(0);
    small_drain();
}
#else
static header *cache_take(int size_class) {
    (void)size_class;
    return NULL;
}
static void cache_give(header *h) { free(h); }
void pl_alloc_trim(void) {}
#endif

__attribute__((constructor)) static void init_alloc(void) {
    const char *oom = getenv("PACELINE_OOM");
    if (oom) atomic_store(&fail_countdown, strtoull(oom, NULL, 10));
#if PL_ALLOC_CACHED
    // A quarter of the machine: more than a training loop's temporaries, less than what would
    // drive other processes into swap.
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    large_limit = pages > 0 && page > 0 ? (size_t)pages / 4 * (size_t)page : (size_t)1 << 30;
    (void)pthread_key_create(&exit_key, thread_exit);
    (void)pthread_atfork(fork_prepare, fork_done, fork_done);
#endif
}

// ---------------------------------------------------------------------------------------------
// The interface.

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
    size_t class_bytes;
    int size_class = class_of(nbytes, &class_bytes);
    header *h = cache_take(size_class);
    if (!h) {
        h = system_get(class_bytes);
        if (!h) {
            pl_alloc_trim();
            h = system_get(class_bytes);
            if (!h) return out_of_memory(nbytes);
        }
        h->class_bytes = class_bytes;
        h->size_class = size_class;
    }
    h->nbytes = nbytes;
    h->magic = MAGIC_USED;
    count_in(nbytes);
    *out = (char *)h + ALIGN;
    return PL_OK;
}

pl_status pl_calloc(size_t nbytes, void **out) {
    PL_TRY(pl_alloc(nbytes, out));
    memset(*out, 0, nbytes);
    return PL_OK;
}

void pl_free(void *p) {
    if (!p) return;
    header *h = (header *)((char *)p - ALIGN);
    // Freed twice, or not ours: going on would corrupt the free lists, and there is no caller to
    // tell. Stopping here names the culprit in the traceback.
    if (PL_UNLIKELY(h->magic != MAGIC_USED)) __builtin_trap();
    h->magic = MAGIC_FREE;
    atomic_fetch_sub_explicit(&in_use, h->nbytes, memory_order_relaxed);
    cache_give(h);
}

// Relaxed throughout: statistics.
size_t pl_alloc_in_use(void) { return atomic_load_explicit(&in_use, memory_order_relaxed); }
size_t pl_alloc_peak(void) { return atomic_load_explicit(&peak, memory_order_relaxed); }
size_t pl_alloc_cached(void) { return atomic_load_explicit(&cached, memory_order_relaxed); }

void pl_alloc_fail_at(uint64_t n, bool forever) {
    atomic_store(&fail_forever, forever);
    atomic_store(&fail_countdown, n);
}

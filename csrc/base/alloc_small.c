// SPDX-License-Identifier: Apache-2.0
// The allocator's small level: a few free blocks per size class and thread, taken without a lock.
// What a thread has too many of goes to a shared list, where threads that have none fetch. Blocks
// are cut from slabs, which are large blocks; a slab goes back when a trim finds all of it in the
// shared list. Any thread may free what another allocated: it stays with that thread.
#include <pthread.h>
#include <stdint.h>

#include "base/alloc_internal.h"

#if PL_ALLOC_CACHED

enum {
    CLASSES = 8 + 5 * PL_ALLOC_PER_OCTAVE,  // up to 2^14 bytes
    KEEP_BYTES = 256 << 10,                 // per class and thread, at least 4, at most 256 blocks
    SLAB_BYTES = 64 << 10,                  // at least four blocks, at most 32
};
_Static_assert(1 << (9 + (CLASSES - 8) / PL_ALLOC_PER_OCTAVE) == PL_ALLOC_SMALL_BYTES,
               "the classes must end with the largest small size");

// In the first 64 bytes of a slab's memory.
typedef struct slab {
    pl__block *block;
    int n, shared;  // blocks in all, and of these in the shared list
    bool dying;
} slab;
_Static_assert(sizeof(slab) <= PL_ALLOC_ALIGN, "blocks of a slab are aligned");

typedef struct thread_cache {
    pl__block *free[CLASSES];
    int16_t count[CLASSES];
} thread_cache;

// small_lock guards shared_free and the slabs; the large level's lock may be taken inside.
static pthread_mutex_t small_lock = PTHREAD_MUTEX_INITIALIZER;
static pl__block *shared_free[CLASSES];

static _Thread_local thread_cache tl_cache;
// 0 before the first free, 1 in use, 2 after the thread's destructors ran: nothing is kept then.
static _Thread_local int tl_state;
static pthread_once_t key_once = PTHREAD_ONCE_INIT;
static pthread_key_t exit_key;

static int keep_of(size_t class_bytes) {
    size_t keep = KEEP_BYTES / class_bytes;
    return keep > 256 ? 256 : keep < 4 ? 4 : (int)keep;
}

// ---------------------------------------------------------------------------------------------
// The shared list. All of these hold small_lock.

static void shared_put(pl__block *b) {
    slab *s = b->home;
    s->shared++;
    b->next = shared_free[b->size_class];
    shared_free[b->size_class] = b;
}

static pl__block *shared_get(int size_class) {
    pl__block *b = shared_free[size_class];
    if (!b) return NULL;
    shared_free[size_class] = b->next;
    slab *s = b->home;
    s->shared--;
    return b;
}

static bool add_slab(int size_class, size_t class_bytes) {
    size_t each = class_bytes + PL_ALLOC_ALIGN, n = SLAB_BYTES / each;
    n = n < 4 ? 4 : n > 32 ? 32 : n;
    pl__block *block = pl__large_take(PL_ALLOC_ALIGN + n * each);
    if (!block) return false;
    block->nbytes = 0;
    slab *s = (slab *)(void *)((char *)block + PL_ALLOC_ALIGN);
    *s = (slab){.block = block, .n = (int)n};
    char *at = (char *)s + PL_ALLOC_ALIGN;
    for (size_t i = 0; i < n; i++, at += each) {
        pl__block *b = (pl__block *)(void *)at;
        *b = (pl__block){
            .total = each, .home = s, .magic = PL_ALLOC_FREE, .size_class = (int16_t)size_class};
        shared_put(b);
    }
    return true;
}

// ---------------------------------------------------------------------------------------------
// The thread's cache.

static void drain(int size_class, int keep) {
    (void)pthread_mutex_lock(&small_lock);
    while (tl_cache.count[size_class] > keep) {
        pl__block *b = tl_cache.free[size_class];
        tl_cache.free[size_class] = b->next;
        tl_cache.count[size_class]--;
        shared_put(b);
    }
    (void)pthread_mutex_unlock(&small_lock);
}

static void thread_exit(void *unused) {
    (void)unused;
    tl_state = 2;
    for (int c = 0; c < CLASSES; c++) drain(c, 0);
}

static void make_key(void) { (void)pthread_key_create(&exit_key, thread_exit); }

// Some blocks of the class for this thread: one is given, the others wait in its cache.
static pl__block *fetch(int size_class, size_t class_bytes) {
    int want = tl_state == 1 ? keep_of(class_bytes) / 4 : 0;
    (void)pthread_mutex_lock(&small_lock);
    pl__block *b = NULL;
    if (shared_free[size_class] || add_slab(size_class, class_bytes)) b = shared_get(size_class);
    for (int i = 0; i < want && shared_free[size_class]; i++) {
        pl__block *more = shared_get(size_class);
        more->next = tl_cache.free[size_class];
        tl_cache.free[size_class] = more;
        tl_cache.count[size_class]++;
    }
    (void)pthread_mutex_unlock(&small_lock);
    return b;
}

pl__block *pl__small_take(size_t nbytes) {
    size_t class_bytes;
    int c = pl__size_class(nbytes, &class_bytes);
    pl__block *b = tl_cache.free[c];
    if (PL_LIKELY(b != NULL)) {
        tl_cache.free[c] = b->next;
        tl_cache.count[c]--;
    } else {
        b = fetch(c, class_bytes);
        if (!b) return NULL;
    }
    b->magic = PL_ALLOC_USED;
    return b;
}

// True where this thread may keep blocks: its end will be noticed.
static bool may_keep(void) {
    if (PL_LIKELY(tl_state == 1)) return true;
    if (tl_state == 2) return false;
    (void)pthread_once(&key_once, make_key);
    // The value only has to be non-NULL for the destructor to run.
    if (pthread_setspecific(exit_key, &tl_cache) != 0) return false;
    tl_state = 1;
    return true;
}

void pl__small_give(pl__block *b) {
    int c = b->size_class;
    b->magic = PL_ALLOC_FREE;
    b->next = tl_cache.free[c];
    tl_cache.free[c] = b;
    tl_cache.count[c]++;
    int keep = may_keep() ? keep_of(b->total - PL_ALLOC_ALIGN) : 0;
    if (PL_UNLIKELY(tl_cache.count[c] > keep)) drain(c, keep / 2);
}

// ---------------------------------------------------------------------------------------------
// Giving back.

// Takes the blocks of wholly free slabs out of a class's list and gives those slabs back.
static void trim_class(int size_class) {
    pl__block **at = &shared_free[size_class];
    while (*at) {
        slab *s = (*at)->home;
        if (s->shared == s->n) s->dying = true;
        if (!s->dying) {
            at = &(*at)->next;
            continue;
        }
        *at = (*at)->next;
        if (--s->shared == 0) pl__large_give(s->block);
    }
}

void pl__small_trim(void) {
    for (int c = 0; c < CLASSES; c++) drain(c, 0);
    (void)pthread_mutex_lock(&small_lock);
    for (int c = 0; c < CLASSES; c++) trim_class(c);
    (void)pthread_mutex_unlock(&small_lock);
}

void pl__small_lock(void) {
    (void)pthread_mutex_lock(&small_lock);
    pl__large_lock();
}

void pl__small_unlock(void) {
    pl__large_unlock();
    (void)pthread_mutex_unlock(&small_lock);
}

#else
typedef int pl__no_small_level;  // an empty file is no C
#endif

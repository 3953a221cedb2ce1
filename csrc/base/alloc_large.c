// SPDX-License-Identifier: Apache-2.0
// The allocator's large level: blocks of whole 4 KiB units, cut from one growing range of
// addresses.
//
// An arena is a range of addresses, reserved once and made writable as it is needed. From its base
// to its top it consists of blocks that touch each other, used or free. Free neighbours are always
// joined, so what was an activation serves as a gradient a moment later; that keeps the top near
// the most that was ever in use at once. Free blocks hang in lists by size class with one bit per
// list, so that a fit is found without a search (Masmano et al., TLSF, ECRTS 2004): the best of a
// few in the request's own class, else the best of a few in the next class that has any.
//
// The arena asks for huge pages. Pages go back to the system by pl__large_trim only.
// Thread rule: any thread; one lock around the lists, system calls that take long outside it.
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>

#include "base/alloc_internal.h"

#if PL_ALLOC_CACHED

#define UNIT ((size_t)4096)
#define HUGE_BYTES ((size_t)2 << 20)
#define GROW_BYTES ((size_t)32 << 20)      // made writable at a time
#define SMALLEST_ARENA ((size_t)64 << 20)  // below that the limit on addresses is out of memory
#define ARENAS 64
#define BINS (8 + 38 * PL_ALLOC_PER_OCTAVE)
#define WORDS ((BINS + 63) / 64)
#define OWN_TRIES 32  // free blocks looked at in the request's own class, where some are too small
#define NEXT_TRIES 8  // and in the next class, where all fit

typedef struct arena {
    char *mapped, *base, *top, *writable, *end;
    pl__block *last;  // the block that ends at top, or NULL
} arena;

// large_lock guards everything below and the headers of free blocks. A leaf.
static pthread_mutex_t large_lock = PTHREAD_MUTEX_INITIALIZER;
static arena arenas[ARENAS];
static int n_arenas;
static pl__block *bins[BINS];
static uint64_t filled[WORDS];
static size_t given_bytes, top_bytes;
static atomic_size_t cached, limit = SIZE_MAX;

// ---------------------------------------------------------------------------------------------
// Lists.

static int bin_of(size_t total) {
    size_t unused;
    return pl__size_class(total, &unused);
}

static void link_free(pl__block *b) {
    int c = bin_of(b->total);
    b->magic = PL_ALLOC_FREE;
    b->prev = NULL;
    b->next = bins[c];
    if (b->next) b->next->prev = b;
    bins[c] = b;
    filled[c / 64] |= (uint64_t)1 << (c % 64);
    if (b->given) given_bytes += b->total;
    else atomic_fetch_add_explicit(&cached, b->total, memory_order_relaxed);
}

static void unlink_free(pl__block *b) {
    int c = bin_of(b->total);
    if (b->prev) b->prev->next = b->next;
    else bins[c] = b->next;
    if (b->next) b->next->prev = b->prev;
    if (!bins[c]) filled[c / 64] &= ~((uint64_t)1 << (c % 64));
    if (b->given) given_bytes -= b->total;
    else atomic_fetch_sub_explicit(&cached, b->total, memory_order_relaxed);
}

static int next_filled(int from) {
    for (int w = from / 64; w < WORDS; w++) {
        uint64_t bits = filled[w];
        if (w == from / 64) bits &= ~(uint64_t)0 << (from % 64);
        if (bits) return w * 64 + __builtin_ctzll(bits);
    }
    return BINS;
}

static pl__block *best_of(pl__block *b, size_t total, int tries) {
    pl__block *best = NULL;
    for (; b && tries > 0; b = b->next, tries--) {
        if (b->total < total || (best && b->total >= best->total)) continue;
        best = b;
        if (b->total == total) break;
    }
    return best;
}

static pl__block *find(size_t total) {
    int c = bin_of(total);
    pl__block *b = best_of(bins[c], total, OWN_TRIES);
    if (b || (c = next_filled(c + 1)) == BINS) return b;
    return best_of(bins[c], total, NEXT_TRIES);
}

// ---------------------------------------------------------------------------------------------
// Blocks in their arena.

static pl__block *above(const arena *a, pl__block *b) {
    char *end = (char *)b + b->total;
    return end < a->top ? (pl__block *)(void *)end : NULL;
}

// b, just changed in size, becomes the lower neighbour of what follows it.
static void settle(arena *a, pl__block *b) {
    pl__block *up = above(a, b);
    if (up) up->below = b;
    else a->last = b;
}

static void split(pl__block *b, size_t total) {
    arena *a = b->home;
    if (b->total == total) return;
    pl__block *rest = (pl__block *)(void *)((char *)b + total);
    *rest = (pl__block){
        .total = b->total - total, .below = b, .home = a, .size_class = -1, .given = b->given};
    b->total = total;
    settle(a, rest);
    link_free(rest);
}

// Joins b, which is in no list, with its free neighbours; gives the whole.
static pl__block *join(pl__block *b) {
    arena *a = b->home;
    pl__block *up = above(a, b), *down = b->below;
    if (up && up->magic == PL_ALLOC_FREE) {
        unlink_free(up);
        b->total += up->total;
        b->given = b->given && up->given;
    }
    if (down && down->magic == PL_ALLOC_FREE) {
        unlink_free(down);
        down->total += b->total;
        down->given = down->given && b->given;
        b->magic = PL_ALLOC_FREE;  // freed twice is still seen
        b = down;
    }
    settle(a, b);
    return b;
}

// ---------------------------------------------------------------------------------------------
// Arenas.

// Twice the memory there is in addresses, or what a limit on them leaves.
static arena *arena_new(size_t total) {
    if (n_arenas == ARENAS) return NULL;
    size_t want = 2 * pl_memory_limit() / HUGE_BYTES * HUGE_BYTES;
    while (want >= SMALLEST_ARENA && want >= total + HUGE_BYTES) {
        char *p = mmap(NULL, want, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p != MAP_FAILED) {
#ifdef MADV_HUGEPAGE
            (void)madvise(p, want, MADV_HUGEPAGE);
#endif
            arena *a = &arenas[n_arenas++];
            a->mapped = p;
            a->base = (char *)(((uintptr_t)p + HUGE_BYTES - 1) / HUGE_BYTES * HUGE_BYTES);
            a->top = a->writable = a->base;
            a->end = p + want / HUGE_BYTES * HUGE_BYTES;
            return a;
        }
        want = want / 2 / HUGE_BYTES * HUGE_BYTES;
    }
    return NULL;
}

static void arena_drop_last(void) {
    arena *a = &arenas[--n_arenas];
    (void)munmap(a->mapped, (size_t)(a->end - a->mapped));
}

static bool make_writable(arena *a, char *until) {
    if (until <= a->writable) return true;
    size_t need = (size_t)(until - a->writable), left = (size_t)(a->end - a->writable);
    size_t step = (need + GROW_BYTES - 1) / GROW_BYTES * GROW_BYTES;
    if (step > left) step = left;
    if (top_bytes - given_bytes + need > pl_memory_limit()) return false;
    if (mprotect(a->writable, step, PROT_READ | PROT_WRITE) != 0) return false;
    a->writable += step;
    return true;
}

// A block at the arena's top, over the free one there if there is one; NULL: no room.
static pl__block *extend(arena *a, size_t total) {
    pl__block *b = a->last && a->last->magic == PL_ALLOC_FREE ? a->last : NULL;
    size_t more = b ? total - b->total : total;
    if (more > (size_t)(a->end - a->top) || !make_writable(a, a->top + more)) return NULL;
    if (b) {
        unlink_free(b);
        b->total = total;
    } else {
        b = (pl__block *)(void *)a->top;
        *b = (pl__block){.total = total, .below = a->last, .home = a, .size_class = -1};
    }
    a->top += more;
    a->last = b;
    top_bytes += more;
    return b;
}

// ---------------------------------------------------------------------------------------------
// The level's interface.

pl__block *pl__large_take(size_t nbytes) {
    size_t total = (nbytes + PL_ALLOC_ALIGN + UNIT - 1) / UNIT * UNIT;
    (void)pthread_mutex_lock(&large_lock);
    pl__block *b = find(total);
    if (b) {
        unlink_free(b);
        split(b, total);
    }
    for (int i = n_arenas - 1; i >= 0 && !b; i--) b = extend(&arenas[i], total);
    if (!b) {
        arena *a = arena_new(total);
        if (a && !(b = extend(a, total))) arena_drop_last();
    }
    if (b) {
        b->magic = PL_ALLOC_USED;
        b->given = false;
    }
    (void)pthread_mutex_unlock(&large_lock);
    return b;
}

void pl__large_give(pl__block *b) {
    (void)pthread_mutex_lock(&large_lock);
    link_free(join(b));
    (void)pthread_mutex_unlock(&large_lock);
    size_t most = atomic_load_explicit(&limit, memory_order_relaxed);
    if (PL_UNLIKELY(pl__large_cached() > most)) pl__large_trim(most);
}

// The largest free block that still has its pages, out of its list; NULL: none.
static pl__block *pick_victim(void) {
    for (int c = BINS - 1; c >= 0; c--) {
        for (pl__block *b = bins[c]; b; b = b->next) {
            if (b->given) continue;
            unlink_free(b);
            b->magic = PL_ALLOC_BUSY;
            return b;
        }
    }
    return NULL;
}

// Puts a block whose pages are gone back: under the top where it ends there.
static void put_back(pl__block *b) {
    arena *a = b->home;
    b->given = true;
    b = join(b);
    if (a->last == b && b->given) {
        top_bytes -= b->total;
        a->last = b->below;
        a->top = (char *)b;
        return;
    }
    link_free(b);
}

void pl__large_trim(size_t keep) {
    while (pl__large_cached() > keep) {
        (void)pthread_mutex_lock(&large_lock);
        pl__block *b = pick_victim();
        (void)pthread_mutex_unlock(&large_lock);
        if (!b) return;
        // All but the page of the header.
        if (b->total > UNIT) (void)madvise((char *)b + UNIT, b->total - UNIT, MADV_DONTNEED);
        (void)pthread_mutex_lock(&large_lock);
        put_back(b);
        (void)pthread_mutex_unlock(&large_lock);
    }
}

size_t pl__large_cached(void) { return atomic_load_explicit(&cached, memory_order_relaxed); }

size_t pl__large_held(void) {
    (void)pthread_mutex_lock(&large_lock);
    size_t held = top_bytes - given_bytes;
    (void)pthread_mutex_unlock(&large_lock);
    return held;
}

void pl__large_set_limit(size_t nbytes) {
    atomic_store_explicit(&limit, nbytes, memory_order_relaxed);
}

void pl__large_lock(void) { (void)pthread_mutex_lock(&large_lock); }
void pl__large_unlock(void) { (void)pthread_mutex_unlock(&large_lock); }

#else
typedef int pl__no_large_level;  // an empty file is no C
#endif

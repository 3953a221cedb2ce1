// SPDX-License-Identifier: Apache-2.0
// Blocks of the allocator: lists by address and by size, splitting and growing together, and what
// other streams did with free ones. See cache_internal.h.
#include <string.h>

#include "cuda/cache_internal.h"

#define MIB ((size_t)1 << 20)
#define SMALL_MOST MIB  // requests that share the segments for small ones
#define SMALL_SEGMENT (2 * MIB)
#define SHARED_MOST (10 * MIB)  // requests below share segments
#define SHARED_SEGMENT (20 * MIB)

bool pl__cache_is_small(size_t nbytes) { return nbytes <= SMALL_MOST; }

size_t pl__cache_segment(const pl_cuda_cache *c, size_t nbytes) {
    if (c->whole) return nbytes;
    if (pl__cache_is_small(nbytes)) return SMALL_SEGMENT;
    if (nbytes < SHARED_MOST) return SHARED_SEGMENT;
    return (nbytes + 2 * MIB - 1) / (2 * MIB) * (2 * MIB);
}

// ---- Lists --------------------------------------------------------------------------------------

pl__block **pl__cache_place(pl_cuda_cache *c, const void *p) {
    uint64_t key = (uint64_t)(uintptr_t)p >> 9;  // what blocks are rounded to
    return &c->held[key * 0x9E3779B97F4A7C15u >> 52];
}

void pl__cache_link(pl__block **list, pl__block *b) {
    b->next = *list;
    b->link = list;
    if (b->next != NULL) b->next->link = &b->next;
    *list = b;
}

void pl__cache_unlink(pl__block *b) {
    *b->link = b->next;
    if (b->next != NULL) b->next->link = b->link;
}

// Sixteen classes between a power of two and the next; the larger size never has the lower class.
static int size_class(size_t nbytes) {
    int log = 63 - __builtin_clzll((unsigned long long)nbytes | 16);
    return log * 16 + (int)(nbytes >> (log - 4) & 15);
}

void pl__cache_put(pl_cuda_cache *c, pl__block *b) {
    int class = size_class(b->nbytes);
    pl__cache_link(&c->free[class], b);
    c->filled[class / 64] |= (uint64_t)1 << class % 64;
    c->stats.cached += b->nbytes;
    c->unclean += b->users != NULL;
}

void pl__cache_take(pl_cuda_cache *c, pl__block *b) {
    int class = size_class(b->nbytes);
    pl__cache_unlink(b);
    if (c->free[class] == NULL) c->filled[class / 64] &= ~((uint64_t)1 << class % 64);
    c->stats.cached -= b->nbytes;
    c->unclean -= b->users != NULL;
}

// The first list from `class` on that has a block, or -1.
static int next_filled(const pl_cuda_cache *c, int class) {
    for (int word = class / 64; word < PL__SIZES / 64; word++) {
        uint64_t bits = c->filled[word];
        if (word == class / 64) bits &= ~(uint64_t)0 << class % 64;
        if (bits != 0) return word * 64 + __builtin_ctzll((unsigned long long)bits);
    }
    return -1;
}

// Small requests leave large segments alone, whose pieces they would keep apart.
static bool serves(const pl_cuda_cache *c, const pl__block *b, size_t nbytes, const pl_stream *s) {
    if (b->stream != s || b->nbytes < nbytes) return false;
    if (c->whole) return b->nbytes == nbytes;
    return b->of_small == pl__cache_is_small(nbytes);
}

pl__block *pl__cache_best(pl_cuda_cache *c, size_t nbytes, const pl_stream *s) {
    int class = next_filled(c, size_class(nbytes));
    for (; class >= 0 && class < PL__SIZES; class = next_filled(c, class + 1)) {
        pl__block *best = NULL;
        for (pl__block *b = c->free[class]; b != NULL; b = b->next) {
            if (!serves(c, b, nbytes, s)) continue;
            if (b->nbytes == nbytes) return b;
            if (best == NULL || b->nbytes < best->nbytes) best = b;
        }
        if (best != NULL) return best;
        if (class + 1 == PL__SIZES) break;
    }
    return NULL;
}

// ---- Splitting and growing together -------------------------------------------------------------

static bool may_join(const pl__block *b) { return b != NULL && b->tag == NULL && b->users == NULL; }

// Of two free neighbours the lower one stays.
static void join(pl_cuda_cache *c, pl__block *low, pl__block *high) {
    pl__cache_take(c, low);
    pl__cache_take(c, high);
    low->nbytes += high->nbytes;
    low->behind = high->behind;
    if (low->behind != NULL) low->behind->before = low;
    pl_free(high);
    pl__cache_put(c, low);
}

pl_status pl__cache_split(pl_cuda_cache *c, pl__block *b, size_t nbytes) {
    size_t rest = b->nbytes - nbytes;
    void *room;
    if (c->whole || rest == 0 || (!b->of_small && rest <= SMALL_MOST)) return PL_OK;
    PL_TRY(pl_calloc(sizeof(pl__block), &room));
    pl__block *tail = room;
    pl__cache_take(c, b);
    tail->data = b->data + nbytes;
    tail->nbytes = rest;
    tail->stream = b->stream;
    tail->of_small = b->of_small;
    tail->before = b;
    tail->behind = b->behind;
    if (tail->behind != NULL) tail->behind->before = tail;
    b->behind = tail;
    b->nbytes = nbytes;
    pl__cache_put(c, b);
    pl__cache_put(c, tail);
    if (may_join(tail->behind)) join(c, tail, tail->behind);  // b was not clean until now
    return PL_OK;
}

void pl__cache_merge(pl_cuda_cache *c, pl__block *b) {
    if (may_join(b->behind)) join(c, b, b->behind);
    if (may_join(b->before)) join(c, b->before, b);
}

// ---- Other streams ------------------------------------------------------------------------------

pl_status pl__cache_event(pl_cuda_cache *c, pl_event **out) {
    if (c->spares == 0) return c->r->event_new(c->r, out);
    *out = c->spare[--c->spares];
    return PL_OK;
}

// Without memory for the list an event is lost, which harms nobody.
static void keep_event(pl_cuda_cache *c, pl_event *e) {
    if (e == NULL) return;
    if (c->spares == c->spare_room) {
        int room = c->spare_room == 0 ? 16 : 2 * c->spare_room;
        void *more;
        if (pl_alloc((size_t)room * sizeof(pl_event *), &more) != PL_OK) return;
        if (c->spares > 0) memcpy(more, c->spare, (size_t)c->spares * sizeof(pl_event *));
        pl_free(c->spare);
        c->spare = more;
        c->spare_room = room;
    }
    c->spare[c->spares++] = e;
}

void pl__cache_forget(pl_cuda_cache *c, pl__block *b) {
    pl__user *u = b->users;
    b->users = u->next;
    if (b->tag == NULL) c->unclean -= b->users == NULL;
    keep_event(c, u->done);
    pl_free(u);
}

// b is clean afterwards, where its users are done; *out: whether it is.
static pl_status settle_block(pl_cuda_cache *c, pl__block *b, bool wait, bool *out) {
    *out = false;
    while (b->users != NULL) {
        bool done = true;
        if (wait) {
            PL_TRY(c->r->sync_event(c->r, b->users->done));
        } else {
            PL_TRY(c->r->event_done(c->r, b->users->done, &done));
        }
        if (!done) return PL_OK;
        pl__cache_forget(c, b);
    }
    *out = true;
    return PL_OK;
}

// One that could be settled, and has grown with its neighbours: then the lists have changed.
static pl_status settle_one(pl_cuda_cache *c, int class, bool wait, bool *out) {
    *out = false;
    for (pl__block *b = c->free[class]; b != NULL && !*out; b = b->next) {
        if (b->users == NULL) continue;
        PL_TRY(settle_block(c, b, wait, out));
        if (!*out) continue;
        pl__cache_merge(c, b);
        return PL_OK;
    }
    return PL_OK;
}

pl_status pl__cache_settle(pl_cuda_cache *c, bool wait) {
    for (int i = 0; i < PL__SIZES && c->unclean > 0; i++) {
        bool again = true;
        while (again) PL_TRY(settle_one(c, i, wait, &again));
    }
    return PL_OK;
}

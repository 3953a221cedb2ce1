// SPDX-License-Identifier: Apache-2.0
// cache: see cache.h. Blocks in use are found by their address, free ones by their size; a free
// block serves a request of its stream that it is not more than an eighth (or 2 MiB) too large for,
// the tightest one first. Sizes are rounded to 512 bytes, above 1 MiB to 1/8 of their power of two,
// so that sizes which differ a little share blocks.
#include "cuda/cache.h"

#include <stdio.h>
#include <string.h>

enum { MOST_USERS = 8, PLACES = 4096, SIZES = 64 * 16 };

// Another stream that used a block: by `done` it has, once the block is free.
typedef struct user {
    pl_stream *stream;
    pl_event *done;
} user;

typedef struct block {
    struct block *next;  // of its place or its size
    void *data;
    size_t nbytes;
    pl_stream *stream;
    const char *tag;  // NULL: free
    int users;
    user by[MOST_USERS];
} block;

struct pl_cuda_cache {
    pl_runtime *r;
    block *held[PLACES];  // in use, by a hash of the address
    block *free[SIZES];   // by size_class, the last freed first
    pl_cuda_cache_stats stats;
    pl_stream *others[MOST_USERS];  // told by _used, each once
    int n_others;
    pl_event **spare;  // events that no block holds
    int spares, spare_room;
};

static size_t rounded(size_t nbytes) {
    size_t step = 512;
    while (nbytes > (size_t)1 << 20 && step * 8 <= nbytes / 2) step *= 2;
    return (nbytes + step - 1) / step * step;
}

static block **place_of(pl_cuda_cache *c, const void *p) {
    uint64_t key = (uint64_t)(uintptr_t)p >> 9;  // what a device aligns to at least
    return &c->held[key * 0x9E3779B97F4A7C15u >> 52];
}

// Sixteen classes between a power of two and the next; the larger size never has the lower class.
static int size_class(size_t nbytes) {
    int log = 63 - __builtin_clzll((unsigned long long)nbytes | 16);
    return log * 16 + (int)(nbytes >> (log - 4) & 15);
}

static void put(block **list, block *b) {
    b->next = *list;
    *list = b;
}

pl_status pl_cuda_cache_new(pl_runtime *r, pl_cuda_cache **out) {
    void *c;
    PL_TRY(pl_calloc(sizeof(pl_cuda_cache), &c));
    ((pl_cuda_cache *)c)->r = r;
    *out = c;
    return PL_OK;
}

// ---- Events -------------------------------------------------------------------------------------

static pl_status take_event(pl_cuda_cache *c, pl_event **out) {
    if (c->spares == 0) return c->r->event_new(c->r, out);
    *out = c->spare[--c->spares];
    return PL_OK;
}

static pl_status keep_event(pl_cuda_cache *c, pl_event *e) {
    if (c->spares == c->spare_room) {
        int room = c->spare_room == 0 ? 16 : 2 * c->spare_room;
        void *more;
        PL_TRY(pl_alloc((size_t)room * sizeof(pl_event *), &more));
        if (c->spares > 0) memcpy(more, c->spare, (size_t)c->spares * sizeof(pl_event *));
        pl_free(c->spare);
        c->spare = more;
        c->spare_room = room;
    }
    c->spare[c->spares++] = e;
    return PL_OK;
}

// ---- Giving back --------------------------------------------------------------------------------

// The host waits until nothing enqueued touches b, which then leaves the list.
static pl_status give_back(pl_cuda_cache *c, block **link) {
    block *b = *link;
    PL_TRY(c->r->sync_stream(c->r, b->stream));
    for (; b->users > 0; b->users--) {
        const user *u = &b->by[b->users - 1];
        if (u->done == NULL) {
            PL_TRY(c->r->sync_stream(c->r, u->stream));
            continue;
        }
        PL_TRY(c->r->sync_event(c->r, u->done));
        PL_TRY(keep_event(c, u->done));
    }
    PL_TRY(c->r->free(c->r, b->data));
    *link = b->next;
    *(b->tag == NULL ? &c->stats.cached : &c->stats.in_use) -= b->nbytes;
    pl_free(b);
    return PL_OK;
}

static pl_status give_back_all(pl_cuda_cache *c, block **lists, int n) {
    for (int i = 0; i < n; i++) {
        while (lists[i] != NULL) PL_TRY(give_back(c, &lists[i]));
    }
    return PL_OK;
}

pl_status pl_cuda_cache_trim(pl_cuda_cache *c) { return give_back_all(c, c->free, SIZES); }

pl_status pl_cuda_cache_free(pl_cuda_cache *c) {
    if (c == NULL) return PL_OK;
    PL_TRY(give_back_all(c, c->free, SIZES));
    PL_TRY(give_back_all(c, c->held, PLACES));
    pl_free(c->spare);
    pl_free(c);
    return PL_OK;
}

// ---- Handing out --------------------------------------------------------------------------------

// The tightest in one class, as a link, or NULL.
static block **best_of(block **list, size_t nbytes, size_t most, const pl_stream *s) {
    block **best = NULL;
    for (block **link = list; *link != NULL; link = &(*link)->next) {
        const block *b = *link;
        if (b->stream != s || b->nbytes < nbytes || b->nbytes > most) continue;
        if (best == NULL || b->nbytes < (*best)->nbytes) best = link;
        if (b->nbytes == nbytes) break;
    }
    return best;
}

// Leaves its list.
static block *best_free(pl_cuda_cache *c, size_t nbytes, const pl_stream *s) {
    size_t slack = nbytes / 8 > (size_t)2 << 20 ? nbytes / 8 : (size_t)2 << 20;
    if (nbytes < (size_t)1 << 20) slack = nbytes;
    int last = size_class(nbytes + slack);
    for (int i = size_class(nbytes); i <= last; i++) {
        block **link = best_of(&c->free[i], nbytes, nbytes + slack, s);
        if (link == NULL) continue;
        block *b = *link;
        *link = b->next;
        return b;
    }
    return NULL;
}

// The owner's stream waits for the other streams that used b before.
static pl_status reuse(pl_cuda_cache *c, block *b) {
    for (; b->users > 0; b->users--) {
        PL_TRY(c->r->wait(c->r, b->stream, b->by[b->users - 1].done));
        PL_TRY(keep_event(c, b->by[b->users - 1].done));
    }
    c->stats.cached -= b->nbytes;
    return PL_OK;
}

// PL_ENOMEM only where the device is full, also without what the cache keeps.
static pl_status device_malloc(pl_cuda_cache *c, size_t nbytes, void **out) {
    pl_status st = c->r->malloc(c->r, nbytes, out);
    if (st != PL_ENOMEM || c->stats.cached == 0) return st;
    PL_TRY(pl_cuda_cache_trim(c));
    return c->r->malloc(c->r, nbytes, out);
}

static size_t held_as(const pl_cuda_cache *c, const char *tag) {
    size_t sum = 0;
    for (int i = 0; i < PLACES; i++) {
        for (const block *b = c->held[i]; b != NULL; b = b->next) {
            if (strcmp(b->tag, tag) == 0) sum += b->nbytes;
        }
    }
    return sum;
}

// Bytes in use under the tag that has most of those below `under`.
static size_t next_holder(const pl_cuda_cache *c, size_t under, const char **tag) {
    size_t most = 0;
    for (int i = 0; i < PLACES; i++) {
        for (const block *b = c->held[i]; b != NULL; b = b->next) {
            size_t sum = held_as(c, b->tag);
            if (sum > most && sum < under) {
                most = sum;
                *tag = b->tag;
            }
        }
    }
    return most;
}

static pl_status out_of_memory(const pl_cuda_cache *c, size_t nbytes, const char *tag) {
    char holders[160] = "nothing";
    size_t used = 0, under = SIZE_MAX;
    for (int i = 0; i < 3; i++) {
        const char *who = NULL;
        under = next_holder(c, under, &who);
        if (under == 0 || used >= sizeof(holders) - 1) break;
        int n = snprintf(holders + used, sizeof(holders) - used, "%s%s %zu MiB", i ? ", " : "", who,
                         under >> 20);
        used += n > 0 ? (size_t)n : 0;
    }
    return pl_fail(PL_ENOMEM,
                   "[cuda] out of device memory: got a request of %zu MiB for %s while %zu MiB are "
                   "in use (%s); expected less: a smaller batch, or accumulation over more steps",
                   nbytes >> 20, tag, c->stats.in_use >> 20, holders);
}

pl_status pl_cuda_cache_alloc(pl_cuda_cache *c, size_t nbytes, pl_stream *s, const char *tag,
                              void **out) {
    nbytes = rounded(nbytes);
    block *b = best_free(c, nbytes, s);
    if (b != NULL) {
        pl_status st = reuse(c, b);
        if (st != PL_OK) put(&c->free[size_class(b->nbytes)], b);
        PL_TRY(st);
    } else {
        void *room;
        PL_TRY(pl_calloc(sizeof(block), &room));
        b = room;
        pl_status st = device_malloc(c, nbytes, &b->data);
        if (st != PL_OK) pl_free(room);
        if (st == PL_ENOMEM) return out_of_memory(c, nbytes, tag);
        PL_TRY(st);
        b->nbytes = nbytes;
        b->stream = s;
    }
    b->tag = tag;
    put(place_of(c, b->data), b);
    c->stats.in_use += b->nbytes;
    if (c->stats.in_use > c->stats.peak) c->stats.peak = c->stats.in_use;
    *out = b->data;
    return PL_OK;
}

static pl_status find(pl_cuda_cache *c, const void *p, block ***out) {
    for (block **link = place_of(c, p); *link != NULL; link = &(*link)->next) {
        if ((*link)->data == p) {
            *out = link;
            return PL_OK;
        }
    }
    return pl_fail(PL_EINVAL, "[cuda] memory at %p is not in use in this cache", p);
}

static pl_status note_stream(pl_cuda_cache *c, pl_stream *s) {
    for (int i = 0; i < c->n_others; i++) {
        if (c->others[i] == s) return PL_OK;
    }
    if (c->n_others == MOST_USERS) {
        return pl_fail(PL_ENOSUP, "[cuda] memory is used on more than %d other streams",
                       MOST_USERS);
    }
    c->others[c->n_others++] = s;
    return PL_OK;
}

pl_status pl_cuda_cache_used(pl_cuda_cache *c, const void *p, pl_stream *s) {
    block **link = NULL;
    PL_TRY(find(c, p, &link));
    block *b = *link;
    if (b->stream == s) return PL_OK;
    for (int i = 0; i < b->users; i++) {
        if (b->by[i].stream == s) return PL_OK;
    }
    if (b->users == MOST_USERS) {
        return pl_fail(PL_ENOSUP, "[cuda] one block is used on more than %d streams", MOST_USERS);
    }
    b->by[b->users++] = (user){s, NULL};
    return note_stream(c, s);
}

pl_status pl_cuda_cache_release(pl_cuda_cache *c, void *p) {
    block **link = NULL;
    PL_TRY(find(c, p, &link));
    block *b = *link;
    for (int i = 0; i < b->users; i++) {  // all that these streams did with it is enqueued by now
        PL_TRY(take_event(c, &b->by[i].done));
        PL_TRY(c->r->record(c->r, b->by[i].done, b->by[i].stream));
    }
    *link = b->next;
    put(&c->free[size_class(b->nbytes)], b);
    b->tag = NULL;
    c->stats.in_use -= b->nbytes;
    c->stats.cached += b->nbytes;
    return PL_OK;
}

pl_stream *pl_cuda_cache_stream(const pl_cuda_cache *c, int i) {
    return i < c->n_others ? c->others[i] : NULL;
}

void pl_cuda_cache_reset_peak(pl_cuda_cache *c) { c->stats.peak = c->stats.in_use; }

pl_cuda_cache_stats pl_cuda_cache_statistics(const pl_cuda_cache *c) { return c->stats; }

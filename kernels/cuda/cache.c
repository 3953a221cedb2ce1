// SPDX-License-Identifier: Apache-2.0
// cache: see cache.h. What it hands out and takes back, and who holds what when nothing is left;
// how blocks are cut and found is cache_blocks.c's.
#include <stdio.h>
#include <string.h>

#include "cuda/cache_internal.h"

static size_t rounded(size_t nbytes) { return (nbytes + 511) / 512 * 512; }

pl_status pl_cuda_cache_new(pl_runtime *r, bool whole, pl_cuda_cache **out) {
    void *room;
    PL_TRY(pl_calloc(sizeof(pl_cuda_cache), &room));
    pl_cuda_cache *c = room;
    c->r = r;
    c->whole = whole;
    *out = c;
    return PL_OK;
}

// ---- Giving back --------------------------------------------------------------------------------

// A free segment; the host waits until nothing enqueued touches it.
static pl_status give_back(pl_cuda_cache *c, pl__block *b) {
    PL_TRY(c->r->sync_stream(c->r, b->stream));
    PL_TRY(c->r->free(c->r, b->data));
    pl__cache_take(c, b);
    c->stats.reserved -= b->nbytes;
    c->stats.segments--;
    c->stats.frees++;
    pl_free(b);
    return PL_OK;
}

pl_status pl_cuda_cache_trim(pl_cuda_cache *c) {
    PL_TRY(pl__cache_settle(c, true));
    for (int i = 0; i < PL__SIZES; i++) {
        for (pl__block *b = c->free[i], *next = NULL; b != NULL; b = next) {
            next = b->next;
            if (b->before == NULL && b->behind == NULL) PL_TRY(give_back(c, b));
        }
    }
    return PL_OK;
}

static void to_free(pl_cuda_cache *c, pl__block *b) {
    pl__cache_unlink(b);
    b->tag = NULL;
    c->stats.allocated -= b->nbytes;
    c->stats.blocks--;
    pl__cache_put(c, b);
    if (b->users == NULL) pl__cache_merge(c, b);
}

pl_status pl_cuda_cache_free(pl_cuda_cache *c) {
    if (c == NULL) return PL_OK;
    for (int i = 0; i < PL__PLACES; i++) {
        while (c->held[i] != NULL) {
            for (pl__block *b = c->held[i]; b->users != NULL; pl__cache_forget(c, b)) {
                PL_TRY(c->r->sync_stream(c->r, b->users->stream));
            }
            to_free(c, c->held[i]);
        }
    }
    PL_TRY(pl_cuda_cache_trim(c));
    pl_free(c->spare);
    pl_free(c);
    return PL_OK;
}

// ---- Handing out --------------------------------------------------------------------------------

static size_t held_as(const pl_cuda_cache *c, const char *tag) {
    size_t sum = 0;
    for (int i = 0; i < PL__PLACES; i++) {
        for (const pl__block *b = c->held[i]; b != NULL; b = b->next) {
            if (strcmp(b->tag, tag) == 0) sum += b->nbytes;
        }
    }
    return sum;
}

// Bytes in use under the tag that has most of those below `under`.
static size_t next_holder(const pl_cuda_cache *c, size_t under, const char **tag) {
    size_t most = 0;
    for (int i = 0; i < PL__PLACES; i++) {
        for (const pl__block *b = c->held[i]; b != NULL; b = b->next) {
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
                   nbytes >> 20, tag, c->stats.allocated >> 20, holders);
}

// PL_ENOMEM only where the device is full, also without what the cache keeps. Then a segment of the
// request's own size may still fit.
static pl_status device_malloc(pl_cuda_cache *c, size_t nbytes, size_t *size, void **out) {
    *size = pl__cache_segment(c, nbytes);
    pl_status st = c->r->malloc(c->r, *size, out);
    if (st == PL_ENOMEM && c->stats.cached > 0) {
        c->stats.retries++;
        PL_TRY(pl_cuda_cache_trim(c));
        st = c->r->malloc(c->r, *size, out);
    }
    if (st != PL_ENOMEM || *size == nbytes) return st;
    *size = nbytes;
    return c->r->malloc(c->r, nbytes, out);
}

// A free block of a segment asked for now, in its list.
static pl_status segment_new(pl_cuda_cache *c, size_t nbytes, pl_stream *s, const char *tag,
                             pl__block **out) {
    void *room, *data = NULL;
    size_t size = 0;
    PL_TRY(pl_calloc(sizeof(pl__block), &room));
    pl_status st = device_malloc(c, nbytes, &size, &data);
    if (st != PL_OK) pl_free(room);
    if (st == PL_ENOMEM) {
        c->stats.failures++;
        return out_of_memory(c, nbytes, tag);
    }
    PL_TRY(st);
    pl__block *b = room;
    b->data = data;
    b->nbytes = size;
    b->stream = s;
    b->of_small = pl__cache_is_small(nbytes);
    pl__cache_put(c, b);
    c->stats.segments++;
    c->stats.mallocs++;
    c->stats.reserved += size;
    if (c->stats.reserved > c->stats.reserved_peak) c->stats.reserved_peak = c->stats.reserved;
    *out = b;
    return PL_OK;
}

static pl_status find_free(pl_cuda_cache *c, size_t nbytes, pl_stream *s, const char *tag,
                           pl__block **out) {
    *out = pl__cache_best(c, nbytes, s);
    if (*out == NULL && c->unclean > 0) {
        PL_TRY(pl__cache_settle(c, false));
        *out = pl__cache_best(c, nbytes, s);
    }
    return *out != NULL ? PL_OK : segment_new(c, nbytes, s, tag, out);
}

pl_status pl_cuda_cache_alloc(pl_cuda_cache *c, size_t nbytes, pl_stream *s, const char *tag,
                              void **out) {
    pl__block *b = NULL;
    nbytes = rounded(nbytes);
    PL_TRY(find_free(c, nbytes, s, tag, &b));
    // Its stream waits for the others that used it before, for the part that is cut off as well.
    for (; b->users != NULL; pl__cache_forget(c, b)) {
        PL_TRY(c->r->wait(c->r, b->stream, b->users->done));
    }
    PL_TRY(pl__cache_split(c, b, nbytes));
    pl__cache_take(c, b);
    b->tag = tag;
    pl__cache_link(pl__cache_place(c, b->data), b);
    c->stats.blocks++;
    c->stats.allocated += b->nbytes;
    if (c->stats.allocated > c->stats.peak) c->stats.peak = c->stats.allocated;
    *out = b->data;
    return PL_OK;
}

static pl_status find(pl_cuda_cache *c, const void *p, pl__block **out) {
    for (pl__block *b = *pl__cache_place(c, p); b != NULL; b = b->next) {
        if (b->data == p) {
            *out = b;
            return PL_OK;
        }
    }
    return pl_fail(PL_EINVAL, "[cuda] memory at %p is not in use in this cache", p);
}

static pl_status note_stream(pl_cuda_cache *c, pl_stream *s) {
    for (int i = 0; i < c->n_others; i++) {
        if (c->others[i] == s) return PL_OK;
    }
    if (c->n_others == PL__STREAMS) {
        return pl_fail(PL_ENOSUP, "[cuda] memory is used on more than %d other streams",
                       PL__STREAMS);
    }
    c->others[c->n_others++] = s;
    return PL_OK;
}

pl_status pl_cuda_cache_used(pl_cuda_cache *c, const void *p, pl_stream *s) {
    pl__block *b = NULL;
    void *room;
    PL_TRY(find(c, p, &b));
    if (b->stream == s) return PL_OK;
    for (const pl__user *u = b->users; u != NULL; u = u->next) {
        if (u->stream == s) return PL_OK;
    }
    PL_TRY(note_stream(c, s));
    PL_TRY(pl_alloc(sizeof(pl__user), &room));
    *(pl__user *)room = (pl__user){b->users, s, NULL};
    b->users = room;
    return PL_OK;
}

pl_status pl_cuda_cache_release(pl_cuda_cache *c, void *p) {
    pl__block *b = NULL;
    PL_TRY(find(c, p, &b));
    for (pl__user *u = b->users; u != NULL; u = u->next) {
        // All that these streams did with it is enqueued by now.
        if (u->done == NULL) PL_TRY(pl__cache_event(c, &u->done));
        PL_TRY(c->r->record(c->r, u->done, u->stream));
    }
    to_free(c, b);
    return PL_OK;
}

pl_stream *pl_cuda_cache_stream(const pl_cuda_cache *c, int i) {
    return i < c->n_others ? c->others[i] : NULL;
}

void pl_cuda_cache_reset_peak(pl_cuda_cache *c) {
    c->stats.peak = c->stats.allocated;
    c->stats.reserved_peak = c->stats.reserved;
}

pl_device_memory pl_cuda_cache_statistics(const pl_cuda_cache *c) { return c->stats; }

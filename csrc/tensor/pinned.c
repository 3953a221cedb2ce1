// SPDX-License-Identifier: Apache-2.0
// Storage in page-locked memory of the host. Locking pages is slow, so blocks are kept when they
// are released; a block serves again once the event behind the last copy that used it is done, so
// that nobody has to keep a tensor alive until a copy from it has run.
#include <pthread.h>
#include <string.h>

#include "tensor/tensor.h"

// Copies from ordinary memory of the host go through blocks of at most this size, as long as no
// more than that much is locked: a host that runs far ahead of the device waits instead.
#define STAGE_MOST ((size_t)4 << 20)
#define LOCKED_MOST ((size_t)128 << 20)

typedef struct pinned {
    struct pinned *next;  // free ones
    void *data;
    size_t nbytes;
    pl_event *done;  // NULL: never used by a copy
    pl_stream *on;   // where `done` was recorded last
} pinned;

// Guards locked, free_blocks and `done` of what is in it; nothing is taken inside but the run
// time's own.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pinned *free_blocks;
static size_t locked;  // bytes of all blocks

// To an eighth of its power of two, so that sizes which differ a little share blocks.
static size_t rounded(size_t nbytes) {
    size_t step = 4096;
    while (step * 16 <= nbytes) step *= 2;
    return nbytes ? (nbytes + step - 1) / step * step : step;
}

static void give_back(void *owner, void *data) {
    (void)data;
    pinned *p = owner;
    pthread_mutex_lock(&lock);
    p->next = free_blocks;
    free_blocks = p;
    pthread_mutex_unlock(&lock);
}

// A free block of this size that no copy uses any more, or NULL.
static pl_status take_free(pl_runtime *r, size_t size, pinned **out) {
    for (pinned **link = &free_blocks; *link != NULL; link = &(*link)->next) {
        bool done = true;
        pinned *p = *link;
        if (p->nbytes != size) continue;
        if (p->done != NULL) PL_TRY(r->event_done(r, p->done, &done));
        if (!done) continue;
        *link = p->next;
        *out = p;
        return PL_OK;
    }
    return PL_OK;
}

static pl_status block_new(pl_runtime *r, size_t size, pinned **out) {
    void *room = NULL;
    PL_TRY(pl_calloc(sizeof(pinned), &room));
    pinned *p = room;
    pl_status st = r->host_malloc(r, size, &p->data);
    if (st != PL_OK) {
        pl_free(p);
        return st;
    }
    p->nbytes = size;
    pthread_mutex_lock(&lock);
    locked += size;
    pthread_mutex_unlock(&lock);
    *out = p;
    return PL_OK;
}

// A free block, or a new one where `locked` stays within `most`; NULL: neither.
static pl_status block_of(pl_runtime *r, size_t nbytes, size_t most, pinned **out) {
    size_t size = rounded(nbytes);
    pthread_mutex_lock(&lock);
    pl_status st = take_free(r, size, out);
    bool room = locked <= most && size <= most - locked;
    pthread_mutex_unlock(&lock);
    return st == PL_OK && *out == NULL && room ? block_new(r, size, out) : st;
}

static pl_status note_use(const pl_device_services *d, pinned *p) {
    pthread_mutex_lock(&lock);
    pl_stream *now = pl_device_current(d);
    pl_status st = p->done == NULL ? d->runtime->event_new(d->runtime, &p->done) : PL_OK;
    // One event stands for the copies of all streams: each comes behind those of the one before.
    if (st == PL_OK && p->on != NULL && p->on != now)
        st = d->runtime->wait(d->runtime, now, p->done);
    if (st == PL_OK) st = d->runtime->record(d->runtime, p->done, now);
    p->on = now;
    pthread_mutex_unlock(&lock);
    return st;
}

pl_status pl_storage_new_pinned(size_t nbytes, pl_storage **out) {
    const pl_device_services *s = pl_device_open_one();
    pinned *p = NULL;
    if (s == NULL) {
        return pl_fail(PL_EDEVICE,
                       "[pin_memory] no GPU is open in this process: got a request for memory that "
                       "its copies reach, expected a tensor on cuda or paceline.cuda first");
    }
    PL_TRY(block_of(s->runtime, nbytes, SIZE_MAX, &p));
    pl_status st = pl_storage_wrap(p->data, nbytes, give_back, p, out);
    if (st != PL_OK) give_back(p, NULL);
    return st;
}

bool pl_storage_is_pinned(const pl_storage *s) { return s->release == give_back; }

pl_status pl_storage_pinned_used(pl_storage *s) { return note_use(pl_device_open_one(), s->owner); }

pl_status pl_storage_pinned_done(pl_storage *s, bool *out) {
    pl_runtime *r = pl_device_open_one()->runtime;
    pinned *p = s->owner;
    pthread_mutex_lock(&lock);
    *out = true;
    pl_status st = p->done != NULL ? r->event_done(r, p->done, out) : PL_OK;
    pthread_mutex_unlock(&lock);
    return st;
}

pl_status pl_bytes_upload(const pl_device_services *s, void *dst, const void *src, size_t nbytes) {
    pl_runtime *r = s->runtime;
    pinned *p = NULL;
    if (nbytes <= STAGE_MOST) PL_TRY(block_of(r, nbytes, LOCKED_MOST, &p));
    if (p == NULL) {
        PL_TRY(r->copy(r, pl_device_current(s), PL_COPY_TO_DEVICE, dst, src, nbytes));
        return pl_device_wait(s, pl_device_current(s));
    }
    memcpy(p->data, src, nbytes);
    pl_status st = r->copy(r, pl_device_current(s), PL_COPY_TO_DEVICE, dst, p->data, nbytes);
    if (st == PL_OK) st = note_use(s, p);
    give_back(p, NULL);
    return st;
}

pl_status pl_storage_pinned_trim(void) {
    const pl_device_services *s = pl_device_open_one();
    pl_status st = PL_OK;
    pthread_mutex_lock(&lock);
    while (st == PL_OK && free_blocks != NULL) {
        pinned *p = free_blocks;
        // An event is kept by the run time for as long as the process lives.
        if (p->done != NULL) st = s->runtime->sync_event(s->runtime, p->done);
        if (st == PL_OK) st = s->runtime->host_free(s->runtime, p->data);
        if (st != PL_OK) break;
        free_blocks = p->next;
        locked -= p->nbytes;
        pl_free(p);
    }
    pthread_mutex_unlock(&lock);
    return st;
}

// SPDX-License-Identifier: Apache-2.0
// A group's part on a device: its stream and events, and how calls begin and end there. See
// Note [device collectives]. Streams and events are never given back to a device: what a group had
// there outlives it, for work that somebody still holds, and serves the next group.
#include "comm/device.h"

#include <string.h>

static pthread_mutex_t idle_lock = PTHREAD_MUTEX_INITIALIZER;  // guards `idle`; a leaf
static pl__device *idle;

static pl__device *take_idle(const pl_device_services *s) {
    pthread_mutex_lock(&idle_lock);
    pl__device **at = &idle;
    while (*at && (*at)->services != s) at = &(*at)->next;
    pl__device *d = *at;
    if (d) *at = d->next;
    pthread_mutex_unlock(&idle_lock);
    return d;
}

static pl_status make(const pl_device_services *s, pl__device **out) {
    void *p;
    PL_TRY(pl_calloc(sizeof(pl__device), &p));
    pl__device *d = p;
    d->services = s;
    d->r = s->runtime;
    pl_status st = d->r->stream_new(d->r, true, &d->stream);
    if (st == PL_OK) st = d->r->event_new(d->r, &d->tail);
    if (st != PL_OK) {
        pl_free(d);
        return st;
    }
    pthread_mutex_init(&d->lock, NULL);
    pthread_mutex_init(&d->state_lock, NULL);
    *out = d;
    return PL_OK;
}

pl_status pl__device_open(pl_group *g, const pl__call *call) {
    pl__device *d = atomic_load_explicit(&g->device, memory_order_relaxed);  // set by this thread
    if (d) return PL_OK;
    const pl_device_services *s = pl_device_find(call->device);
    if (!s) {
        return pl_fail(PL_EDEVICE, "[%s] device cuda:%d is not open in this process",
                       pl__op_name(call->op), call->device.index);
    }
    d = take_idle(s);
    if (!d) PL_TRY(make(s, &d));
    d->group = g;
    d->used = false;
    atomic_store_explicit(&d->worthless, false, memory_order_relaxed);
    d->watch = (pl_device_watch){
        .device = call->device, .stream = d->stream, .look = pl__device_look, .context = d};
    pl_device_watch_add(&d->watch);
    // Release: the watch thread reads the fields.
    atomic_store_explicit(&g->device, d, memory_order_release);
    return PL_OK;
}

void pl__device_close(pl_group *g) {
    pl__device *d = atomic_load_explicit(&g->device, memory_order_relaxed);
    if (!d) return;
    pl__device_end(g);
    pl_device_watch_remove(&d->watch);
    atomic_store_explicit(&g->device, NULL, memory_order_relaxed);
    d->group = NULL;
    pthread_mutex_lock(&idle_lock);
    d->next = idle;
    idle = d;
    pthread_mutex_unlock(&idle_lock);
}

// ---- The life of a call -------------------------------------------------------------------------

static pl_status take_event(pl__device *d, pl_event **out) {
    pl_event *e = NULL;
    pthread_mutex_lock(&d->state_lock);
    if (d->spares) e = d->spare[--d->spares];
    pthread_mutex_unlock(&d->state_lock);
    *out = e;
    return e ? PL_OK : d->r->event_new(d->r, out);
}

// Without memory for the list an event is lost, which harms nobody.
static void keep_event(pl__device *d, pl_event *e) {
    if (!e) return;
    pthread_mutex_lock(&d->state_lock);
    if (d->spares == d->room) {
        int room = d->room ? 2 * d->room : 16;
        void *more = NULL;
        if (pl_alloc((size_t)room * sizeof(pl_event *), &more) == PL_OK) {
            if (d->spares) memcpy(more, d->spare, (size_t)d->spares * sizeof(pl_event *));
            pl_free(d->spare);
            d->spare = more;
            d->room = room;
        }
    }
    if (d->spares < d->room) d->spare[d->spares++] = e;
    pthread_mutex_unlock(&d->state_lock);
}

pl_status pl__device_begin(pl_group *g, pl__call *call) {
    PL_TRY(pl__device_open(g, call));
    pl__device *d = atomic_load_explicit(&g->device, memory_order_relaxed);
    call->on = d;
    PL_TRY(take_event(d, &call->ready));
    pl_status st = take_event(d, &call->done);
    if (st == PL_OK) st = d->r->record(d->r, call->ready, pl_device_current(d->services));
    if (st != PL_OK) pl__device_forget(call);
    return st;
}

pl_status pl__device_order(const pl__call *call) {
    pl__device *d = call->on;
    return d->r->wait(d->r, pl_device_current(d->services), call->done);
}

bool pl__device_done(const pl__call *call) {
    pl__device *d = call->on;
    bool done = true;
    return d->r->event_done(d->r, call->done, &done) != PL_OK || done;
}

void pl__device_forget(pl__call *call) {
    pl__device *d = call->on;
    keep_event(d, call->ready);
    keep_event(d, call->done);
    call->ready = call->done = NULL;
}

// ---- The transport ------------------------------------------------------------------------------

static pl_status meet(pl_group *g, pl__call *call) { return pl__shm_transport.meet(g, call); }

static pl_status move(pl_group *g, pl__call *call) {
    pl__device *d = atomic_load_explicit(&g->device, memory_order_acquire);
    if (!pl__device_is_alone(g)) PL_TRY(pl__device_connect(g, call));
    pl_status st = d->r->wait(d->r, d->stream, call->ready);
    if (st == PL_OK) st = pl__device_put(g, call);
    if (st == PL_OK) st = d->r->record(d->r, call->done, d->stream);
    if (st == PL_OK) {
        pthread_mutex_lock(&d->state_lock);
        st = d->r->record(d->r, d->tail, d->stream);
        d->last = *call;
        d->used = true;
        pthread_mutex_unlock(&d->state_lock);
    }
    if (st != PL_OK) return pl__device_failed(g, call, st);
    if (call->op == PL__OP_BUCKET) pl__unite_used(g, call);
    return PL_OK;
}

const pl__transport pl__device_transport = {.name = "NCCL", .meet = meet, .move = move};

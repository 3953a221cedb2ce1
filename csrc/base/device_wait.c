// SPDX-License-Identifier: Apache-2.0
// Waiting on the host for a device. Knows no library of any device and no process group.
//
// Where nobody watches, the run time's own wait serves. Else an event is polled, so that the wait
// never stands inside a driver that would wait for a dead process without end: often at first (most
// waits are short), then with pauses that grow to 1 ms; all watches are asked every 20 ms.
#include <pthread.h>
#include <time.h>

#include "base/device.h"

#define LOOK_NS 20000000
#define BUSY_NS 50000     // polled without a pause for so long
#define PAUSE_NS 1000000  // the longest pause

// Guards the list of watches, and that none goes while it is asked. Taken inside no lock of comm;
// a look takes those of its own.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pl_device_watch *watches;

void pl_device_watch_add(pl_device_watch *w) {
    pthread_mutex_lock(&lock);
    w->next = watches;
    watches = w;
    pthread_mutex_unlock(&lock);
}

void pl_device_watch_remove(pl_device_watch *w) {
    pthread_mutex_lock(&lock);
    for (pl_device_watch **at = &watches; *at; at = &(*at)->next) {
        if (*at == w) {
            *at = w->next;
            break;
        }
    }
    pthread_mutex_unlock(&lock);
}

static bool is_watched(pl_device d) {
    pthread_mutex_lock(&lock);
    bool any = false;
    for (const pl_device_watch *w = watches; w; w = w->next) {
        any = any || pl_device_equal(w->device, d);
    }
    pthread_mutex_unlock(&lock);
    return any;
}

static pl_status look(pl_device d, int64_t waited_ns) {
    pl_status st = PL_OK;
    pthread_mutex_lock(&lock);
    for (pl_device_watch *w = watches; w && st == PL_OK; w = w->next) {
        if (pl_device_equal(w->device, d)) st = w->look(w->context, waited_ns);
    }
    pthread_mutex_unlock(&lock);
    return st;
}

static pl_status poll(pl_runtime *r, pl_event *e) {
    int64_t since = pl_now_ns(), looked = since, pause = 10000;
    for (;;) {
        bool done = false;
        PL_TRY(r->event_done(r, e, &done));
        int64_t now = pl_now_ns();
        if (done) return look(r->device, now - since);
        if (now - since < BUSY_NS) continue;
        if (now - looked >= LOOK_NS) {
            looked = now;
            PL_TRY(look(r->device, now - since));
            PL_TRY(pl_check_interrupt());
        }
        (void)nanosleep(&(struct timespec){0, pause}, NULL);
        if (pause < PAUSE_NS) pause *= 2;
    }
}

// One event for each thread that waits: they are few, and live as long as the device.
static _Thread_local pl_event *waited_for;

pl_status pl_device_wait_event(const pl_device_services *s, pl_event *event) {
    return poll(s->runtime, event);
}

pl_status pl_device_wait(const pl_device_services *s, pl_stream *stream) {
    pl_runtime *r = s->runtime;
    if (!is_watched(r->device)) return r->sync_stream(r, stream);
    return pl_device_wait_polled(s, stream);
}

pl_status pl_device_wait_polled(const pl_device_services *s, pl_stream *stream) {
    pl_runtime *r = s->runtime;
    if (!waited_for) PL_TRY(r->event_new(r, &waited_for));
    PL_TRY(r->record(r, waited_for, stream));
    return poll(r, waited_for);
}

// The k-th stream that is watched, or NULL.
static pl_stream *watched_stream(pl_device d, int k) {
    pl_stream *found = NULL;
    pthread_mutex_lock(&lock);
    for (const pl_device_watch *w = watches; w && !found; w = w->next) {
        if (w->stream && pl_device_equal(w->device, d) && k-- == 0) found = w->stream;
    }
    pthread_mutex_unlock(&lock);
    return found;
}

pl_status pl_device_wait_all(const pl_device_services *s) {
    pl_stream *stream = s->compute;
    for (int k = 0; stream; k++) {
        PL_TRY(pl_device_wait(s, stream));
        stream = watched_stream(s->runtime->device, k);
    }
    return PL_OK;
}

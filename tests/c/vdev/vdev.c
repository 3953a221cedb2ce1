// SPDX-License-Identifier: Apache-2.0
// vdev: see vdev.h. A task's clock is the greatest of what it comes after (the task before it on
// its stream, the records it waits for, what the host has waited for), with its own number at its
// own stream's place. Task a is before task b when b's clock at a's stream is a's number or more.
#include "vdev/vdev.h"

#include <stdlib.h>
#include <string.h>

enum { STREAMS = 16, TASKS = 4096, BUFFERS = 256, GUARD = 64 };

typedef struct clock {
    int64_t at[STREAMS];
} clock;

struct pl_stream {
    int index;
    clock now;  // of what is enqueued next
};

struct pl_event {
    bool recorded;
    clock at;
};

typedef struct task {
    pl_task what;
    int stream;
    clock at;
    bool done;
} task;

typedef struct buffer {
    char *start;  // GUARD bytes before and after
    size_t nbytes;
    bool live;
} buffer;

struct vdev {
    pl_runtime table;  // first: the table is the device
    pl_stream streams[STREAMS];
    pl_event events[TASKS];
    task tasks[TASKS];
    buffer buffers[BUFFERS];
    int stream_count, event_count, task_count, buffer_count;
    clock host;
    uint64_t random;
    size_t limit;
    bool check;
};

static vdev *of(pl_runtime *r) { return (vdev *)(void *)r; }

static void join(clock *into, const clock *other) {
    for (int i = 0; i < STREAMS; i++) {
        if (other->at[i] > into->at[i]) into->at[i] = other->at[i];
    }
}

static bool before(const task *a, const clock *b) {
    return b->at[a->stream] >= a->at.at[a->stream];
}

static uint64_t next_random(vdev *v) {
    v->random ^= v->random << 13;
    v->random ^= v->random >> 7;
    v->random ^= v->random << 17;
    return v->random;
}

// ---- Memory -------------------------------------------------------------------------------------

static pl_status vdev_malloc(pl_runtime *r, size_t nbytes, void **out) {
    vdev *v = of(r);
    if (v->buffer_count == BUFFERS) return pl_fail(PL_ENOMEM, "[vdev] too many buffers");
    size_t live = nbytes;
    for (int i = 0; i < v->buffer_count; i++) live += v->buffers[i].live ? v->buffers[i].nbytes : 0;
    if (v->limit != 0 && live > v->limit) return pl_fail(PL_ENOMEM, "[vdev] the device is full");
    char *raw = malloc(nbytes + 2 * GUARD);
    if (raw == NULL) return pl_fail(PL_ENOMEM, "[vdev] no memory for %zu bytes", nbytes);
    memset(raw, 0xA5, nbytes + 2 * GUARD);
    memset(raw + GUARD, 0xFF, nbytes);
    v->buffers[v->buffer_count++] = (buffer){raw + GUARD, nbytes, true};
    *out = raw + GUARD;
    return PL_OK;
}

static buffer *buffer_at(vdev *v, const char *p, size_t nbytes) {
    for (int i = 0; i < v->buffer_count; i++) {
        buffer *b = &v->buffers[i];
        if (b->live && p >= b->start && p + nbytes <= b->start + b->nbytes) return b;
    }
    return NULL;
}

static pl_status check_guards(const buffer *b) {
    for (int i = 0; i < GUARD; i++) {
        if ((unsigned char)b->start[-1 - i] != 0xA5 ||
            (unsigned char)b->start[b->nbytes + (size_t)i] != 0xA5) {
            return pl_fail(PL_EDEVICE, "[vdev] written outside a buffer of %zu bytes", b->nbytes);
        }
    }
    return PL_OK;
}

static bool overlap(const char *a, size_t na, const char *b, size_t nb) {
    return a < b + nb && b < a + na;
}

// Refuses an access at clock `at` that some task before it does not come before.
static pl_status check_access(const vdev *v, const clock *at, const char *name, const pl_range *x) {
    for (int i = 0; i < v->task_count; i++) {
        const task *t = &v->tasks[i];
        if (before(t, at)) continue;
        for (int k = 0; k < t->what.ranges; k++) {
            const pl_range *y = &t->what.range[k];
            if (!x->writes && !y->writes) continue;
            if (!overlap(x->data, x->nbytes, y->data, y->nbytes)) continue;
            return pl_fail(PL_EDEVICE,
                           "[vdev] unordered: \"%s\" %s what \"%s\" on stream %d %s; expected an "
                           "event or a synchronisation between",
                           name, x->writes ? "writes" : "reads", t->what.name, t->stream,
                           y->writes ? "writes" : "reads");
        }
    }
    return PL_OK;
}

pl_status vdev_host(vdev *v, const void *p, size_t nbytes, bool writes) {
    pl_range x = {p, nbytes, writes};
    return check_access(v, &v->host, "the host", &x);
}

static pl_status vdev_free_buffer(pl_runtime *r, void *p) {
    vdev *v = of(r);
    buffer *b = buffer_at(v, p, 0);
    if (b == NULL || b->start != p) {
        return pl_fail(PL_EDEVICE, "[vdev] free: not a live buffer's start");
    }
    pl_range x = {p, b->nbytes, true};
    PL_TRY(check_access(v, &v->host, "free", &x));
    b->live = false;  // kept, so that no later buffer has its place
    return check_guards(b);
}

// ---- Running ------------------------------------------------------------------------------------

static bool ready(const vdev *v, const task *t) {
    if (t->done) return false;
    for (int i = 0; i < v->task_count; i++) {
        const task *other = &v->tasks[i];
        if (other != t && !other->done && before(other, &t->at)) return false;
    }
    return true;
}

// Runs one task, now and then one that nobody asked for, unless all that `upto` comes after are
// done: then *left is false.
static pl_status run_one(vdev *v, const clock *upto, bool *left) {
    int candidates[TASKS], count = 0;
    *left = false;
    for (int i = 0; i < v->task_count; i++) {
        const task *t = &v->tasks[i];
        if (!t->done && before(t, upto)) *left = true;
        if (ready(v, t)) candidates[count++] = i;
    }
    if (!*left) return PL_OK;
    if (count == 0) return pl_fail(PL_EBUG, "[vdev] nothing can run");
    task *t = &v->tasks[candidates[next_random(v) % (uint64_t)count]];
    t->what.run(t->what.context);
    t->done = true;
    return PL_OK;
}

static pl_status run_until(vdev *v, const clock *upto) {
    for (bool left = true; left;) PL_TRY(run_one(v, upto, &left));
    return PL_OK;
}

static pl_status vdev_launch(pl_runtime *r, pl_stream *s, const pl_task *what) {
    vdev *v = of(r);
    if (v->task_count == TASKS) return pl_fail(PL_ENOMEM, "[vdev] too many tasks");
    join(&s->now, &v->host);
    clock at = s->now;
    at.at[s->index]++;
    for (int k = 0; k < what->ranges; k++) {
        const pl_range *x = &what->range[k];
        if (buffer_at(v, x->data, x->nbytes) == NULL) {
            return pl_fail(PL_EDEVICE, "[vdev] \"%s\" touches memory that is not live", what->name);
        }
        if (v->check) PL_TRY(check_access(v, &at, what->name, x));
    }
    s->now = at;
    v->tasks[v->task_count++] = (task){*what, s->index, at, false};
    return PL_OK;
}

static pl_status vdev_record(pl_runtime *r, pl_event *e, pl_stream *s) {
    (void)r;
    e->recorded = true;
    e->at = s->now;
    return PL_OK;
}

static pl_status vdev_wait(pl_runtime *r, pl_stream *s, pl_event *e) {
    (void)r;
    if (e->recorded) join(&s->now, &e->at);  // one never recorded holds nobody up, as CUDA
    return PL_OK;
}

static pl_status sync(vdev *v, const clock *upto) {
    PL_TRY(run_until(v, upto));
    join(&v->host, upto);
    return PL_OK;
}

static pl_status vdev_sync_stream(pl_runtime *r, pl_stream *s) { return sync(of(r), &s->now); }

static pl_status vdev_sync_event(pl_runtime *r, pl_event *e) {
    return e->recorded ? sync(of(r), &e->at) : PL_OK;
}

// Who asks gives the device a moment: one task more has run by then.
static pl_status vdev_event_done(pl_runtime *r, pl_event *e, bool *out) {
    bool left = false;
    if (e->recorded) PL_TRY(run_one(of(r), &e->at, &left));
    *out = !left;
    if (!left && e->recorded) join(&of(r)->host, &e->at);
    return PL_OK;
}

// ---- Making -------------------------------------------------------------------------------------

static pl_status vdev_stream_new(pl_runtime *r, bool high_priority, pl_stream **out) {
    (void)high_priority;
    vdev *v = of(r);
    if (v->stream_count == STREAMS) return pl_fail(PL_ENOMEM, "[vdev] too many streams");
    *out = &v->streams[v->stream_count];
    (*out)->index = v->stream_count++;
    return PL_OK;
}

static pl_status vdev_event_new(pl_runtime *r, pl_event **out) {
    vdev *v = of(r);
    if (v->event_count == TASKS) return pl_fail(PL_ENOMEM, "[vdev] too many events");
    *out = &v->events[v->event_count++];
    return PL_OK;
}

pl_status vdev_new(uint64_t seed, vdev **out) {
    vdev *v = calloc(1, sizeof *v);
    if (v == NULL) return pl_fail(PL_ENOMEM, "[vdev] no memory");
    v->table = (pl_runtime){
        .malloc = vdev_malloc,
        .free = vdev_free_buffer,
        .stream_new = vdev_stream_new,
        .event_new = vdev_event_new,
        .launch = vdev_launch,
        .record = vdev_record,
        .wait = vdev_wait,
        .sync_stream = vdev_sync_stream,
        .sync_event = vdev_sync_event,
        .event_done = vdev_event_done,
    };
    v->random = seed * 0x9e3779b97f4a7c15u + 1;
    v->check = true;
    *out = v;
    return PL_OK;
}

pl_status vdev_free(vdev *v) {
    pl_status st = PL_OK;
    int leaked = 0;
    for (int i = 0; i < v->buffer_count; i++) {
        leaked += v->buffers[i].live;
        if (st == PL_OK) st = check_guards(&v->buffers[i]);
        free(v->buffers[i].start - GUARD);
    }
    free(v);
    if (st == PL_OK && leaked != 0) st = pl_fail(PL_EDEVICE, "[vdev] %d buffers not freed", leaked);
    return st;
}

pl_runtime *vdev_runtime(vdev *v) { return &v->table; }
void vdev_check(vdev *v, bool on) { v->check = on; }
void vdev_limit(vdev *v, size_t nbytes) { v->limit = nbytes; }

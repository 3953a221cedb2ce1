// SPDX-License-Identifier: Apache-2.0
// Waiting on the host for a device (base/device.h): that it ends with the work, that whoever
// watches is asked and can end it, and that a Ctrl-C does.
#include "test.h"
#include "vdev/vdev.h"

typedef struct asked {
    int times;
    int64_t longest_ns;
    pl_status say;
} asked;

static pl_status look(void *context, int64_t waited_ns) {
    asked *a = context;
    a->times++;
    if (waited_ns > a->longest_ns) a->longest_ns = waited_ns;
    return a->say == PL_OK ? PL_OK : pl_fail(a->say, "[test] worthless");
}

static void nothing(void *context) { (*(int *)context)++; }

// A device whose events are never done, as when a peer of a collective has died.
static pl_status never(pl_runtime *r, pl_event *e, bool *out) {
    (void)r;
    (void)e;
    *out = false;
    return PL_OK;
}

static pl_status interrupt(void) { return pl_fail(PL_EINTR, "interrupted"); }

typedef struct fixture {
    vdev *v;
    pl_device_services s;
    asked asked;
    pl_device_watch watch;
} fixture;

static void open_fixture(fixture *f) {
    *f = (fixture){.asked = {.say = PL_OK}};
    CHECK_OK(vdev_new(1, &f->v));
    f->s.runtime = vdev_runtime(f->v);
    CHECK_OK(f->s.runtime->stream_new(f->s.runtime, false, &f->s.compute));
    f->watch = (pl_device_watch){.device = f->s.runtime->device, .look = look};
    f->watch.context = &f->asked;
}

static int enqueue(fixture *f, pl_stream *on) {
    static int ran;
    pl_task t = {.name = "count", .run = nothing, .context = &ran};
    CHECK_OK(f->s.runtime->launch(f->s.runtime, on, &t));
    return ran;
}

TEST(a_wait_ends_with_the_work_and_asks_who_watches) {
    fixture f;
    open_fixture(&f);
    int before = enqueue(&f, f.s.compute);
    CHECK_OK(pl_device_wait(&f.s, f.s.compute));
    CHECK_EQ(f.asked.times, 0);
    CHECK_EQ(enqueue(&f, f.s.compute), before + 1);
    pl_device_watch_add(&f.watch);
    CHECK_OK(pl_device_wait(&f.s, f.s.compute));
    CHECK_EQ(f.asked.times, 1);
    CHECK_EQ(enqueue(&f, f.s.compute), before + 2);
    f.asked.say = PL_EPEER;
    CHECK_EQ(pl_device_wait(&f.s, f.s.compute), PL_EPEER);
    pl_device_watch_remove(&f.watch);
    CHECK_OK(pl_device_wait(&f.s, f.s.compute));
    CHECK_OK(vdev_free(f.v));
}

// What a user waits for is polled, whoever watches: Ctrl-C ends it in any case.
TEST(a_wait_of_a_user_can_always_be_interrupted) {
    fixture f;
    pl_event *e;
    open_fixture(&f);
    CHECK_OK(f.s.runtime->event_new(f.s.runtime, &e));
    int before = enqueue(&f, f.s.compute);
    CHECK_OK(pl_device_wait_polled(&f.s, f.s.compute));
    CHECK_EQ(enqueue(&f, f.s.compute), before + 1);
    CHECK_OK(f.s.runtime->record(f.s.runtime, e, f.s.compute));
    CHECK_OK(pl_device_wait_event(&f.s, e));
    CHECK_EQ(enqueue(&f, f.s.compute), before + 2);
    CHECK_EQ(f.asked.times, 0);
    f.s.runtime->event_done = never;
    pl_set_interrupt(interrupt);
    CHECK_EQ(pl_device_wait_polled(&f.s, f.s.compute), PL_EINTR);
    CHECK_EQ(pl_device_wait_event(&f.s, e), PL_EINTR);
    pl_set_interrupt(NULL);
    CHECK_OK(vdev_free(f.v));
}

TEST(all_streams_that_are_watched_are_waited_for) {
    fixture f;
    open_fixture(&f);
    CHECK_OK(f.s.runtime->stream_new(f.s.runtime, true, &f.watch.stream));
    int before = enqueue(&f, f.watch.stream);
    pl_device_watch_add(&f.watch);
    CHECK_OK(pl_device_wait_all(&f.s));
    CHECK_EQ(enqueue(&f, f.s.compute), before + 1);
    pl_device_watch_remove(&f.watch);
    CHECK_OK(pl_device_wait_all(&f.s));
    CHECK_OK(vdev_free(f.v));
}

TEST(a_wait_without_end_is_ended_by_who_watches_or_by_an_interrupt) {
    fixture f;
    open_fixture(&f);
    pl_device_watch_add(&f.watch);
    f.s.runtime->event_done = never;
    f.asked.say = PL_ETIME;
    int64_t since = pl_now_ns();
    CHECK_EQ(pl_device_wait(&f.s, f.s.compute), PL_ETIME);
    CHECK(pl_now_ns() - since < INT64_C(1000000000));
    CHECK(f.asked.longest_ns >= 20000000);
    f.asked.say = PL_OK;
    pl_set_interrupt(interrupt);
    CHECK_EQ(pl_device_wait(&f.s, f.s.compute), PL_EINTR);
    pl_set_interrupt(NULL);
    pl_device_watch_remove(&f.watch);
    CHECK_OK(vdev_free(f.v));
}

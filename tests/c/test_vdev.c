// SPDX-License-Identifier: Apache-2.0
// The virtual device: that it runs what is ordered in many orders, and refuses what is not; on it,
// in miniature, what host code of a device does: double buffering, a bucket reduced on a stream of
// its own by two ranks.
#include "test.h"
#include "vdev/vdev.h"

enum { N = 16 };

typedef struct step {
    int *to;
    const int *a, *b;
    int add;
} step;

// to[i] = a[i] + b[i] + add; a and b may be NULL.
static void run_step(void *context) {
    const step *s = context;
    for (int i = 0; i < N; i++) s->to[i] = (s->a ? s->a[i] : 0) + (s->b ? s->b[i] : 0) + s->add;
}

static pl_status enqueue(pl_runtime *r, pl_stream *on, const char *name, step *s) {
    pl_task t = {.name = name, .run = run_step, .context = s};
    t.range[t.ranges++] = (pl_range){s->to, N * sizeof(int), true};
    if (s->a) t.range[t.ranges++] = (pl_range){s->a, N * sizeof(int), false};
    if (s->b) t.range[t.ranges++] = (pl_range){s->b, N * sizeof(int), false};
    return r->launch(r, on, &t);
}

static int *new_buffer(pl_runtime *r) {
    void *p;
    CHECK_OK(r->malloc(r, N * sizeof(int), &p));
    return p;
}

// Batches loaded on one stream, used on another, through two buffers. `skip` leaves one wait out:
// 1: the user's for the load, 2: the loader's for the buffer to be free again. Gives the sum.
static pl_status double_buffer(vdev *v, int skip, int *total) {
    pl_runtime *r = vdev_runtime(v);
    pl_stream *load, *use;
    pl_event *loaded[2], *used[2];
    static step steps[2][6];
    pl_status st = PL_OK;
    CHECK_OK(r->stream_new(r, false, &load));
    CHECK_OK(r->stream_new(r, false, &use));
    int *buffer[2] = {new_buffer(r), new_buffer(r)}, *sum = new_buffer(r);
    for (int i = 0; i < 2; i++) {
        CHECK_OK(r->event_new(r, &loaded[i]));
        CHECK_OK(r->event_new(r, &used[i]));
    }
    step zero = {.to = sum};
    CHECK_OK(enqueue(r, use, "zero", &zero));
    for (int i = 0; i < 6 && st == PL_OK; i++) {
        int b = i % 2;
        if (skip != 2 || i != 4) CHECK_OK(r->wait(r, load, used[b]));
        steps[0][i] = (step){.to = buffer[b], .add = 1 << i};
        steps[1][i] = (step){.to = sum, .a = sum, .b = buffer[b]};
        st = enqueue(r, load, "load", &steps[0][i]);
        if (st != PL_OK) break;
        CHECK_OK(r->record(r, loaded[b], load));
        if (skip != 1 || i != 3) CHECK_OK(r->wait(r, use, loaded[b]));
        st = enqueue(r, use, "use", &steps[1][i]);
        if (st != PL_OK) break;
        CHECK_OK(r->record(r, used[b], use));
    }
    CHECK_OK(r->sync_stream(r, use));
    CHECK_OK(r->sync_stream(r, load));
    CHECK_OK(vdev_host(v, sum, N * sizeof(int), false));
    *total = sum[N - 1];
    CHECK_OK(r->free(r, buffer[0]));
    CHECK_OK(r->free(r, buffer[1]));
    CHECK_OK(r->free(r, sum));
    return st;
}

TEST(ordered_work_gives_the_same_in_every_order) {
    for (uint64_t seed = 0; seed < 40; seed++) {
        vdev *v;
        int total;
        CHECK_OK(vdev_new(seed, &v));
        CHECK_OK(double_buffer(v, 0, &total));
        CHECK_EQ(total, 63);
        CHECK_OK(vdev_free(v));
    }
}

// Each of the two waits, left out once, is found whatever the seed; and without the check some
// order shows the harm, so that what is found is no false alarm.
TEST(one_missing_wait_is_found) {
    static const char *const says[] = {"unordered: \"use\" reads what \"load\" on stream 0 writes",
                                       "unordered: \"load\" writes what \"use\" on stream 1 reads"};
    for (int skip = 1; skip <= 2; skip++) {
        int total, wrong = 0;
        for (uint64_t seed = 0; seed < 40; seed++) {
            vdev *v;
            CHECK_OK(vdev_new(seed, &v));
            CHECK_FAILS(double_buffer(v, skip, &total), PL_EDEVICE, says[skip - 1]);
            CHECK_OK(vdev_free(v));
            CHECK_OK(vdev_new(seed, &v));
            vdev_check(v, false);
            CHECK_OK(double_buffer(v, skip, &total));
            wrong += total != 63;
            CHECK_OK(vdev_free(v));
        }
        CHECK(wrong > 0 && wrong < 40);
    }
}

// Two ranks, each a stream that makes gradients and one that reduces: out = mine + the other's.
// Each reducing stream waits for both ranks' gradients; the step waits for the reduction.
static pl_status reduce(vdev *v, bool wait_for_peer, bool wait_for_reduction, int *result) {
    pl_runtime *r = vdev_runtime(v);
    pl_stream *compute[2], *comm[2];
    pl_event *made[2], *reduced[2];
    int *grad[2], *sum[2], *param[2];
    static step make[2], add[2], update[2];
    pl_status st = PL_OK;
    for (int k = 0; k < 2; k++) {
        CHECK_OK(r->stream_new(r, false, &compute[k]));
        CHECK_OK(r->stream_new(r, false, &comm[k]));
        CHECK_OK(r->event_new(r, &made[k]));
        CHECK_OK(r->event_new(r, &reduced[k]));
        grad[k] = new_buffer(r), sum[k] = new_buffer(r), param[k] = new_buffer(r);
    }
    for (int k = 0; k < 2; k++) {
        make[k] = (step){.to = grad[k], .add = 10 + k};
        add[k] = (step){.to = sum[k], .a = grad[0], .b = grad[1]};
        update[k] = (step){.to = param[k], .a = sum[k], .add = 100};
        CHECK_OK(enqueue(r, compute[k], "backward", &make[k]));
        CHECK_OK(r->record(r, made[k], compute[k]));
    }
    for (int k = 0; k < 2 && st == PL_OK; k++) {
        CHECK_OK(r->wait(r, comm[k], made[k]));
        if (wait_for_peer || k == 0) CHECK_OK(r->wait(r, comm[k], made[1 - k]));
        st = enqueue(r, comm[k], "all_reduce", &add[k]);
        CHECK_OK(r->record(r, reduced[k], comm[k]));
        if (wait_for_reduction) CHECK_OK(r->wait(r, compute[k], reduced[k]));
        if (st == PL_OK) st = enqueue(r, compute[k], "step", &update[k]);
    }
    for (int k = 0; k < 2; k++) {
        CHECK_OK(r->sync_stream(r, comm[k]));
        CHECK_OK(r->sync_stream(r, compute[k]));
        result[k] = param[k][0];
    }
    for (int k = 0; k < 2; k++) {
        CHECK_OK(r->free(r, grad[k]));
        CHECK_OK(r->free(r, sum[k]));
        CHECK_OK(r->free(r, param[k]));
    }
    return st;
}

TEST(a_reduction_that_overlaps) {
    for (uint64_t seed = 0; seed < 20; seed++) {
        vdev *v;
        int result[2];
        CHECK_OK(vdev_new(seed, &v));
        CHECK_OK(reduce(v, true, true, result));
        CHECK_EQ(result[0], 121);
        CHECK_EQ(result[1], 121);
        CHECK_OK(vdev_free(v));
        CHECK_OK(vdev_new(seed, &v));
        CHECK_FAILS(reduce(v, false, true, result), PL_EDEVICE,
                    "\"all_reduce\" reads what \"backward\" on stream 0 writes");
        CHECK_OK(vdev_free(v));
        CHECK_OK(vdev_new(seed, &v));
        CHECK_FAILS(reduce(v, true, false, result), PL_EDEVICE,
                    "\"step\" reads what \"all_reduce\" on stream 1 writes");
        CHECK_OK(vdev_free(v));
    }
}

TEST(memory) {
    vdev *v;
    CHECK_OK(vdev_new(1, &v));
    pl_runtime *r = vdev_runtime(v);
    pl_stream *s;
    CHECK_OK(r->stream_new(r, false, &s));
    int *p = new_buffer(r), *kept = new_buffer(r);
    CHECK_EQ(p[0], -1);  // nobody wrote it
    step one = {.to = p, .add = 1};
    CHECK_OK(enqueue(r, s, "write", &one));
    CHECK_EQ(p[0], -1);  // late
    CHECK_FAILS(vdev_host(v, p, 4, false), PL_EDEVICE, "\"the host\" reads what \"write\"");
    CHECK_FAILS(r->free(r, p), PL_EDEVICE, "\"free\" writes what \"write\"");
    CHECK_OK(r->sync_stream(r, s));
    CHECK_OK(vdev_host(v, p, 4, true));
    CHECK_EQ(p[N - 1], 1);
    CHECK_OK(r->free(r, p));
    CHECK_FAILS(r->free(r, p), PL_EDEVICE, "not a live buffer");
    CHECK_FAILS(enqueue(r, s, "late", &one), PL_EDEVICE,
                "\"late\" touches memory that is not live");
    step past = {.to = kept + 1};
    CHECK_FAILS(enqueue(r, s, "past", &past), PL_EDEVICE, "not live");
    CHECK_FAILS(vdev_free(v), PL_EDEVICE, "1 buffers not freed");
    CHECK_OK(vdev_new(1, &v));
    r = vdev_runtime(v);
    p = new_buffer(r);
    p[N] = 0;
    CHECK_FAILS(r->free(r, p), PL_EDEVICE, "written outside a buffer of 64");
    CHECK_FAILS(vdev_free(v), PL_EDEVICE, "written outside");
}

// SPDX-License-Identifier: Apache-2.0
// The caching allocator for devices, on the virtual device: what it hands out again is ordered
// behind its last use, without the host waiting.
#include "cuda/cache.h"
#include "test.h"
#include "vdev/vdev.h"

enum { N = 256 };  // ints: two sizes of the cache's rounding

typedef struct fixture {
    vdev *v;
    pl_runtime *r;
    pl_cuda_cache *c;
    pl_stream *s[2];
} fixture;

static fixture open_fixture(uint64_t seed) {
    fixture f;
    CHECK_OK(vdev_new(seed, &f.v));
    f.r = vdev_runtime(f.v);
    CHECK_OK(pl_cuda_cache_new(f.r, &f.c));
    for (int i = 0; i < 2; i++) CHECK_OK(f.r->stream_new(f.r, false, &f.s[i]));
    return f;
}

static void close_fixture(fixture *f) {
    CHECK_OK(pl_cuda_cache_free(f->c));
    CHECK_OK(vdev_free(f->v));
}

typedef struct work {
    int *to;
    const int *from;
    int add;
} work;

static void run_work(void *context) {
    const work *w = context;
    for (int i = 0; i < N; i++) w->to[i] = (w->from ? w->from[i] : 0) + w->add;
}

static pl_status enqueue(const fixture *f, int stream, work *w) {
    pl_task t = {.name = stream ? "other" : "owner", .run = run_work, .context = w};
    t.range[t.ranges++] = (pl_range){w->to, N * sizeof(int), true};
    if (w->from) t.range[t.ranges++] = (pl_range){w->from, N * sizeof(int), false};
    return f->r->launch(f->r, f->s[stream], &t);
}

static int *take(const fixture *f, int stream) {
    void *p;
    CHECK_OK(pl_cuda_cache_alloc(f->c, N * sizeof(int), f->s[stream], "activations", &p));
    return p;
}

TEST(memory_comes_back_on_its_stream) {
    fixture f = open_fixture(1);
    int *a = take(&f, 0);
    work w = {.to = a, .add = 1}, w2 = {.to = a, .add = 2};
    CHECK_OK(enqueue(&f, 0, &w));
    CHECK_OK(pl_cuda_cache_release(f.c, a));
    CHECK(take(&f, 1) != a);  // another stream: not ordered behind it
    CHECK(take(&f, 0) == a);
    CHECK_OK(enqueue(&f, 0, &w2));
    pl_cuda_cache_stats s = pl_cuda_cache_statistics(f.c);
    CHECK_EQ(s.in_use, 2 * N * sizeof(int));
    CHECK_EQ(s.peak, 2 * N * sizeof(int));
    CHECK_EQ(s.cached, 0);
    CHECK_OK(f.r->sync_stream(f.r, f.s[0]));
    CHECK_EQ(a[3], 2);
    close_fixture(&f);
}

// A block read on another stream, freed and written anew on its own. Without _used the virtual
// device refuses the new write; with it the streams are ordered and every order is right.
static pl_status cross(uint64_t seed, bool tell) {
    fixture f = open_fixture(seed);
    pl_event *e;
    CHECK_OK(f.r->event_new(f.r, &e));
    int *a = take(&f, 0), *copy = take(&f, 1);
    work write = {.to = a, .add = 1}, read = {.to = copy, .from = a}, anew = {.to = a, .add = 9};
    CHECK_OK(enqueue(&f, 0, &write));
    CHECK_OK(f.r->record(f.r, e, f.s[0]));
    CHECK_OK(f.r->wait(f.r, f.s[1], e));
    CHECK_OK(enqueue(&f, 1, &read));
    if (tell) CHECK_OK(pl_cuda_cache_used(f.c, a, f.s[1]));
    if (tell) CHECK_OK(pl_cuda_cache_used(f.c, a, f.s[1]));  // twice is once
    CHECK_OK(pl_cuda_cache_release(f.c, a));
    CHECK(take(&f, 0) == a);
    pl_status st = enqueue(&f, 0, &anew);
    for (int i = 0; i < 2; i++) CHECK_OK(f.r->sync_stream(f.r, f.s[i]));
    if (st == PL_OK) CHECK_EQ(copy[7], 1);
    close_fixture(&f);
    return st;
}

TEST(another_stream_is_waited_for) {
    for (uint64_t seed = 0; seed < 30; seed++) {
        CHECK_OK(cross(seed, true));
        CHECK_FAILS(cross(seed, false), PL_EDEVICE, "\"owner\" writes what \"other\" on stream 1");
    }
}

TEST(trim_waits_for_the_last_use) {
    fixture f = open_fixture(3);
    int *a = take(&f, 0), *b = take(&f, 1);
    work w = {.to = a, .add = 1}, w2 = {.to = b, .add = 1};
    CHECK_OK(enqueue(&f, 0, &w));
    CHECK_OK(enqueue(&f, 1, &w2));
    CHECK_OK(pl_cuda_cache_used(f.c, a, f.s[1]));
    CHECK_OK(pl_cuda_cache_release(f.c, a));
    CHECK_OK(pl_cuda_cache_trim(f.c));  // the virtual device refuses to free what is in use
    CHECK_EQ(pl_cuda_cache_statistics(f.c).cached, 0);
    CHECK_EQ(pl_cuda_cache_statistics(f.c).in_use, N * sizeof(int));
    close_fixture(&f);  // b is still in use, and waited for
}

TEST(out_of_memory_says_who_holds_what) {
    fixture f = open_fixture(4);
    const size_t mib = (size_t)1 << 20;
    void *p, *q;
    vdev_limit(f.v, 10 * mib);
    CHECK_OK(pl_cuda_cache_alloc(f.c, 4 * mib, f.s[0], "parameters", &p));
    CHECK_OK(pl_cuda_cache_alloc(f.c, 5 * mib, f.s[0], "activations", &q));
    CHECK_OK(pl_cuda_cache_release(f.c, q));
    // Freed on stream 0, so of no use on stream 1 as it is: given back, then there is room.
    CHECK_OK(pl_cuda_cache_alloc(f.c, 6 * mib, f.s[1], "gradients", &q));
    CHECK_FAILS(pl_cuda_cache_alloc(f.c, mib, f.s[1], "logits", &p), PL_ENOMEM,
                "a request of 1 MiB for logits while 10 MiB are in use "
                "(gradients 6 MiB, parameters 4 MiB)");
    CHECK_FAILS(pl_cuda_cache_release(f.c, &f), PL_EINVAL, "is not in use in this cache");
    CHECK_OK(pl_cuda_cache_release(f.c, q));
    CHECK_FAILS(pl_cuda_cache_release(f.c, q), PL_EINVAL, "is not in use in this cache");
    close_fixture(&f);
}

// Every failed allocation of the host's memory is told, and nothing is lost.
TEST(host_memory_may_lack) {
    pl_cuda_cache *none = NULL;
    fixture f = open_fixture(5);
    void *p;
    pl_alloc_fail_at(1, false);
    CHECK_FAILS(pl_cuda_cache_new(f.r, &none), PL_ENOMEM, "");
    pl_alloc_fail_at(1, false);
    CHECK_FAILS(pl_cuda_cache_alloc(f.c, 8, f.s[0], "x", &p), PL_ENOMEM, "host");
    pl_alloc_fail_at(0, false);
    CHECK_EQ(pl_cuda_cache_statistics(f.c).in_use, 0);
    CHECK_OK(pl_cuda_cache_alloc(f.c, 8, f.s[0], "x", &p));
    CHECK_EQ(pl_cuda_cache_statistics(f.c).in_use, 512);
    CHECK_OK(pl_cuda_cache_free(NULL));
    close_fixture(&f);
}

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
    CHECK_OK(pl_cuda_cache_new(f.r, false, &f.c));
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
    pl_device_memory s = pl_cuda_cache_statistics(f.c);
    CHECK_EQ(s.allocated, 2 * N * sizeof(int));
    CHECK_EQ(s.peak, 2 * N * sizeof(int));
    CHECK_EQ(s.cached, s.reserved - s.allocated);
    CHECK_EQ(s.segments, 2);  // one for each stream
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
    CHECK_EQ(pl_cuda_cache_statistics(f.c).frees, 1);
    CHECK_EQ(pl_cuda_cache_statistics(f.c).segments, 1);
    CHECK_EQ(pl_cuda_cache_statistics(f.c).allocated, N * sizeof(int));
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
    CHECK_FAILS(pl_cuda_cache_new(f.r, false, &none), PL_ENOMEM, "");
    pl_alloc_fail_at(1, false);
    CHECK_FAILS(pl_cuda_cache_alloc(f.c, 8, f.s[0], "x", &p), PL_ENOMEM, "host");
    pl_alloc_fail_at(0, false);
    CHECK_EQ(pl_cuda_cache_statistics(f.c).allocated, 0);
    CHECK_OK(pl_cuda_cache_alloc(f.c, 8, f.s[0], "x", &p));
    CHECK_EQ(pl_cuda_cache_statistics(f.c).allocated, 512);
    CHECK_OK(pl_cuda_cache_free(NULL));
    close_fixture(&f);
}

static const size_t MIB = (size_t)1 << 20;

static char *take_bytes(const fixture *f, size_t nbytes, int stream) {
    void *p;
    CHECK_OK(pl_cuda_cache_alloc(f->c, nbytes, f->s[stream], "x", &p));
    return p;
}

TEST(blocks_share_segments_and_grow_together_again) {
    fixture f = open_fixture(6);
    char *a = take_bytes(&f, 4 * MIB, 0), *b = take_bytes(&f, 4 * MIB, 0);
    char *c = take_bytes(&f, 5 * MIB, 0), *small = take_bytes(&f, 700, 0);
    CHECK(b == a + 4 * MIB && c == b + 4 * MIB);
    pl_device_memory m = pl_cuda_cache_statistics(f.c);
    CHECK_EQ(m.segments, 2);
    CHECK_EQ(m.mallocs, 2);
    CHECK_EQ(m.blocks, 4);
    CHECK_EQ(m.allocated, 13 * MIB + 1024);
    CHECK_EQ(m.reserved, 22 * MIB);
    CHECK_EQ(m.reserved_peak, 22 * MIB);
    CHECK_EQ(m.cached, 9 * MIB - 1024);
    CHECK_OK(pl_cuda_cache_release(f.c, a));
    CHECK(take_bytes(&f, 2 * MIB, 0) == a);  // tighter than the 7 MiB behind c
    CHECK_OK(pl_cuda_cache_release(f.c, b));
    CHECK(take_bytes(&f, 5 * MIB, 0) == a + 2 * MIB);  // what was left of a's, with b's
    CHECK_OK(pl_cuda_cache_release(f.c, c));
    CHECK_OK(pl_cuda_cache_release(f.c, small));
    CHECK_OK(pl_cuda_cache_trim(f.c));  // one segment is free as a whole
    m = pl_cuda_cache_statistics(f.c);
    CHECK_EQ(m.segments, 1);
    CHECK_EQ(m.frees, 1);
    CHECK_EQ(m.reserved, 20 * MIB);
    CHECK_EQ(m.cached, 12 * MIB);
    pl_cuda_cache_reset_peak(f.c);
    CHECK_EQ(pl_cuda_cache_statistics(f.c).reserved_peak, 20 * MIB);
    CHECK_OK(pl_cuda_cache_release(f.c, a));
    CHECK_OK(pl_cuda_cache_release(f.c, a + 2 * MIB));
    CHECK(take_bytes(&f, 9 * MIB + MIB / 2, 0) == a);
    CHECK_EQ(pl_cuda_cache_statistics(f.c).mallocs, 2);
    close_fixture(&f);
}

TEST(a_large_request_gets_a_segment_of_its_size) {
    fixture f = open_fixture(7);
    char *a = take_bytes(&f, 11 * MIB + 1, 0);
    CHECK_EQ(pl_cuda_cache_statistics(f.c).reserved, 12 * MIB);
    CHECK_EQ(pl_cuda_cache_statistics(f.c).allocated, 12 * MIB);  // too little is left to cut off
    CHECK_OK(pl_cuda_cache_release(f.c, a));
    CHECK(take_bytes(&f, 600, 0) != a);  // a small one does not break it up
    CHECK(take_bytes(&f, 2 * MIB, 0) == a);
    CHECK(take_bytes(&f, 9 * MIB, 0) == a + 2 * MIB);
    close_fixture(&f);
}

TEST(whole_blocks_are_segments_of_their_own) {
    fixture f = open_fixture(8);
    pl_cuda_cache *plain = f.c;
    CHECK_OK(pl_cuda_cache_new(f.r, true, &f.c));
    char *a = take_bytes(&f, 700, 0), *b = take_bytes(&f, 3 * MIB, 0);
    pl_device_memory m = pl_cuda_cache_statistics(f.c);
    CHECK_EQ(m.segments, 2);
    CHECK_EQ(m.reserved, 3 * MIB + 1024);
    CHECK_OK(pl_cuda_cache_release(f.c, b));
    CHECK(take_bytes(&f, 2 * MIB, 0) != b);
    CHECK(take_bytes(&f, 3 * MIB, 0) == b);
    CHECK_OK(pl_cuda_cache_release(f.c, a));
    CHECK_OK(pl_cuda_cache_free(f.c));
    f.c = plain;
    close_fixture(&f);
}

// A freed block that another stream still uses does not hold its neighbours up.
TEST(what_others_still_use_stays_apart) {
    fixture f = open_fixture(9);
    char *a = take_bytes(&f, 4 * MIB, 0), *b = take_bytes(&f, 4 * MIB, 0);
    char *rest = take_bytes(&f, 13 * MIB, 0);  // of a segment of its own
    work w = {.to = (int *)(void *)a, .add = 1};
    CHECK_OK(enqueue(&f, 1, &w));
    CHECK_OK(pl_cuda_cache_used(f.c, a, f.s[1]));
    CHECK_OK(pl_cuda_cache_release(f.c, a));
    CHECK_OK(pl_cuda_cache_release(f.c, b));
    CHECK(take_bytes(&f, 6 * MIB, 0) == b);
    CHECK_OK(pl_cuda_cache_release(f.c, b));
    CHECK_OK(f.r->sync_stream(f.r, f.s[1]));
    CHECK(take_bytes(&f, 9 * MIB, 0) == b);
    CHECK_OK(pl_cuda_cache_release(f.c, b));
    // 16 MiB behind a and a itself: nothing fits but all of it, once the other stream was asked.
    CHECK(take_bytes(&f, 9 * MIB + MIB / 2, 0) == b);
    CHECK(take_bytes(&f, 6 * MIB + MIB / 2, 0) == b + 9 * MIB + MIB / 2);
    CHECK_OK(pl_cuda_cache_release(f.c, b));
    CHECK(take_bytes(&f, 9 * MIB + MIB * 3 / 4, 0) == a);
    CHECK_EQ(pl_cuda_cache_statistics(f.c).segments, 2);
    CHECK_OK(pl_cuda_cache_release(f.c, rest));
    close_fixture(&f);
}

// ---- Random sequences ---------------------------------------------------------------------------

enum { MOST = 40, STEPS = 250 };

typedef struct piece {
    char *p;
    size_t nbytes;
    int stream;
} piece;

typedef struct run {
    fixture f;
    pl_event *e;
    piece live[MOST];
    int n;
    uint64_t random;
    bool forget;  // to tell the cache of other streams
    pl_status refused;
} run;

static uint64_t pick(run *r, uint64_t below) {
    r->random = r->random * 6364136223846793005u + 1442695040888963407u;
    return (r->random >> 33) % below;
}

static void nothing(void *context) { (void)context; }

// The virtual device refuses it where something unordered still touches these bytes.
static void touch(run *r, const piece *x, int stream) {
    pl_task t = {.name = "touch", .run = nothing, .ranges = 1};
    t.range[0] = (pl_range){x->p, x->nbytes, true};
    pl_status st = r->f.r->launch(r->f.r, r->f.s[stream], &t);
    if (st != PL_OK) r->refused = st;
}

static void add_piece(run *r) {
    static const size_t most[] = {600, (size_t)1 << 18, (size_t)3 << 20, (size_t)14 << 20};
    piece x = {.nbytes = 1 + (size_t)pick(r, most[pick(r, 4)]), .stream = (int)pick(r, 2)};
    x.p = take_bytes(&r->f, x.nbytes, x.stream);
    for (int i = 0; i < r->n; i++) {
        const piece *y = &r->live[i];
        CHECK(x.p + x.nbytes <= y->p || y->p + y->nbytes <= x.p);
    }
    touch(r, &x, x.stream);
    r->live[r->n++] = x;
}

static void use_elsewhere(run *r, const piece *x) {
    pl_runtime *d = r->f.r;
    CHECK_OK(d->record(d, r->e, r->f.s[x->stream]));
    CHECK_OK(d->wait(d, r->f.s[!x->stream], r->e));
    touch(r, x, !x->stream);
    if (!r->forget) CHECK_OK(pl_cuda_cache_used(r->f.c, x->p, r->f.s[!x->stream]));
}

static void step(run *r) {
    uint64_t what = pick(r, 10);
    if (r->n == 0 || (what < 5 && r->n < MOST)) {
        add_piece(r);
        return;
    }
    piece *x = &r->live[pick(r, (uint64_t)r->n)];
    if (what < 7) {
        use_elsewhere(r, x);
    } else {
        CHECK_OK(pl_cuda_cache_release(r->f.c, x->p));
        *x = r->live[--r->n];
    }
    if (pick(r, 60) == 0) CHECK_OK(pl_cuda_cache_trim(r->f.c));
}

static pl_status random_run(uint64_t seed, bool forget) {
    run r = {.f = open_fixture(seed), .random = seed, .forget = forget};
    CHECK_OK(r.f.r->event_new(r.f.r, &r.e));
    for (int i = 0; i < STEPS && r.refused == PL_OK; i++) step(&r);
    pl_device_memory m = pl_cuda_cache_statistics(r.f.c);
    CHECK_EQ(m.allocated + m.cached, m.reserved);
    CHECK_EQ(m.blocks, r.n);
    CHECK_EQ(m.mallocs - m.frees, m.segments);
    while (r.n > 0) CHECK_OK(pl_cuda_cache_release(r.f.c, r.live[--r.n].p));
    if (r.refused == PL_OK) {
        CHECK_OK(pl_cuda_cache_trim(r.f.c));  // all are whole segments again
        m = pl_cuda_cache_statistics(r.f.c);
        CHECK_EQ(m.reserved, 0);
        CHECK_EQ(m.allocated + m.cached, 0);
    }
    for (int i = 0; i < 2; i++) CHECK_OK(r.f.r->sync_stream(r.f.r, r.f.s[i]));
    close_fixture(&r.f);
    return r.refused;
}

TEST(random_sequences_are_ordered_and_come_together_again) {
    bool seen = false;
    for (uint64_t seed = 1; seed <= 12; seed++) {
        CHECK_OK(random_run(seed, false));
    }
    for (uint64_t seed = 1; seed <= 6 && !seen; seed++) seen = random_run(seed, true) != PL_OK;
    CHECK(seen);
}

// The same sequence of sizes again and again asks the device for nothing more.
TEST(a_steady_state_asks_the_device_for_nothing) {
    fixture f = open_fixture(10);
    int64_t after = 0;
    for (int round = 0; round < 6; round++) {
        char *p[24];
        for (int i = 0; i < 24; i++) p[i] = take_bytes(&f, (size_t)(i * i * 37 + 1) * 1000, i % 2);
        for (int i = 0; i < 24; i++) CHECK_OK(pl_cuda_cache_release(f.c, p[(i * 7) % 24]));
        if (round == 1) after = pl_cuda_cache_statistics(f.c).mallocs;
    }
    CHECK(after > 0);
    CHECK_EQ(pl_cuda_cache_statistics(f.c).mallocs, after);
    close_fixture(&f);
}

// With each allocation of the host's memory failing in turn: told, and nothing is lost.
TEST(host_memory_may_lack_at_any_point) {
    fixture f = open_fixture(11);
    char *a = take_bytes(&f, 3 * MIB, 0);
    for (int at = 1; at < 6; at++) {
        void *p = NULL;
        pl_alloc_fail_at(at, false);
        pl_status st = pl_cuda_cache_alloc(f.c, 30 * MIB + (size_t)at * MIB, f.s[0], "x", &p);
        if (st == PL_OK) st = pl_cuda_cache_used(f.c, p, f.s[1]);
        if (p != NULL) CHECK_OK(pl_cuda_cache_release(f.c, p));
        pl_alloc_fail_at(0, false);
        CHECK(st == PL_OK || st == PL_ENOMEM);
    }
    CHECK_EQ(pl_cuda_cache_statistics(f.c).allocated, 3 * MIB);
    CHECK_OK(pl_cuda_cache_release(f.c, a));
    CHECK_OK(pl_cuda_cache_trim(f.c));
    CHECK_EQ(pl_cuda_cache_statistics(f.c).reserved, 0);
    close_fixture(&f);
}

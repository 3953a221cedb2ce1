// SPDX-License-Identifier: Apache-2.0
// Tests of segments, buckets and queued work.
#include "test.h"

#include <fcntl.h>

#include "comm_reference.h"
#include "ranks.h"

// Who reduces: the comm thread, the caller at once, the caller later, or one this, one that.
enum { QUEUED, SYNC, POLLED, MIXED };

static bool is_polled(int how, int rank) { return how == POLLED || (how == MIXED && rank % 2); }

static void reduce_all(pl_group *g, void *ctx) {
    int how = (int)(intptr_t)ctx;
    bool sync = how == SYNC;
    int rank = pl_group_rank(g), world = pl_group_world(g);
    const int64_t counts[] = {0, 1, 15, 16, 17, 300, 4096, 50001};
    const pl_dtype dtypes[] = {PL_F32, PL_BF16, PL_F64};
    pl_segment *seg;
    CHECK_OK(pl_segment_new(g, 3 << 20, SITE("b:1"), &seg));
    CHECK_EQ((uintptr_t)pl_segment_data(seg) % 64, 0);
    char *want = malloc(50001 * 8);
    for (int d = 0; d < 3; d++) {
        size_t size = pl_dtype_size(dtypes[d]), at = 0;
        pl_work *w[8];
        uint64_t used[8][2];
        for (int b = 0; b < 8; b++) {  // buckets side by side, all queued before the first wait
            ref_fill(dtypes[d], (char *)pl_segment_data(seg) + at, rank, at, counts[b]);
            used[b][0] = UINT64_C(1) << rank;
            used[b][1] = rank == world - 1 ? 1 : 0;
            pl_bucket_call c = {.seg = seg,
                                .offset_bytes = at,
                                .count = counts[b],
                                .dtype = dtypes[d],
                                .op = d == 1 ? PL_RED_MEAN : PL_RED_SUM,
                                .bucket = b,
                                .n_params = 65,
                                .used = used[b],
                                .polled = is_polled(how, rank),
                                .sync = sync};
            CHECK_OK(pl_group_reduce_bucket(g, &c, SITE("b:2"), &w[b]));
            CHECK(sync == (w[b] == NULL));
            if (b % 2) CHECK_OK(pl_group_poll(g));
            at += ((size_t)counts[b] * size + 127) / 64 * 64;
        }
        at = 0;
        for (int b = 0; b < 8; b++) {
            if (w[b]) CHECK_OK(pl_work_wait(w[b]));
            if (w[b]) CHECK(pl_work_done(w[b]));
            pl_work_free(w[b]);
            for (int64_t i = 0; i < counts[b]; i++) {
                ref_result(dtypes[d], d == 1 ? PL_RED_MEAN : PL_RED_SUM, world, (int64_t)at + i, 1,
                           want + (size_t)i * size);
            }
            char *got = (char *)pl_segment_data(seg) + at;
            CHECK_EQ(memcmp(got, want, (size_t)counts[b] * size), 0);
            CHECK_EQ(used[b][0], (UINT64_C(1) << world) - 1);
            CHECK_EQ(used[b][1], 1);
            at += ((size_t)counts[b] * size + 127) / 64 * 64;
        }
        CHECK_OK(pl_group_barrier(g, SITE("b:3")));  // before a neighbour fills in again
    }
    free(want);
    pl_segment_release(seg);
}

TEST(buckets_in_the_queue) {
    for (int w = 1; w <= 6; w++) run_spread(w, reduce_all, NULL);
}

TEST(buckets_on_the_caller) {
    for (int w = 1; w <= 6; w++) run_spread(w, reduce_all, (void *)SYNC);
}

TEST(buckets_on_the_caller_later) {
    for (int w = 1; w <= 6; w++) run_spread(w, reduce_all, (void *)POLLED);
    for (int w = 2; w <= 5; w++) run_spread(w, reduce_all, (void *)MIXED);
}

static double sum_of(const void *data, int64_t n, pl_dtype dt) {
    double sum = 0;
    CHECK_EQ(dt, PL_F32);
    for (int64_t i = 0; i < n; i++) sum += (double)((const float *)data)[i];
    return sum;
}

// Blocks of many sizes: each is reduced by one rank, which tells all what it measured; a rank
// without a measure says nothing.
static void measured(pl_group *g, void *ctx) {
    enum { N = 5 };
    static const int64_t blocks[N + 1] = {0, 16, 48, 2048, 2064, 2065};
    const size_t at = 16384;
    int how = (int)(intptr_t)ctx, rank = pl_group_rank(g), world = pl_group_world(g);
    pl_segment *seg;
    CHECK_OK(pl_segment_new(g, 32768, SITE("e:1"), &seg));
    float *x = pl_segment_data(seg);
    double *told = (double *)(void *)((char *)pl_segment_data(seg) + at);
    for (int silent = 0; silent < 2; silent++) {
        uint64_t used = 1;
        pl_work *w = NULL;
        for (int i = 0; i < 2065; i++) x[i] = (float)(i % 7);
        for (int i = 0; i < N; i++) told[i] = -1;
        pl_bucket_call c = {.seg = seg,
                            .count = 2065,
                            .dtype = PL_F32,
                            .op = PL_RED_SUM,
                            .n_params = 1,
                            .used = &used,
                            .sync = how == SYNC,
                            .polled = is_polled(how, rank),
                            .n_blocks = N,
                            .blocks = blocks,
                            .measures = at,
                            .measure = silent && rank == 0 ? NULL : sum_of};
        CHECK_OK(pl_group_reduce_bucket(g, &c, SITE("e:2"), &w));
        if (w) CHECK_OK(pl_work_wait(w));
        pl_work_free(w);
        for (int i = 0; i < 2065; i++) CHECK(x[i] == (float)(world * (i % 7)));
        int absent = 0;
        for (int i = 0; i < N; i++) {
            double want = 0;
            for (int64_t k = blocks[i]; k < blocks[i + 1]; k++) want += (double)(world * (k % 7));
            CHECK(told[i] == want || told[i] == -1);
            absent += told[i] == -1;
        }
        CHECK(silent ? absent > 0 : absent == 0);
        CHECK_OK(pl_group_barrier(g, SITE("e:3")));  // before a neighbour fills in again
        c.measures = 32768;
        CHECK_FAILS(pl_group_reduce_bucket(g, &c, SITE("e:4"), &w), PL_EINVAL, "5 blocks");
    }
    pl_segment_release(seg);
}

TEST(blocks_are_measured_by_their_owners) {
    for (int how = QUEUED; how <= MIXED; how++) {
        for (int w = 1; w <= 4; w++) run_threads(w, measured, (void *)(intptr_t)how);
    }
}

// Bucket i of one parameter, in the i-th 64 bytes.
static pl_bucket_call line_of(pl_segment *seg, int i, int64_t count, uint64_t *used) {
    return (pl_bucket_call){.seg = seg,
                            .offset_bytes = (size_t)i * 64,
                            .count = count,
                            .dtype = PL_F32,
                            .op = PL_RED_SUM,
                            .bucket = i,
                            .n_params = 1,
                            .used = used};
}

// Polled buckets among calls of other kinds, on all ranks or on some, waited for in any order.
static void polled_order(pl_group *g, void *ctx) {
    enum { N = 24 };
    int rank = pl_group_rank(g), world = pl_group_world(g);
    pl_segment *seg;
    pl_work *w[N], *other;
    uint64_t used[N];
    CHECK_OK(pl_segment_new(g, N * 64, SITE("p:1"), &seg));
    float *at = pl_segment_data(seg), x = 1;
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < N; i++) {
            at[i * 16] = (float)(i + 1);
            used[i] = 1;
            pl_bucket_call c = line_of(seg, i, 1, &used[i]);
            c.polled = is_polled((int)(intptr_t)ctx, rank);
            CHECK_OK(pl_group_reduce_bucket(g, &c, SITE("p:2"), &w[i]));
            if (i % 3 == 0) CHECK_OK(pl_group_poll(g));
            if (i % 7 == 0) CHECK_OK(pl_group_barrier(g, SITE("p:3")));
            if (i % 11 == 0) {
                x = 1;
                CHECK_OK(
                    pl_group_all_reduce_async(g, &x, 1, PL_F32, PL_RED_SUM, SITE("p:4"), &other));
                CHECK_OK(pl_work_wait(other));
                CHECK(x == (float)world);
                pl_work_free(other);
            }
        }
        for (int k = 0; k < N; k++) {
            int i = (k * 5 + round) % N;  // each once, in another order each time
            CHECK_OK(pl_work_wait(w[i]));
            CHECK_OK(pl_work_wait(w[i]));  // again is legal
            CHECK(at[i * 16] == (float)((i + 1) * world));
        }
        for (int i = 0; i < N; i++) pl_work_free(w[i]);
        CHECK_OK(pl_group_barrier(g, SITE("p:5")));  // before a neighbour fills in again
    }
    pl_segment_release(seg);
}

TEST(polled_buckets_keep_the_order_of_calls) {
    run_spread(1, polled_order, (void *)POLLED);
    run_spread(2, polled_order, (void *)POLLED);
    run_spread(2, polled_order, (void *)MIXED);
    run_spread(4, polled_order, (void *)POLLED);
    run_spread(4, polled_order, (void *)MIXED);
}

// A group that goes with buckets under way: their works fail, and can still be freed.
static void leave_polled(pl_group *g, void *ctx) {
    pl_work **w = (pl_work **)ctx + 2 * (intptr_t)pl_group_rank(g);
    static uint64_t used[4];
    pl_segment *seg;
    CHECK_OK(pl_segment_new(g, 4096, SITE("l:1"), &seg));
    for (int i = 0; i < 2 && pl_group_rank(g) == 0; i++) {
        used[i] = 1;
        pl_bucket_call c = line_of(seg, i, 16, &used[i]);
        c.polled = true;
        CHECK_OK(pl_group_reduce_bucket(g, &c, SITE("l:2"), &w[i]));
        CHECK_OK(pl_group_poll(g));  // the peer never comes
        CHECK(!pl_work_done(w[i]));
    }
    pl_segment_release(seg);
}

TEST(a_group_may_go_before_its_polled_buckets) {
    pl_work *w[4] = {NULL};
    run_threads(2, leave_polled, w);
    for (int i = 0; i < 2; i++) {
        CHECK(pl_work_done(w[i]));
        CHECK_FAILS(pl_work_wait(w[i]), PL_ERUNTIME, "the group was closed");
        pl_work_free(w[i]);
    }
}

// Queued and synchronous calls keep the order of the program.
static void order(pl_group *g, void *ctx) {
    (void)ctx;
    enum { N = 50 };
    float x[N];
    pl_work *w[N];
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < N; i++) {
            x[i] = (float)i;
            CHECK_OK(
                pl_group_all_reduce_async(g, &x[i], 1, PL_F32, PL_RED_SUM, SITE("o:1"), &w[i]));
            if (i % 17 == 0) CHECK_OK(pl_group_barrier(g, SITE("o:2")));
            if (i % 17 == 0) CHECK(pl_work_done(w[i]));
        }
        for (int i = N - 1; i >= 0; i--) {
            CHECK_OK(pl_work_wait(w[i]));
            CHECK_OK(pl_work_wait(w[i]));  // again is legal
            pl_work_free(w[i]);
            CHECK(x[i] == (float)(i * pl_group_world(g)));
        }
    }
}

TEST(calls_keep_their_order) {
    run_spread(2, order, NULL);
    run_spread(4, order, NULL);
}

static void outlive(pl_group *g, void *ctx) {
    pl_segment **out = ctx;
    CHECK_OK(pl_segment_new(g, 100000, SITE("s:1"), &out[pl_group_rank(g)]));
    memset(pl_segment_data(out[pl_group_rank(g)]), pl_group_rank(g) + 1, 100000);
}

TEST(a_segment_outlives_its_group) {
    pl_segment *segs[3] = {NULL};
    run_threads(3, outlive, segs);
    for (int r = 0; r < 3; r++) {
        unsigned char *p = pl_segment_data(segs[r]);
        CHECK_EQ(p[0], r + 1);
        CHECK_EQ(p[99999], r + 1);
        pl_segment_retain(segs[r]);
        pl_segment_release(segs[r]);
        CHECK_EQ(p[5], r + 1);
        pl_segment_release(segs[r]);
    }
}

// After a failure a peer's writes do not reach our part (Note [private after failure]).
typedef struct meeting {
    pthread_barrier_t barrier;
    pl_segment *segs[2];
} meeting;

static void fail_and_write(pl_group *g, void *ctx) {
    meeting *m = ctx;
    int rank = pl_group_rank(g);
    float x[4] = {0};
    CHECK_OK(pl_segment_new(g, 8192, SITE("f:1"), &m->segs[rank]));
    char *mine = pl_segment_data(m->segs[rank]);
    memset(mine, 'a', 8192);
    pthread_barrier_wait(&m->barrier);
    pl_status st = pl_group_all_reduce(g, x, 1 + rank, PL_F32, PL_RED_SUM, SITE("f:2"));
    CHECK_EQ(st, PL_EMISMATCH);
    pthread_barrier_wait(&m->barrier);
    CHECK_EQ(mine[0], 'a');  // the contents moved along
    CHECK_EQ(mine[8191], 'a');
    // A private mapping has no file behind it any more.
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps);
    char line[512], want[32];
    bool found = false;
    snprintf(want, sizeof want, "%lx-", (unsigned long)(uintptr_t)mine);
    while (fgets(line, sizeof line, maps)) {
        if (strncmp(line, want, strlen(want)) != 0) continue;
        found = true;
        CHECK(!strstr(line, "memfd"));
        CHECK(strstr(line, "rw-p"));
    }
    fclose(maps);
    CHECK(found);
    pthread_barrier_wait(&m->barrier);
    CHECK_FAILS(pl_segment_new(g, 4096, SITE("f:3"), &m->segs[rank]), PL_EMISMATCH, "disagree");
    pl_segment_release(m->segs[rank]);
}

TEST(after_a_failure_a_segment_is_private) {
    meeting m;
    pthread_barrier_init(&m.barrier, NULL, 2);
    run_threads(2, fail_and_write, &m);
    pthread_barrier_destroy(&m.barrier);
}

static void wrong_buckets(pl_group *g, void *ctx) {
    (void)ctx;
    pl_segment *seg;
    uint64_t used = 0;
    CHECK_OK(pl_segment_new(g, 4096, SITE("w:1"), &seg));
    pl_bucket_call good = {.seg = seg,
                           .count = 1024,
                           .dtype = PL_F32,
                           .op = PL_RED_SUM,
                           .n_params = 1,
                           .used = &used,
                           .sync = true};
    pl_bucket_call c = good;
    c.count = 1025;
    CHECK_FAILS(pl_group_reduce_bucket(g, &c, SITE("w:2"), NULL), PL_EINVAL, "1025 elements");
    c = good;
    c.offset_bytes = 4;
    CHECK_FAILS(pl_group_reduce_bucket(g, &c, SITE("w:2"), NULL), PL_EINVAL, "at byte 4");
    c = good;
    c.op = PL_RED_MAX;
    CHECK_FAILS(pl_group_reduce_bucket(g, &c, SITE("w:2"), NULL), PL_EINVAL, "got max");
    c = good;
    c.n_params = 1 << 20;
    CHECK_FAILS(pl_group_reduce_bucket(g, &c, SITE("w:2"), NULL), PL_EINVAL, "parameters");
    CHECK_OK(pl_group_reduce_bucket(g, &good, SITE("w:2"), NULL));
    pl_segment_release(seg);
}

TEST(a_wrong_bucket_is_refused) { run_threads(2, wrong_buckets, NULL); }

// Freeing a group with work in the queue fails that work and returns.
static void abandon(pl_group *g, void *ctx) {
    pl_work **works = ctx;
    static float x[2][4];
    if (pl_group_rank(g) == 1) return;  // leaves at once: rank 0 waits for it in vain
    for (int i = 0; i < 4; i++) {
        pl_status st =
            pl_group_all_reduce_async(g, &x[0][i], 1, PL_F32, PL_RED_SUM, SITE("a:1"), &works[i]);
        if (st != PL_OK) works[i] = NULL;
    }
}

TEST(freeing_a_group_ends_its_queue) {
    pl_work *works[4] = {NULL};
    run_threads(2, abandon, works);
    for (int i = 0; i < 4; i++) {
        if (!works[i]) continue;
        CHECK(pl_work_done(works[i]));
        pl_status st = pl_work_wait(works[i]);
        CHECK(st == PL_EPEER || st == PL_ERUNTIME);
        pl_work_free(works[i]);
    }
}

static int count_fds(void) {
    int n = 0;
    for (int fd = 0; fd < 256; fd++) n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static void nothing(pl_group *g, void *ctx) {
    (void)ctx;
    CHECK_OK(pl_group_barrier(g, SITE("n:1")));
}

TEST(groups_leave_no_descriptors) {
    run_threads(3, nothing, NULL);
    int before = count_fds();
    for (int i = 0; i < 20; i++) run_threads(3, nothing, NULL);
    CHECK_EQ(count_fds(), before);
}

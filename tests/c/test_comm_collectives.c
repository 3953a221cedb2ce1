// SPDX-License-Identifier: Apache-2.0
// Tests of the collectives: right, and the same bits on every rank, for worlds of 1 to 8 and sizes
// around the edges of the small and the staged path. Ranks are threads.
#include "test.h"

#include "comm_reference.h"
#include "ranks.h"

// Edges: one cache line, inline payload (24 B), small payload (4 KiB), a staging area (256 KiB).
static const int64_t small_sizes[] = {0,   1,   3,   5,    6,    7,    12,   13,   24,   25,
                                      511, 512, 513, 1023, 1024, 1025, 2048, 2049, 4096, 4097};
static const int64_t large_sizes[] = {32769, 65536, 131075};
#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

static void *get(int64_t n, pl_dtype dt) {
    void *p;
    CHECK_OK(pl_alloc((size_t)n * pl_dtype_size(dt) + 1, &p));
    return p;
}

static void same(const void *got, const void *want, int64_t n, pl_dtype dt, const char *what,
                 int world) {
    if (memcmp(got, want, (size_t)n * pl_dtype_size(dt)) != 0) {
        TEST_FAIL("%s: %lld %s over %d ranks: wrong bits", what, (long long)n, pl_dtype_name(dt),
                  world);
    }
}

static void reductions(pl_group *g, int64_t n, pl_dtype dt, pl_redop op) {
    int rank = pl_group_rank(g), world = pl_group_world(g), root = (int)(n % world);
    void *x = get(n, dt), *want = get(n, dt), *in = get(n * world, dt), *mine = get(n, dt);
    ref_fill(dt, mine, rank, 0, n);
    ref_fill(dt, x, rank, 0, n);
    ref_result(dt, op, world, 0, n, want);
    CHECK_OK(pl_group_all_reduce(g, x, n, dt, op, SITE("sweep:1")));
    same(x, want, n, dt, "all_reduce", world);
    ref_fill(dt, x, rank, 0, n);
    CHECK_OK(pl_group_reduce(g, x, n, dt, op, root, SITE("sweep:2")));
    same(x, rank == root ? want : mine, n, dt, "reduce", world);
    ref_fill(dt, in, rank, 0, n * world);
    ref_result(dt, op, world, n * rank, n, want);
    CHECK_OK(pl_group_reduce_scatter(g, in, x, n, dt, op, SITE("sweep:3")));
    same(x, want, n, dt, "reduce_scatter", world);
    pl_free(x);
    pl_free(want);
    pl_free(in);
    pl_free(mine);
}

static void movements(pl_group *g, int64_t n, pl_dtype dt) {
    int rank = pl_group_rank(g), world = pl_group_world(g), root = (int)(n % world);
    void *x = get(n, dt), *want = get(n * world, dt), *out = get(n * world, dt);
    size_t row = (size_t)n * pl_dtype_size(dt);
    for (int r = 0; r < world; r++) ref_fill(dt, (char *)want + row * (size_t)r, r, 0, n);
    ref_fill(dt, x, rank, 0, n);
    CHECK_OK(pl_group_all_gather(g, x, out, n, dt, SITE("sweep:4")));
    same(out, want, n * world, dt, "all_gather", world);
    memset(out, 0, row * (size_t)world);
    ref_fill(dt, (char *)out + row * (size_t)rank, rank, 0, n);
    CHECK_OK(pl_group_all_gather(g, (char *)out + row * (size_t)rank, out, n, dt, SITE("sweep:5")));
    same(out, want, n * world, dt, "all_gather in place", world);
    CHECK_OK(pl_group_broadcast(g, x, n, dt, root, SITE("sweep:6")));
    same(x, (char *)want + row * (size_t)root, n, dt, "broadcast", world);
    CHECK_OK(pl_group_barrier(g, SITE("sweep:7")));
    pl_free(x);
    pl_free(want);
    pl_free(out);
}

static pl_collective rooted(pl_coll kind, const void *in, void *out, int64_t n, pl_dtype dt,
                            int root) {
    return (pl_collective){
        .kind = kind, .in = in, .out = out, .count = n, .dtype = dt, .root = root};
}

// gather to the last rank, scatter back from there; all_to_all with equal and with odd splits.
static void exchanges(pl_group *g, int64_t n, pl_dtype dt) {
    int rank = pl_group_rank(g), world = pl_group_world(g), root = world - 1;
    size_t row = (size_t)n * pl_dtype_size(dt), all = row * (size_t)world;
    void *x = get(n, dt), *want = get(n * world, dt), *out = get(n * world, dt);
    for (int r = 0; r < world; r++) ref_fill(dt, (char *)want + row * (size_t)r, r, 0, n);
    ref_fill(dt, x, rank, 0, n);
    memset(out, 0x5a, all);
    pl_collective c = rooted(PL_COLL_GATHER, x, out, n, dt, root);
    CHECK_OK(pl_group_collective(g, &c, SITE("sweep:8"), NULL));
    if (rank == root) same(out, want, n * world, dt, "gather", world);
    for (size_t i = 0; i < all && rank != root; i++) CHECK_EQ(((char *)out)[i], 0x5a);
    void *back = get(n, dt);
    c = rooted(PL_COLL_SCATTER, rank == root ? out : NULL, back, n, dt, root);
    CHECK_OK(pl_group_collective(g, &c, SITE("sweep:9"), NULL));
    same(back, x, n, dt, "scatter", world);
    // Rank i's block for rank j is i's input from element j * n on.
    int64_t splits[2 * RANKS_MAX];
    for (int r = 0; r < 2 * world; r++) splits[r] = n;
    void *in = get(n * world, dt);
    ref_fill(dt, in, rank, 0, n * world);
    for (int r = 0; r < world; r++) {
        ref_fill(dt, (char *)want + row * (size_t)r, r, n * rank, n);
    }
    c = (pl_collective){.kind = PL_COLL_ALL_TO_ALL, .in = in, .out = out, .count = 1, .dtype = dt};
    c.splits = splits;
    CHECK_OK(pl_group_collective(g, &c, SITE("sweep:10"), NULL));
    same(out, want, n * world, dt, "all_to_all", world);
    pl_free(x);
    pl_free(want);
    pl_free(out);
    pl_free(back);
    pl_free(in);
}

// Rank i sends (i + 2 j) % 4 rows of n elements to rank j: none to some, more to others.
static void odd_splits(pl_group *g, int64_t n, pl_dtype dt) {
    int rank = pl_group_rank(g), world = pl_group_world(g);
    int64_t splits[2 * RANKS_MAX], in_rows = 0, out_rows = 0, at = 0;
    for (int j = 0; j < world; j++) {
        in_rows += splits[j] = (rank + 2 * j) % 4;
        out_rows += splits[world + j] = (j + 2 * rank) % 4;
    }
    void *in = get(in_rows * n, dt), *out = get(out_rows * n, dt), *want = get(out_rows * n, dt);
    size_t size = pl_dtype_size(dt);
    ref_fill(dt, in, rank, 0, in_rows * n);
    for (int i = 0; i < world; i++) {
        int64_t before = 0;  // rows of rank i for the ranks below this one
        for (int j = 0; j < rank; j++) before += (i + 2 * j) % 4;
        ref_fill(dt, (char *)want + (size_t)(at * n) * size, i, before * n, splits[world + i] * n);
        at += splits[world + i];
    }
    pl_collective c = {.kind = PL_COLL_ALL_TO_ALL,
                       .in = in,
                       .out = out,
                       .count = n,
                       .dtype = dt,
                       .splits = splits};
    CHECK_OK(pl_group_collective(g, &c, SITE("sweep:11"), NULL));
    same(out, want, out_rows * n, dt, "all_to_all, odd splits", world);
    pl_free(in);
    pl_free(out);
    pl_free(want);
}

static void sweep_exchanges(pl_group *g, void *ctx) {
    (void)ctx;
    for (int s = 0; s < COUNT(small_sizes); s++) {
        for (int dt = 0; dt < PL_DTYPE_COUNT; dt++) {
            exchanges(g, small_sizes[s], (pl_dtype)dt);
            odd_splits(g, small_sizes[s], (pl_dtype)dt);
        }
    }
    exchanges(g, 131075, PL_F32);
    odd_splits(g, 65537, PL_I32);
}

TEST(sweep_of_gather_scatter_all_to_all) {
    for (int w = 1; w <= 8; w++) run_threads(w, sweep_exchanges, NULL);
}

// Every collective that can be queued, several at once, with the queue's order.
static void queued(pl_group *g, void *ctx) {
    (void)ctx;
    enum { N = 3000, KINDS = PL_COLL_ALL_TO_ALL };
    int rank = pl_group_rank(g), world = pl_group_world(g);
    float *in[KINDS], *out[KINDS], *want = get(N * world, PL_F32);
    pl_work *w[KINDS];
    for (int k = 0; k < KINDS; k++) {
        bool one = k == PL_COLL_ALL_REDUCE || k == PL_COLL_REDUCE || k == PL_COLL_BROADCAST;
        in[k] = get(N * world, PL_F32);
        out[k] = one ? in[k] : get(N * world, PL_F32);
        ref_fill(PL_F32, in[k], rank, 0, N * world);
        pl_collective c = rooted((pl_coll)k, in[k], out[k], N, PL_F32, 0);
        CHECK_OK(pl_group_collective(g, &c, SITE("queued:1"), &w[k]));
    }
    for (int k = 0; k < KINDS; k++) CHECK_OK(pl_work_wait(w[k]));
    for (int k = 0; k < KINDS; k++) pl_work_free(w[k]);
    ref_result(PL_F32, PL_RED_SUM, world, 0, N, want);
    same(out[PL_COLL_ALL_REDUCE], want, N, PL_F32, "queued all_reduce", world);
    if (rank == 0) same(out[PL_COLL_REDUCE], want, N, PL_F32, "queued reduce", world);
    ref_result(PL_F32, PL_RED_SUM, world, (int64_t)N * rank, N, want);
    same(out[PL_COLL_REDUCE_SCATTER], want, N, PL_F32, "queued reduce_scatter", world);
    ref_fill(PL_F32, want, 0, 0, N);
    same(out[PL_COLL_BROADCAST], want, N, PL_F32, "queued broadcast", world);
    ref_fill(PL_F32, want, 0, (int64_t)N * rank, N);
    same(out[PL_COLL_SCATTER], want, N, PL_F32, "queued scatter", world);
    for (int r = 0; r < world; r++) ref_fill(PL_F32, want + (size_t)r * N, r, 0, N);
    same(out[PL_COLL_ALL_GATHER], want, N * world, PL_F32, "queued all_gather", world);
    if (rank == 0) same(out[PL_COLL_GATHER], want, N * world, PL_F32, "queued gather", world);
    for (int k = 0; k < KINDS; k++) {
        if (out[k] != in[k]) pl_free(out[k]);
        pl_free(in[k]);
    }
    pl_free(want);
}

TEST(collectives_in_the_queue) {
    for (int w = 1; w <= 4; w++) run_spread(w, queued, NULL);
}

static void sweep_small(pl_group *g, void *ctx) {
    (void)ctx;
    for (int s = 0; s < COUNT(small_sizes); s++) {
        for (int dt = 0; dt < PL_DTYPE_COUNT; dt++) {
            for (int op = PL_RED_SUM; op <= PL_RED_MIN; op++) {
                if (op == PL_RED_MEAN && !pl_dtype_is_float((pl_dtype)dt)) continue;
                if (op > PL_RED_MEAN && small_sizes[s] > 600) continue;
                reductions(g, small_sizes[s], (pl_dtype)dt, (pl_redop)op);
            }
            movements(g, small_sizes[s], (pl_dtype)dt);
        }
    }
}

static void sweep_large(pl_group *g, void *ctx) {
    (void)ctx;
    for (int s = 0; s < COUNT(large_sizes); s++) {
        reductions(g, large_sizes[s], s % 2 ? PL_F32 : PL_BF16, PL_RED_SUM);
        movements(g, large_sizes[s], s % 2 ? PL_F64 : PL_F16);
    }
    reductions(g, 40001, PL_F64, PL_RED_MEAN);
}

TEST(sweep_of_small_sizes) {
    for (int w = 1; w <= 8; w++) run_threads(w, sweep_small, NULL);
}

// Over machines of equal and of unequal numbers of ranks: the same bits as on one.
TEST(sweep_over_machines) {
    for (int w = 2; w <= 5; w++) run_spread(w, sweep_small, NULL);
    run_spread(4, sweep_exchanges, NULL);
}

TEST(sweep_of_large_sizes) {
    for (int w = 1; w <= 5; w++) run_spread(w, sweep_large, NULL);
}

// The bits of an element do not depend on how much is reduced at once (G3).
static void pieces(pl_group *g, void *ctx) {
    (void)ctx;
    int64_t n = 100003;
    float *whole = get(n, PL_F32), *parts = get(n, PL_F32);
    ref_fill(PL_F32, whole, pl_group_rank(g), 0, n);
    memcpy(parts, whole, (size_t)n * 4);
    CHECK_OK(pl_group_all_reduce(g, whole, n, PL_F32, PL_RED_SUM, SITE("p:1")));
    for (int64_t i = 0, m = 1; i < n; i += m, m = m * 3 + 1) {
        if (m > n - i) m = n - i;
        CHECK_OK(pl_group_all_reduce(g, parts + i, m, PL_F32, PL_RED_SUM, SITE("p:2")));
    }
    same(parts, whole, n, PL_F32, "pieces", pl_group_world(g));
    pl_free(whole);
    pl_free(parts);
}

TEST(the_split_into_calls_does_not_change_the_bits) {
    for (int w = 2; w <= 7; w++) run_spread(w, pieces, NULL);
}

static void nans(pl_group *g, void *ctx) {
    (void)ctx;
    int rank = pl_group_rank(g), world = pl_group_world(g);
    int64_t n = 20000;
    uint32_t *x = get(n, PL_F32), *all = get(n * world, PL_F32);
    for (int64_t i = 0; i < n; i++) {  // payloads that tell which rank's NaN it was
        x[i] = i % 3 == rank % 3 ? 0x7fc00000u + (uint32_t)(rank * 1000 + i % 1000) : 0x3f800000u;
    }
    CHECK_OK(pl_group_all_reduce(g, x, n, PL_F32, PL_RED_SUM, SITE("nan:1")));
    CHECK_OK(pl_group_all_gather(g, x, all, n, PL_F32, SITE("nan:2")));
    for (int r = 0; r < world; r++) same(all + n * r, x, n, PL_F32, "NaN payloads", world);
    pl_free(x);
    pl_free(all);
}

TEST(nan_payloads_agree) {
    for (int w = 2; w <= 6; w++) run_spread(w, nans, NULL);
}

static void wrong_arguments(pl_group *g, void *ctx) {
    (void)ctx;
    float x[4] = {1, 2, 3, 4};
    pl_site site = SITE("bad:1");
    CHECK_FAILS(pl_group_broadcast(g, x, 4, PL_F32, 2, site), PL_EINVAL, "wrong root: got 2");
    CHECK_FAILS(pl_group_broadcast(g, x, -1, PL_F32, 0, site), PL_EINVAL, "wrong count: got -1");
    CHECK_FAILS(pl_group_all_reduce(g, x, 4, PL_I32, PL_RED_MEAN, site), PL_ETYPE, "mean");
    CHECK_FAILS(pl_group_send(g, x, 4, PL_F32, pl_group_rank(g), 0, site), PL_EINVAL, "wrong peer");
    CHECK_OK(pl_group_check(g));  // a wrong argument is this rank's own: the group is whole
    CHECK_OK(pl_group_all_reduce(g, x, 4, PL_F32, PL_RED_SUM, site));
    CHECK(x[3] == 8);
}

TEST(a_wrong_argument_leaves_the_group_whole) { run_threads(2, wrong_arguments, NULL); }

static void forked(pl_group *g, void *ctx) {
    (void)ctx;
    reductions(g, 100001, PL_F32, PL_RED_SUM);
    movements(g, 70001, PL_I64);
    for (int i = 0; i < 2000; i++) reductions(g, 5, PL_F32, PL_RED_MEAN);
}

TEST(ranks_as_processes) {
    pid_t pids[3];
    start_forks(3, forked, NULL, pids);
    for (int r = 0; r < 3; r++) CHECK_EQ(wait_fork(pids[r]), 0);
}

// SPDX-License-Identifier: Apache-2.0
// Tests of fingerprints (RELIABILITY B1, B2): ranks that disagree all get the same table, at once,
// with their buffers untouched.
#include "test.h"

#include "ranks.h"

typedef struct difference {
    const char *field;        // what the message names first
    const char *row0, *row1;  // the beginnings of the ranks' rows
    int kind;
} difference;

enum {
    DTYPE,
    REDOP,
    COUNT,
    GATHER,
    OPERATION,
    ROOT,
    BARRIER,
    SCATTER,
    REDUCE,
    ASYNC,
    BUCKET,
    GATHER_ROOT,
    SCATTER_COUNT,
    EXCHANGE,
    SPLITS,
    BITS
};

static const difference differences[] = {
    {"dtype", "dtype=float32, op=all_reduce", "dtype=int32, op=all_reduce", DTYPE},
    {"reduce", "reduce=sum, op=all_reduce", "reduce=max, op=all_reduce", REDOP},
    {"count", "count=10, op=all_reduce", "count=7, op=all_reduce", COUNT},
    {"count", "count=10, op=all_gather", "count=7, op=all_gather", GATHER},
    {"op", "op=all_reduce, dtype=float32", "op=broadcast, dtype=float32", OPERATION},
    {"root", "root=0, op=broadcast", "root=1, op=broadcast", ROOT},
    {"op", "op=barrier", "op=all_reduce", BARRIER},
    {"op", "op=reduce_scatter", "op=all_reduce", SCATTER},
    {"root", "root=0, op=reduce", "root=1, op=reduce", REDUCE},
    {"op", "op=all_reduce", "op=barrier", ASYNC},
    {"bucket", "bucket=3, op=reduce_bucket", "bucket=4, op=reduce_bucket", BUCKET},
    {"root", "root=0, op=gather", "root=1, op=gather", GATHER_ROOT},
    {"count", "count=3, op=scatter", "count=4, op=scatter", SCATTER_COUNT},
    {"count", "count=1, op=all_to_all", "count=2, op=all_to_all", EXCHANGE},
    {"splits", "splits=1 rows to rank 1, op=all_to_all", "splits=2 rows from rank 0", SPLITS},
    {"parameters", "parameters=5, op=reduce_bucket", "parameters=6, op=reduce_bucket", BITS},
};
enum { N_DIFFERENCES = sizeof differences / sizeof *differences };

static pl_status bucket(pl_group *g, int number, int n_params, pl_site site) {
    static _Thread_local uint64_t used;
    pl_segment *seg;
    CHECK_OK(pl_segment_new(g, 4096, SITE("seg.py:1"), &seg));
    pl_bucket_call c = {.seg = seg,
                        .count = 10,
                        .dtype = PL_F32,
                        .op = PL_RED_SUM,
                        .used = &used,
                        .bucket = number,
                        .n_params = n_params,
                        .sync = true};
    pl_status st = pl_group_reduce_bucket(g, &c, site, NULL);
    pl_segment_release(seg);
    return st;
}

// `arg` is the root, or what rank 1 expects of rank 0, of splits that are 1 otherwise.
static pl_status move(pl_group *g, pl_coll kind, float *in, float *out, int64_t n, int arg,
                      pl_site site) {
    int64_t splits[2 * RANKS_MAX];
    int world = pl_group_world(g);
    for (int r = 0; r < 2 * world; r++) splits[r] = 1;
    if (pl_group_rank(g) == 1) splits[world] = arg;
    pl_collective c = {.kind = kind,
                       .in = in,
                       .out = out,
                       .count = n,
                       .dtype = PL_F32,
                       .root = arg,
                       .splits = splits};
    return pl_group_collective(g, &c, site, NULL);
}

static pl_status call(pl_group *g, int kind, float *x, float *out) {
    bool odd = pl_group_rank(g) == 1;
    pl_site site = odd ? SITE("one.py:7 in f") : SITE("zero.py:3 in f");
    pl_work *w = NULL;
    switch (kind) {
        case DTYPE:
            return pl_group_all_reduce(g, x, 10, odd ? PL_I32 : PL_F32, PL_RED_SUM, site);
        case REDOP:
            return pl_group_all_reduce(g, x, 10, PL_F32, odd ? PL_RED_MAX : PL_RED_SUM, site);
        case COUNT:
            return pl_group_all_reduce(g, x, odd ? 7 : 10, PL_F32, PL_RED_SUM, site);
        case GATHER:
            return pl_group_all_gather(g, x, out, odd ? 7 : 10, PL_F32, site);
        case OPERATION:
            if (odd) return pl_group_broadcast(g, x, 10, PL_F32, 0, site);
            return pl_group_all_reduce(g, x, 10, PL_F32, PL_RED_SUM, site);
        case ROOT:
            return pl_group_broadcast(g, x, 10, PL_F32, odd, site);
        case BARRIER:
            if (!odd) return pl_group_barrier(g, site);
            return pl_group_all_reduce(g, x, 10, PL_F32, PL_RED_SUM, site);
        case SCATTER:
            if (!odd) return pl_group_reduce_scatter(g, x, out, 2, PL_F32, PL_RED_SUM, site);
            return pl_group_all_reduce(g, x, 10, PL_F32, PL_RED_SUM, site);
        case REDUCE:
            return pl_group_reduce(g, x, 10, PL_F32, PL_RED_SUM, odd, site);
        case ASYNC:
            if (odd) return pl_group_barrier(g, site);
            CHECK_OK(pl_group_all_reduce_async(g, x, 10, PL_F32, PL_RED_SUM, site, &w));
            pl_status st = pl_work_wait(w);
            pl_work_free(w);
            return st;
        case GATHER_ROOT:
            return move(g, PL_COLL_GATHER, x, out, 4, odd, site);
        case SCATTER_COUNT:
            return move(g, PL_COLL_SCATTER, out, x, odd ? 4 : 3, 0, site);
        case EXCHANGE:
            return move(g, PL_COLL_ALL_TO_ALL, x, out, odd ? 2 : 1, 1, site);
        case SPLITS:
            return move(g, PL_COLL_ALL_TO_ALL, x, out, 1, odd ? 2 : 1, site);
        case BUCKET:
            return bucket(g, odd ? 4 : 3, 5, site);
        default:
            return bucket(g, 3, odd ? 6 : 5, site);
    }
}

static void disagree(pl_group *g, void *ctx) {
    const difference *d = ctx;
    float x[10], before[10], out[100] = {0}, zero[100] = {0};
    for (int i = 0; i < 10; i++) before[i] = x[i] = (float)i;
    for (int i = 0; i < 5; i++) CHECK_OK(pl_group_barrier(g, SITE("good.py:1")));
    int64_t start = pl_now_ns();
    char head[64], row0[128], row1[128];
    snprintf(head, sizeof head, "ranks disagree on %s at seq", d->field);
    snprintf(row0, sizeof row0, "\n  rank=0, %s", d->row0);
    snprintf(row1, sizeof row1, "\n  rank=1, %s", d->row1);
    CHECK_FAILS(call(g, d->kind, x, out), PL_EMISMATCH, head);
    CHECK(strstr(pl_error_message(), row0));
    CHECK(strstr(pl_error_message(), row1));
    CHECK(strstr(pl_error_message(), "at zero.py:3 in f"));
    CHECK(strstr(pl_error_message(), "at one.py:7 in f"));
    CHECK(pl_now_ns() - start < INT64_C(5000000000));  // an error, not a timeout
    CHECK_EQ(memcmp(x, before, sizeof x), 0);
    CHECK_EQ(memcmp(out, zero, sizeof out), 0);
    pl_group_failure f;
    pl_group_failure_get(g, &f);
    CHECK_EQ(f.status, PL_EMISMATCH);
    CHECK_EQ(f.n_dead, 0);
    CHECK_FAILS(pl_group_barrier(g, SITE("later.py:1")), PL_EMISMATCH, head);  // sticky
    CHECK_FAILS(pl_group_check(g), PL_EMISMATCH, head);
}

TEST(every_difference_is_found_by_all_ranks) {
    for (int i = 0; i < N_DIFFERENCES; i++) {
        for (int w = 2; w <= 4; w += 2) run_spread(w, disagree, (void *)(uintptr_t)&differences[i]);
    }
}

// Two ranks swap two calls of the same form: only the places differ.
static void swapped(pl_group *g, void *ctx) {
    float a = 1, b = 2;
    pl_site one = SITE("swap.py:1 in f"), two = SITE("swap.py:2 in f");
    bool odd = pl_group_rank(g) == 1;
    char text[512];
    CHECK(!pl_group_take_warning(g, text, sizeof text));
    pl_status st = pl_group_all_reduce(g, odd ? &b : &a, 1, PL_F32, PL_RED_SUM, odd ? two : one);
    if (ctx) {
        if (st != PL_EMISMATCH) TEST_FAIL("strict: got %s", pl_status_name(st));
        CHECK(strstr(pl_error_message(), "ranks disagree on call site"));
        CHECK(strstr(pl_error_message(), "rank=1, at swap.py:2 in f"));
        return;
    }
    CHECK_OK(st);
    CHECK_OK(pl_group_all_reduce(g, odd ? &a : &b, 1, PL_F32, PL_RED_SUM, odd ? one : two));
    CHECK(pl_group_take_warning(g, text, sizeof text));
    CHECK(strstr(text, "swap.py:1 in f"));
    CHECK(strstr(text, "swap.py:2 in f"));
    CHECK(!pl_group_take_warning(g, text, sizeof text));  // once
}

TEST(another_call_site_is_a_warning_once) { run_spread(2, swapped, NULL); }

TEST(another_call_site_is_an_error_when_strict) {
    ranks_strict = true;
    run_spread(3, swapped, (void *)1);
}

// A long message is cut, not overrun.
static void many(pl_group *g, void *ctx) {
    (void)ctx;
    char text[300];
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = 0;
    pl_site site = {.hash = 1, .text = text};
    float x[8] = {0};
    CHECK_FAILS(pl_group_all_reduce(g, x, 1 + pl_group_rank(g), PL_F32, PL_RED_SUM, site),
                PL_EMISMATCH, "ranks disagree on count");
}

TEST(a_large_table_is_cut) { run_spread(8, many, NULL); }

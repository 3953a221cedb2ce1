// SPDX-License-Identifier: Apache-2.0
// Tests of the reducer as another library's backward pass drives it (Note [outside gradients]).
#include "test.h"

#include "ddp/ddp.h"
#include "ranks.h"

enum { N = 5 };
static pl_reduce_on reduce_on;

// Reduced by one thread, then by the other.
static void run_both(int world, rank_fn fn, void *ctx) {
    for (reduce_on = PL_REDUCE_ON_COMM; reduce_on <= PL_REDUCE_ON_CALLER; reduce_on++) {
        run_threads(world, fn, ctx);
    }
    reduce_on = PL_REDUCE_ON_SPARE;
}

static const int64_t shapes[N][2] = {{3, 4}, {1, 7}, {2, 2}, {5, 1}, {1, 0}};

static pl_tensor *outside(pl_dtype dt, const int64_t *shape) {
    pl_storage *none = NULL;
    pl_tensor *t = NULL;
    CHECK_OK(pl_storage_wrap(NULL, 0, NULL, NULL, &none));
    CHECK_OK(pl_tensor_from_storage(none, dt, 2, shape, NULL, 0, &t));
    CHECK_OK(pl_set_requires_grad(t, true));
    pl_storage_release(none);
    return t;
}

static pl_reducer *make_with(pl_group *g, int64_t first_bytes, int64_t bucket_bytes) {
    pl_tensor *params[N];
    pl_reducer *r = NULL;
    for (int p = 0; p < N; p++) params[p] = outside(p == 2 ? PL_F64 : PL_F32, shapes[p]);
    pl_reducer_options opt = {.group = g,
                              .n = N,
                              .params = params,
                              .first_bucket_bytes = first_bytes,
                              .bucket_bytes = bucket_bytes,
                              .op = PL_RED_MEAN,
                              .on = reduce_on};
    CHECK_OK(pl_reducer_new(&opt, SITE("ddp"), &r));
    for (int p = 0; p < N; p++) pl_tensor_release(params[p]);
    return r;
}

static pl_reducer *make(pl_group *g, int64_t bucket_bytes) {
    return make_with(g, bucket_bytes, bucket_bytes);
}

static void fill(const pl_reducer *r, int p, double value) {
    pl_tensor *view = NULL;
    CHECK_OK(pl_reducer_grad(r, p, &view));
    for (int64_t i = 0; i < view->numel; i++) {
        if (view->dtype == PL_F64) {
            ((double *)view->data)[i] = value;
        } else {
            ((float *)view->data)[i] = (float)value;
        }
    }
    pl_tensor_release(view);
}

static void check_filled(const pl_reducer *r, int p, double value) {
    pl_tensor *view = NULL;
    CHECK_OK(pl_reducer_grad(r, p, &view));
    for (int64_t i = 0; i < view->numel; i++) {
        bool wide = view->dtype == PL_F64;
        CHECK_EQ(wide ? ((double *)view->data)[i] : (double)((float *)view->data)[i], value);
    }
    pl_tensor_release(view);
}

static void make_ready(pl_reducer *r, int p, double value) {
    bool late = true;
    fill(r, p, value);
    CHECK_OK(pl_reducer_ready(r, p, &late));
    CHECK(!late);
}

// Every rank gives rank + p, in an order of its own in the first pass.
static void passes(pl_group *g, void *ctx) {
    int rank = pl_group_rank(g), world = pl_group_world(g);
    pl_reducer *r = make(g, *(const int64_t *)ctx);
    double mean = (double)(world - 1) / 2;
    for (int pass = 0; pass < 3; pass++) {
        CHECK(!pl_reducer_owed(r));
        for (int k = 0; k < N; k++) {
            int p = pass == 0 ? (k + rank) % N : N - 1 - k;
            CHECK(!pl_reducer_is_ready(r, p));
            make_ready(r, p, rank + p);
            CHECK(pl_reducer_is_ready(r, p));
        }
        CHECK(pl_reducer_owed(r));
        CHECK_OK(pl_reducer_finalize(r));
        for (int p = 0; p < N; p++) check_filled(r, p, mean + p);
        CHECK(pl_reducer_marked(r, 0));
    }
    pl_reducer_free(r);
}

TEST(outside_gradients_are_reduced) {
    const int64_t sizes[] = {1, 100, 1 << 20};
    for (int s = 0; s < 3; s++) {
        for (int w = 2; w <= 4; w++) run_both(w, passes, (void *)(uintptr_t)&sizes[s]);
    }
}

// Parameter 1: only rank 0 has a gradient, left from before. Parameter 3: nobody has one.
static void unused(pl_group *g, void *ctx) {
    int rank = pl_group_rank(g), world = pl_group_world(g);
    pl_reducer *r = make(g, 1);
    (void)ctx;
    fill(r, 1, 6);
    CHECK_OK(pl_reducer_mark(r, 1, rank == 0));
    fill(r, 3, 7);
    for (int p = 0; p < N; p += 2) make_ready(r, p, 1);
    CHECK_OK(pl_reducer_finalize(r));
    check_filled(r, 1, 6.0 / world);
    CHECK(pl_reducer_marked(r, 1));
    CHECK(!pl_reducer_marked(r, 3));
    pl_reducer_free(r);
}

TEST(gradients_that_some_or_none_have) {
    run_both(2, unused, NULL);
    run_both(4, unused, NULL);
}

static void late(pl_group *g, void *ctx) {
    pl_reducer *r = make(g, 1 << 20);
    bool too_late = true;
    (void)ctx;
    CHECK_EQ(pl_reducer_n_params(r), N);
    make_ready(r, 4, 1);
    CHECK_OK(pl_reducer_ready(r, 4, &too_late));
    CHECK(!too_late);  // its bucket waits for others
    pl_reducer_fail(r);
    CHECK(!pl_reducer_is_ready(r, 4));  // nothing was sent: forgotten
    CHECK(!pl_reducer_owed(r));
    for (int p = N - 1; p >= 0; p--) make_ready(r, p, 1);
    CHECK_OK(pl_reducer_ready(r, 4, &too_late));
    CHECK(too_late);
    CHECK_OK(pl_reducer_finalize(r));
    CHECK_FAILS(pl_reducer_ready(r, N, &too_late), PL_EINDEX, "got 5, expected 0 to 4");
    CHECK_FAILS(pl_reducer_mark(r, -1, true), PL_EINDEX, "got -1");
    CHECK(!pl_reducer_marked(r, N));
    for (int p = N - 1; p >= 0; p--) make_ready(r, p, 1);
    pl_reducer_fail(r);
    CHECK_FAILS(pl_reducer_ready(r, 0, &too_late), PL_ERUNTIME, "failed half-way");
    CHECK_FAILS(pl_reducer_finalize(r), PL_ERUNTIME, "failed half-way");
    CHECK_OK(pl_group_barrier(g, SITE("late")));  // what was sent is through: nothing stays behind
    pl_reducer_free(r);
}

TEST(a_second_gradient_and_a_pass_that_failed) { run_both(2, late, NULL); }

static void quiet(pl_group *g, void *ctx) {
    pl_reducer *r = make(g, 1);
    (void)ctx;
    pl_reducer_set_sync(r, false);
    for (int p = 0; p < N; p++) make_ready(r, p, pl_group_rank(g));
    CHECK_OK(pl_reducer_finalize(r));
    for (int p = 0; p < N; p++) check_filled(r, p, pl_group_rank(g));
    pl_reducer_set_sync(r, true);
    pl_reducer_expect(r);
    CHECK_OK(pl_reducer_finalize(r));  // what was left is reduced, though nothing became ready
    for (int p = 0; p < N; p++) check_filled(r, p, 0.5);
    pl_reducer_free(r);
}

TEST(no_sync_keeps_gradients_here_until_they_are_owed) { run_both(2, quiet, NULL); }

// The memory of a gradient outlives the reducer.
static void kept(pl_group *g, void *ctx) {
    pl_tensor *view = NULL;
    pl_reducer *r = make(g, 1);
    (void)ctx;
    fill(r, 0, 3);
    CHECK_OK(pl_reducer_grad(r, 0, &view));
    CHECK_EQ(view->shape[1], 4);
    pl_reducer_free(r);
    CHECK_EQ(((float *)view->data)[11], 3);
    pl_tensor_release(view);
}

TEST(a_view_keeps_its_memory) {
    run_threads(2, kept, NULL);
    CHECK_EQ(pl_live(PL_KIND_TENSOR), 0);
    CHECK_EQ(pl_live(PL_KIND_SEGMENT), 0);
    CHECK_EQ(pl_live(PL_KIND_REDUCER), 0);
}

// The first bucket of a small model is not cut short; one with another dtype still is its own.
static void small(pl_group *g, void *ctx) {
    (void)ctx;
    pl_reducer *r = make_with(g, 1, 1 << 20);
    CHECK_EQ(pl_reducer_n_buckets(r), 3);  // two of fp32, and the fp64 parameter between them
    pl_reducer_free(r);
    r = make_with(g, 1, 1);
    CHECK_EQ(pl_reducer_n_buckets(r), N - 1);  // the parameter without elements needs none
    pl_reducer_free(r);
}

TEST(a_small_model_has_one_bucket_for_each_run_of_a_dtype) { run_threads(2, small, NULL); }

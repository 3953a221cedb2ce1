// SPDX-License-Identifier: Apache-2.0
// The graph from C: gradients, events, destinations, and every failing allocation of a step.
#include "amp/amp.h"
#include "test.h"

static pl_tensor *filled(int ndim, const int64_t *shape, double value) {
    pl_tensor *t = NULL;
    CHECK_OK(pl_tensor_empty(PL_F32, ndim, shape, &t));
    CHECK_OK(pl_k(t)->fill(t, value));
    return t;
}

static pl_tensor *leaf(int ndim, const int64_t *shape, double value) {
    pl_tensor *t = filled(ndim, shape, value);
    CHECK_OK(pl_set_requires_grad(t, true));
    return t;
}

static float first(const pl_tensor *t) { return *(const float *)t->data; }

static void nothing_lives(void) {
    CHECK_EQ(pl_live(PL_KIND_NODE), 0);
    CHECK_EQ(pl_live(PL_KIND_TENSOR), 0);
    CHECK_EQ(pl_live(PL_KIND_STORAGE), 0);
}

static pl_tensor *product(pl_tensor *a, pl_tensor *b) {
    pl_tensor *out = NULL, *in[2] = {a, b};
    CHECK_OK(pl_autograd_apply(&pl_op_mul, 2, in, NULL, NULL, &out));
    return out;
}

TEST(gradient_goes_into_the_view) {
    int64_t shape[1] = {4};
    pl_tensor *w = leaf(1, shape, 3), *x = filled(1, shape, 5), *view = filled(1, shape, -1);
    pl_tensor *ones = filled(1, shape, 1);
    CHECK_OK(pl_autograd_set_grad_view(w, view));
    CHECK(pl_grad_of(w) == NULL);
    for (int pass = 1; pass <= 2; pass++) {
        pl_tensor *y = product(w, x);
        CHECK_OK(pl_backward(1, &y, &ones, false));
        CHECK(pl_grad_of(w) == view);
        CHECK(first(view) == 5.0f * (float)pass);
        pl_tensor_release(y);
    }
    pl_tensor_release(w);
    pl_tensor_release(x);
    pl_tensor_release(view);
    pl_tensor_release(ones);
    nothing_lives();
}

static void pass_of(pl_tensor *w, pl_tensor *x, pl_tensor *ones) {
    pl_tensor *y = product(w, x);
    CHECK_OK(pl_backward(1, &y, &ones, false));
    pl_tensor_release(y);
}

// Note [early norm]: taken in the pass after which it was asked for the last time, and only there.
TEST(squares_are_known_when_they_are_asked_for_again) {
    int64_t shape[1] = {4};
    pl_tensor *w = leaf(1, shape, 3), *x = filled(1, shape, 5), *ones = filled(1, shape, 1);
    double squares = -1;
    for (int every = 1; every <= 2; every++) {
        for (int round = 0; round < 3; round++) {
            for (int pass = 1; pass <= every; pass++) {
                // The first round of two does not know yet that there are two.
                bool expected = every == 2 && round == 0 && pass == 2;
                CHECK_EQ(pl_autograd_squares(w, &squares), expected);
                pass_of(w, x, ones);
            }
            CHECK_EQ(pl_autograd_squares(w, &squares), round > 0);
            if (round > 0) CHECK(squares == 4.0 * 25 * every * every);
            pl_autograd_norm_asked(w);
            pl_autograd_norm_asked(w);  // again, of the same gradient
            CHECK_OK(pl_set_grad(w, NULL));
            CHECK_EQ(pl_autograd_squares(w, &squares), false);
        }
    }
    pl_tensor_release(w);
    pl_tensor_release(x);
    pl_tensor_release(ones);
    nothing_lives();
}

// Whoever holds the gradient, or its memory, in the pass could change it unseen.
TEST(squares_of_a_gradient_that_is_held_are_not_taken) {
    int64_t shape[1] = {4};
    pl_tensor *w = leaf(1, shape, 3), *x = filled(1, shape, 5), *ones = filled(1, shape, 1);
    double squares;
    pass_of(w, x, ones);
    pl_autograd_norm_asked(w);
    pl_tensor *held = pl_tensor_retain(pl_grad_of(w));
    pass_of(w, x, ones);
    CHECK(first(held) == 10.0f);
    CHECK_EQ(pl_autograd_squares(w, &squares), false);
    pl_tensor_release(held);
    pl_autograd_norm_asked(w);
    pass_of(w, x, ones);
    CHECK(pl_autograd_squares(w, &squares));
    CHECK_OK(pl_autograd_settle(w));  // as who reads .grad does
    CHECK_EQ(pl_autograd_squares(w, &squares), false);
    pl_tensor_release(w);
    pl_tensor_release(x);
    pl_tensor_release(ones);
    nothing_lives();
}

typedef struct events {
    int ready, done, failed;
    float at_ready;
    pl_tensor *leaf;
    pl_status answer;
} events;

static pl_status on_ready(void *ctx, int index) {
    events *e = ctx;
    CHECK_EQ(index, 7);
    e->ready++;
    e->at_ready = first(pl_grad_of(e->leaf));
    return e->answer;
}
static pl_status on_done(void *ctx) {
    ((events *)ctx)->done++;
    return PL_OK;
}
static void on_failed(void *ctx) { ((events *)ctx)->failed++; }

// The event comes once, with the last of several contributions in place.
TEST(leaf_events) {
    int64_t shape[1] = {2};
    pl_tensor *w = leaf(1, shape, 3), *ones = filled(1, shape, 1);
    events e = {.leaf = w, .answer = PL_OK};
    pl_leaf_hook hook = {on_ready, on_done, on_failed, &e, 7};
    CHECK_OK(pl_autograd_set_hook(w, &hook));
    pl_tensor *a = product(w, w), *y = product(a, w);  // w^3
    CHECK_OK(pl_backward(1, &y, &ones, false));
    CHECK_EQ(e.ready, 1);
    CHECK_EQ(e.done, 1);
    CHECK_EQ(e.failed, 0);
    CHECK(e.at_ready == 27.0f);
    pl_tensor_release(a);
    pl_tensor_release(y);
    pl_tensor_release(w);
    pl_tensor_release(ones);
    nothing_lives();
}

TEST(a_failing_event_ends_the_pass) {
    int64_t shape[1] = {2};
    pl_tensor *w = leaf(1, shape, 3), *ones = filled(1, shape, 1);
    events e = {.leaf = w, .answer = PL_EPEER};
    pl_leaf_hook hook = {on_ready, on_done, on_failed, &e, 7};
    CHECK_OK(pl_autograd_set_hook(w, &hook));
    pl_tensor *y = product(w, w);
    CHECK_EQ(pl_backward(1, &y, &ones, false), PL_EPEER);
    CHECK_EQ(e.done, 0);
    CHECK_EQ(e.failed, 1);
    pl_tensor_release(y);
    pl_tensor_release(w);
    pl_tensor_release(ones);
    nothing_lives();
}

// One training step of a small network. On failure everything that was made is given back.
static pl_status step(pl_tensor *x, pl_tensor *t, pl_tensor *w1, pl_tensor *g, pl_tensor *w2) {
    pl_tensor *h = NULL, *n = NULL, *both[2] = {NULL, NULL}, *y = NULL, *loss = NULL;
    pl_attrs gelu = {.i = {PL_ACT_GELU}}, norm = {.i = {1}, .f = {1e-5}}, none = {.n = 0};
    pl_attrs entropy = {.i = {-100, 1}};
    pl_tensor *in1[3] = {x, w1, NULL};
    pl_status st = pl_amp_apply(&pl_op_linear, 3, in1, &gelu, &h);
    pl_tensor *in2[3] = {h, g, NULL};
    if (st == PL_OK) st = pl_amp_apply(&pl_op_layer_norm, 3, in2, &norm, &n);
    pl_tensor *in3[4] = {h, n, g, NULL};
    if (st == PL_OK) st = pl_amp_apply_added(&pl_op_rms_norm, in3, &norm, both);
    pl_tensor *in4[3] = {both[0], w2, NULL};
    if (st == PL_OK) st = pl_amp_apply(&pl_op_linear, 3, in4, &none, &y);
    pl_tensor *in5[3] = {y, t, NULL};
    if (st == PL_OK) st = pl_amp_apply(&pl_op_cross_entropy, 3, in5, &entropy, &loss);
    if (st == PL_OK) st = pl_backward(1, &loss, NULL, false);
    pl_tensor_release(h);
    pl_tensor_release(n);
    pl_tensor_release(both[0]);
    pl_tensor_release(both[1]);
    pl_tensor_release(y);
    pl_tensor_release(loss);
    return st;
}

// Library-owned memory (oneDNN) is not ours to fail, so the oracle's kernels run here.
static void every_failing_allocation(int autocast, bool forever, int64_t rows, int64_t width) {
    int before, successes = 0;
    // A step that fails before its backward pass leaves the casts of w1 and w2.
    int64_t casts = autocast >= 0 ? 2 : 0;
    CHECK_OK(pl_kernels_use("ref"));
    CHECK_OK(pl_amp_set(autocast, &before));
    pl_tensor *x = filled(2, (int64_t[]){rows, 4}, 0.5), *t = NULL;
    pl_tensor *w1 = leaf(2, (int64_t[]){width, 4}, 0.1), *g = leaf(1, (int64_t[]){width}, 1);
    pl_tensor *w2 = leaf(2, (int64_t[]){3, width}, 0.2);
    CHECK_OK(pl_tensor_zeros(PL_I64, 1, (int64_t[]){rows}, &t));
    CHECK_OK(step(x, t, w1, g, w2));  // gradients exist from here on
    for (uint64_t n = 1; successes < 3; n++) {
        int64_t tensors = pl_live(PL_KIND_TENSOR), storages = pl_live(PL_KIND_STORAGE);
        for (int i = 0; i < 3; i++) {  // a step that changes the weights: casts are stale
            pl_storage_bump((i == 0 ? w1 : i == 1 ? g : w2)->storage);
        }
        pl_alloc_fail_at(n, forever);
        pl_status st = step(x, t, w1, g, w2);
        pl_alloc_fail_at(0, false);
        CHECK(st == PL_OK || st == PL_ENOMEM);
        successes = st == PL_OK ? successes + 1 : 0;
        CHECK_EQ(pl_live(PL_KIND_NODE), 0);
        CHECK(pl_live(PL_KIND_TENSOR) <= tensors + casts);
        CHECK(pl_live(PL_KIND_STORAGE) <= storages + casts);
        CHECK_OK(step(x, t, w1, g, w2));  // and the next step works
        CHECK(n < 5000);
    }
    pl_tensor *own[] = {x, t, w1, g, w2};
    for (int i = 0; i < 5; i++) pl_tensor_release(own[i]);
    nothing_lives();
    CHECK_EQ(pl_alloc_in_use(), 0);
}

TEST(every_failing_allocation_of_a_step) { every_failing_allocation(-1, false, 5, 6); }
TEST(every_failing_allocation_from_then_on) { every_failing_allocation(-1, true, 5, 6); }
TEST(every_failing_allocation_under_autocast) { every_failing_allocation(PL_BF16, false, 5, 6); }
// Large enough that the second layer does not hold its input (Note [made again]).
TEST(every_failing_allocation_where_things_are_made_again) {
    every_failing_allocation(-1, false, 512, 64);
}

// SPDX-License-Identifier: Apache-2.0
// Tests of kernels/cpu/linear.c against the oracle: dtypes, activations, bias, kept sums.
#include "kernels_check.h"

static const pl_dtype FLOATS[] = {PL_F32, PL_BF16, PL_F16, PL_F64};

// As in test_kernels_matmul.c; the activations have slopes below 1.2, so they carry it on, and in
// bf16 and fp16 GELU is taken of the rounded sum: one more rounding.
static void check_linear(pl_dtype dt, pl_dtype bias_dt, const int64_t mkn[3], pl_activation act,
                         bool keep) {
    int64_t m = mkn[0], k = mkn[1], n = mkn[2];
    pl_tensor *x = check_strided(dt, 2, (int64_t[]){m, k}, m % 2 ? CHECK_PADDED : CHECK_PLAIN);
    pl_tensor *w = check_strided(dt, 2, (int64_t[]){n, k}, n % 2 ? CHECK_PADDED : CHECK_PLAIN);
    pl_tensor *bias = bias_dt == PL_DTYPE_COUNT ? NULL : check_tensor(bias_dt, 1, &n, 1.0);
    pl_tensor *pre = NULL, *out, *want_pre, *want;
    if (keep) CHECK_OK(pl_tensor_empty(dt, 2, (int64_t[]){m, n}, &pre));
    CHECK_OK(pl_tensor_empty(dt, 2, (int64_t[]){m, n}, &out));
    CHECK_OK(pl_tensor_empty(PL_F64, 2, (int64_t[]){m, n}, &want_pre));
    CHECK_OK(pl_tensor_empty(PL_F64, 2, (int64_t[]){m, n}, &want));
    CHECK_OK(pl_kernels_ref()->linear(x, w, bias, act, want_pre, want));
    CHECK_OK(pl_kernels_cpu()->linear(x, w, bias, act, pre, out));
    double tol = check_sum_eps(dt) * (double)(k + 1) * 2.0 * sqrt((double)k + 1.0) + 1e-30;
    double size = sqrt((double)k) + 2.0;  // of a sum
    if (keep) check_close("preact", pre, want_pre, check_eps(dt), tol);
    check_close("linear", out, want, 2 * check_eps(dt), 2 * tol + 1.2 * check_eps(dt) * size);
    pl_tensor_release(want);
    pl_tensor_release(want_pre);
    pl_tensor_release(out);
    pl_tensor_release(pre);
    pl_tensor_release(bias);
    pl_tensor_release(w);
    pl_tensor_release(x);
}

TEST(every_activation_agrees_with_the_oracle) {
    check_use_dnnl();
    static const int64_t sizes[][3] = {{1, 1, 1}, {5, 9, 7}, {64, 33, 65}, {2, 0, 3}, {0, 3, 2}};
    for (size_t d = 0; d < sizeof FLOATS / sizeof *FLOATS; d++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            for (int act = PL_ACT_NONE; act <= PL_ACT_GELU_TANH; act++) {
                check_linear(FLOATS[d], FLOATS[d], sizes[i], (pl_activation)act, true);
                check_linear(FLOATS[d], FLOATS[d], sizes[i], (pl_activation)act, false);
                check_linear(FLOATS[d], PL_DTYPE_COUNT, sizes[i], (pl_activation)act, act % 2 == 0);
            }
        }
    }
}

TEST(the_bias_may_be_fp32) {
    check_use_dnnl();
    for (size_t d = 0; d < sizeof FLOATS / sizeof *FLOATS; d++) {
        check_linear(FLOATS[d], PL_F32, (int64_t[]){17, 20, 31}, PL_ACT_RELU, false);
        check_linear(FLOATS[d], PL_F32, (int64_t[]){17, 20, 31}, PL_ACT_GELU, true);
    }
}

TEST(relu_keeps_nan) {
    check_use_dnnl();
    for (size_t d = 0; d < sizeof FLOATS / sizeof *FLOATS; d++) {
        pl_tensor *x = check_tensor(FLOATS[d], 2, (int64_t[]){2, 3}, 1.0), *out;
        check_set(x, 0, NAN);
        CHECK_OK(pl_tensor_empty(FLOATS[d], 2, (int64_t[]){2, 2}, &out));
        CHECK_OK(pl_kernels_cpu()->linear(x, x, NULL, PL_ACT_RELU, NULL, out));
        CHECK(isnan(check_get(out, 0)) && isnan(check_get(out, 1)) && isnan(check_get(out, 2)));
        CHECK(check_get(out, 3) > 0.0);
        pl_tensor_release(out);
        pl_tensor_release(x);
    }
}

static pl_tensor *rounded(const pl_tensor *t) {
    pl_tensor *low;
    CHECK_OK(pl_tensor_empty(PL_BF16, t->ndim, t->shape, &low));
    CHECK_OK(pl_kernels_cpu()->copy(t, low));
    return low;
}

// A weight in fp32 with the rest in bf16: as if it had been rounded before, whatever loops take it
// (panels.h, or a copy where there is little to do), in linear and in the gradient of its input.
static void check_wide_weight(const int64_t mkn[3]) {
    int64_t m = mkn[0], k = mkn[1], n = mkn[2];
    pl_tensor *x = check_tensor(PL_BF16, 2, (int64_t[]){m, k}, 1.0);
    pl_tensor *g = check_tensor(PL_BF16, 2, (int64_t[]){m, n}, 1.0);
    pl_tensor *w = check_tensor(PL_F32, 2, (int64_t[]){n, k}, 1.0), *low = rounded(w);
    pl_tensor *bias = check_tensor(PL_BF16, 1, &n, 1.0), *y, *dx, *want_y, *want_dx, *again;
    CHECK_OK(pl_tensor_empty(PL_BF16, 2, (int64_t[]){m, n}, &y));
    CHECK_OK(pl_tensor_empty(PL_BF16, 2, (int64_t[]){m, n}, &again));
    CHECK_OK(pl_tensor_empty(PL_F64, 2, (int64_t[]){m, n}, &want_y));
    CHECK_OK(pl_tensor_empty(PL_F64, 2, (int64_t[]){m, k}, &want_dx));
    dx = check_tensor(PL_BF16, 2, (int64_t[]){m, k}, 1.0);
    for (int64_t i = 0; i < dx->numel; i++) check_set(want_dx, i, check_get(dx, i));
    CHECK_OK(pl_kernels_ref()->linear(x, low, bias, PL_ACT_NONE, NULL, want_y));
    CHECK_OK(pl_kernels_ref()->matmul(g, low, true, want_dx));
    CHECK_OK(pl_set_num_threads(1));
    CHECK_OK(pl_kernels_cpu()->linear(x, w, bias, PL_ACT_NONE, NULL, y));
    CHECK_OK(pl_kernels_cpu()->matmul(g, w, true, dx));
    CHECK_OK(pl_set_num_threads(3));
    CHECK_OK(pl_kernels_cpu()->linear(x, w, bias, PL_ACT_NONE, NULL, again));
    check_same_bits("linear", y, again);
    double tol = check_sum_eps(PL_BF16) * 2.0;
    check_close("linear", y, want_y, check_eps(PL_BF16), tol * pow((double)k + 1.0, 1.5));
    check_close("dx", dx, want_dx, check_eps(PL_BF16), tol * pow((double)n + 1.0, 1.5));
    pl_tensor *all[] = {x, g, w, low, bias, y, dx, want_y, want_dx, again};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) pl_tensor_release(all[i]);
}

TEST(a_weight_in_fp32_is_rounded_as_it_is_read) {
    if (!pl_kernels_cpu()->linear_rounds) return;  // a table that never takes one
    check_use_dnnl();
    static const int64_t sizes[][3] = {{5, 9, 7},      {64, 64, 64},   {65, 131, 101},
                                       {97, 801, 66},  {530, 66, 70},  {70, 68, 800},
                                       {600, 403, 67}, {1090, 410, 64}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) check_wide_weight(sizes[i]);
}

static void fill_as(pl_tensor *from, pl_tensor *to) {
    for (int64_t i = 0; i < from->numel; i++) check_set(to, i, check_get(from, i));
}

// wide: gradients in fp32, as under autocast; else in the operands' dtype.
static void check_linear_grad(pl_dtype dt, bool wide, const int64_t mkn[3], bool add_w,
                              bool add_b) {
    int64_t m = mkn[0], k = mkn[1], n = mkn[2];
    pl_dtype out = wide ? PL_F32 : dt;
    pl_tensor *g = check_tensor(dt, 2, (int64_t[]){m, n}, 1.0), *want_w, *want_b;
    pl_tensor *x = check_tensor(dt, 2, (int64_t[]){m, k}, 1.0);
    pl_tensor *dw = check_tensor(out, 2, (int64_t[]){n, k}, 1.0);
    pl_tensor *db = check_tensor(out, 1, &n, 1.0);
    CHECK_OK(pl_tensor_empty(PL_F64, 2, dw->shape, &want_w));
    CHECK_OK(pl_tensor_empty(PL_F64, 1, db->shape, &want_b));
    fill_as(dw, want_w);
    fill_as(db, want_b);
    CHECK_OK(pl_kernels_ref()->linear_grad(g, x, want_w, add_w, want_b, add_b));
    CHECK_OK(pl_kernels_cpu()->linear_grad(g, x, dw, add_w, db, add_b));
    double tol = check_sum_eps(dt) * (double)m * 2.0 * sqrt((double)m + 1.0) + 1e-30;
    check_close("dw", dw, want_w, check_eps(out), tol);
    // += may round the sum, of about sqrt(m), before it is added.
    double before = add_b ? check_eps(out) * (2.0 * sqrt((double)m) + 2.0) : 0.0;
    check_close("db", db, want_b, check_eps(out), tol + before);
    pl_tensor_release(want_b);
    pl_tensor_release(want_w);
    pl_tensor_release(db);
    pl_tensor_release(dw);
    pl_tensor_release(x);
    pl_tensor_release(g);
}

TEST(gradients_of_weight_and_bias_agree_with_the_oracle) {
    check_use_dnnl();
    static const int64_t sizes[][3] = {{1, 1, 1},     {5, 9, 7},      {33, 20, 65}, {0, 3, 2},
                                       {600, 70, 97}, {513, 800, 64}, {768, 64, 64}};
    for (size_t d = 0; d < sizeof FLOATS / sizeof *FLOATS; d++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            for (int add = 0; add < 4; add++) {
                check_linear_grad(FLOATS[d], false, sizes[i], add & 1, add & 2);
                if (FLOATS[d] != PL_F64)
                    check_linear_grad(FLOATS[d], true, sizes[i], add & 1, add & 2);
            }
        }
    }
}

TEST(the_thread_count_changes_no_bit_of_a_bias_gradient) {
    check_use_dnnl();
    static const int64_t sizes[][3] = {{600, 70, 210}, {600, 210, 70}};
    for (int bf16 = 0; bf16 < 2; bf16++) {
        for (int i = 0; i < 2; i++) {
            int64_t m = sizes[i][0], k = sizes[i][1], n = sizes[i][2];
            pl_dtype dt = bf16 ? PL_BF16 : PL_F32;
            pl_tensor *g = check_tensor(dt, 2, (int64_t[]){m, n}, 1.0), *dw, *one, *more;
            pl_tensor *x = check_tensor(dt, 2, (int64_t[]){m, k}, 1.0);
            CHECK_OK(pl_tensor_empty(PL_F32, 2, (int64_t[]){n, k}, &dw));
            CHECK_OK(pl_tensor_empty(PL_F32, 1, &n, &one));
            CHECK_OK(pl_tensor_empty(PL_F32, 1, &n, &more));
            CHECK_OK(pl_set_num_threads(1));
            CHECK_OK(pl_kernels_cpu()->linear_grad(g, x, dw, false, one, false));
            CHECK_OK(pl_set_num_threads(3));
            CHECK_OK(pl_kernels_cpu()->linear_grad(g, x, dw, false, more, false));
            check_same_bits("db", one, more);
            pl_tensor_release(more);
            pl_tensor_release(one);
            pl_tensor_release(dw);
            pl_tensor_release(x);
            pl_tensor_release(g);
        }
    }
}

// The gradient of the input through GELU: slopes are below 1.2, and the product may be rounded
// before it is multiplied by one. wide: fp32 before and after, as where autocast began behind it.
static void check_linear_grad_gelu(pl_dtype dt, bool wide, const int64_t mkn[3]) {
    int64_t m = mkn[0], k = mkn[1], n = mkn[2];
    pl_dtype out = wide ? PL_F32 : dt;
    pl_tensor *g = check_tensor(dt, 2, (int64_t[]){m, n}, 1.0), *dx, *want;
    pl_tensor *w = check_tensor(dt, 2, (int64_t[]){n, k}, 1.0);
    pl_tensor *x = check_tensor(out, 2, (int64_t[]){m, k}, 2.0);
    CHECK_OK(pl_tensor_empty(out, 2, x->shape, &dx));
    CHECK_OK(pl_tensor_empty(PL_F64, 2, x->shape, &want));
    CHECK_OK(pl_kernels_ref()->linear_grad_gelu(g, w, x, want));
    CHECK_OK(pl_kernels_cpu()->linear_grad_gelu(g, w, x, dx));
    double tol = check_sum_eps(dt) * (double)(n + 1) * 2.0 * sqrt((double)n + 1.0) + 1e-30;
    double size = sqrt((double)n) + 2.0;  // of a sum
    check_close("dx", dx, want, 2 * check_eps(out), 1.2 * tol + 1.2 * check_eps(out) * size);
    pl_tensor *all[] = {g, w, x, dx, want};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) pl_tensor_release(all[i]);
}

TEST(the_gradient_through_gelu_agrees_with_the_oracle) {
    if (!pl_kernels_cpu()->linear_grad_gelu) return;  // two steps are as fast there
    static const int64_t sizes[][3] = {{1, 1, 1},   {5, 9, 7}, {5, 16, 9},
                                       {33, 64, 5}, {2, 8, 0}, {0, 8, 3}};
    for (size_t d = 0; d < sizeof FLOATS / sizeof *FLOATS; d++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            check_linear_grad_gelu(FLOATS[d], false, sizes[i]);
            if (FLOATS[d] != PL_F64) check_linear_grad_gelu(FLOATS[d], true, sizes[i]);
        }
    }
}

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

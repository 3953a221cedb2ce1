// SPDX-License-Identifier: Apache-2.0
// Tests of kernels/cpu/softmax.c and dropout.c against the oracle.
#include "kernels_check.h"

static const pl_dtype FLOATS[] = {PL_F32, PL_BF16, PL_F16, PL_F64};

// e^x is good to 2 eps and the sum of n of them to n eps; log-softmax of values up to 2 * scale
// plus log n, so its absolute error is a few eps of that.
static void check_rows(pl_dtype dt, bool log_form, int64_t m, int64_t n, double scale) {
    pl_tensor *x = check_tensor(dt, 2, (int64_t[]){m, n}, scale), *out, *want, *dx, *want_dx;
    pl_tensor *g = check_tensor(dt, 2, (int64_t[]){m, n}, 1.0);
    double tol = check_sum_eps(dt) * (8.0 + (double)n);
    CHECK_OK(pl_tensor_empty(dt, 2, x->shape, &out));
    CHECK_OK(pl_tensor_empty(dt, 2, x->shape, &dx));
    CHECK_OK(pl_tensor_empty(PL_F64, 2, x->shape, &want));
    CHECK_OK(pl_tensor_empty(PL_F64, 2, x->shape, &want_dx));
    CHECK_OK(pl_kernels_ref()->softmax(log_form, x, want));
    CHECK_OK(pl_kernels_cpu()->softmax(log_form, x, out));
    // Below the smallest normal fp16 the step is 2^-24 whatever the value; e^-104 is 0 in fp32.
    double tiny = dt == PL_F16 ? 0x1p-25 : dt == PL_F64 ? 0.0 : 1e-38;
    check_close("softmax", out, want, check_eps(dt) + tol * (1.0 + 2.0 * scale),
                tiny + (log_form ? 4.0 * check_sum_eps(dt) * (2.0 * scale + 8.0) : 0.0));
    CHECK_OK(pl_kernels_ref()->softmax_grad(log_form, g, out, want_dx));
    CHECK_OK(pl_kernels_cpu()->softmax_grad(log_form, g, out, dx));
    check_close("softmax_grad", dx, want_dx, check_eps(dt) + tol,
                tiny + tol * (log_form ? 2.0 * sqrt((double)n) : 2.0));
    pl_tensor_release(want_dx);
    pl_tensor_release(want);
    pl_tensor_release(dx);
    pl_tensor_release(out);
    pl_tensor_release(g);
    pl_tensor_release(x);
}

TEST(softmax_agrees_with_the_oracle) {
    static const int64_t ns[] = {1, 5, 16, 31, 100, 1024, 2500};
    for (size_t d = 0; d < sizeof FLOATS / sizeof *FLOATS; d++) {
        for (int i = 0; i < 7; i++) {
            check_rows(FLOATS[d], false, 3, ns[i], 3.0);
            check_rows(FLOATS[d], true, 3, ns[i], 3.0);
            check_rows(FLOATS[d], false, 2, ns[i], 40.0);
        }
        check_rows(FLOATS[d], false, 0, 5, 1.0);
        check_rows(FLOATS[d], true, 3, 0, 1.0);
    }
}

// Row 0: one NaN. Row 1: leading -inf for longer than a block. Row 2: nothing but -inf.
TEST(nan_and_infinity_travel) {
    for (int log_form = 0; log_form < 2; log_form++) {
        for (int wide = 0; wide < 2; wide++) {
            pl_dtype dt = wide ? PL_F64 : PL_F32;
            pl_tensor *x = check_tensor(dt, 2, (int64_t[]){3, 1500}, 1.0), *out, *want;
            check_set(x, 77, NAN);
            for (int64_t j = 0; j < 1300; j++) check_set(x, 1500 + j, -INFINITY);
            for (int64_t j = 0; j < 1500; j++) check_set(x, 3000 + j, -INFINITY);
            CHECK_OK(pl_tensor_empty(dt, 2, x->shape, &out));
            CHECK_OK(pl_tensor_empty(PL_F64, 2, x->shape, &want));
            CHECK_OK(pl_kernels_ref()->softmax(log_form, x, want));
            CHECK_OK(pl_kernels_cpu()->softmax(log_form, x, out));
            check_close("softmax", out, want, 300 * check_sum_eps(dt), 0.0);
            pl_tensor_release(want);
            pl_tensor_release(out);
            pl_tensor_release(x);
        }
    }
}

TEST(dropout_keeps_what_the_definition_keeps) {
    static const double ps[] = {0.0, 0.1, 0.5, 0.999};
    static const int64_t sizes[] = {0, 1, 15, 64, 1000, 5000};
    for (size_t d = 0; d < sizeof FLOATS / sizeof *FLOATS; d++) {
        for (int i = 0; i < 6; i++) {
            for (int p = 0; p < 4; p++) {
                // The offset is so near 2^32 that the blocks run over it.
                uint64_t seed = 0x123456789abcdefu, offset = (1ull << 32) - 7;
                pl_tensor *x = check_tensor(FLOATS[d], 1, &sizes[i], 1.0), *out, *want;
                CHECK_OK(pl_tensor_empty(FLOATS[d], 1, &sizes[i], &out));
                CHECK_OK(pl_tensor_empty(PL_F64, 1, &sizes[i], &want));
                CHECK_OK(pl_kernels_ref()->dropout(x, ps[p], seed, offset, want));
                CHECK_OK(pl_kernels_cpu()->dropout(x, ps[p], seed, offset, out));
                check_close("dropout", out, want,
                            check_eps(FLOATS[d]) + 4 * check_sum_eps(FLOATS[d]),
                            FLOATS[d] == PL_F16 ? 0x1p-25 : 0.0);
                CHECK_OK(pl_kernels_cpu()->dropout(x, ps[p], seed, offset, x));  // in place
                check_same_bits("dropout in place", x, out);
                pl_tensor_release(want);
                pl_tensor_release(out);
                pl_tensor_release(x);
            }
        }
    }
}

TEST(the_thread_count_changes_no_bit) {
    pl_tensor *x = check_tensor(PL_F32, 2, (int64_t[]){300, 100}, 2.0), *out[2], *drop[2];
    for (int i = 0; i < 2; i++) {
        CHECK_OK(pl_set_num_threads(i ? 3 : 1));
        CHECK_OK(pl_tensor_empty(PL_F32, 2, x->shape, &out[i]));
        CHECK_OK(pl_tensor_empty(PL_F32, 2, x->shape, &drop[i]));
        CHECK_OK(pl_kernels_cpu()->softmax(false, x, out[i]));
        CHECK_OK(pl_kernels_cpu()->dropout(x, 0.3, 5, 0, drop[i]));
    }
    check_same_bits("softmax", out[0], out[1]);
    check_same_bits("dropout", drop[0], drop[1]);
    for (int i = 0; i < 2; i++) {
        pl_tensor_release(drop[i]);
        pl_tensor_release(out[i]);
    }
    pl_tensor_release(x);
}

// SPDX-License-Identifier: Apache-2.0
// Tests of kernels/cpu/scale.c against the oracle: written, added, in place, at odd addresses.
#include "kernels_check.h"

static void check_scale(pl_dtype dt, int64_t n, double value, bool add, int64_t from) {
    pl_dtype real = dt == PL_F64 ? PL_F64 : PL_F32;
    int64_t size = n + from, one = 1;
    pl_tensor *x = check_tensor(dt, 1, &n, 3.0), *whole = check_tensor(dt, 1, &size, 2.0);
    pl_tensor *out, *want, *factor = check_tensor(real, 0, NULL, 1.0), *same;
    CHECK_OK(pl_tensor_as_strided(whole, 1, &n, &one, from, &out));
    CHECK_OK(pl_tensor_empty(PL_F64, 1, &n, &want));
    check_set(factor, 0, value);
    CHECK_OK(pl_kernels_ref()->copy(out, want));
    CHECK_OK(pl_kernels_ref()->scale(x, factor, add, want));
    CHECK_OK(pl_kernels_cpu()->scale(x, factor, add, out));
    // One product and one sum, of terms below 8, and the rounding to the dtype.
    check_close("scale", out, want, check_eps(dt), 16.0 * check_sum_eps(dt));
    if (!add) {
        same = pl_tensor_retain(x);
        CHECK_OK(pl_kernels_cpu()->scale(x, factor, false, same));
        check_same_bits("in place", same, out);
        pl_tensor_release(same);
    }
    pl_tensor *all[] = {x, whole, out, want, factor};
    for (int i = 0; i < 5; i++) pl_tensor_release(all[i]);
}

TEST(scale_agrees_with_the_oracle) {
    static const pl_dtype dtypes[] = {PL_F32, PL_BF16, PL_F16, PL_F64};
    static const int64_t sizes[] = {0, 1, 31, 32, 4099, 9000};
    for (int d = 0; d < 4; d++) {
        for (int i = 0; i < 6; i++) {
            for (int v = 0; v < 6; v++) {
                check_scale(dtypes[d], sizes[i], v % 3 == 0 ? 1.0 : -0.75, v & 1, v / 3 * 3);
            }
        }
    }
}

TEST(a_factor_that_is_not_finite_is_told) {
    pl_tensor *x = check_tensor(PL_F32, 1, (int64_t[]){40}, 1.0), *factor;
    CHECK_OK(pl_tensor_empty(PL_F32, 0, NULL, &factor));
    check_set(factor, 0, (double)INFINITY);
    check_set(x, 7, 0.0);
    CHECK_OK(pl_kernels_cpu()->scale(x, factor, false, x));
    CHECK(isnan(check_get(x, 7)));
    CHECK(isinf(check_get(x, 8)));
    pl_tensor_release(factor);
    pl_tensor_release(x);
}

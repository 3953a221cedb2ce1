// SPDX-License-Identifier: Apache-2.0
// The CPU's tests of reductions, for kernels/cuda on the host stand-in.
#include "cuda_on_host.h"

#include "test_kernels_reduce.c"

// x's values where accesses cannot be packs: rows of `stride` elements, from one element in.
static pl_tensor *beside(const pl_tensor *x, int64_t stride) {
    pl_tensor *base, *t;
    int64_t rows = x->shape[0], n = x->shape[1];
    CHECK_OK(pl_tensor_zeros(x->dtype, 1, (int64_t[]){rows * stride + 1}, &base));
    CHECK_OK(pl_tensor_as_strided(base, 2, x->shape, (int64_t[]){stride, 1}, 1, &t));
    for (int64_t i = 0; i < rows; i++) {
        memcpy((char *)t->data + (size_t)(i * stride) * pl_dtype_size(x->dtype),
               (const char *)x->data + (size_t)(i * n) * pl_dtype_size(x->dtype),
               (size_t)n * pl_dtype_size(x->dtype));
    }
    pl_tensor_release(base);
    return t;
}

// An address decides how memory is read, and no bit of the result.
TEST(packs_change_no_bit) {
    static const pl_dtype dtypes[] = {PL_F32, PL_BF16, PL_F64};
    static const int64_t sizes[][2] = {{3, 5000}, {40, 72}, {700, 264}, {5000, 40}};
    static const pl_reduce ops[] = {PL_REDUCE_SUM, PL_REDUCE_MEAN, PL_REDUCE_PROD, PL_REDUCE_MAX};
    for (int d = 0; d < 3; d++) {
        for (int i = 0; i < 4; i++) {
            pl_tensor *x, *y, *one, *two;
            CHECK_OK(pl_tensor_empty(dtypes[d], 2, sizes[i], &x));
            CHECK_OK(pl_kernels_ref()->uniform(x, 0.5, 1.5, 7, 0));
            y = beside(x, sizes[i][1] + 3);
            for (uint32_t dims = 1; dims <= 2; dims++) {
                int64_t left[] = {dims & 1 ? 1 : sizes[i][0], dims & 2 ? 1 : sizes[i][1]};
                CHECK_OK(pl_tensor_empty(dtypes[d], 2, left, &one));
                CHECK_OK(pl_tensor_empty(dtypes[d], 2, left, &two));
                for (int k = 0; k < 4; k++) {
                    CHECK_OK(host_reduce(ops[k], x, dims, one));
                    CHECK_OK(host_reduce(ops[k], y, dims, two));
                    CHECK(memcmp(one->data, two->data, pl_tensor_nbytes(one)) == 0);
                }
                pl_tensor_release(two);
                pl_tensor_release(one);
            }
            pl_tensor_release(y);
            pl_tensor_release(x);
        }
    }
}

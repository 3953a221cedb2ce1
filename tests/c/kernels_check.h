// SPDX-License-Identifier: Apache-2.0
// kernels_check: what the tests of kernels/cpu share: random tensors in several layouts, and the
// comparison of a result with the oracle's. Tensors are released by the caller.
#ifndef PL_KERNELS_CHECK_H
#define PL_KERNELS_CHECK_H

#include <math.h>

#include "kernels.h"
#include "test.h"

static uint64_t check_state = 1;

// Uniform in [-1, 1), the same sequence in every run.
static inline double check_random(void) {
    check_state = check_state * 6364136223846793005u + 1442695040888963407u;
    return (double)(int32_t)(check_state >> 32) * 0x1p-31;
}

static inline double check_get(const pl_tensor *t, int64_t i) {
    switch (t->dtype) {
        case PL_BOOL:
            return ((const uint8_t *)t->data)[i];
        case PL_I64:
            return (double)((const int64_t *)t->data)[i];
        case PL_F16:
            return (double)pl_f16_to_f32(((const pl_f16 *)t->data)[i]);
        case PL_BF16:
            return (double)pl_bf16_to_f32(((const pl_bf16 *)t->data)[i]);
        case PL_F32:
            return (double)((const float *)t->data)[i];
        case PL_F64:
            return ((const double *)t->data)[i];
        default:
            TEST_FAIL("check_get: dtype %s", pl_dtype_name(t->dtype));
    }
}

static inline void check_set(pl_tensor *t, int64_t i, double v) {
    switch (t->dtype) {
        case PL_BOOL:
            ((uint8_t *)t->data)[i] = v != 0.0;
            break;
        case PL_I64:
            ((int64_t *)t->data)[i] = (int64_t)v;
            break;
        case PL_F16:
            ((pl_f16 *)t->data)[i] = pl_f32_to_f16((float)v);
            break;
        case PL_BF16:
            ((pl_bf16 *)t->data)[i] = pl_f32_to_bf16((float)v);
            break;
        case PL_F32:
            ((float *)t->data)[i] = (float)v;
            break;
        case PL_F64:
            ((double *)t->data)[i] = v;
            break;
        default:
            TEST_FAIL("check_set: dtype %s", pl_dtype_name(t->dtype));
    }
}

// Contiguous, filled with numbers of [-scale, scale).
static inline pl_tensor *check_tensor(pl_dtype dt, int ndim, const int64_t *shape, double scale) {
    pl_tensor *t;
    CHECK_OK(pl_tensor_empty(dt, ndim, shape, &t));
    for (int64_t i = 0; i < t->numel; i++) check_set(t, i, scale * check_random());
    return t;
}

typedef enum check_layout {
    CHECK_PLAIN,       // contiguous
    CHECK_TRANSPOSED,  // the last two dimensions were exchanged
    CHECK_PADDED,      // rows of a wider tensor
    CHECK_STEPPED,     // every second column: neither of the last two strides is 1
    CHECK_EXPANDED,    // stride 0 along the first dimension (ndim > 2)
    CHECK_LAYOUTS
} check_layout;

// Of this shape, in this layout, random.
static inline pl_tensor *check_strided(pl_dtype dt, int ndim, const int64_t *shape,
                                       check_layout layout) {
    int64_t s[PL_MAX_DIMS];
    memcpy(s, shape, (size_t)ndim * sizeof *s);
    pl_tensor *base, *t;
    if (layout == CHECK_TRANSPOSED) {
        s[ndim - 1] = shape[ndim - 2], s[ndim - 2] = shape[ndim - 1];
        base = check_tensor(dt, ndim, s, 1.0);
        CHECK_OK(pl_tensor_transpose(base, ndim - 1, ndim - 2, &t));
    } else if (layout == CHECK_PADDED) {
        s[ndim - 1] += 3;
        base = check_tensor(dt, ndim, s, 1.0);
        CHECK_OK(pl_tensor_slice(base, ndim - 1, 1, 1 + shape[ndim - 1], 1, &t));
    } else if (layout == CHECK_STEPPED) {
        s[ndim - 1] *= 2;
        base = check_tensor(dt, ndim, s, 1.0);
        CHECK_OK(pl_tensor_slice(base, ndim - 1, 0, s[ndim - 1], 2, &t));
    } else if (layout == CHECK_EXPANDED && ndim > 2) {
        s[0] = 1;
        base = check_tensor(dt, ndim, s, 1.0);
        CHECK_OK(pl_tensor_expand(base, ndim, shape, &t));
    } else {
        return check_tensor(dt, ndim, shape, 1.0);
    }
    pl_tensor_release(base);
    return t;
}

// Half the distance of neighbours near 1: the error of rounding once.
static inline double check_eps(pl_dtype dt) {
    return dt == PL_BF16 ? 0x1p-8 : dt == PL_F16 ? 0x1p-11 : dt == PL_F32 ? 0x1p-24 : 0x1p-53;
}

// The unit in which sums of this dtype are kept: fp32, for doubles fp64.
static inline double check_sum_eps(pl_dtype dt) { return dt == PL_F64 ? 0x1p-53 : 0x1p-24; }

// |got - want| <= rel * |want| + abs for every element, NaN equal to NaN only. Any strides, up to
// four dimensions; want may be of another dtype.
static inline void check_close(const char *what, const pl_tensor *got, const pl_tensor *want,
                               double rel, double abs_tol) {
    CHECK_EQ(got->numel, want->numel);
    int64_t at[PL_MAX_DIMS] = {0};
    for (int64_t i = 0; i < got->numel; i++) {
        int64_t og = 0, ow = 0;
        for (int d = 0; d < got->ndim; d++) {
            og += at[d] * got->strides[d];
            ow += at[d] * want->strides[d];
        }
        double g = check_get(got, og), w = check_get(want, ow);
        bool same = g == w || (isnan(g) && isnan(w));
        if (!same && !(fabs(g - w) <= rel * fabs(w) + abs_tol)) {
            TEST_FAIL("%s (%s) element %lld: got %.9g, expected %.9g within %g", what,
                      pl_dtype_name(got->dtype), (long long)i, g, w, rel * fabs(w) + abs_tol);
        }
        for (int d = got->ndim - 1; d >= 0 && ++at[d] == got->shape[d]; d--) at[d] = 0;
    }
}

static inline void check_same_bits(const char *what, const pl_tensor *a, const pl_tensor *b) {
    if (memcmp(a->data, b->data, pl_tensor_nbytes(a)) != 0) TEST_FAIL("%s: bits differ", what);
}

// For what needs oneDNN: where it is not installed the test would test nothing.
static inline void check_use_dnnl(void) {
    const char *path = getenv("PACELINE_DNNL");
    pl_cpu_set_dnnl_path(path && path[0] ? path : NULL);
}

#endif

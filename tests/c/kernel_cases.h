// SPDX-License-Identifier: Apache-2.0
// kernel_cases: tensors of many shapes, layouts and values for the kernel tests, and the comparison
// of what "cpu" gives with what the oracle "ref" gives. Included after test.h.
#ifndef PL_KERNEL_CASES_H
#define PL_KERNEL_CASES_H

#include <math.h>

#include "kernels.h"
#include "ref/ref.h"

typedef enum layout {
    DENSE,
    TRANSPOSED,  // the last two dimensions swapped in memory
    REVERSED,    // all dimensions in the opposite order in memory
    SLICED,      // every second element of a bigger tensor, not from its start
    EXPANDED,    // the first dimension has stride 0; no output may be
    BROADCAST,   // all but the last dimension have stride 0
    LAYOUT_COUNT
} layout;

typedef enum values {
    MODERATE,  // floats in (-4, 4), integers in -9..9
    SPECIAL,   // NaN, infinities, signed zeros, denormals, huge and tiny, among moderate ones
    POSITIVE,  // floats in (0, 4), integers in 1..9
    CHOICES    // few distinct values, so that there are equals
} values;

typedef struct shape {
    int ndim;
    int64_t size[PL_MAX_DIMS];
} shape;

// 0-d, empty, odd, merged and unmerged dimensions, around the chunk (512) and the grain.
static const shape all_shapes[] = {
    {0, {0}},    {1, {1}},         {1, {7}},          {1, {0}},        {2, {3, 5}},
    {2, {0, 4}}, {2, {17, 33}},    {2, {70, 130}},    {3, {2, 3, 5}},  {3, {1, 9, 1}},
    {1, {1025}}, {3, {5, 1, 515}}, {4, {2, 3, 4, 5}}, {2, {3, 12001}}, {5, {2, 1, 3, 2, 7}}};
#define SHAPE_COUNT ((int)(sizeof(all_shapes) / sizeof(all_shapes[0])))

static uint64_t case_state = 0x9e3779b97f4a7c15u;
static uint64_t next_random(void) {
    case_state ^= case_state << 13;
    case_state ^= case_state >> 7;
    case_state ^= case_state << 17;
    return case_state;
}

static double special_value(uint64_t r) {
    static const double list[] = {
        NAN,     -NAN,    INFINITY, -INFINITY, 0.0,   -0.0,  1e-40,  -1e-42, 1e-30, 3e38,
        -3e38,   1e20,    -1e20,    0.5,       1.5,   2.5,   -0.5,   88.8,   -88.8, 103.5,
        -103.5,  1.0,     -1.0,     127.0,     255.0, 256.0, -129.0, 3e9,    -3e9,  9.3e18,
        -9.3e18, 65504.0, 65520.,   1e-7,      6e-8,  9.0,   -9.0};
    return list[r % (sizeof(list) / sizeof(list[0]))];
}

static double float_value(values v) {
    uint64_t r = next_random();
    double u = (double)(r >> 11) * 0x1p-53;
    switch (v) {
        case POSITIVE:
            return 0.001 + 4.0 * u;
        case CHOICES:
            return (double)(int64_t)(r >> 32 & 3) - 1.5;
        case SPECIAL:
            return (r & 1) ? special_value(r >> 8) : 8.0 * u - 4.0;
        case MODERATE:
            break;
    }
    return 8.0 * u - 4.0;
}

static int64_t int_value(values v) {
    uint64_t r = next_random() >> 8;
    switch (v) {
        case POSITIVE:
            return 1 + (int64_t)(r % 9);
        case CHOICES:
            return (int64_t)(r % 4) - 1;
        case SPECIAL: {
            static const int64_t list[] = {INT64_MIN, INT64_MAX, INT32_MIN, INT32_MAX,
                                           0,         -1,        1,         255};
            return (r & 1) ? list[r / 2 % 8] : (int64_t)(r % 19) - 9;
        }
        case MODERATE:
            break;
    }
    return (int64_t)(r % 19) - 9;
}

static void fill_case(pl_tensor *t, values v) {
    if (t->numel == 0) return;
    int64_t at[PL_MAX_DIMS] = {0};
    do {
        if (pl_dtype_is_float(t->dtype)) {
            ref_set(t, ref_offset(t, at), float_value(v));
        } else {
            ref_set_int(t, ref_offset(t, at), int_value(v));
        }
    } while (ref_next(t->ndim, t->shape, at));
}

// Strides in elements for a layout; gives the number of elements that storage must have.
static int64_t layout_strides(shape s, layout l, int64_t *strides, int64_t *offset) {
    int order[PL_MAX_DIMS];
    for (int d = 0; d < s.ndim; d++) order[d] = l == REVERSED ? s.ndim - 1 - d : d;
    if (l == TRANSPOSED && s.ndim >= 2) {
        order[s.ndim - 1] = s.ndim - 2;
        order[s.ndim - 2] = s.ndim - 1;
    }
    int64_t step = l == SLICED ? 2 : 1;
    for (int i = s.ndim - 1; i >= 0; i--) {
        int d = order[i];
        bool repeated = (l == EXPANDED && d == 0) || (l == BROADCAST && d != s.ndim - 1);
        strides[d] = repeated ? 0 : step;
        if (!repeated) step *= s.size[d] + (l == SLICED ? 1 : 0);
    }
    *offset = l == SLICED ? 3 : 0;
    return step + *offset + 1;
}

static pl_tensor *make_raw(pl_dtype dt, shape s, layout l) {
    int64_t strides[PL_MAX_DIMS], offset, n = layout_strides(s, l, strides, &offset);
    pl_tensor *base = NULL, *view = NULL;
    CHECK_OK(pl_tensor_zeros(dt, 1, &n, &base));
    CHECK_OK(pl_tensor_as_strided(base, s.ndim, s.size, strides, offset, &view));
    pl_tensor_release(base);
    return view;
}

static __attribute__((unused)) pl_tensor *make_case(pl_dtype dt, shape s, layout l, values v) {
    pl_tensor *t = make_raw(dt, s, l);
    fill_case(t, v);
    return t;
}

static __attribute__((unused)) shape shape_of(const pl_tensor *t) {
    shape s = {.ndim = t->ndim};
    memcpy(s.size, t->shape, sizeof(s.size));
    return s;
}

// One ulp of dtype dt at 1: what its rounding costs at most, relatively, twice over.
static __attribute__((unused)) double dtype_eps(pl_dtype dt) {
    switch (dt) {
        case PL_F16:
            return 0x1p-10;
        case PL_BF16:
            return 0x1p-7;
        case PL_F32:
            return 0x1p-23;
        case PL_F64:
            return 0x1p-52;
        default:
            return 0.0;
    }
}

static bool same_value(double a, double b) { return a == b || (isnan(a) && isnan(b)); }

// Every element of got within rtol * |want| + atol of want; equal where both are 0 (integers).
static __attribute__((unused)) void check_close(const char *what, const pl_tensor *got,
                                                const pl_tensor *want, double rtol, double atol) {
    CHECK_EQ(got->numel, want->numel);
    if (got->numel == 0) return;
    int64_t at[PL_MAX_DIMS] = {0};
    do {
        int64_t i = ref_offset(got, at), j = ref_offset(want, at);
        if (ref_is_int(got)) {
            int64_t a = ref_get_int(got, i), b = ref_get_int(want, j);
            if (a != b) {
                TEST_FAIL("%s (%s): got %lld, expected %lld", what, pl_dtype_name(got->dtype),
                          (long long)a, (long long)b);
            }
            continue;
        }
        double a = ref_get(got, i), b = ref_get(want, j);
        double err = fabs(a - b), tol = rtol * fabs(b) + atol;
        if (!same_value(a, b) && !(err <= tol)) {
            TEST_FAIL("%s (%s, %d-d, element %lld): got %.9g, expected %.9g within %.3g", what,
                      pl_dtype_name(got->dtype), got->ndim, (long long)i, a, b, tol);
        }
    } while (ref_next(got->ndim, got->shape, at));
}

static __attribute__((unused)) void release_all(int n, pl_tensor *const *t) {
    for (int i = 0; i < n; i++) pl_tensor_release(t[i]);
}

#endif

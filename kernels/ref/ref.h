// SPDX-License-Identifier: Apache-2.0
// ref: what the oracle's files share: one element as a double or an int64, and a walk over indices.
// Private to kernels/ref. Plain loops, any strides, no threads: obviously right rather than fast.
#ifndef PL_KERNELS_REF_H
#define PL_KERNELS_REF_H

#include <math.h>
#include <string.h>

#include "kernels.h"

// Where index `at` lies, in elements from t->data.
static inline int64_t ref_offset(const pl_tensor *t, const int64_t *at) {
    int64_t offset = 0;
    for (int d = 0; d < t->ndim; d++) offset += at[d] * t->strides[d];
    return offset;
}

// The next index in row-major order; false (and `at` all zero again) after the last.
static inline bool ref_next(int ndim, const int64_t *shape, int64_t *at) {
    for (int d = ndim - 1; d >= 0; d--) {
        if (++at[d] < shape[d]) return true;
        at[d] = 0;
    }
    return false;
}

// Truncation where the value fits; NaN and the rest become INT64_MIN, as x86 does it, not UB.
static inline int64_t ref_double_to_int(double v) {
    return v >= -0x1p63 && v < 0x1p63 ? (int64_t)v : INT64_MIN;
}

static inline double ref_get(const pl_tensor *t, int64_t offset) {
    switch (t->dtype) {
        case PL_BOOL:
            return ((const uint8_t *)t->data)[offset] != 0;
        case PL_U8:
            return ((const uint8_t *)t->data)[offset];
        case PL_I32:
            return ((const int32_t *)t->data)[offset];
        case PL_I64:
            return (double)((const int64_t *)t->data)[offset];
        case PL_F16:
            return (double)pl_f16_to_f32(((const pl_f16 *)t->data)[offset]);
        case PL_BF16:
            return (double)pl_bf16_to_f32(((const pl_bf16 *)t->data)[offset]);
        case PL_F32:
            return (double)((const float *)t->data)[offset];
        case PL_F64:
            return ((const double *)t->data)[offset];
        case PL_DTYPE_COUNT:
            break;
    }
    return NAN;
}

static inline int64_t ref_get_int(const pl_tensor *t, int64_t offset) {
    switch (t->dtype) {
        case PL_BOOL:
            return ((const uint8_t *)t->data)[offset] != 0;
        case PL_U8:
            return ((const uint8_t *)t->data)[offset];
        case PL_I32:
            return ((const int32_t *)t->data)[offset];
        case PL_I64:
            return ((const int64_t *)t->data)[offset];
        default:
            return ref_double_to_int(ref_get(t, offset));
    }
}

static inline void ref_set(pl_tensor *t, int64_t offset, double v) {
    switch (t->dtype) {
        case PL_BOOL:
            ((uint8_t *)t->data)[offset] = v != 0.0;
            break;
        case PL_U8:
            ((uint8_t *)t->data)[offset] = (uint8_t)(uint64_t)ref_double_to_int(v);
            break;
        case PL_I32:
            ((int32_t *)t->data)[offset] = v > -0x1p31 - 1.0 && v < 0x1p31 ? (int32_t)v : INT32_MIN;
            break;
        case PL_I64:
            ((int64_t *)t->data)[offset] = ref_double_to_int(v);
            break;
        case PL_F16:
            ((pl_f16 *)t->data)[offset] = pl_f32_to_f16((float)v);
            break;
        case PL_BF16:
            ((pl_bf16 *)t->data)[offset] = pl_f32_to_bf16((float)v);
            break;
        case PL_F32:
            ((float *)t->data)[offset] = (float)v;
            break;
        case PL_F64:
            ((double *)t->data)[offset] = v;
            break;
        case PL_DTYPE_COUNT:
            break;
    }
}

// Integers wrap as two's complement; floats are rounded once from the integer.
static inline void ref_set_int(pl_tensor *t, int64_t offset, int64_t v) {
    switch (t->dtype) {
        case PL_BOOL:
            ((uint8_t *)t->data)[offset] = v != 0;
            break;
        case PL_U8:
            ((uint8_t *)t->data)[offset] = (uint8_t)(uint64_t)v;
            break;
        case PL_I32:
            ((int32_t *)t->data)[offset] = (int32_t)(uint32_t)(uint64_t)v;
            break;
        case PL_I64:
            ((int64_t *)t->data)[offset] = v;
            break;
        case PL_F16:
            ((pl_f16 *)t->data)[offset] = pl_f32_to_f16((float)v);
            break;
        case PL_BF16:
            ((pl_bf16 *)t->data)[offset] = pl_f32_to_bf16((float)v);
            break;
        case PL_F32:
            ((float *)t->data)[offset] = (float)v;
            break;
        case PL_F64:
            ((double *)t->data)[offset] = (double)v;
            break;
        case PL_DTYPE_COUNT:
            break;
    }
}

// A tensor of kind bool, unsigned or signed computes in int64, a floating one in double.
static inline bool ref_is_int(const pl_tensor *t) { return !pl_dtype_is_float(t->dtype); }

// Rows and row length of a contiguous tensor seen as (rows, last dimension).
static inline int64_t ref_last(const pl_tensor *t) {
    return t->ndim == 0 ? 1 : t->shape[t->ndim - 1];
}
static inline int64_t ref_rows(const pl_tensor *t) {
    int64_t rows = 1;
    for (int d = 0; d + 1 < t->ndim; d++) rows *= t->shape[d];
    return rows;
}

// One declaration per table member; defined one family per file, gathered in table.c.
pl_status pl_ref_unary(pl_unary op, const pl_tensor *x, pl_tensor *out);
pl_status pl_ref_binary(pl_binary op, const pl_tensor *a, const pl_tensor *b, pl_tensor *out);
pl_status pl_ref_where(const pl_tensor *cond, const pl_tensor *a, const pl_tensor *b,
                       pl_tensor *out);
pl_status pl_ref_copy(const pl_tensor *src, pl_tensor *dst);
pl_status pl_ref_scale(const pl_tensor *x, const pl_tensor *factor, bool accumulate,
                       pl_tensor *out);
pl_status pl_ref_fill(pl_tensor *dst, double value);
pl_status pl_ref_fill_int(pl_tensor *dst, int64_t value);
pl_status pl_ref_arange(pl_tensor *out, double start, double step);
pl_status pl_ref_reduce(pl_reduce op, const pl_tensor *x, uint32_t dims, pl_tensor *out);
pl_status pl_ref_argreduce(bool max, const pl_tensor *x, int dim, pl_tensor *out);
pl_status pl_ref_cumsum(const pl_tensor *x, int dim, pl_tensor *out);
pl_status pl_ref_sort(const pl_tensor *x, bool descending, pl_tensor *values, pl_tensor *indices);
pl_status pl_ref_sum_squares(const pl_tensor *x, double *out);
pl_status pl_ref_matmul(const pl_tensor *a, const pl_tensor *b, bool accumulate, pl_tensor *out);
pl_status pl_ref_linear(const pl_tensor *x, const pl_tensor *w, const pl_tensor *bias,
                        pl_activation act, pl_tensor *preact, pl_tensor *out);
pl_status pl_ref_linear_grad(const pl_tensor *g, const pl_tensor *x, pl_tensor *dw,
                             bool accumulate_w, pl_tensor *db, bool accumulate_b);
pl_status pl_ref_linear_grad_gelu(const pl_tensor *g, const pl_tensor *w, const pl_tensor *x,
                                  pl_tensor *dx);
pl_status pl_ref_norm(const pl_row_norm_args *args);
pl_status pl_ref_norm_grad(const pl_row_norm_grad_args *args);
pl_status pl_ref_softmax(bool log, const pl_tensor *x, pl_tensor *out);
pl_status pl_ref_softmax_grad(bool log, const pl_tensor *g, const pl_tensor *y, pl_tensor *dx);
pl_status pl_ref_cross_entropy(const pl_tensor *logits, const pl_tensor *target,
                               const pl_tensor *weight, int64_t ignore_index,
                               double label_smoothing, pl_tensor *losses, pl_tensor *lse);
pl_status pl_ref_cross_entropy_grad(const pl_tensor *g, const pl_tensor *logits,
                                    const pl_tensor *target, const pl_tensor *weight,
                                    const pl_tensor *lse, int64_t ignore_index,
                                    double label_smoothing, pl_tensor *dlogits);
pl_status pl_ref_cross_entropy_fused(const pl_tensor *g, pl_tensor *logits, const pl_tensor *target,
                                     const pl_tensor *weight, int64_t ignore_index,
                                     double label_smoothing, pl_tensor *losses);
pl_status pl_ref_take(const pl_tensor *x, const pl_tensor *index, pl_tensor *out);
pl_status pl_ref_take_grad(const pl_tensor *g, const pl_tensor *index, int64_t skip,
                           bool accumulate, pl_tensor *dx);
pl_status pl_ref_gather(const pl_tensor *x, int dim, const pl_tensor *index, pl_tensor *out);
pl_status pl_ref_scatter_add(const pl_tensor *g, int dim, const pl_tensor *index, pl_tensor *dx);
pl_status pl_ref_count_nonzero(const pl_tensor *x, int64_t *out);
pl_status pl_ref_nonzero(const pl_tensor *x, pl_tensor *out);
pl_status pl_ref_uniform(pl_tensor *out, double lo, double hi, uint64_t seed, uint64_t offset);
pl_status pl_ref_normal(pl_tensor *out, double mean, double std, uint64_t seed, uint64_t offset);
pl_status pl_ref_randint(pl_tensor *out, int64_t lo, int64_t hi, uint64_t seed, uint64_t offset);
pl_status pl_ref_dropout(const pl_tensor *x, double p, uint64_t seed, uint64_t offset,
                         pl_tensor *out);
pl_status pl_ref_swiglu(const pl_tensor *x, pl_tensor *out);
pl_status pl_ref_swiglu_grad(const pl_tensor *g, const pl_tensor *x, pl_tensor *dx);
pl_status pl_ref_rotary(const pl_tensor *x, const pl_tensor *cosine, const pl_tensor *sine,
                        int64_t first, bool back, pl_tensor *out);
pl_status pl_ref_attention(const pl_tensor *q, const pl_tensor *k, const pl_tensor *v,
                           const pl_attention_args *args, pl_tensor *out, pl_tensor *lse);
pl_status pl_ref_attention_grad(const pl_tensor *g, const pl_tensor *q, const pl_tensor *k,
                                const pl_tensor *v, const pl_tensor *out, const pl_tensor *lse,
                                const pl_attention_args *args, pl_tensor *dq, pl_tensor *dk,
                                pl_tensor *dv);
pl_status pl_ref_adam(const pl_adam_args *args, pl_dtype dt, int64_t n, void *p, const void *g,
                      void *m, void *v);
pl_status pl_ref_sgd(const pl_sgd_args *args, pl_dtype dt, int64_t n, void *p, const void *g,
                     void *momentum);
pl_status pl_ref_unscale(pl_dtype dt, int64_t n, void *g, double factor, int *nonfinite);

// Shared between families.
double pl_ref_activation(pl_activation act, double x);
double pl_ref_gelu_tanh_slope(double x);
double pl_ref_silu(double x);
double pl_ref_silu_slope(double x);
bool pl_ref_keep(uint64_t seed, uint64_t offset, uint64_t element, double p);

#endif

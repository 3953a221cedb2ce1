// SPDX-License-Identifier: Apache-2.0
// reduce: the loops behind reductions, over dense runs of a compute type. What they give does not
// depend on the instruction set: the lanes that a sum is spread over are part of its definition.
// Private to kernels/cpu.
#ifndef PL_KERNELS_CPU_REDUCE_H
#define PL_KERNELS_CPU_REDUCE_H

#include "cpu/convert.h"

// A reduced value: f for floating types, i for integers.
typedef struct pl_accumulator {
    double f;
    int64_t i;
} pl_accumulator;

// Folds n elements into one value.
typedef void (*pl_fold_row_fn)(int64_t n, const void *x, pl_accumulator *acc);
// acc[j] = acc[j] op x[j] for n values; acc is of x's type and never overlaps it.
typedef void (*pl_fold_col_fn)(int64_t n, const void *x, void *acc);

// PROD is NULL for f32: products are taken in f64, which overflows later.
typedef struct pl_reduce_loops {
    pl_fold_row_fn row[PL_C_COUNT][PL_REDUCE_COUNT];
    pl_fold_col_fn col[PL_C_COUNT][PL_REDUCE_COUNT];
    // acc += (x[0] + x[1]) + (x[2] + x[3]), f32
    void (*add4)(int64_t n, const float *const x[4], float *acc);
    void (*add_wide)(int64_t n, const float *x, double *acc);  // acc[j] += x[j]
    double (*squares_f32)(int64_t n, const float *x);          // in f64
    double (*squares_f64)(int64_t n, const double *x);
} pl_reduce_loops;
const pl_reduce_loops *pl__cpu_reduce_loops(void);

// What an empty reduction gives, and where every other one starts.
pl_accumulator pl__cpu_identity(pl_reduce op);

#endif

// SPDX-License-Identifier: Apache-2.0
// vector: a 1-d operand (norm weights, class weights) as an adjacent run of floats or doubles,
// copied only where it is not one already. Private to kernels/cpu.
#ifndef PL_KERNELS_CPU_VECTOR_H
#define PL_KERNELS_CPU_VECTOR_H

#include "kernels.h"

typedef struct pl_vector {
    const void *data;  // NULL: there is none
    pl_tensor *owned;  // the copy, or NULL
} pl_vector;

// t may be NULL. dt: PL_F32 or PL_F64.
pl_status pl__vector_init(const pl_tensor *t, pl_dtype dt, pl_vector *out) PL_MUST_USE;
// n times `value`, where an operand is missing and the loop wants one.
pl_status pl__vector_init_const(int64_t n, double value, pl_dtype dt, pl_vector *out) PL_MUST_USE;
void pl__vector_deinit(pl_vector *v);

#endif

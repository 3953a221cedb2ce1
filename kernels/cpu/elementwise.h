// SPDX-License-Identifier: Apache-2.0
// elementwise: the loops behind unary, binary and where, over dense runs of a compute type. Outputs
// never overlap inputs here (the caller buffers). Private to kernels/cpu.
#ifndef PL_KERNELS_CPU_ELEMENTWISE_H
#define PL_KERNELS_CPU_ELEMENTWISE_H

#include "cpu/convert.h"

typedef void (*pl_unary_fn)(int64_t n, const void *x, void *out);
typedef void (*pl_binary_fn)(int64_t n, const void *a, const void *b, void *out);
typedef void (*pl_where_fn)(int64_t n, const uint8_t *cond, const void *a, const void *b,
                            void *out);

// NULL where the operator is not defined for the type. Operators that answer yes or no write
// uint8_t, the others the compute type.
typedef struct pl_elementwise {
    pl_unary_fn unary[PL_C_COUNT][PL_UNARY_COUNT];
    pl_binary_fn binary[PL_C_COUNT][PL_BINARY_COUNT];
    pl_where_fn where[4];  // by pl__cpu_size_log2
} pl_elementwise;
const pl_elementwise *pl__cpu_elementwise(void);

#endif

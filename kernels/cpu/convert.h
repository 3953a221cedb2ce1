// SPDX-License-Identifier: Apache-2.0
// convert: runs of elements between storage dtypes and the three types that kernels compute in.
// f16, bf16 and f32 compute in f32; f64 in f64; bool and integers in i64, which wraps on the way
// back. Private to kernels/cpu; any thread.
#ifndef PL_KERNELS_CPU_CONVERT_H
#define PL_KERNELS_CPU_CONVERT_H

#include "kernels.h"

typedef enum pl_compute { PL_C_F32, PL_C_F64, PL_C_I64, PL_C_COUNT } pl_compute;

static inline pl_compute pl__cpu_compute(pl_dtype dt) {
    return !pl_dtype_is_float(dt) ? PL_C_I64 : dt == PL_F64 ? PL_C_F64 : PL_C_F32;
}
// The dtype that is stored exactly as c is computed.
static inline pl_dtype pl__cpu_compute_dtype(pl_compute c) {
    return c == PL_C_F32 ? PL_F32 : c == PL_C_F64 ? PL_F64 : PL_I64;
}

// n elements from src, `stride` elements apart (0: one element repeated), to a dense dst. The two
// never overlap. dst is n of the compute type.
typedef void (*pl_load_fn)(int64_t n, const void *src, int64_t stride, void *dst);
// n dense elements of the compute type to dst, `stride` elements apart.
typedef void (*pl_store_fn)(int64_t n, const void *src, void *dst, int64_t stride);

typedef struct pl_convert {
    pl_load_fn load[PL_DTYPE_COUNT];  // to pl__cpu_compute(dtype)
    pl_store_fn store[PL_C_COUNT][PL_DTYPE_COUNT];
    pl_load_fn pick[4];  // bytes as they are, elements of 1 << i bytes
    pl_store_fn put[4];
} pl_convert;
const pl_convert *pl__cpu_convert(void);

// The index into pick and put for an element size of 1, 2, 4 or 8.
static inline int pl__cpu_size_log2(size_t size) {
    return size == 8 ? 3 : size == 4 ? 2 : size == 2 ? 1 : 0;
}

#endif

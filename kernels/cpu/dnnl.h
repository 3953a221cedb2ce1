// SPDX-License-Identifier: Apache-2.0
// dnnl: oneDNN's matrix product, opened at run time, behind one function. Only dnnl.c sees the
// library's header and its types. Thread-safe: each thread has its own cache of primitives.
#ifndef PL_KERNELS_CPU_DNNL_H
#define PL_KERNELS_CPU_DNNL_H

#include "base/base.h"

#define PL_DNNL_DIMS 6  // most dimensions of a product here: four of batch, then M and N

// Everything that decides which code oneDNN makes. Unused dimensions are zero, since the bytes of
// this struct are the key of the cache. Strides in elements; a batch dimension that is 1 in a or
// b but not in out is repeated.
typedef struct pl_dnnl_product {
    int32_t ndim;     // of a, b and out
    int32_t threads;  // oneDNN fixes how it splits the work when it makes the code
    uint8_t ab, out;  // pl_dtype of a and b, of out
    uint8_t bias;     // pl_dtype of the bias, or PL_DTYPE_COUNT for none
    uint8_t accumulate;
    uint8_t zero[4];
    int64_t m, n, k;
    int64_t batch_a[PL_DNNL_DIMS - 2], batch_b[PL_DNNL_DIMS - 2], batch_out[PL_DNNL_DIMS - 2];
    int64_t strides_a[PL_DNNL_DIMS], strides_b[PL_DNNL_DIMS], strides_out[PL_DNNL_DIMS];
} pl_dnnl_product;

// Opens the library if that has not happened. PL_EDEVICE with one sentence that says what is
// missing and how to get it; PL_ENOSUP when built with PACELINE_ONEDNN=0.
pl_status pl__dnnl_open(void) PL_MUST_USE;
bool pl__dnnl_built(void);  // false: built with PACELINE_ONEDNN=0
// out = a b (+ bias) (+ out). *done is false, and nothing is computed, where this library or
// processor has no brgemm for the case. The others are oneDNN's reference loops, a hundred times
// slower (bf16 whose rows are not adjacent, fp16 and bf16 on older processors), and gemm:jit (Note
// [sums are not split between threads]).
pl_status pl__dnnl_matmul(const pl_dnnl_product *p, const void *a, const void *b, const void *bias,
                          void *out, bool *done) PL_MUST_USE;

#endif

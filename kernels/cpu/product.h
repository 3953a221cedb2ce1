// SPDX-License-Identifier: Apache-2.0
// product: one batch of matrix products in the form that oneDNN and the blocked loops both take,
// made from tensors by matmul.c. Private to kernels/cpu.
#ifndef PL_KERNELS_CPU_PRODUCT_H
#define PL_KERNELS_CPU_PRODUCT_H

#include "kernels.h"

// out (m, n) = a (m, k) b (k, n), for each index of the batch. Strides in elements. Of a's two
// strides one is 1 and the other covers a whole row or column, and so for b; out's columns are
// adjacent. Batch dimensions of size 1 are gone, neighbours that can be are merged, and a batch
// over which b does not change is folded into m.
typedef struct pl_product {
    int nbatch;
    int64_t batch[PL_MAX_DIMS];
    int64_t a_batch[PL_MAX_DIMS], b_batch[PL_MAX_DIMS], out_batch[PL_MAX_DIMS];
    int64_t m, n, k;
    int64_t a_row, a_col, b_row, b_col, out_row;
    pl_dtype ab, out;
    bool b_wide;  // b is fp32 where ab is bf16: rounded as it is read
} pl_product;

// What is done with a sum before it is rounded and stored.
typedef struct pl_epilogue {
    bool accumulate;   // out += a b
    const void *bias;  // (n) adjacent, or NULL; not together with accumulate
    pl_dtype bias_dtype;
    // (m), or NULL: = or += the sums of a's rows. Only the loops that read a by rows of k anyway do
    // that, and then set *summed.
    float *row_sums;
    bool add_row_sums;
    bool *summed;
} pl_epilogue;

// out = epilogue(a b) for tensors as kernels.h's matmul takes them.
pl_status pl__product_tensors(const pl_tensor *a, const pl_tensor *b, const pl_epilogue *e,
                              pl_tensor *out) PL_MUST_USE;
// m, n, k and the batch are not empty. Picks the small loops, oneDNN,
// oneDNN by way of fp32, or the blocked loops.
pl_status pl__product_run(const pl_product *p, const pl_epilogue *e, const void *a, const void *b,
                          void *out) PL_MUST_USE;
// fp32 and so little work that a call into a library would cost more; bias fp32 or none.
bool pl__product_is_small(const pl_product *p);
void pl__product_small(const pl_product *p, const pl_epilogue *e, const void *a, const void *b,
                       void *out);
// This project's own loops: every floating dtype, any strides of a and b, k may be 0.
pl_status pl__product_blocked(const pl_product *p, const pl_epilogue *e, const void *a,
                              const void *b, void *out) PL_MUST_USE;

#endif

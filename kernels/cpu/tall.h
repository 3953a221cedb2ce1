// SPDX-License-Identifier: Apache-2.0
// tall: the product of two tall matrices over their common rows, which is what the gradient of a
// weight is (g^T x, one row a token). Private to kernels/cpu.
//
// Note [tall products]
// out (m, n) = A^T B with A (k, m) and B (k, n) both by rows. oneDNN transposes A for this and
// reaches a tenth to a fifth less than for its other products. Here nothing is transposed: a step
// of the inner loop takes one row of both (of bf16 a pair of rows, interleaved), multiplies
// TALL_ROWS numbers of A's by TALL_COLS of B's and adds them to as many sums in registers. For that
// TALL_STEPS steps of B, at most TALL_WIDE columns, and of A, at most TALL_HIGH, are packed into
// panels of TALL_COLS and TALL_ROWS columns: a panel of B stays in the first-level cache while all
// panels of A, in the second, pass by it; then their sums are added to out. Each element of out
// belongs to one thread and gets its steps in order: the thread count changes no bit. So this is
// also what Note [sums are not split between threads] (matmul.c) asks for.
#ifndef PL_KERNELS_CPU_TALL_H
#define PL_KERNELS_CPU_TALL_H

#include <stdatomic.h>

#include "product.h"

enum {
    TALL_ROWS = 8,
    TALL_COLS = 48,
    TALL_STEPS = 192,
    TALL_HIGH = 96,
    TALL_WIDE = 768,
    // Units of 32 bits from one panel of B to the next: a line more than it holds, so that lines
    // written together do not meet in one set of the cache.
    TALL_PANEL_B = TALL_STEPS * TALL_COLS + 16,
    TALL_PANEL_A = TALL_STEPS * TALL_ROWS,
};

typedef struct pl_tall_job {
    const void *a, *b;  // (k, m), (k, n)
    float *out;         // (m, n)
    int64_t m, n, k;
    int64_t a_step, b_step, out_step;  // from row to row, in elements
    bool accumulate;
    float *row_sums;  // (m), or NULL: = or += the sums of A's columns
    bool add_row_sums;
    int64_t row_parts, col_parts;  // out is cut into so many, one piece of work each
    char *scratch;                 // one piece per thread
    size_t scratch_nbytes;         // of a piece
    atomic_int next_scratch;
} pl_tall_job;

// The loops for a and b of this dtype, over pieces of work; NULL where this processor has none that
// are ahead of oneDNN (without AVX-512; bf16 without its dot products).
pl_range_fn pl__tall_loop(pl_dtype ab);
pl_range_fn pl__tall_f32(void);
pl_range_fn pl__tall_dot(void);

// Whether p is such a product, into fp32, and large enough.
bool pl__product_is_tall(const pl_product *p);
pl_status pl__product_tall(const pl_product *p, const pl_epilogue *e, const void *a, const void *b,
                           void *out) PL_MUST_USE;

#endif

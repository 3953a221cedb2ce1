// SPDX-License-Identifier: Apache-2.0
// panels: this project's own loops for large products with AVX-512, which know what oneDNN cannot:
// that a weight in fp32 may be rounded to bf16 on the way, that a bias' gradient is the sum of what
// is read anyway, and what memory is wanted next. Private to kernels/cpu.
//
// Note [products by panels]
// A step of the inner loop takes PANEL_ROWS numbers of A and PANEL_COLS of B that belong to one k
// (of bf16 the pairs of two k), multiplies each by each and adds to as many sums in registers. What
// the steps read lies in a row: A is packed into panels of PANEL_ROWS rows and B into panels of
// PANEL_COLS columns, of some hundred steps each (a run of k). Some of one operand stays packed in
// the second-level cache while all of the other passes by, a block at a time; which one, is chosen
// so that little is packed twice. While a block is multiplied, the memory that the next one comes
// from is prefetched, so that weights arrive from main memory at no cost. The sums of a run are
// added to out where that is fp32, else to a buffer; the last run ends with the epilogue.
// How k is cut into runs depends on the shape alone, and each element of out belongs to one thread
// and gets its runs in order: the thread count changes no bit. So this is also what Note [sums are
// not split between threads] (matmul.c) asks for.
#ifndef PL_KERNELS_CPU_PANELS_H
#define PL_KERNELS_CPU_PANELS_H

#include <stdatomic.h>

#include "product.h"

enum {
    PANEL_ROWS = 8,
    PANEL_COLS = 48,
    // Either many rows of A stay packed, or many columns of B, which then have shorter runs: a
    // panel of B is in the first-level cache while A's pass by, and all of B's in the second.
    PANEL_STEPS_A = 400,
    PANEL_HIGH_A = 512,
    PANEL_WIDE_A = PANEL_COLS,
    PANEL_STEPS_B = 200,
    PANEL_HIGH_B = 96,
    PANEL_WIDE_B = 768,
    PANEL_HIGH = PANEL_HIGH_A,  // the greater
    // The buffer of sums: its columns, and its most rows.
    PANEL_SUMS = 768,
    PANEL_SUM_ROWS = 1024,
};

typedef struct pl_panel_job {
    pl_product p;  // without a batch
    pl_epilogue e;
    const void *a, *b;
    void *out;
    bool keep_b;                   // columns of B stay packed, not rows of A
    bool summing;                  // sums of several runs meet in a buffer
    int64_t run;                   // numbers of k in a run
    int64_t high, wide;            // rows of A and columns of B that are packed at a time
    int64_t panel_a, panel_b;      // units of 32 bits from one panel to the next
    int64_t units_a, units_b;      // of all panels
    int64_t row_parts, col_parts;  // out is cut into so many, one piece of work each
    char *scratch;                 // one piece per thread
    size_t scratch_nbytes;         // of a piece
    atomic_int next_scratch;
} pl_panel_job;

// The loops for operands of this dtype, over pieces of work; NULL where this processor has none
// that are ahead of oneDNN (without AVX-512; bf16 without its dot products; with AMX).
pl_range_fn pl__panels_loop(pl_dtype ab);
pl_range_fn pl__panels_f32(void);
pl_range_fn pl__panels_dot(void);

// Whether p is such a product, and large enough.
bool pl__product_by_panels(const pl_product *p);
pl_status pl__product_panels(const pl_product *p, const pl_epilogue *e, const void *a,
                             const void *b, void *out) PL_MUST_USE;

#endif

// SPDX-License-Identifier: Apache-2.0
// linear_loss: a linear layer and the cross-entropy of its rows, a few rows at a time, so that the
// whole logits (rows x classes) never lie in memory. Private to ops/.
//
// Note [chunks of rows]: a chunk's logits are made by one product, turned into losses and their
// gradient in place, and used up by the products that give the gradients; the next chunk takes the
// same memory. Each chunk reads the weight twice and adds to its gradient once, so the number of
// rows, not of bytes, decides whether the products keep their speed; hence a least number of rows,
// and above it as many as a budget of bytes holds (pl__loss_chunk). Chunks are equally long.
#ifndef PL_OPS_LINEAR_LOSS_H
#define PL_OPS_LINEAR_LOSS_H

#include "ops/ops.h"

enum { PL_LOSS_NONE, PL_LOSS_MEAN, PL_LOSS_SUM };  // reductions

typedef struct pl_loss_sweep {
    pl_tensor *x, *w;      // (M, K), (C, K) contiguous, of one dtype, or w wide
    pl_tensor *bias;       // (C), or NULL
    pl_tensor *target;     // (M) i64 contiguous
    pl_tensor *weight;     // (C) of the losses' dtype, or NULL
    int64_t ignore, rows;  // rows of a chunk
    double smoothing;
    pl_tensor *losses;  // (M), or NULL
    pl_tensor *lse;     // (M): only the losses are wanted; else NULL
    pl_tensor *g;       // of the losses: NULL (ones), one number, or (M)
    // Gradients, NULL where not wanted: written, or added to. dw and db fp32 (fp64 for fp64), dx
    // that or x's dtype.
    pl_tensor *dx, *dw, *db;
    bool add_x, add_w, add_b;
} pl_loss_sweep;

pl_status pl__loss_sweep(const pl_loss_sweep *s) PL_MUST_USE;
// Rows of a chunk for logits of dtype dt, x being (.., K); `wanted` > 0: that many.
int64_t pl__loss_chunk(const pl_tensor *x, int64_t classes, pl_dtype dt, int64_t wanted);

// What the sum of losses is divided by: the sum of the rows' weights. 0-d, of dtype dt.
pl_status pl__loss_denominator(pl_tensor *target, pl_tensor *w, int64_t ignore, pl_dtype dt,
                               pl_tensor **out) PL_MUST_USE;

#endif

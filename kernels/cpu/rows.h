// SPDX-License-Identifier: Apache-2.0
// rows: the inner loops that are compiled once per instruction set (rows_any.c, rows_avx2.c,
// rows_avx512.c), as one table of functions with the job each works on. Pointers in a job are to
// contiguous rows unless a stride says otherwise; R is float, or double in the second member of a
// pair. Loops never fail and may run in any thread. Private to kernels/cpu.
#ifndef PL_KERNELS_CPU_ROWS_H
#define PL_KERNELS_CPU_ROWS_H

#include "kernels.h"

typedef struct pl_norm_job {
    const void *x, *g;     // (M, n) dt; x of x_dt
    const void *residual;  // (M, n) dt, or NULL
    void *sum;             // (M, n) dt: x + residual, what is normed then
    const void *w, *b;     // (n) R
    void *out;             // (M, n) dt; dx in the gradient, or NULL
    void *mean, *rstd;     // (M) R; no mean for RMS
    void *partial_w;       // (blocks, n) R sums of g * xhat, one row per block of rows, or NULL
    void *partial_b;       // (blocks, n) R sums of g, or NULL
    int64_t m, n, block_rows;
    double eps;
    bool rms, accumulate;  // accumulate: dx is added to
    pl_dtype dt, x_dt;     // x_dt: dt, or a half type where dt is f32
} pl_norm_job;

typedef struct pl_column_job {  // out[j] (+)= sum over rows of partial[row][j]
    const void *partial;        // (rows, n) R
    void *out;                  // (n) dt
    int64_t rows, n;
    bool accumulate;
    pl_dtype dt;
} pl_column_job;

typedef struct pl_softmax_job {
    const void *x, *g;  // (M, n) dt; in the gradient x is the result y
    void *out;          // (M, n) dt
    int64_t n;
    bool log_form;
    pl_dtype dt;
} pl_softmax_job;

typedef struct pl_loss_job {
    const void *logits;  // (M, n) dt, rows ld apart
    int64_t ld;
    const int64_t *target;  // (M)
    int64_t target_stride;
    const void *weight;  // (n) R, or NULL for all ones
    double weight_sum;   // n when there is no weight
    int64_t ignore_index, n;
    double smoothing;
    void *losses, *lse;  // (M) R
    const void *g;       // R, g_stride apart
    int64_t g_stride;
    void *dlogits;  // as logits
    pl_dtype dt;
} pl_loss_job;

typedef struct pl_scale_job {
    const void *x;
    void *out;
    int64_t n;
    double factor;
    bool add;
    pl_dtype dt;
} pl_scale_job;

#define PL_SCALE_CHUNK 4096

typedef struct pl_dropout_job {
    const void *x;
    void *out;
    int64_t n;
    double p;
    uint64_t seed, offset;
    pl_dtype dt;
} pl_dropout_job;

#define PL_GATED_PIECE 1024
typedef struct pl_gated_job {
    const void *x, *g;  // (M, 2n) and (M, n) dt
    void *out;          // (M, n); in the gradient dx (M, 2n)
    int64_t n, pieces;  // columns; pieces of PL_GATED_PIECE of them in a row
    pl_dtype dt;
} pl_gated_job;

typedef struct pl_rotary_job {
    const void *x;
    void *out;
    const void *cosine, *sine;  // (positions, half) R
    int64_t half, first;        // pairs of a head; the first row's position
    int64_t x_step, out_step;   // between numbers of a head
    // The three dimensions outside a head, and by how much each moves in x, out and the tables.
    int64_t size[3], x_strides[3], out_strides[3], angle_strides[3];
    bool back;
    pl_dtype dt;
} pl_rotary_job;

// C (m, n) = A (m, k) B (k, n), or with `add` C += A B; n a multiple of tile_cols; A's rows lda
// apart, B's ldb, C's ldc. All of R.
typedef void (*pl_tile_fn)(bool add, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda,
                           const void *b, int64_t ldb, void *c, int64_t ldc);

typedef struct pl_rows {
    const char *name;
    int tile_cols[2];
    pl_tile_fn tile[2];
    // Range functions for pl_parallel_for; ctx is the job. Index 0: R is float, 1: double.
    pl_range_fn norm[2];                                  // over rows
    pl_range_fn norm_grad[2];                             // over blocks of rows
    pl_range_fn sum_columns[2];                           // over columns
    pl_range_fn softmax[2], softmax_grad[2];              // over rows
    pl_range_fn cross_entropy[2], cross_entropy_grad[2];  // over rows
    pl_range_fn cross_entropy_fused[2];                   // over rows
    pl_range_fn swiglu[2], swiglu_grad[2];                // over pieces of rows
    pl_range_fn rotary[2];                                // over heads of positions
    pl_range_fn attention[2];                             // over heads and query tiles
    pl_range_fn attention_grad[2];                        // over heads
    pl_range_fn dropout[2];  // over chunks of PL_DROPOUT_CHUNK elements
    pl_range_fn scale[2];    // over chunks of PL_SCALE_CHUNK elements
} pl_rows;

#define PL_DROPOUT_CHUNK 1024

// The best table that this processor runs. The getters give NULL where a level was not compiled.
const pl_rows *pl__rows(void);
const pl_rows *pl__rows_any(void);
const pl_rows *pl__rows_avx2(void);
const pl_rows *pl__rows_avx512(void);

#endif

// SPDX-License-Identifier: Apache-2.0
// norm: layer norm and RMS norm over the last dimension, and their gradient. The sums over rows for
// dw and db are taken in blocks of rows that depend on the shape only, then over blocks in order,
// so that the thread count changes no bit. The loops are norm_body.h.
#include "cpu.h"
#include "rows.h"
#include "vector.h"

enum { MAX_BLOCKS = 64, MIN_BLOCK_ROWS = 8 };

static pl_dtype real_of(const pl_tensor *t) { return t->dtype == PL_F64 ? PL_F64 : PL_F32; }

static pl_status weight_or(const pl_tensor *t, int64_t n, double value, pl_dtype dr,
                           pl_vector *out) {
    return t ? pl__vector_init(t, dr, out) : pl__vector_init_const(n, value, dr, out);
}

pl_status pl_cpu_norm(const pl_row_norm_args *a) {
    const pl_tensor *x = a->x;
    int64_t n = x->shape[x->ndim - 1];
    if (x->numel == 0) return PL_OK;
    pl_dtype dr = real_of(a->out);
    pl_vector vw = {0}, vb = {0};
    pl_status st;
    PL_TRY_GOTO(st, weight_or(a->w, n, 1.0, dr, &vw), done);
    PL_TRY_GOTO(st, weight_or(a->b, n, 0.0, dr, &vb), done);
    pl_norm_job job = {.x = x->data,
                       .residual = a->residual ? a->residual->data : NULL,
                       .sum = a->residual ? a->sum->data : NULL,
                       .w = vw.data,
                       .b = vb.data,
                       .out = a->out->data,
                       .mean = a->rms ? NULL : a->mean->data,
                       .rstd = a->rstd->data,
                       .m = x->numel / n,
                       .n = n,
                       .eps = a->eps,
                       .rms = a->rms,
                       .dt = a->out->dtype,
                       .x_dt = x->dtype};
    int64_t grain = n >= 8192 ? 1 : 8192 / n;
    pl_parallel_for(job.m, grain, pl__rows()->norm[dr == PL_F64], &job);
done:
    pl__vector_deinit(&vb);
    pl__vector_deinit(&vw);
    return st;
}

static void finish_columns(const void *partial, const pl_norm_job *job, int64_t blocks,
                           bool accumulate, pl_tensor *out) {
    if (!out) return;
    pl_column_job columns = {.partial = partial,
                             .out = out->data,
                             .rows = blocks,
                             .n = job->n,
                             .accumulate = accumulate,
                             .dt = out->dtype};
    pl_parallel_for(job->n, 256, pl__rows()->sum_columns[out->dtype == PL_F64], &columns);
}

pl_status pl_cpu_norm_grad(const pl_row_norm_grad_args *a) {
    const pl_tensor *x = a->x;
    int64_t n = x->shape[x->ndim - 1];
    if (n == 0) return PL_OK;
    pl_dtype dr = real_of(x);
    int64_t rows = x->numel / n, each = (rows + MAX_BLOCKS - 1) / MAX_BLOCKS;
    if (each < MIN_BLOCK_ROWS) each = MIN_BLOCK_ROWS;
    int64_t blocks = (rows + each - 1) / each;  // 0 without rows: dw, db are then zero
    size_t nbytes = (size_t)(blocks * n) * pl_dtype_size(dr);
    pl_vector vw = {0};
    void *pw = NULL, *pb = NULL;
    pl_status st;
    PL_TRY_GOTO(st, weight_or(a->w, n, 1.0, dr, &vw), done);
    if (a->dw) PL_TRY_GOTO(st, pl_alloc(nbytes, &pw), done);
    if (a->db) PL_TRY_GOTO(st, pl_alloc(nbytes, &pb), done);
    pl_norm_job job = {.x = x->data,
                       .g = a->g->data,
                       .w = vw.data,
                       .out = a->dx ? a->dx->data : NULL,
                       .mean = a->rms ? NULL : a->mean->data,
                       .rstd = a->rstd->data,
                       .partial_w = pw,
                       .partial_b = pb,
                       .m = rows,
                       .n = n,
                       .block_rows = each,
                       .rms = a->rms,
                       .accumulate = a->accumulate_x,
                       .dt = x->dtype};
    pl_parallel_for(blocks, 1, pl__rows()->norm_grad[dr == PL_F64], &job);
    finish_columns(pw, &job, blocks, a->accumulate_w, a->dw);
    finish_columns(pb, &job, blocks, a->accumulate_b, a->db);
done:
    pl_free(pb);
    pl_free(pw);
    pl__vector_deinit(&vw);
    return st;
}

// SPDX-License-Identifier: Apache-2.0
// swiglu: cuts rows into pieces of columns, so that one long row feeds all threads too. The loops
// are swiglu_body.h.
#include "cpu.h"
#include "rows.h"

// n: columns of the result.
static void run(pl_range_fn loop, pl_gated_job *job, int64_t rows) {
    job->pieces = (job->n + PL_GATED_PIECE - 1) / PL_GATED_PIECE;
    int64_t piece = job->n < PL_GATED_PIECE ? job->n : PL_GATED_PIECE;
    pl_parallel_for(rows * job->pieces, 1 + 8192 / piece, loop, job);
}

pl_status pl_cpu_swiglu(const pl_tensor *x, pl_tensor *out) {
    if (out->numel == 0) return PL_OK;
    pl_gated_job job = {
        .x = x->data, .out = out->data, .n = out->shape[out->ndim - 1], .dt = x->dtype};
    run(pl__rows()->swiglu[x->dtype == PL_F64], &job, out->numel / job.n);
    return PL_OK;
}

pl_status pl_cpu_swiglu_grad(const pl_tensor *g, const pl_tensor *x, pl_tensor *dx) {
    if (g->numel == 0) return PL_OK;
    pl_gated_job job = {
        .x = x->data, .g = g->data, .out = dx->data, .n = g->shape[g->ndim - 1], .dt = x->dtype};
    run(pl__rows()->swiglu_grad[x->dtype == PL_F64], &job, g->numel / job.n);
    return PL_OK;
}

// SPDX-License-Identifier: Apache-2.0
// softmax: softmax, log-softmax and their gradients over the last dimension. The loops are
// softmax_body.h.
#include "cpu.h"
#include "rows.h"

// Rows that make a piece worth another thread.
static int64_t row_grain(int64_t n) { return n >= 8192 ? 1 : 8192 / (n > 0 ? n : 1); }

static int64_t last_dim(const pl_tensor *t) { return t->ndim == 0 ? 1 : t->shape[t->ndim - 1]; }

pl_status pl_cpu_softmax(bool log, const pl_tensor *x, pl_tensor *out) {
    if (x->numel == 0) return PL_OK;
    int64_t n = last_dim(x);
    pl_softmax_job job = {.x = x->data, .out = out->data, .n = n, .log_form = log, .dt = x->dtype};
    pl_parallel_for(x->numel / n, row_grain(n), pl__rows()->softmax[x->dtype == PL_F64], &job);
    return PL_OK;
}

pl_status pl_cpu_softmax_grad(bool log, const pl_tensor *g, const pl_tensor *y, pl_tensor *dx) {
    if (y->numel == 0) return PL_OK;
    int64_t n = last_dim(y);
    pl_softmax_job job = {
        .x = y->data, .g = g->data, .out = dx->data, .n = n, .log_form = log, .dt = y->dtype};
    pl_parallel_for(y->numel / n, row_grain(n), pl__rows()->softmax_grad[y->dtype == PL_F64], &job);
    return PL_OK;
}

// SPDX-License-Identifier: Apache-2.0
// SwiGLU of a packed last dimension [gate | up]: silu(gate) * up. Only the packed input is kept;
// its gradient takes the input's memory where nobody else wants that.
#include "ops/ops.h"

static pl_status swiglu_forward(pl_op_call *c) {
    pl_tensor *x = c->in[0], *rows = NULL;
    int64_t shape[PL_MAX_DIMS];
    char got[128];
    if (x->ndim == 0 || x->shape[x->ndim - 1] % 2 != 0) {
        return pl_fail(PL_ERUNTIME,
                       "[swiglu] the last dimension holds gate and up side by side: got shape %s, "
                       "expected an even last size",
                       pl_shape_text(x->ndim, x->shape, got, sizeof got));
    }
    if (!pl_dtype_is_float(x->dtype)) {
        return pl_fail(PL_ERUNTIME, "[swiglu] needs a floating dtype: got %s; use x.float()",
                       pl_dtype_name(x->dtype));
    }
    for (int d = 0; d < x->ndim; d++) shape[d] = x->shape[d] / (d == x->ndim - 1 ? 2 : 1);
    PL_TRY(pl_contiguous(x, &rows));
    pl_status st = pl_tensor_empty_beside(rows, rows->dtype, rows->ndim, shape, &c->out);
    if (st == PL_OK) st = pl_k(rows)->swiglu(rows, c->out);
    if (st == PL_OK) st = pl_op_save(c, 0, rows);
    pl_tensor_release(rows);
    return st;
}

static pl_status swiglu_backward(const pl_op_back *b) {
    pl_tensor *x = b->saved[0], *g = NULL, *dx = NULL;
    PL_TRY(pl_contiguous(b->grad, &g));
    pl_status st = PL_OK;
    if (b->last && pl_tensor_is_only(x)) {
        dx = pl_tensor_retain(x);
    } else {
        st = pl_tensor_empty_like(x, x->dtype, &dx);
    }
    if (st == PL_OK) st = pl_k(g)->swiglu_grad(g, x, dx);
    pl_tensor_release(g);
    if (st != PL_OK) {
        pl_tensor_release(dx);
        return st;
    }
    b->out[0] = dx;
    return PL_OK;
}

const pl_op pl_op_swiglu = {"swiglu", PL_AMP_KEEP, 0, swiglu_forward, swiglu_backward, false};

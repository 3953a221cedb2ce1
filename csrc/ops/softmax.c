// SPDX-License-Identifier: Apache-2.0
// Softmax and log-softmax over the last dimension.
#include "ops/ops.h"

static pl_status softmax_forward(pl_op_call *c) {
    pl_tensor *x = NULL, *out = NULL;
    if (!pl_dtype_is_float(c->in[0]->dtype)) {
        return pl_fail(PL_ERUNTIME, "[%s] needs a floating dtype: got %s; use x.float()",
                       c->op->name, pl_dtype_name(c->in[0]->dtype));
    }
    PL_TRY(pl_contiguous(c->in[0], &x));
    pl_status st = pl_tensor_empty_like(x, x->dtype, &out);
    if (st == PL_OK) st = pl_k(x)->softmax(c->op->kind != 0, x, out);
    pl_tensor_release(x);
    if (st != PL_OK) {
        pl_tensor_release(out);
        return st;
    }
    c->out = out;
    return pl_op_save(c, 0, out);
}

static pl_status softmax_backward(const pl_op_back *b) {
    pl_tensor *g = NULL, *dx = NULL;
    PL_TRY(pl_contiguous(b->grad, &g));
    pl_status st = pl_tensor_empty_like(g, g->dtype, &dx);
    if (st == PL_OK) st = pl_k(g)->softmax_grad(b->op->kind != 0, g, b->saved[0], dx);
    pl_tensor_release(g);
    if (st != PL_OK) {
        pl_tensor_release(dx);
        return st;
    }
    b->out[0] = dx;
    return PL_OK;
}

const pl_op pl_op_softmax = {"softmax", PL_AMP_F32, 0, softmax_forward, softmax_backward, false};
const pl_op pl_op_log_softmax = {"log_softmax",   PL_AMP_F32,       1,
                                 softmax_forward, softmax_backward, false};

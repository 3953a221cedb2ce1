// SPDX-License-Identifier: Apache-2.0
// Dropout. No mask is stored: the stream's (seed, offset) gives the same mask again in backward.
#include "ops/ops.h"

static pl_status apply(const pl_attrs *a, pl_tensor *x, pl_tensor **out) {
    pl_tensor *c = NULL, *r = NULL;
    PL_TRY(pl_contiguous(x, &c));
    pl_status st = pl_tensor_empty_like(c, c->dtype, &r);
    if (st == PL_OK) {
        st = pl_k(c)->dropout(c, a->f[0], (uint64_t)a->i[0], (uint64_t)a->i[1], r);
    }
    pl_tensor_release(c);
    if (st != PL_OK) {
        pl_tensor_release(r);
        return st;
    }
    *out = r;
    return PL_OK;
}

static pl_status dropout_forward(pl_op_call *c) {
    double p = c->attrs.f[0];
    if (!(p >= 0.0 && p <= 1.0)) {
        return pl_fail(PL_EINVAL, "[dropout] probability has to be between 0 and 1: got %g", p);
    }
    if (!pl_dtype_is_float(c->in[0]->dtype)) {
        return pl_fail(PL_ERUNTIME, "[dropout] needs a floating dtype: got %s",
                       pl_dtype_name(c->in[0]->dtype));
    }
    return apply(&c->attrs, c->in[0], &c->out);
}

static pl_status dropout_backward(const pl_op_back *b) {
    return apply(b->attrs, b->grad, &b->out[0]);
}

const pl_op pl_op_dropout = {"dropout", PL_AMP_KEEP, 0, dropout_forward, dropout_backward, false};

// SPDX-License-Identifier: Apache-2.0
// Choosing and converting elementwise: where, clamp, to_dtype, clone.
#include <math.h>

#include "ops/ops.h"

// out = cond ? a : b over the broadcast shape of all three.
static pl_status where_new(pl_tensor *cond, pl_tensor *a, pl_tensor *b, pl_tensor **out) {
    int nd, n2;
    int64_t s2[PL_MAX_DIMS], shape[PL_MAX_DIMS];
    pl_tensor *ec = NULL, *ea = NULL, *eb = NULL, *r = NULL;
    if (cond->dtype != PL_BOOL) {
        return pl_fail(PL_ETYPE, "[where] the condition must be bool: got %s",
                       pl_dtype_name(cond->dtype));
    }
    PL_TRY(pl_shape_broadcast("where", a->ndim, a->shape, b->ndim, b->shape, &n2, s2));
    PL_TRY(pl_shape_broadcast("where", cond->ndim, cond->shape, n2, s2, &nd, shape));
    pl_dtype dt = pl_promote_tensors(a, b);
    pl_status st = pl_tensor_expand(cond, nd, shape, &ec);
    if (st == PL_OK) st = pl_cast_expand(a, dt, nd, shape, &ea);
    if (st == PL_OK) st = pl_cast_expand(b, dt, nd, shape, &eb);
    if (st == PL_OK) st = pl_tensor_empty_beside(ec, dt, nd, shape, &r);
    if (st == PL_OK) st = pl_k(ec)->where(ec, ea, eb, r);
    pl_tensor_release(ec);
    pl_tensor_release(ea);
    pl_tensor_release(eb);
    if (st != PL_OK) {
        pl_tensor_release(r);
        return st;
    }
    *out = r;
    return PL_OK;
}

static pl_status where_forward(pl_op_call *c) {
    PL_TRY(where_new(c->in[0], c->in[1], c->in[2], &c->out));
    return pl_op_save(c, 0, c->in[0]);
}

// The gradient where the condition holds (or, for b, where it does not), 0 elsewhere.
static pl_status masked(const pl_op_back *b, int i, pl_tensor *cond, bool keep) {
    pl_tensor *zero = NULL, *d = NULL;
    PL_TRY(pl_scalar(b->grad, b->grad->dtype, 0.0, &zero));
    pl_status st = where_new(cond, keep ? b->grad : zero, keep ? zero : b->grad, &d);
    pl_tensor_release(zero);
    if (st == PL_OK) st = pl_sum_to(d, b->in[i].ndim, b->in[i].shape, &b->out[i]);
    pl_tensor_release(d);
    return st;
}

static pl_status where_backward(const pl_op_back *b) {
    if (b->needs[1]) PL_TRY(masked(b, 1, b->saved[0], true));
    if (b->needs[2]) PL_TRY(masked(b, 2, b->saved[0], false));
    return PL_OK;
}

const pl_op pl_op_where = {"where", PL_AMP_KEEP, 0, where_forward, where_backward, false};

static pl_status bound(pl_binary op, double limit, pl_tensor *x, pl_tensor **out) {
    pl_tensor *s = NULL;
    PL_TRY(pl_number(pl_dtype_is_float(x->dtype) || limit != floor(limit) ? PL_F64 : PL_I64, limit,
                     &s));
    pl_status st = pl_binary_new(op, "clamp", x, s, out);
    pl_tensor_release(s);
    return st;
}

static pl_status clamp_forward(pl_op_call *c) {
    double lo = c->attrs.f[0], hi = c->attrs.f[1];
    pl_tensor *t = pl_tensor_retain(c->in[0]), *u = NULL;
    pl_status st = PL_OK;
    if (!isinf(lo)) {
        st = bound(PL_BINARY_MAXIMUM, lo, t, &u);
        pl_tensor_release(t);
        t = u;
        PL_TRY(st);
    }
    if (!isinf(hi)) {
        st = bound(PL_BINARY_MINIMUM, hi, t, &u);
        pl_tensor_release(t);
        t = u;
        PL_TRY(st);
    }
    if (t == c->in[0]) {
        st = pl_copy_new(t, t->dtype, &c->out);
        pl_tensor_release(t);
        PL_TRY(st);
    } else {
        c->out = t;
    }
    return pl_op_save(c, 0, c->in[0]);
}

static pl_status clamp_backward(const pl_op_back *b) {
    pl_tensor *x = b->saved[0], *ge = NULL, *le = NULL, *in = NULL;
    pl_status st = bound(PL_BINARY_GE, b->attrs->f[0], x, &ge);
    if (st == PL_OK) st = bound(PL_BINARY_LE, b->attrs->f[1], x, &le);
    if (st == PL_OK) st = pl_binary_new(PL_BINARY_LOGICAL_AND, "clamp", ge, le, &in);
    if (st == PL_OK) st = masked(b, 0, in, true);
    pl_tensor_release(ge);
    pl_tensor_release(le);
    pl_tensor_release(in);
    return st;
}

const pl_op pl_op_clamp = {"clamp", PL_AMP_KEEP, 0, clamp_forward, clamp_backward, false};

static pl_status to_dtype_forward(pl_op_call *c) {
    return pl_cast(c->in[0], (pl_dtype)c->attrs.i[0], &c->out);
}

static pl_status to_dtype_backward(const pl_op_back *b) {
    return pl_cast(b->grad, b->in[0].dtype, &b->out[0]);
}

const pl_op pl_op_to_dtype = {"to_dtype",       PL_AMP_KEEP,       0,
                              to_dtype_forward, to_dtype_backward, false};

static pl_status clone_forward(pl_op_call *c) {
    return pl_copy_new(c->in[0], c->in[0]->dtype, &c->out);
}

static pl_status clone_backward(const pl_op_back *b) {
    b->out[0] = pl_tensor_retain(b->grad);
    return PL_OK;
}

const pl_op pl_op_clone = {"clone", PL_AMP_KEEP, 0, clone_forward, clone_backward, false};

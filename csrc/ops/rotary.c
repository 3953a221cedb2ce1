// SPDX-License-Identifier: Apache-2.0
// Rotary position embedding of queries or keys (.., T, D), as attention takes them: views of a
// packed projection are taken as they are. The gradient is the turn back, so only the tables are
// kept.
#include "ops/ops.h"

static pl_status check_table(const pl_tensor *t, const char *what, int64_t half) {
    char got[128];
    if (t->ndim == 2 && t->shape[1] == half && pl_dtype_is_float(t->dtype)) return PL_OK;
    return pl_fail(PL_ERUNTIME,
                   "[rotary_embedding] %s: got shape %s of %s, expected a floating (positions, "
                   "%lld), half the width of a head",
                   what, pl_shape_text(t->ndim, t->shape, got, sizeof got), pl_dtype_name(t->dtype),
                   (long long)half);
}

static pl_status check(const pl_op_call *c) {
    const pl_tensor *x = c->in[0], *cosine = c->in[1], *sine = c->in[2];
    char got[128], other[128];
    int nd = x->ndim;
    if (nd < 2 || nd > 4 || x->shape[nd - 1] % 2 != 0 || !pl_dtype_is_float(x->dtype)) {
        return pl_fail(PL_ERUNTIME,
                       "[rotary_embedding] input: got shape %s of %s, expected a floating (T, D), "
                       "(H, T, D) or (B, H, T, D) of even D",
                       pl_shape_text(nd, x->shape, got, sizeof got), pl_dtype_name(x->dtype));
    }
    PL_TRY(check_table(cosine, "cos", x->shape[nd - 1] / 2));
    PL_TRY(check_table(sine, "sin", x->shape[nd - 1] / 2));
    if (cosine->shape[0] != sine->shape[0]) {
        return pl_fail(PL_ERUNTIME,
                       "[rotary_embedding] cos and sin: got shapes %s and %s, expected one shape",
                       pl_shape_text(2, cosine->shape, got, sizeof got),
                       pl_shape_text(2, sine->shape, other, sizeof other));
    }
    int64_t first = c->attrs.i[0], rows = x->shape[nd - 2];
    if (first >= 0 && first <= cosine->shape[0] - rows) return PL_OK;
    return pl_fail(PL_EINDEX,
                   "[rotary_embedding] positions: got %lld to %lld, expected within the %lld rows "
                   "of cos and sin",
                   (long long)first, (long long)(first + rows), (long long)cosine->shape[0]);
}

// t (.., T, D) as the kernels' (B, T, H, D): a view that borrows t's memory, and lives on the stack
// since a call of this operator is short.
static pl_tensor positions_first(const pl_tensor *t) {
    pl_tensor view = *t;
    view.ndim = 4;
    for (int d = 0; d < 4; d++) {
        int at = (d == 1 ? 2 : d == 2 ? 1 : d) - (4 - t->ndim);
        view.shape[d] = at < 0 ? 1 : t->shape[at];
        view.strides[d] = at < 0 ? 0 : t->strides[at];
    }
    return view;
}

// A new tensor like x, in memory of (B, T, H, D) as attention's results are.
static pl_status turned(const pl_attrs *attrs, const pl_tensor *x, const pl_tensor *cosine,
                        const pl_tensor *sine, bool back, pl_tensor **out) {
    pl_tensor *r = NULL;
    PL_TRY(pl_tensor_empty_like(x, x->dtype, &r));
    if (r->ndim > 2) {  // exchange heads and positions
        int rows = r->ndim - 2, heads = r->ndim - 3;
        r->strides[heads] = r->shape[rows + 1];
        r->strides[rows] = r->shape[heads] * r->shape[rows + 1];
    }
    pl_tensor from = positions_first(x), to = positions_first(r);
    pl_status st = pl_k(x)->rotary(&from, cosine, sine, attrs->i[0], back, &to);
    if (st != PL_OK) {
        pl_tensor_release(r);
        return st;
    }
    *out = r;
    return PL_OK;
}

// As the kernels want a table: contiguous, in the dtype that x is computed in.
static pl_status table_of(pl_tensor *t, pl_dtype dt, pl_tensor **out) {
    pl_tensor *cast = NULL;
    PL_TRY(pl_cast(t, dt == PL_F64 ? PL_F64 : PL_F32, &cast));
    pl_status st = pl_contiguous(cast, out);
    pl_tensor_release(cast);
    return st;
}

static pl_status rotary_forward(pl_op_call *c) {
    pl_tensor *x = c->in[0], *cosine = NULL, *sine = NULL;
    PL_TRY(check(c));
    pl_status st = table_of(c->in[1], x->dtype, &cosine);
    if (st == PL_OK) st = table_of(c->in[2], x->dtype, &sine);
    if (st == PL_OK) st = turned(&c->attrs, x, cosine, sine, false, &c->out);
    if (st == PL_OK) st = pl_op_save(c, 0, cosine);
    if (st == PL_OK) st = pl_op_save(c, 1, sine);
    pl_tensor_release(cosine);
    pl_tensor_release(sine);
    return st;
}

static pl_status rotary_backward(const pl_op_back *b) {
    if (b->needs[1] || b->needs[2]) {
        return pl_fail(PL_ENOSUP,
                       "[rotary_embedding] no gradient for cos and sin: pass cos.detach(), "
                       "sin.detach()");
    }
    return turned(b->attrs, b->grad, b->saved[0], b->saved[1], true, &b->out[0]);
}

const pl_op pl_op_rotary_embedding = {"rotary_embedding", PL_AMP_KEEP,     0,
                                      rotary_forward,     rotary_backward, false};

// SPDX-License-Identifier: Apache-2.0
// Softmax cross-entropy of rows against class indices, with PyTorch's reductions.
#include "ops/linear_loss.h"
#include "ops/ops.h"

static pl_status check(const pl_tensor *x, const pl_tensor *t, const pl_tensor *w) {
    char a[128], b[128];
    if (x->ndim != 2 || t->ndim != 1 || t->shape[0] != x->shape[0]) {
        return pl_fail(PL_EINVAL,
                       "[cross_entropy] expected logits (N, C) and a target (N): got %s and %s",
                       pl_shape_text(x->ndim, x->shape, a, sizeof a),
                       pl_shape_text(t->ndim, t->shape, b, sizeof b));
    }
    if (t->dtype != PL_I64 || !pl_dtype_is_float(x->dtype)) {
        return pl_fail(PL_ERUNTIME,
                       "[cross_entropy] expected floating logits and an int64 target of class "
                       "indices: got %s and %s",
                       pl_dtype_name(x->dtype), pl_dtype_name(t->dtype));
    }
    if (w && (w->ndim != 1 || w->shape[0] != x->shape[1])) {
        return pl_fail(PL_ERUNTIME, "[cross_entropy] weight must have shape [%lld]: got %s",
                       (long long)x->shape[1], pl_shape_text(w->ndim, w->shape, a, sizeof a));
    }
    return PL_OK;
}

// idx (its own memory) into [0, n).
static pl_status clamp_index(pl_tensor *idx, int64_t n) {
    pl_tensor *lo = NULL, *hi = NULL, *vlo = NULL, *vhi = NULL;
    pl_status st = pl_scalar_int(idx, PL_I64, 0, &lo);
    if (st == PL_OK) st = pl_scalar_int(idx, PL_I64, n - 1, &hi);
    if (st == PL_OK) st = pl_tensor_expand(lo, idx->ndim, idx->shape, &vlo);
    if (st == PL_OK) st = pl_tensor_expand(hi, idx->ndim, idx->shape, &vhi);
    if (st == PL_OK) st = pl_k(idx)->binary(PL_BINARY_MAXIMUM, idx, vlo, idx);
    if (st == PL_OK) st = pl_k(idx)->binary(PL_BINARY_MINIMUM, idx, vhi, idx);
    pl_tensor *own[] = {lo, hi, vlo, vhi};
    for (int i = 0; i < 4; i++) pl_tensor_release(own[i]);
    return st;
}

// 1 for a row that counts (its class weight where there are weights), 0 for an ignored one.
static pl_status row_weights(pl_tensor *target, pl_tensor *w, int64_t ignore, pl_dtype dt,
                             pl_tensor **out) {
    pl_tensor *ign = NULL, *real = NULL, *mask = NULL, *safe = NULL, *idx = NULL, *table = NULL;
    pl_tensor *col = NULL, *taken = NULL;
    pl_status st = pl_scalar_int(target, PL_I64, ignore, &ign);
    if (st == PL_OK) st = pl_binary_new(PL_BINARY_NE, "cross_entropy", target, ign, &real);
    if (st == PL_OK) st = pl_cast(real, dt, &mask);
    if (st == PL_OK && !w) *out = pl_tensor_retain(mask);
    if (st == PL_OK && w) {
        // An ignored row looks up class 0 and is masked afterwards. One out of range is told by the
        // loss: here it looks up what there is.
        int64_t table_shape[2] = {w->shape[0], 1};
        st = pl_cast(real, PL_I64, &safe);
        if (st == PL_OK) st = pl_binary_new(PL_BINARY_MUL, "cross_entropy", target, safe, &idx);
        if (st == PL_OK) st = clamp_index(idx, w->shape[0]);
        if (st == PL_OK) st = pl_tensor_view(w, 2, table_shape, &table);
        int64_t taken_shape[2] = {target->shape[0], 1};
        if (st == PL_OK) st = pl_tensor_empty_beside(w, w->dtype, 2, taken_shape, &taken);
        if (st == PL_OK) st = pl_k(table)->take(table, idx, taken);
        if (st == PL_OK) st = pl_tensor_view(taken, 1, target->shape, &col);
        if (st == PL_OK) st = pl_binary_new(PL_BINARY_MUL, "cross_entropy", col, mask, out);
    }
    pl_tensor *own[] = {ign, real, mask, safe, idx, table, col, taken};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) pl_tensor_release(own[i]);
    return st;
}

pl_status pl__loss_denominator(pl_tensor *target, pl_tensor *w, int64_t ignore, pl_dtype dt,
                               pl_tensor **out) {
    pl_tensor *rows = NULL;
    PL_TRY(row_weights(target, w, ignore, dt, &rows));
    pl_status st = pl_reduce_new(PL_REDUCE_SUM, rows, 1u, false, out);
    pl_tensor_release(rows);
    return st;
}

static pl_status reduce_losses(pl_op_call *c, pl_tensor *losses, pl_tensor *target, pl_tensor *w,
                               pl_tensor **denom) {
    int how = (int)c->attrs.i[1];
    if (how == PL_LOSS_NONE) {
        c->out = pl_tensor_retain(losses);
        return PL_OK;
    }
    if (how == PL_LOSS_SUM) return pl_reduce_new(PL_REDUCE_SUM, losses, 1u, false, &c->out);
    pl_tensor *total = NULL;
    PL_TRY(pl__loss_denominator(target, w, c->attrs.i[0], losses->dtype, denom));
    PL_TRY(pl_reduce_new(PL_REDUCE_SUM, losses, 1u, false, &total));
    pl_status st = pl_binary_new(PL_BINARY_DIV, "cross_entropy", total, *denom, &c->out);
    pl_tensor_release(total);
    return st;
}

static pl_status cross_entropy_forward(pl_op_call *c) {
    pl_tensor *x = NULL, *t = NULL, *w = NULL, *losses = NULL, *lse = NULL, *denom = NULL;
    PL_TRY(check(c->in[0], c->in[1], c->in[2]));
    pl_dtype dt = c->in[0]->dtype == PL_F64 ? PL_F64 : PL_F32;
    pl_status st = pl_contiguous(c->in[0], &x);
    if (st == PL_OK) st = pl_contiguous(c->in[1], &t);
    if (st == PL_OK && c->in[2]) {
        pl_tensor *cast = NULL;
        st = pl_cast(c->in[2], dt, &cast);
        if (st == PL_OK) st = pl_contiguous(cast, &w);
        pl_tensor_release(cast);
    }
    if (st == PL_OK) st = pl_tensor_empty_like(t, dt, &losses);
    if (st == PL_OK) st = pl_tensor_empty_like(t, dt, &lse);
    if (st == PL_OK) {
        st = pl_k(x)->cross_entropy(x, t, w, c->attrs.i[0], c->attrs.f[0], losses, lse);
    }
    if (st == PL_OK) st = reduce_losses(c, losses, t, w, &denom);
    pl_tensor *keep[] = {x, t, w, lse, denom};
    for (int i = 0; i < 5; i++) {
        if (st == PL_OK) st = pl_op_save(c, i, keep[i]);
        pl_tensor_release(keep[i]);
    }
    pl_tensor_release(losses);
    return st;
}

static pl_status cross_entropy_backward(const pl_op_back *b) {
    pl_tensor *x = b->saved[0], *t = b->saved[1], *denom = b->saved[4];
    pl_tensor *g = NULL, *rows = NULL, *dx = NULL;
    pl_status st = denom ? pl_binary_new(PL_BINARY_DIV, "cross_entropy", b->grad, denom, &g)
                         : pl_contiguous(b->grad, &g);
    if (st == PL_OK) st = pl_tensor_expand(g, 1, t->shape, &rows);
    // In the logits' own memory where the graph was all that held them: the kernel goes by rows.
    if (st == PL_OK && b->last && pl_tensor_is_only(x)) {
        dx = pl_tensor_retain(x);
    } else if (st == PL_OK) {
        st = pl_tensor_empty_like(x, x->dtype, &dx);
    }
    if (st == PL_OK) {
        st = pl_k(x)->cross_entropy_grad(rows, x, t, b->saved[2], b->saved[3], b->attrs->i[0],
                                         b->attrs->f[0], dx);
    }
    pl_tensor_release(g);
    pl_tensor_release(rows);
    if (st != PL_OK) {
        pl_tensor_release(dx);
        return st;
    }
    b->out[0] = dx;
    return PL_OK;
}

const pl_op pl_op_cross_entropy = {"cross_entropy",        PL_AMP_KEEP, 0, cross_entropy_forward,
                                   cross_entropy_backward, false};

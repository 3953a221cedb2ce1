// SPDX-License-Identifier: Apache-2.0
// Layer norm over the trailing dimensions, and softmax over the last.
#include "ops/ops.h"

static pl_status check_affine(const pl_tensor *t, const char *what, int n, const int64_t *shape) {
    char got[128], want[128];
    if (!t || pl_shape_equal(t->ndim, t->shape, n, shape)) return PL_OK;
    return pl_fail(PL_ERUNTIME, "[layer_norm] %s must have the normalised shape %s: got %s", what,
                   pl_shape_text(n, shape, want, sizeof want),
                   pl_shape_text(t->ndim, t->shape, got, sizeof got));
}

// t flattened to (M, N) rows, contiguous; NULL stays NULL.
static pl_status rows_of(pl_tensor *t, int ndim, const int64_t *shape, pl_tensor **out) {
    if (!t) return PL_OK;
    pl_tensor *c = NULL;
    PL_TRY(pl_contiguous(t, &c));
    pl_status st = pl_tensor_view(c, ndim, shape, out);
    pl_tensor_release(c);
    return st;
}

static void split_shape(const pl_tensor *x, int n_dims, int64_t mn[2]) {
    mn[0] = mn[1] = 1;
    for (int d = 0; d < x->ndim; d++) mn[d >= x->ndim - n_dims] *= x->shape[d];
}

static pl_status layer_norm_forward(pl_op_call *c) {
    pl_tensor *x = c->in[0], *rows = NULL, *w = NULL, *bias = NULL, *flat = NULL;
    pl_tensor *mean = NULL, *rstd = NULL;
    int n = (int)c->attrs.i[0];
    int64_t mn[2];
    if (n < 1 || n > x->ndim || !pl_dtype_is_float(x->dtype)) {
        return pl_fail(PL_ERUNTIME,
                       "[layer_norm] expected a floating tensor of at least %d dimensions: got "
                       "%d dimensions of %s",
                       n, x->ndim, pl_dtype_name(x->dtype));
    }
    const int64_t *tail = x->shape + x->ndim - n;
    PL_TRY(check_affine(c->in[1], "weight", n, tail));
    PL_TRY(check_affine(c->in[2], "bias", n, tail));
    split_shape(x, n, mn);
    pl_dtype stat = x->dtype == PL_F64 ? PL_F64 : PL_F32;
    pl_status st = rows_of(x, 2, mn, &rows);
    if (st == PL_OK) st = rows_of(c->in[1], 1, &mn[1], &w);
    if (st == PL_OK) st = rows_of(c->in[2], 1, &mn[1], &bias);
    if (st == PL_OK) st = pl_tensor_empty_beside(x, x->dtype, 2, mn, &flat);
    if (st == PL_OK) st = pl_tensor_empty_beside(x, stat, 1, mn, &mean);
    if (st == PL_OK) st = pl_tensor_empty_beside(x, stat, 1, mn, &rstd);
    if (st == PL_OK) st = pl_k(rows)->layer_norm(rows, w, bias, c->attrs.f[0], flat, mean, rstd);
    if (st == PL_OK) st = pl_tensor_view(flat, x->ndim, x->shape, &c->out);
    if (st == PL_OK) st = pl_op_save(c, 0, rows);
    if (st == PL_OK) st = pl_op_save(c, 1, w);
    if (st == PL_OK) st = pl_op_save(c, 2, mean);
    if (st == PL_OK) st = pl_op_save(c, 3, rstd);
    if (st == PL_OK) st = pl_op_save(c, 4, bias);  // for remake.c
    pl_tensor_release(rows);
    pl_tensor_release(w);
    pl_tensor_release(bias);
    pl_tensor_release(flat);
    pl_tensor_release(mean);
    pl_tensor_release(rstd);
    return st;
}

// The destination of a gradient together with its view as rows or as a vector.
typedef struct dest {
    pl_tensor *whole, *flat;
    bool accumulate;
} dest;

static pl_status dest_open(const pl_op_back *b, int i, bool add, int n, const int64_t *shape,
                           dest *d) {
    if (i >= b->n_in || !b->needs[i]) return PL_OK;
    const pl_in_meta *m = &b->in[i];
    PL_TRY(add ? pl_back_dest(b, i, &d->whole, &d->accumulate)
               : pl_tensor_empty_beside(b->grad, m->dtype, m->ndim, m->shape, &d->whole));
    return pl_tensor_view(d->whole, n, shape, &d->flat);
}

static void dest_close(const pl_op_back *b, int i, pl_status st, dest *d) {
    pl_tensor_release(d->flat);
    if (st == PL_OK && d->whole) {
        b->out[i] = d->whole;
    } else {
        pl_tensor_release(d->whole);
    }
}

static pl_status layer_norm_backward(const pl_op_back *b) {
    pl_tensor *x = b->saved[0], *g = NULL, *cast = NULL;
    dest dx = {0}, dw = {0}, db = {0};
    int64_t mn[2] = {x->shape[0], x->shape[1]};
    pl_status st = pl_cast(b->grad, x->dtype, &cast);
    if (st == PL_OK) st = rows_of(cast, 2, mn, &g);
    if (st == PL_OK) st = dest_open(b, 0, false, 2, mn, &dx);
    if (st == PL_OK) st = dest_open(b, 1, true, 1, &mn[1], &dw);
    if (st == PL_OK) st = dest_open(b, 2, true, 1, &mn[1], &db);
    // Under autocast the input may be wider than the edge that it came from: through x's dtype.
    pl_tensor *wide = NULL;
    if (st == PL_OK && dx.flat && dx.flat->dtype != x->dtype) {
        st = pl_tensor_empty_like(x, x->dtype, &wide);
    }
    if (st == PL_OK) {
        st = pl_k(g)->layer_norm_grad(g, x, b->saved[1], b->saved[2], b->saved[3],
                                      wide ? wide : dx.flat, dw.flat, dw.accumulate, db.flat,
                                      db.accumulate);
    }
    if (st == PL_OK && wide) st = pl_k(wide)->copy(wide, dx.flat);
    pl_tensor_release(wide);
    pl_tensor_release(g);
    pl_tensor_release(cast);
    dest_close(b, 0, st, &dx);
    dest_close(b, 1, st, &dw);
    dest_close(b, 2, st, &db);
    return st;
}

const pl_op pl_op_layer_norm = {"layer_norm",       PL_AMP_F32,          0,
                                layer_norm_forward, layer_norm_backward, false};

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

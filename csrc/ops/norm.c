// SPDX-License-Identifier: Apache-2.0
// Layer norm and RMS norm over the trailing dimensions, alone or together with the sum before them.
#include "ops/ops.h"

enum { LAYER_NORM, RMS_NORM };  // pl_op.kind

static pl_status check_affine(const pl_op *op, const pl_tensor *t, const char *what, int n,
                              const int64_t *shape) {
    char got[128], want[128];
    if (!t || pl_shape_equal(t->ndim, t->shape, n, shape)) return PL_OK;
    return pl_fail(PL_ERUNTIME, "[%s] %s must have the normalised shape %s: got %s", op->name, what,
                   pl_shape_text(n, shape, want, sizeof want),
                   pl_shape_text(t->ndim, t->shape, got, sizeof got));
}

static pl_status check(const pl_op_call *c, const pl_tensor *x) {
    int n = (int)c->attrs.i[0];
    if (n < 1 || n > x->ndim || !pl_dtype_is_float(x->dtype)) {
        return pl_fail(PL_ERUNTIME,
                       "[%s] expected a floating tensor of at least %d dimensions: got "
                       "%d dimensions of %s",
                       c->op->name, n, x->ndim, pl_dtype_name(x->dtype));
    }
    const int64_t *tail = x->shape + x->ndim - n;
    PL_TRY(check_affine(c->op, c->in[1], "weight", n, tail));
    return c->n_in > 2 ? check_affine(c->op, c->in[2], "bias", n, tail) : PL_OK;
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

// A weight or bias as a kernel takes it beside dtype dt.
static pl_status vector_of(pl_tensor *t, pl_dtype dt, int64_t n, pl_tensor **out) {
    if (!t || t->dtype == dt || t->dtype == PL_F32) return rows_of(t, 1, &n, out);
    pl_tensor *cast = NULL;
    PL_TRY(pl_cast(t, dt, &cast));
    pl_status st = rows_of(cast, 1, &n, out);
    pl_tensor_release(cast);
    return st;
}

static void split_shape(const pl_tensor *x, int n_dims, int64_t mn[2]) {
    mn[0] = mn[1] = 1;
    for (int d = 0; d < x->ndim; d++) mn[d >= x->ndim - n_dims] *= x->shape[d];
}

// The tensors of one call as rows and vectors.
typedef struct parts {
    pl_tensor *x, *residual, *sum, *w, *b, *out, *mean, *rstd;
} parts;

static void parts_release(parts *p) {
    pl_tensor *all[] = {p->x, p->residual, p->sum, p->w, p->b, p->out, p->mean, p->rstd};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) pl_tensor_release(all[i]);
}

static pl_status call_kernel(const pl_op *op, double eps, const parts *p) {
    return pl_k(p->x)->norm(&(pl_row_norm_args){.rms = op->kind == RMS_NORM,
                                                .eps = eps,
                                                .x = p->x,
                                                .residual = p->residual,
                                                .sum = p->sum,
                                                .w = p->w,
                                                .b = p->b,
                                                .out = p->out,
                                                .mean = p->mean,
                                                .rstd = p->rstd});
}

// The norm of p's x, or of its sum; `whole` has the shape of that.
static pl_status run(pl_op_call *c, parts *p, const pl_tensor *whole, const int64_t mn[2]) {
    pl_tensor *normed = p->residual ? p->sum : p->x;
    pl_dtype dt = normed->dtype, stat = dt == PL_F64 ? PL_F64 : PL_F32;
    pl_status st = vector_of(c->in[1], dt, mn[1], &p->w);
    if (st == PL_OK && c->n_in > 2) st = vector_of(c->in[2], dt, mn[1], &p->b);
    if (st == PL_OK) st = pl_tensor_empty_beside(p->x, dt, 2, mn, &p->out);
    if (st == PL_OK && c->op->kind == LAYER_NORM) {
        st = pl_tensor_empty_beside(p->x, stat, 1, mn, &p->mean);
    }
    if (st == PL_OK) st = pl_tensor_empty_beside(p->x, stat, 1, mn, &p->rstd);
    if (st == PL_OK) st = call_kernel(c->op, c->attrs.f[0], p);
    if (st == PL_OK) st = pl_tensor_view(p->out, whole->ndim, whole->shape, &c->out);
    if (st == PL_OK) st = pl_op_save(c, 0, normed);
    if (st == PL_OK) st = pl_op_save(c, 1, p->w);
    if (st == PL_OK) st = pl_op_save(c, 2, p->mean);
    if (st == PL_OK) st = pl_op_save(c, 3, p->rstd);
    if (st == PL_OK) st = pl_op_save(c, 4, p->b);  // for remake.c
    return st;
}

static pl_status norm_forward(pl_op_call *c) {
    pl_tensor *x = c->in[0];
    parts p = {0};
    int64_t mn[2];
    PL_TRY(check(c, x));
    split_shape(x, (int)c->attrs.i[0], mn);
    pl_status st = rows_of(x, 2, mn, &p.x);
    if (st == PL_OK) st = run(c, &p, x, mn);
    parts_release(&p);
    return st;
}

static bool is_half(pl_dtype dt) { return dt == PL_BF16 || dt == PL_F16; }

bool pl_norm_adds(const pl_tensor *x, const pl_tensor *residual) {
    pl_dtype a = x->dtype, b = residual->dtype;
    bool dtypes = pl_dtype_is_float(a) &&
                  (a == b || (a == PL_F32 && is_half(b)) || (b == PL_F32 && is_half(a)));
    return dtypes && pl_shape_equal(x->ndim, x->shape, residual->ndim, residual->shape) &&
           pl_device_equal(pl_tensor_device(x), pl_tensor_device(residual));
}

pl_status pl_norm_forward_added(pl_op_call *add, pl_op_call *norm) {
    // The kernel's residual is the one of the sum's dtype.
    bool swap = is_half(add->in[0]->dtype) && add->in[1]->dtype == PL_F32;
    pl_tensor *residual = add->in[swap], *x = add->in[!swap];
    parts p = {0};
    int64_t mn[2];
    PL_TRY(check(norm, residual));
    split_shape(residual, (int)norm->attrs.i[0], mn);
    PL_TRY(pl_tensor_empty_beside(residual, residual->dtype, residual->ndim, residual->shape,
                                  &add->out));
    pl_status st = rows_of(x, 2, mn, &p.x);
    if (st == PL_OK) st = rows_of(residual, 2, mn, &p.residual);
    if (st == PL_OK) st = rows_of(add->out, 2, mn, &p.sum);
    if (st == PL_OK) st = run(norm, &p, residual, mn);
    parts_release(&p);
    return st;
}

pl_status pl_norm_again(const pl_op *op, const pl_attrs *attrs, pl_tensor *const *saved,
                        pl_tensor **out) {
    parts p = {.x = saved[0], .w = saved[1], .b = saved[4]};  // borrowed
    pl_status st = PL_OK;
    if (saved[2]) st = pl_tensor_empty_like(saved[2], saved[2]->dtype, &p.mean);
    if (st == PL_OK) st = pl_tensor_empty_like(saved[3], saved[3]->dtype, &p.rstd);
    if (st == PL_OK) st = pl_tensor_empty_like(p.x, p.x->dtype, &p.out);
    if (st == PL_OK) st = call_kernel(op, attrs->f[0], &p);
    pl_tensor_release(p.mean);
    pl_tensor_release(p.rstd);
    if (st != PL_OK) {
        pl_tensor_release(p.out);
        return st;
    }
    *out = p.out;
    return PL_OK;
}

// The destination of a gradient together with its view as rows or as a vector.
typedef struct dest {
    pl_tensor *whole, *flat;
    bool accumulate;
} dest;

// Of x's dtype, or f32 for the weights of a half type. Under autocast x was often cast.
static pl_status dest_open(const pl_op_back *b, int i, int n, const int64_t *shape, dest *d) {
    if (i >= b->n_in || !b->needs[i]) return PL_OK;
    const pl_in_meta *m = &b->in[i];
    pl_dtype dt = b->saved[0]->dtype;
    bool fits = m->dtype == dt || (i > 0 && m->dtype == PL_F32 && is_half(dt));
    PL_TRY(fits ? pl_back_dest(b, i, &d->whole, &d->accumulate)
                : pl_tensor_empty_beside(b->grad, dt, m->ndim, m->shape, &d->whole));
    return pl_tensor_view(d->whole, n, shape, &d->flat);
}

static pl_status dest_close(const pl_op_back *b, int i, pl_status st, dest *d) {
    pl_tensor_release(d->flat);
    if (st == PL_OK && d->whole) st = pl_cast(d->whole, b->in[i].dtype, &b->out[i]);
    pl_tensor_release(d->whole);
    return st;
}

// Where x's gradient has a sum under way, which is so where a residual goes past the norm, dx is
// added to it in the same pass.
static pl_status norm_backward(const pl_op_back *b) {
    pl_tensor *x = b->saved[0], *g = NULL, *cast = NULL;
    dest to[3] = {{0}};
    int64_t mn[2] = {x->shape[0], x->shape[1]};
    pl_status st = pl_cast(b->grad, x->dtype, &cast);
    if (st == PL_OK) st = rows_of(cast, 2, mn, &g);
    for (int i = 0; i < 3 && st == PL_OK; i++) {
        st = i == 0 ? dest_open(b, i, 2, mn, &to[i]) : dest_open(b, i, 1, &mn[1], &to[i]);
    }
    if (st == PL_OK) {
        st = pl_k(g)->norm_grad(&(pl_row_norm_grad_args){.rms = b->op->kind == RMS_NORM,
                                                         .g = g,
                                                         .x = x,
                                                         .w = b->saved[1],
                                                         .mean = b->saved[2],
                                                         .rstd = b->saved[3],
                                                         .dx = to[0].flat,
                                                         .dw = to[1].flat,
                                                         .db = to[2].flat,
                                                         .accumulate_x = to[0].accumulate,
                                                         .accumulate_w = to[1].accumulate,
                                                         .accumulate_b = to[2].accumulate});
    }
    pl_tensor_release(g);
    pl_tensor_release(cast);
    for (int i = 0; i < 3; i++) st = dest_close(b, i, st, &to[i]);
    return st;
}

const pl_op pl_op_layer_norm = {"layer_norm", PL_AMP_F32,    LAYER_NORM,
                                norm_forward, norm_backward, false};
const pl_op pl_op_rms_norm = {"rms_norm", PL_AMP_F32, RMS_NORM, norm_forward, norm_backward, false};

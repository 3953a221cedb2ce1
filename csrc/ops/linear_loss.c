// SPDX-License-Identifier: Apache-2.0
// Cross-entropy of x w^T + bias against class indices, without the logits: linear_loss.h.
//
// With a mean or a sum the gradients are computed in the forward pass, where a chunk's logits are
// at hand: the backward pass only multiplies them by the loss's own gradient, a number that nobody
// waits for. With no reduction that gradient is a number for each row, known in the backward pass
// alone: there the logits are made once more.
//
// The mean's divisor is known from the targets alone and goes into the slopes, so that what the
// backward pass multiplies by is mostly 1, which costs nothing on the CPU. fp16 slopes stay
// undivided: divided by thousands of rows many would be too small for fp16, which is what a loss's
// scale guards against, and that comes with the backward pass only. Threads: as ops/.
#include "ops/linear_loss.h"

enum { X, W, TARGET, BIAS, WEIGHT, INPUTS };
enum { KEPT_DX, KEPT_DW, KEPT_DB, KEPT_DIVISOR };  // saved, with a reduction; without: the inputs

static pl_dtype real_of(const pl_tensor *x) { return x->dtype == PL_F64 ? PL_F64 : PL_F32; }

static pl_status check_shapes(pl_tensor *const *in) {
    const pl_tensor *x = in[X], *w = in[W], *t = in[TARGET], *bias = in[BIAS], *weight = in[WEIGHT];
    char a[128], b[128];
    if (x->ndim != 2 || w->ndim != 2 || x->shape[1] != w->shape[1]) {
        return pl_fail(PL_ERUNTIME,
                       "[linear_cross_entropy] shapes do not fit: got input %s and linear_weight "
                       "%s, expected (N, in_features) and (C, in_features)",
                       pl_shape_text(x->ndim, x->shape, a, sizeof a),
                       pl_shape_text(w->ndim, w->shape, b, sizeof b));
    }
    if (t->ndim != 1 || t->shape[0] != x->shape[0]) {
        return pl_fail(PL_EINVAL,
                       "[linear_cross_entropy] expected a target of class indices (N): got %s for "
                       "input %s",
                       pl_shape_text(t->ndim, t->shape, a, sizeof a),
                       pl_shape_text(x->ndim, x->shape, b, sizeof b));
    }
    if (bias && (bias->ndim != 1 || bias->shape[0] != w->shape[0])) {
        return pl_fail(PL_ERUNTIME,
                       "[linear_cross_entropy] linear_bias must have shape [%lld]: got %s",
                       (long long)w->shape[0], pl_shape_text(bias->ndim, bias->shape, a, sizeof a));
    }
    if (weight && (weight->ndim != 1 || weight->shape[0] != w->shape[0])) {
        return pl_fail(PL_ERUNTIME, "[linear_cross_entropy] weight must have shape [%lld]: got %s",
                       (long long)w->shape[0],
                       pl_shape_text(weight->ndim, weight->shape, a, sizeof a));
    }
    return PL_OK;
}

static pl_status check(const pl_op_call *c) {
    const pl_tensor *x = c->in[X], *w = c->in[W], *t = c->in[TARGET];
    PL_TRY(check_shapes(c->in));
    if ((x->dtype != w->dtype && !c->attrs.i[3]) || !pl_dtype_is_float(x->dtype)) {
        return pl_fail(PL_ERUNTIME,
                       "[linear_cross_entropy] input and linear_weight must have one floating "
                       "dtype: got %s and %s",
                       pl_dtype_name(x->dtype), pl_dtype_name(w->dtype));
    }
    if (t->dtype != PL_I64) {
        return pl_fail(PL_ERUNTIME,
                       "[linear_cross_entropy] expected an int64 target of class indices: got %s",
                       pl_dtype_name(t->dtype));
    }
    return PL_OK;
}

// What a call reads, contiguous; owned by the sweep until sweep_release.
static pl_status sweep_inputs(pl_tensor *const *in, const pl_attrs *a, pl_loss_sweep *s) {
    *s = (pl_loss_sweep){.ignore = a->i[0], .smoothing = a->f[0]};
    PL_TRY(pl_contiguous(in[X], &s->x));
    PL_TRY(pl_contiguous(in[W], &s->w));
    PL_TRY(pl_contiguous(in[TARGET], &s->target));
    if (in[BIAS]) s->bias = pl_tensor_retain(in[BIAS]);
    if (in[WEIGHT]) {
        pl_tensor *cast = NULL;
        PL_TRY(pl_cast(in[WEIGHT], real_of(in[X]), &cast));
        pl_status st = pl_contiguous(cast, &s->weight);
        pl_tensor_release(cast);
        PL_TRY(st);
    }
    s->rows = pl__loss_chunk(s->x, s->w->shape[0], s->x->dtype, a->i[2]);
    return PL_OK;
}

static void sweep_release(pl_loss_sweep *s) {
    pl_tensor *all[] = {s->x,   s->w, s->target, s->bias, s->weight, s->losses,
                        s->lse, s->g, s->dx,     s->dw,   s->db};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) pl_tensor_release(all[i]);
}

// ---- forward ------------------------------------------------------------------------------------

// Places for the gradients of what wants one.
static pl_status gradient_places(const pl_op_call *c, pl_loss_sweep *s) {
    pl_dtype real = real_of(s->x), dx = s->x->dtype;
    if (c->edges[X]->dtype == PL_F32) dx = PL_F32;  // autocast: rounded once, when it is added up
    if (c->wants & 1u << X) PL_TRY(pl_tensor_empty_like(s->x, dx, &s->dx));
    if (c->wants & 1u << W) PL_TRY(pl_tensor_empty_like(s->w, real, &s->dw));
    if (c->wants & 1u << BIAS) PL_TRY(pl_tensor_empty_beside(s->x, real, 1, s->w->shape, &s->db));
    return PL_OK;
}

// 1 / denom, or NULL where the slopes stay undivided; then *divisor is what is left to divide by.
static pl_status share_of_rows(const pl_loss_sweep *s, pl_tensor *denom, pl_tensor **share,
                               pl_tensor **divisor) {
    if (!denom) return PL_OK;
    if (s->x->dtype != PL_F16) return pl_unary_new(PL_UNARY_RECIPROCAL, denom, share);
    // Where no row counts all slopes are 0, and stay so: not 0 / 0.
    pl_tensor *zero = NULL, *none = NULL;
    pl_status st = pl_scalar(denom, denom->dtype, 0.0, &zero);
    if (st == PL_OK) st = pl_binary_new(PL_BINARY_EQ, "linear_cross_entropy", denom, zero, &none);
    if (st == PL_OK) {
        st = pl_binary_new(PL_BINARY_ADD, "linear_cross_entropy", denom, none, divisor);
    }
    pl_tensor_release(zero);
    pl_tensor_release(none);
    return st;
}

static pl_status reduce(pl_op_call *c, const pl_loss_sweep *s, pl_tensor *denom) {
    if (c->attrs.i[1] == PL_LOSS_NONE) {
        c->out = pl_tensor_retain(s->losses);
        return PL_OK;
    }
    if (!denom) return pl_reduce_new(PL_REDUCE_SUM, s->losses, 1u, false, &c->out);
    pl_tensor *total = NULL;
    PL_TRY(pl_reduce_new(PL_REDUCE_SUM, s->losses, 1u, false, &total));
    pl_status st = pl_binary_new(PL_BINARY_DIV, "linear_cross_entropy", total, denom, &c->out);
    pl_tensor_release(total);
    return st;
}

static pl_status forward(pl_op_call *c, pl_loss_sweep *s, pl_tensor **denom, pl_tensor **divisor) {
    bool reduced = c->attrs.i[1] != PL_LOSS_NONE;
    pl_dtype real = real_of(s->x);
    PL_TRY(pl_tensor_empty_like(s->target, real, &s->losses));
    if (c->attrs.i[1] == PL_LOSS_MEAN) {
        PL_TRY(pl__loss_denominator(s->target, s->weight, s->ignore, real, denom));
    }
    if (c->track && reduced) {
        PL_TRY(gradient_places(c, s));
        PL_TRY(share_of_rows(s, *denom, &s->g, divisor));
    } else {
        PL_TRY(pl_tensor_empty_like(s->target, real, &s->lse));
    }
    PL_TRY(pl__loss_sweep(s));
    return reduce(c, s, *denom);
}

static pl_status linear_loss_forward(pl_op_call *c) {
    pl_loss_sweep s = {0};
    pl_tensor *denom = NULL, *divisor = NULL;
    PL_TRY(check(c));
    pl_status st = sweep_inputs(c->in, &c->attrs, &s);
    if (st == PL_OK) st = forward(c, &s, &denom, &divisor);
    bool reduced = c->attrs.i[1] != PL_LOSS_NONE;
    pl_tensor *kept[] = {s.dx, s.dw, s.db, divisor};
    pl_tensor *again[] = {s.x, s.w, s.target, s.bias, s.weight};
    for (int i = 0; st == PL_OK && i < (reduced ? 4 : 5); i++) {
        st = pl_op_save(c, i, reduced ? kept[i] : again[i]);
    }
    sweep_release(&s);
    pl_tensor_release(denom);
    pl_tensor_release(divisor);
    return st;
}

// ---- backward, with a reduction -----------------------------------------------------------------

// A gradient on its way out: `from` times the loss's goes to `to`, then, where the input has
// another dtype, to `cast`.
typedef struct parcel {
    pl_tensor *from;  // borrowed
    pl_tensor *to, *cast;
    bool add;
} parcel;

static pl_status parcel_place(const pl_op_back *b, int i, pl_tensor *from, parcel *p) {
    *p = (parcel){.from = from};
    bool same = from->dtype == b->in[i].dtype, own = b->last && pl_tensor_is_only(from);
    if (same && b->into[i]) return pl_back_dest(b, i, &p->to, &p->add);
    if (own) {
        p->to = pl_tensor_retain(from);
    } else {
        PL_TRY(pl_tensor_empty_like(from, from->dtype, &p->to));
    }
    return same ? PL_OK : pl_tensor_empty_like(from, b->in[i].dtype, &p->cast);
}

static pl_status parcel_send(const parcel *p, const pl_tensor *factor) {
    PL_TRY(pl_k(p->from)->scale(p->from, factor, p->add, p->to));
    return p->cast ? pl_k(p->to)->copy(p->to, p->cast) : PL_OK;
}

static pl_status factor_of(const pl_op_back *b, pl_tensor **out) {
    pl_tensor *divisor = b->saved[KEPT_DIVISOR];
    if (!divisor) return pl_contiguous(b->grad, out);
    return pl_binary_new(PL_BINARY_DIV, "linear_cross_entropy", b->grad, divisor, out);
}

// All places first: what fails for want of memory has changed nothing that was kept.
static pl_status hand_over(const pl_op_back *b) {
    static const int inputs[3] = {X, W, BIAS};
    parcel p[3] = {{0}};
    pl_tensor *factor = NULL;
    pl_status st = factor_of(b, &factor);
    for (int k = 0; st == PL_OK && k < 3; k++) {
        if (b->saved[k] && b->needs[inputs[k]]) {
            st = parcel_place(b, inputs[k], b->saved[k], &p[k]);
        }
    }
    for (int k = 0; st == PL_OK && k < 3; k++) {
        if (p[k].to) st = parcel_send(&p[k], factor);
    }
    for (int k = 0; k < 3; k++) {
        pl_tensor **out = p[k].cast ? &p[k].cast : &p[k].to;
        if (st == PL_OK && *out) b->out[inputs[k]] = pl_tensor_retain(*out);
        pl_tensor_release(p[k].to);
        pl_tensor_release(p[k].cast);
    }
    pl_tensor_release(factor);
    return st;
}

// ---- backward, a number for each row ------------------------------------------------------------

// A place for input i's gradient in dtype dt: the one offered where that fits.
static pl_status place(const pl_op_back *b, int i, pl_dtype dt, pl_tensor **out, bool *add) {
    if (!b->needs[i]) return PL_OK;
    if (b->in[i].dtype == dt) return pl_back_dest(b, i, out, add);
    return pl_tensor_empty_beside(b->grad, dt, b->in[i].ndim, b->in[i].shape, out);
}

static pl_status give(const pl_op_back *b, int i, pl_tensor *grad) {
    return grad ? pl_cast(grad, b->in[i].dtype, &b->out[i]) : PL_OK;
}

static pl_status rows_sweep(const pl_op_back *b, pl_loss_sweep *s) {
    pl_dtype real = real_of(s->x), dx = b->in[X].dtype == PL_F32 ? PL_F32 : s->x->dtype;
    PL_TRY(pl_contiguous(b->grad, &s->g));
    PL_TRY(place(b, X, dx, &s->dx, &s->add_x));
    PL_TRY(place(b, W, real, &s->dw, &s->add_w));
    PL_TRY(place(b, BIAS, real, &s->db, &s->add_b));
    PL_TRY(pl__loss_sweep(s));
    PL_TRY(give(b, X, s->dx));
    PL_TRY(give(b, W, s->dw));
    return give(b, BIAS, s->db);
}

static pl_status linear_loss_backward(const pl_op_back *b) {
    if (b->attrs->i[1] != PL_LOSS_NONE) return hand_over(b);
    pl_loss_sweep s = {0};
    pl_status st = sweep_inputs(b->saved, b->attrs, &s);
    if (st == PL_OK) st = rows_sweep(b, &s);
    sweep_release(&s);
    for (int i = 0; st != PL_OK && i < INPUTS; i++) {
        pl_tensor_release(b->out[i]);
        b->out[i] = NULL;
    }
    return st;
}

// The classes' weights belong to the loss, which is computed in fp32.
bool pl_op_keeps(const pl_op *op, int i) {
    return op == &pl_op_linear_cross_entropy && i == WEIGHT;
}

const pl_op pl_op_linear_cross_entropy = {"linear_cross_entropy", PL_AMP_LOW,           0,
                                          linear_loss_forward,    linear_loss_backward, false};

// SPDX-License-Identifier: Apache-2.0
// Matrix products: matmul, and linear with its bias and activation. Inputs may be of a lower
// precision than the graph's edge (autocast): gradients are then computed from the low-precision
// operands straight into the edge's dtype, accumulated in fp32.
#include <string.h>

#include "ops/linear_loss.h"
#include "ops/ops.h"

// ---- matmul ----------------------------------------------------------------------------------

static pl_status matmul_forward(pl_op_call *c) {
    pl_tensor *a = c->in[0], *b = c->in[1];
    char ta[128], tb[128];
    if (a->dtype != b->dtype || !pl_dtype_is_float(a->dtype)) {
        return pl_fail(PL_ERUNTIME,
                       "[matmul] expected two tensors of one floating dtype: got %s and %s",
                       pl_dtype_name(a->dtype), pl_dtype_name(b->dtype));
    }
    int n = a->ndim;
    bool fits = n >= 2 && n == b->ndim && a->shape[n - 1] == b->shape[n - 2] &&
                pl_shape_equal(n - 2, a->shape, n - 2, b->shape);
    if (!fits) {
        return pl_fail(PL_ERUNTIME, "[matmul] shapes cannot be multiplied: got %s and %s",
                       pl_shape_text(a->ndim, a->shape, ta, sizeof ta),
                       pl_shape_text(b->ndim, b->shape, tb, sizeof tb));
    }
    int64_t shape[PL_MAX_DIMS];
    memcpy(shape, a->shape, sizeof shape);
    shape[n - 1] = b->shape[n - 1];
    pl_tensor *out = NULL;
    PL_TRY(pl_tensor_empty_beside(a, a->dtype, n, shape, &out));
    pl_status st = pl_k(a)->matmul(a, b, false, out);
    if (st != PL_OK) {
        pl_tensor_release(out);
        return st;
    }
    c->out = out;
    PL_TRY(pl_op_save(c, 0, a));
    return pl_op_save(c, 1, b);
}

// dest_i (+)= x y^T or x^T y, where one of them is transposed by a view.
static pl_status product_into(const pl_op_back *b, int i, pl_tensor *x, bool tx, pl_tensor *y,
                              bool ty) {
    pl_tensor *vx = NULL, *vy = NULL, *dest = NULL;
    bool accumulate = false;
    int n = x->ndim;
    pl_status st = tx ? pl_tensor_transpose(x, n - 2, n - 1, &vx) : PL_OK;
    if (st == PL_OK && ty) st = pl_tensor_transpose(y, n - 2, n - 1, &vy);
    // The kernel writes the operands' own dtype, or fp32 from a half type.
    bool direct = b->in[i].dtype == x->dtype || b->in[i].dtype == PL_F32;
    if (st == PL_OK && direct) st = pl_back_dest(b, i, &dest, &accumulate);
    if (st == PL_OK && !direct) {
        st = pl_tensor_empty_beside(x, x->dtype, b->in[i].ndim, b->in[i].shape, &dest);
    }
    if (st == PL_OK) st = pl_k(x)->matmul(vx ? vx : x, vy ? vy : y, accumulate, dest);
    pl_tensor_release(vx);
    pl_tensor_release(vy);
    if (st != PL_OK) {
        pl_tensor_release(dest);
        return st;
    }
    b->out[i] = dest;
    return PL_OK;
}

static pl_status matmul_backward(const pl_op_back *b) {
    pl_tensor *g = NULL;
    PL_TRY(pl_cast(b->grad, b->saved[0]->dtype, &g));
    pl_status st = PL_OK;
    if (b->needs[0]) st = product_into(b, 0, g, false, b->saved[1], true);
    if (st == PL_OK && b->needs[1]) st = product_into(b, 1, b->saved[0], true, g, false);
    pl_tensor_release(g);
    return st;
}

const pl_op pl_op_matmul = {"matmul", PL_AMP_LOW, 0, matmul_forward, matmul_backward, false};

// ---- linear ----------------------------------------------------------------------------------

// t as a matrix of rows: (.., K) to (M, K), contiguous.
static pl_status as_rows(pl_tensor *t, pl_tensor **out) {
    pl_tensor *c = NULL;
    if (t->ndim == 2) return pl_contiguous(t, out);
    PL_TRY(pl_contiguous(t, &c));
    int64_t k = t->ndim ? t->shape[t->ndim - 1] : 1;
    int64_t shape[2] = {k ? t->numel / k : 0, k};
    if (k == 0) {  // the rows of an empty last dimension still count
        shape[0] = 1;
        for (int d = 0; d < t->ndim - 1; d++) shape[0] *= t->shape[d];
    }
    pl_status st = pl_tensor_view(c, 2, shape, out);
    pl_tensor_release(c);
    return st;
}

// A weight that its kernel rounds needs no copy in bf16: neither the time for one, nor the memory
// until its gradient is there.
bool pl_op_rounds(const pl_op *op, int i, pl_tensor *const *in, pl_dtype low, pl_attrs *attrs) {
    const pl_tensor *x = in[0], *w = in[1];
    bool fused = op == &pl_op_linear_cross_entropy;
    if ((op != &pl_op_linear && !fused) || i != 1) return false;
    const pl_kernels *k = pl_k(w);
    bool fits = low == PL_BF16 && w->dtype == PL_F32 && w->ndim == 2 && x->ndim >= 1 &&
                x->shape[x->ndim - 1] == w->shape[1] && pl_tensor_is_contiguous(w);
    if (!fits || pl_k(x) != k || !k->linear_rounds) return false;
    pl_tensor rows = *x;  // what one product takes; for this call only
    if (fused) {
        rows.shape[0] = pl__loss_chunk(x, w->shape[0], low, attrs->i[2]);
        rows.numel = rows.shape[0] * w->shape[1];
    }
    if (!k->linear_rounds(&rows, w)) return false;
    attrs->i[fused ? 3 : 1] = 1;
    return true;
}

static pl_status linear_check(const pl_tensor *x, const pl_tensor *w, const pl_tensor *bias,
                              bool wide) {
    char tx[128], tw[128];
    if (w->ndim != 2 || x->ndim < 1 || x->shape[x->ndim - 1] != w->shape[1]) {
        return pl_fail(PL_ERUNTIME,
                       "[linear] shapes do not fit: got input %s and weight %s, expected the "
                       "input's last size to be the weight's second, in_features",
                       pl_shape_text(x->ndim, x->shape, tx, sizeof tx),
                       pl_shape_text(w->ndim, w->shape, tw, sizeof tw));
    }
    if (bias && (bias->ndim != 1 || bias->shape[0] != w->shape[0])) {
        return pl_fail(PL_ERUNTIME, "[linear] bias must have shape [%lld]: got %s",
                       (long long)w->shape[0],
                       pl_shape_text(bias->ndim, bias->shape, tx, sizeof tx));
    }
    if ((x->dtype != w->dtype && !wide) || !pl_dtype_is_float(x->dtype)) {
        return pl_fail(PL_ERUNTIME,
                       "[linear] input and weight must have one floating dtype: got %s and %s",
                       pl_dtype_name(x->dtype), pl_dtype_name(w->dtype));
    }
    return PL_OK;
}

static pl_status linear_forward(pl_op_call *c) {
    pl_tensor *x = c->in[0], *w = c->in[1], *bias = c->in[2];
    pl_tensor *rows = NULL, *wc = NULL, *flat = NULL, *pre = NULL;
    int64_t shape[PL_MAX_DIMS];
    pl_activation act = (pl_activation)c->attrs.i[0];
    PL_TRY(linear_check(x, w, bias, c->attrs.i[1] != 0));
    memcpy(shape, x->shape, sizeof shape);
    shape[x->ndim - 1] = w->shape[0];
    pl_status st = as_rows(x, &rows);
    if (st == PL_OK) st = pl_contiguous(w, &wc);
    int64_t mn[2] = {rows ? rows->shape[0] : 0, w->shape[0]};
    if (st == PL_OK) st = pl_tensor_empty_beside(x, x->dtype, 2, mn, &flat);
    bool gelu = act == PL_ACT_GELU || act == PL_ACT_GELU_TANH;
    if (st == PL_OK && gelu && c->track) st = pl_tensor_empty_beside(x, x->dtype, 2, mn, &pre);
    if (st == PL_OK) st = pl_k(rows)->linear(rows, wc, bias, act, pre, flat);
    if (st == PL_OK && x->ndim == 2) c->out = pl_tensor_retain(flat);
    if (st == PL_OK && x->ndim != 2) st = pl_tensor_view(flat, x->ndim, shape, &c->out);
    if (st == PL_OK) st = pl_op_save(c, 0, rows);
    if (st == PL_OK) st = pl_op_save(c, 1, wc);
    if (st == PL_OK && gelu) st = pl_op_save(c, 2, pre);
    if (st == PL_OK && act == PL_ACT_RELU) st = pl_op_save(c, 2, flat);
    pl_tensor_release(rows);
    pl_tensor_release(wc);
    pl_tensor_release(flat);
    pl_tensor_release(pre);
    return st;
}

// The gradient of the product itself: g through the activation, as rows of the operands' dtype.
static pl_status linear_inner_grad(const pl_op_back *b, pl_tensor **out) {
    pl_activation act = (pl_activation)b->attrs->i[0];
    pl_tensor *g = NULL, *rows = NULL;
    // A gradient that only this pass holds is overwritten with what it becomes.
    bool own = b->grad->dtype != b->saved[0]->dtype || pl_tensor_is_only(b->grad);
    PL_TRY(pl_cast(b->grad, b->saved[0]->dtype, &g));
    own = own || !pl_tensor_is_contiguous(g);  // then rows are a copy
    pl_status st = as_rows(g, &rows);
    pl_tensor_release(g);
    PL_TRY(st);
    if (act == PL_ACT_NONE || b->came_through) {
        *out = rows;
        return PL_OK;
    }
    pl_binary rule = act == PL_ACT_RELU   ? PL_BINARY_RELU_GRAD
                     : act == PL_ACT_GELU ? PL_BINARY_GELU_GRAD
                                          : PL_BINARY_GELU_TANH_GRAD;
    if (own) {
        st = pl_k(rows)->binary(rule, rows, b->saved[2], rows);
        *out = st == PL_OK ? pl_tensor_retain(rows) : NULL;
    } else {
        st = pl_binary_new(rule, "linear", rows, b->saved[2], out);
    }
    pl_tensor_release(rows);
    return st;
}

pl_tensor *pl_op_through(const pl_op *from, const pl_attrs *attrs, pl_tensor *const *saved) {
    bool inside = from == &pl_op_linear && attrs->i[0] == PL_ACT_GELU_TANH;
    if (!inside && from != &pl_op_gelu_tanh) return NULL;
    pl_tensor *x = saved[inside ? 2 : 0];
    return pl_k(x)->linear_grad_gelu && pl_tensor_is_contiguous(x) ? x : NULL;
}

// rows = g w, or, where the kernel can, that through the GELU whose result the input was.
static pl_status input_product(const pl_op_back *b, pl_tensor *g, bool accumulate,
                               pl_tensor *rows) {
    pl_tensor *w = b->saved[1], *x = b->through, *flat = NULL;
    bool through = x && !accumulate && w->dtype == g->dtype && x->dtype == rows->dtype;
    if (!through) return pl_k(g)->matmul(g, w, accumulate, rows);
    PL_TRY(pl_tensor_view(x, 2, rows->shape, &flat));
    pl_status st = pl_k(g)->linear_grad_gelu(g, w, flat, rows);
    pl_tensor_release(flat);
    *b->went_through = st == PL_OK;
    return st;
}

// dx has the input's shape, the product has rows: computed through a view of the destination.
static pl_status linear_input_grad(const pl_op_back *b, pl_tensor *g) {
    pl_tensor *dest = NULL, *rows = NULL;
    bool accumulate = false;
    const pl_in_meta *m = &b->in[0];
    int64_t shape[2] = {g->shape[0], b->saved[1]->shape[1]};
    bool direct = m->dtype == g->dtype || m->dtype == PL_F32;
    pl_status st = direct ? pl_back_dest(b, 0, &dest, &accumulate)
                          : pl_tensor_empty_beside(g, g->dtype, m->ndim, m->shape, &dest);
    if (st == PL_OK) st = pl_tensor_view(dest, 2, shape, &rows);
    if (st == PL_OK) st = input_product(b, g, accumulate, rows);
    pl_tensor_release(rows);
    if (st != PL_OK) {
        pl_tensor_release(dest);
        return st;
    }
    b->out[0] = dest;
    return PL_OK;
}

// The bias gradient is a sum over rows, in fp32 whatever the operands are.
static pl_status linear_bias_grad(const pl_op_back *b, pl_tensor *g) {
    return pl_reduce_new(PL_REDUCE_SUM, g, 1u, false, &b->out[2]);
}

// Whether the kernel writes input i's gradient in its own dtype, from operands of dtype dt.
static bool direct(const pl_op_back *b, int i, pl_dtype dt) {
    return b->in[i].dtype == dt || b->in[i].dtype == PL_F32;
}

// Both in one pass over g.
static pl_status linear_weight_and_bias_grad(const pl_op_back *b, pl_tensor *g) {
    pl_tensor *dw = NULL, *db = NULL;
    bool add_w = false, add_b = false;
    pl_status st = pl_back_dest(b, 1, &dw, &add_w);
    if (st == PL_OK) st = pl_back_dest(b, 2, &db, &add_b);
    if (st == PL_OK) st = pl_k(g)->linear_grad(g, b->saved[0], dw, add_w, db, add_b);
    if (st != PL_OK) {
        pl_tensor_release(dw);
        pl_tensor_release(db);
        return st;
    }
    b->out[1] = dw;
    b->out[2] = db;
    return PL_OK;
}

static pl_status linear_backward(const pl_op_back *b) {
    pl_tensor *g = NULL;
    PL_TRY(linear_inner_grad(b, &g));
    pl_dtype dt = g->dtype;
    pl_status st = PL_OK;
    bool bias = b->n_in > 2 && b->needs[2];
    if (b->needs[0]) st = linear_input_grad(b, g);
    if (st == PL_OK && bias && b->needs[1] && direct(b, 1, dt) && direct(b, 2, dt)) {
        st = linear_weight_and_bias_grad(b, g);
    } else {
        if (st == PL_OK && b->needs[1]) st = product_into(b, 1, g, true, b->saved[0], false);
        if (st == PL_OK && bias) st = linear_bias_grad(b, g);
    }
    pl_tensor_release(g);
    return st;
}

const pl_op pl_op_linear = {"linear", PL_AMP_LOW, 0, linear_forward, linear_backward, false};

// SPDX-License-Identifier: Apache-2.0
// Elementwise operators and their gradients. Broadcasting is undone by pl_sum_to.
#include <math.h>

#include "ops/ops.h"

// ---- one input -------------------------------------------------------------------------------

static bool needs_float(pl_unary op) {
    return !(op == PL_UNARY_NEG || op == PL_UNARY_ABS || op == PL_UNARY_SQUARE ||
             op == PL_UNARY_RELU);
}

static pl_status unary_forward(pl_op_call *c) {
    pl_tensor *x = c->in[0], *f = NULL;
    pl_unary op = (pl_unary)c->op->kind;
    if (x->dtype == PL_BOOL && !needs_float(op)) {
        return pl_fail(PL_ERUNTIME,
                       "[%s] not defined for bool: got a bool tensor, expected numbers",
                       c->op->name);
    }
    bool to_float = needs_float(op) && !pl_dtype_is_float(x->dtype);
    PL_TRY(pl_cast(x, to_float ? PL_F32 : x->dtype, &f));
    pl_status st = pl_unary_new(op, f, &c->out);
    pl_tensor_release(f);
    PL_TRY(st);
    bool by_output = op == PL_UNARY_EXP || op == PL_UNARY_SQRT || op == PL_UNARY_RSQRT ||
                     op == PL_UNARY_RECIPROCAL || op == PL_UNARY_TANH || op == PL_UNARY_SIGMOID ||
                     op == PL_UNARY_RELU;
    if (op == PL_UNARY_NEG) return PL_OK;
    return pl_op_save(c, 0, by_output ? c->out : x);
}

// r = a op b, with a released first (a chain of steps owns its intermediate).
static pl_status then(pl_status st, pl_binary op, pl_tensor *a, pl_tensor *b, pl_tensor **r) {
    if (st == PL_OK) st = pl_binary_new(op, "gradient", a, b, r);
    pl_tensor_release(a);
    return st;
}

static pl_status times_scalar(pl_tensor *a, double k, pl_tensor **r) {
    pl_tensor *s = NULL;
    PL_TRY(pl_number(a->dtype, k, &s));
    pl_status st = pl_binary_new(PL_BINARY_MUL, "gradient", a, s, r);
    pl_tensor_release(s);
    return st;
}

static pl_status mul_unary(pl_tensor *g, pl_unary op, pl_tensor *x, pl_tensor **r) {
    pl_tensor *d = NULL;
    PL_TRY(pl_unary_new(op, x, &d));
    return then(PL_OK, PL_BINARY_MUL, d, g, r);
}

// g * k * y^n for the operators whose derivative is a power of the output.
static pl_status power_of_output(pl_tensor *g, pl_tensor *y, int n, double k, pl_tensor **r) {
    pl_tensor *a = NULL, *p = NULL;
    PL_TRY(times_scalar(g, k, &a));
    for (int i = 0; i < n; i++) {
        PL_TRY(then(PL_OK, PL_BINARY_MUL, a, y, &p));
        a = p;
    }
    *r = a;
    return PL_OK;
}

// d/dx erf(x) = 2/sqrt(pi) exp(-x^2)
static pl_status erf_grad(pl_tensor *g, pl_tensor *x, pl_tensor **r) {
    pl_tensor *sq = NULL, *n = NULL, *e = NULL, *k = NULL;
    pl_status st = pl_unary_new(PL_UNARY_SQUARE, x, &sq);
    if (st == PL_OK) st = pl_unary_new(PL_UNARY_NEG, sq, &n);
    if (st == PL_OK) st = pl_unary_new(PL_UNARY_EXP, n, &e);
    if (st == PL_OK) st = times_scalar(e, 1.1283791670955126, &k);
    if (st == PL_OK) st = pl_binary_new(PL_BINARY_MUL, "gradient", k, g, r);
    pl_tensor_release(sq);
    pl_tensor_release(n);
    pl_tensor_release(e);
    pl_tensor_release(k);
    return st;
}

static pl_status unary_backward(const pl_op_back *b) {
    pl_tensor *g = b->grad, *s = b->saved[0], **r = &b->out[0], *t = NULL;
    switch ((pl_unary)b->op->kind) {
        case PL_UNARY_NEG:
            return pl_unary_new(PL_UNARY_NEG, g, r);
        case PL_UNARY_ABS:
            return mul_unary(g, PL_UNARY_SIGN, s, r);
        case PL_UNARY_EXP:
            return pl_binary_new(PL_BINARY_MUL, "exp", g, s, r);
        case PL_UNARY_LOG:
            return pl_binary_new(PL_BINARY_DIV, "log", g, s, r);
        case PL_UNARY_SQRT:
            PL_TRY(times_scalar(g, 0.5, &t));
            return then(PL_OK, PL_BINARY_DIV, t, s, r);
        case PL_UNARY_RSQRT:
            return power_of_output(g, s, 3, -0.5, r);
        case PL_UNARY_RECIPROCAL:
            return power_of_output(g, s, 2, -1.0, r);
        case PL_UNARY_SQUARE:
            PL_TRY(times_scalar(g, 2.0, &t));
            return then(PL_OK, PL_BINARY_MUL, t, s, r);
        case PL_UNARY_SIN:
            return mul_unary(g, PL_UNARY_COS, s, r);
        case PL_UNARY_COS:
            PL_TRY(mul_unary(g, PL_UNARY_SIN, s, &t));
            {
                pl_status st = pl_unary_new(PL_UNARY_NEG, t, r);
                pl_tensor_release(t);
                return st;
            }
        case PL_UNARY_TANH:
            return pl_binary_new(PL_BINARY_TANH_GRAD, "tanh", g, s, r);
        case PL_UNARY_SIGMOID:
            return pl_binary_new(PL_BINARY_SIGMOID_GRAD, "sigmoid", g, s, r);
        case PL_UNARY_RELU:
            return pl_binary_new(PL_BINARY_RELU_GRAD, "relu", g, s, r);
        case PL_UNARY_GELU:
            return pl_binary_new(PL_BINARY_GELU_GRAD, "gelu", g, s, r);
        case PL_UNARY_GELU_TANH:
            if (!b->came_through) {
                return pl_binary_new(PL_BINARY_GELU_TANH_GRAD, "gelu_tanh", g, s, r);
            }
            *r = pl_tensor_retain(g);
            return PL_OK;
        case PL_UNARY_SILU:
            return pl_binary_new(PL_BINARY_SILU_GRAD, "silu", g, s, r);
        case PL_UNARY_ERF:
            return erf_grad(g, s, r);
        default:
            return pl_fail(PL_EBUG, "[%s] no gradient rule", b->op->name);
    }
}

#define UNARY(id, KIND, AMP) \
    const pl_op pl_op_##id = {#id, AMP, PL_UNARY_##KIND, unary_forward, unary_backward, false};
UNARY(neg, NEG, PL_AMP_KEEP)
UNARY(abs, ABS, PL_AMP_KEEP)
UNARY(exp, EXP, PL_AMP_F32)
UNARY(log, LOG, PL_AMP_F32)
UNARY(sqrt, SQRT, PL_AMP_KEEP)
UNARY(rsqrt, RSQRT, PL_AMP_F32)
UNARY(reciprocal, RECIPROCAL, PL_AMP_F32)
UNARY(square, SQUARE, PL_AMP_F32)
UNARY(sin, SIN, PL_AMP_KEEP)
UNARY(cos, COS, PL_AMP_KEEP)
UNARY(tanh, TANH, PL_AMP_KEEP)
UNARY(sigmoid, SIGMOID, PL_AMP_KEEP)
UNARY(relu, RELU, PL_AMP_KEEP)
UNARY(gelu, GELU, PL_AMP_KEEP)
UNARY(gelu_tanh, GELU_TANH, PL_AMP_KEEP)
UNARY(silu, SILU, PL_AMP_KEEP)
UNARY(erf, ERF, PL_AMP_F32)

// ---- two inputs ------------------------------------------------------------------------------

static pl_status binary_forward(pl_op_call *c) {
    pl_binary op = (pl_binary)c->op->kind;
    PL_TRY(pl_binary_new(op, c->op->name, c->in[0], c->in[1], &c->out));
    if (op == PL_BINARY_ADD || op == PL_BINARY_SUB) return PL_OK;
    PL_TRY(pl_op_save(c, 0, c->in[0]));
    PL_TRY(pl_op_save(c, 1, c->in[1]));
    return op == PL_BINARY_POW ? pl_op_save(c, 2, c->out) : PL_OK;
}

// Gives d (taken over) as the gradient of input i: summed to its shape.
static pl_status give(const pl_op_back *b, int i, pl_status st, pl_tensor *d) {
    if (st == PL_OK) st = pl_sum_to(d, b->in[i].ndim, b->in[i].shape, &b->out[i]);
    pl_tensor_release(d);
    return st;
}

static pl_status product_grad(const pl_op_back *b, int i, pl_binary op, pl_tensor *other) {
    pl_tensor *d = NULL;
    pl_status st = pl_binary_new(op, b->op->name, b->grad, other, &d);
    return give(b, i, st, d);
}

// d(a/b)/db = -g a / b^2
static pl_status div_grad_b(const pl_op_back *b) {
    pl_tensor *x = b->saved[0], *y = b->saved[1], *t = NULL, *u = NULL, *v = NULL, *d = NULL;
    pl_status st = pl_binary_new(PL_BINARY_MUL, "div", b->grad, x, &t);
    st = then(st, PL_BINARY_DIV, t, y, &u);
    st = then(st, PL_BINARY_DIV, u, y, &v);
    if (st == PL_OK) st = pl_unary_new(PL_UNARY_NEG, v, &d);
    pl_tensor_release(v);
    return give(b, 1, st, d);
}

// d(a^b)/da = g b a^(b-1), 0 where b is 0; d(a^b)/db = g a^b log a, 0 where a is 0.
static pl_status pow_grad(const pl_op_back *b, int i) {
    pl_tensor *x = b->saved[0], *y = b->saved[1], *zero = NULL, *mask = NULL, *t = NULL, *u = NULL;
    pl_tensor *v = NULL, *d = NULL, *one = NULL, *zeros = NULL, *wide = NULL;
    pl_dtype dt = b->grad->dtype;
    pl_status st = pl_scalar(b->grad, dt, 0.0, &zero);
    if (st == PL_OK) st = pl_binary_new(PL_BINARY_EQ, "pow", i == 0 ? y : x, zero, &mask);
    if (st == PL_OK && i == 0) {
        st = pl_number(dt, 1.0, &one);
        if (st == PL_OK) st = pl_binary_new(PL_BINARY_SUB, "pow", y, one, &t);
        if (st == PL_OK) st = pl_binary_new(PL_BINARY_POW, "pow", x, t, &u);
        if (st == PL_OK) st = pl_binary_new(PL_BINARY_MUL, "pow", u, y, &v);
    } else if (st == PL_OK) {
        st = pl_cast(x, dt, &t);
        if (st == PL_OK) st = pl_unary_new(PL_UNARY_LOG, t, &u);
        if (st == PL_OK) st = pl_binary_new(PL_BINARY_MUL, "pow", b->saved[2], u, &v);
    }
    if (st == PL_OK) st = pl_binary_new(PL_BINARY_MUL, "pow", v, b->grad, &d);
    pl_tensor_release(t);
    pl_tensor_release(u);
    pl_tensor_release(v);
    v = NULL;
    if (st == PL_OK) st = pl_tensor_expand(mask, d->ndim, d->shape, &wide);
    if (st == PL_OK) st = pl_tensor_expand(zero, d->ndim, d->shape, &zeros);
    if (st == PL_OK) st = pl_tensor_empty_like(d, d->dtype, &v);
    if (st == PL_OK && zeros->dtype != d->dtype) st = pl_fail(PL_EBUG, "[pow] dtypes differ");
    if (st == PL_OK) st = pl_k(wide)->where(wide, zeros, d, v);
    pl_tensor_release(zero);
    pl_tensor_release(one);
    pl_tensor_release(mask);
    pl_tensor_release(wide);
    pl_tensor_release(zeros);
    pl_tensor_release(d);
    return give(b, i, st, v);
}

// The winner gets the gradient; equal values share it half and half, as in PyTorch.
static pl_status extreme_grad(const pl_op_back *b, int i) {
    pl_binary beats = b->op->kind == PL_BINARY_MAXIMUM ? PL_BINARY_GT : PL_BINARY_LT;
    pl_tensor *x = b->saved[i], *y = b->saved[1 - i], *win = NULL, *tie = NULL, *w = NULL;
    pl_tensor *t = NULL, *half = NULL, *k = NULL, *d = NULL;
    pl_status st = pl_binary_new(beats, b->op->name, x, y, &win);
    if (st == PL_OK) st = pl_binary_new(PL_BINARY_EQ, b->op->name, x, y, &tie);
    if (st == PL_OK) st = pl_cast(win, b->grad->dtype, &w);
    if (st == PL_OK) st = pl_cast(tie, b->grad->dtype, &t);
    if (st == PL_OK) st = times_scalar(t, 0.5, &half);
    if (st == PL_OK) st = pl_binary_new(PL_BINARY_ADD, b->op->name, w, half, &k);
    if (st == PL_OK) st = pl_binary_new(PL_BINARY_MUL, b->op->name, k, b->grad, &d);
    pl_tensor_release(win);
    pl_tensor_release(tie);
    pl_tensor_release(w);
    pl_tensor_release(t);
    pl_tensor_release(half);
    pl_tensor_release(k);
    return give(b, i, st, d);
}

static pl_status binary_grad_of(const pl_op_back *b, int i) {
    pl_tensor *d = NULL;
    pl_status st;
    switch ((pl_binary)b->op->kind) {
        case PL_BINARY_ADD:
            return give(b, i, PL_OK, pl_tensor_retain(b->grad));
        case PL_BINARY_SUB:
            if (i == 0) return give(b, i, PL_OK, pl_tensor_retain(b->grad));
            st = pl_unary_new(PL_UNARY_NEG, b->grad, &d);
            return give(b, i, st, d);
        case PL_BINARY_MUL:
            return product_grad(b, i, PL_BINARY_MUL, b->saved[1 - i]);
        case PL_BINARY_DIV:
            return i == 0 ? product_grad(b, 0, PL_BINARY_DIV, b->saved[1]) : div_grad_b(b);
        case PL_BINARY_POW:
            return pow_grad(b, i);
        default:
            return extreme_grad(b, i);
    }
}

static pl_status binary_backward(const pl_op_back *b) {
    for (int i = 0; i < 2; i++) {
        if (b->needs[i]) PL_TRY(binary_grad_of(b, i));
    }
    return PL_OK;
}

#define BINARY(id, KIND)       \
    const pl_op pl_op_##id = { \
        #id, PL_AMP_KEEP, PL_BINARY_##KIND, binary_forward, binary_backward, false};
BINARY(add, ADD)
BINARY(sub, SUB)
BINARY(mul, MUL)
BINARY(div, DIV)
BINARY(maximum, MAXIMUM)
BINARY(minimum, MINIMUM)
const pl_op pl_op_pow = {"pow", PL_AMP_F32, PL_BINARY_POW, binary_forward, binary_backward, false};

bool pl_op_takes_numbers(const pl_op *op) { return op->forward == binary_forward; }

// SPDX-License-Identifier: Apache-2.0
// Reductions and their gradients; argmax, argmin, sort and nonzero, which have none.
#include <string.h>

#include "ops/ops.h"

static pl_status reduce_forward(pl_op_call *c) {
    pl_reduce op = (pl_reduce)c->op->kind;
    pl_tensor *x = c->in[0];
    uint32_t dims = (uint32_t)c->attrs.i[0];
    if (op == PL_REDUCE_MEAN && !pl_dtype_is_float(x->dtype)) {
        return pl_fail(PL_ERUNTIME, "[mean] needs a floating dtype: got %s; use x.float()",
                       pl_dtype_name(x->dtype));
    }
    if ((op == PL_REDUCE_MAX || op == PL_REDUCE_MIN) && x->numel == 0) {
        return pl_fail(PL_EINVAL, "[%s] a tensor with no elements has no extreme value",
                       c->op->name);
    }
    PL_TRY(pl_reduce_new(op, x, dims, c->attrs.i[1] != 0, &c->out));
    if (op == PL_REDUCE_SUM || op == PL_REDUCE_MEAN) return PL_OK;
    PL_TRY(pl_op_save(c, 0, x));
    return pl_op_save(c, 1, c->out);
}

// t, of the reduced shape, seen in the input's shape (stride 0 at reduced dimensions).
static pl_status spread(const pl_op_back *b, pl_tensor *t, pl_tensor **out) {
    const pl_in_meta *m = &b->in[0];
    int64_t kept[PL_MAX_DIMS];
    for (int d = 0; d < m->ndim; d++) kept[d] = b->attrs->i[0] >> d & 1 ? 1 : m->shape[d];
    pl_tensor *c = NULL, *v = NULL;
    PL_TRY(pl_contiguous(t, &c));
    pl_status st = pl_tensor_view(c, m->ndim, kept, &v);
    if (st == PL_OK) st = pl_tensor_expand(v, m->ndim, m->shape, out);
    pl_tensor_release(c);
    pl_tensor_release(v);
    return st;
}

static pl_status sum_backward(const pl_op_back *b) { return spread(b, b->grad, &b->out[0]); }

static pl_status mean_backward(const pl_op_back *b) {
    double n = 1;
    for (int d = 0; d < b->in[0].ndim; d++) {
        if (b->attrs->i[0] >> d & 1) n *= (double)b->in[0].shape[d];
    }
    pl_tensor *k = NULL, *g = NULL;
    // fp32 for the half types, in which a count above 65504 or 256 would not be exact.
    PL_TRY(pl_number(b->grad->dtype == PL_F64 ? PL_F64 : PL_F32, n, &k));
    pl_status st = pl_binary_new(PL_BINARY_DIV, "mean", b->grad, k, &g);
    if (st == PL_OK) st = spread(b, g, &b->out[0]);
    pl_tensor_release(k);
    pl_tensor_release(g);
    return st;
}

// Equal extremes share the gradient evenly, as in PyTorch's amax and amin.
static pl_status extreme_backward(const pl_op_back *b) {
    pl_tensor *y = NULL, *eq = NULL, *m = NULL, *n = NULL, *g = NULL, *s = NULL;
    pl_dtype dt = b->grad->dtype;
    pl_status st = spread(b, b->saved[1], &y);
    if (st == PL_OK) st = pl_binary_new(PL_BINARY_EQ, b->op->name, b->saved[0], y, &eq);
    if (st == PL_OK) st = pl_cast(eq, dt, &m);
    if (st == PL_OK) st = pl_reduce_new(PL_REDUCE_SUM, m, (uint32_t)b->attrs->i[0], false, &n);
    pl_tensor *flat = NULL;
    if (st == PL_OK) st = pl_tensor_view(n, b->grad->ndim, b->grad->shape, &flat);
    if (st == PL_OK) st = pl_binary_new(PL_BINARY_DIV, b->op->name, b->grad, flat, &g);
    if (st == PL_OK) st = spread(b, g, &s);
    if (st == PL_OK) st = pl_binary_new(PL_BINARY_MUL, b->op->name, s, m, &b->out[0]);
    pl_tensor_release(y);
    pl_tensor_release(eq);
    pl_tensor_release(m);
    pl_tensor_release(n);
    pl_tensor_release(flat);
    pl_tensor_release(g);
    pl_tensor_release(s);
    return st;
}

// g * y / x: undefined where x is 0, as the docstring of prod says.
static pl_status prod_backward(const pl_op_back *b) {
    pl_tensor *gy = NULL, *s = NULL;
    pl_status st = pl_binary_new(PL_BINARY_MUL, "prod", b->grad, b->saved[1], &gy);
    if (st == PL_OK) st = spread(b, gy, &s);
    if (st == PL_OK) st = pl_binary_new(PL_BINARY_DIV, "prod", s, b->saved[0], &b->out[0]);
    pl_tensor_release(gy);
    pl_tensor_release(s);
    return st;
}

const pl_op pl_op_sum = {"sum", PL_AMP_F32, PL_REDUCE_SUM, reduce_forward, sum_backward, false};
const pl_op pl_op_mean = {"mean", PL_AMP_F32, PL_REDUCE_MEAN, reduce_forward, mean_backward, false};
const pl_op pl_op_prod = {"prod", PL_AMP_F32, PL_REDUCE_PROD, reduce_forward, prod_backward, false};
const pl_op pl_op_amax = {"amax",         PL_AMP_KEEP,      PL_REDUCE_MAX,
                          reduce_forward, extreme_backward, false};
const pl_op pl_op_amin = {"amin",         PL_AMP_KEEP,      PL_REDUCE_MIN,
                          reduce_forward, extreme_backward, false};

static pl_status cumsum_new(pl_tensor *x, int dim, pl_tensor **out) {
    pl_tensor *in = NULL, *r = NULL;
    PL_TRY(pl_cast(x, pl_dtype_is_float(x->dtype) ? x->dtype : PL_I64, &in));
    pl_status st = pl_tensor_empty_like(in, in->dtype, &r);
    if (st == PL_OK) st = x->ndim ? pl_k(in)->cumsum(in, dim, r) : pl_k(in)->copy(in, r);
    pl_tensor_release(in);
    if (st != PL_OK) {
        pl_tensor_release(r);
        return st;
    }
    *out = r;
    return PL_OK;
}

static pl_status cumsum_forward(pl_op_call *c) {
    int dim;
    PL_TRY(pl_dim_wrap("cumsum", (int)c->attrs.i[0], c->in[0]->ndim, &dim));
    c->attrs.i[0] = dim;
    return cumsum_new(c->in[0], dim, &c->out);
}

// The sum from each element to the end: total - running sum + the element itself.
static pl_status cumsum_backward(const pl_op_back *b) {
    int dim = (int)b->attrs->i[0];
    pl_tensor *g = b->grad, *run = NULL, *total = NULL, *rest = NULL;
    if (g->ndim == 0) {
        b->out[0] = pl_tensor_retain(g);
        return PL_OK;
    }
    pl_status st = cumsum_new(g, dim, &run);
    if (st == PL_OK) st = pl_reduce_new(PL_REDUCE_SUM, g, 1u << dim, true, &total);
    if (st == PL_OK) st = pl_binary_new(PL_BINARY_SUB, "cumsum", total, run, &rest);
    if (st == PL_OK) st = pl_binary_new(PL_BINARY_ADD, "cumsum", rest, g, &b->out[0]);
    pl_tensor_release(run);
    pl_tensor_release(total);
    pl_tensor_release(rest);
    return st;
}

const pl_op pl_op_cumsum = {"cumsum", PL_AMP_F32, 0, cumsum_forward, cumsum_backward, false};

// ---- without a gradient ----------------------------------------------------------------------

pl_status pl_argreduce(bool max, pl_tensor *x, int dim, bool all, bool keepdim, pl_tensor **out) {
    const char *name = max ? "argmax" : "argmin";
    pl_tensor *in = NULL, *r = NULL;
    int64_t shape[PL_MAX_DIMS];
    int n = 0;
    if (x->numel == 0) return pl_fail(PL_EINVAL, "[%s] a tensor with no elements", name);
    if (all || x->ndim == 0) {
        int64_t flat = x->numel;
        pl_tensor *c = NULL;
        PL_TRY(pl_contiguous(x, &c));
        pl_status st = pl_tensor_view(c, 1, &flat, &in);
        pl_tensor_release(c);
        PL_TRY(st);
        dim = 0;
        if (keepdim && all) {
            for (; n < x->ndim; n++) shape[n] = 1;
        }
    } else {
        PL_TRY(pl_dim_wrap(name, dim, x->ndim, &dim));
        in = pl_tensor_retain(x);
        for (int d = 0; d < x->ndim; d++) {
            if (d != dim || keepdim) shape[n++] = d == dim ? 1 : x->shape[d];
        }
    }
    int64_t kept[PL_MAX_DIMS];
    memcpy(kept, in->shape, sizeof kept);
    kept[dim] = 1;
    pl_status st = pl_tensor_empty_beside(in, PL_I64, in->ndim, kept, &r);
    if (st == PL_OK) st = pl_k(in)->argreduce(max, in, dim, r);
    if (st == PL_OK) st = pl_tensor_view(r, n, shape, out);
    pl_tensor_release(in);
    pl_tensor_release(r);
    return st;
}

pl_status pl_sort(pl_tensor *x, int dim, bool descending, pl_tensor **values, pl_tensor **indices) {
    pl_tensor *t = NULL, *c = NULL, *v = NULL, *k = NULL;
    PL_TRY(pl_dim_wrap("sort", dim, x->ndim, &dim));
    int last = x->ndim > 0 ? x->ndim - 1 : 0;
    pl_status st = pl_tensor_transpose(x, dim, last, &t);
    if (st == PL_OK) st = pl_contiguous(t, &c);
    if (st == PL_OK) st = pl_tensor_empty_like(c, c->dtype, &v);
    if (st == PL_OK) st = pl_tensor_empty_like(c, PL_I64, &k);
    if (st == PL_OK && x->ndim == 0) {
        st = pl_k(c)->copy(c, v);
        if (st == PL_OK) st = pl_k(k)->fill_int(k, 0);
    } else if (st == PL_OK) {
        st = pl_k(c)->sort(c, descending, v, k);
    }
    if (st == PL_OK) st = pl_tensor_transpose(v, dim, last, values);
    if (st == PL_OK) st = pl_tensor_transpose(k, dim, last, indices);
    pl_tensor_release(t);
    pl_tensor_release(c);
    pl_tensor_release(v);
    pl_tensor_release(k);
    return st;
}

pl_status pl_nonzero(pl_tensor *x, pl_tensor **out) {
    int64_t shape[2] = {0, x->ndim};
    pl_tensor *r = NULL;
    pl_numbers count;
    PL_TRY(pl_numbers_open(pl_tensor_device(x), sizeof shape[0], &shape[0], &count));
    PL_TRY(pl_numbers_close(&count, pl_k(x)->count_nonzero(x, count.at)));
    PL_TRY(pl_tensor_empty_beside(x, PL_I64, 2, shape, &r));
    pl_status st = pl_k(x)->nonzero(x, r);
    if (st != PL_OK) {
        pl_tensor_release(r);
        return st;
    }
    *out = r;
    return PL_OK;
}

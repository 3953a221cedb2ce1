// SPDX-License-Identifier: Apache-2.0
// View operators (and cat): they move no data forward, and gradients back through strides.
#include <string.h>

#include "ops/ops.h"

static pl_status view_forward(pl_op_call *c) {
    pl_tensor *x = c->in[0], *t = NULL;
    bool may_copy = c->attrs.f[0] != 0;
    pl_status st = pl_tensor_view(x, c->attrs.n, c->attrs.i, &c->out);
    // The one failure that a copy mends is a layout that has no view; a bad size fails again.
    if (st != PL_ERUNTIME || !may_copy || pl_tensor_is_contiguous(x)) return st;
    PL_TRY(pl_contiguous(x, &t));
    st = pl_tensor_view(t, c->attrs.n, c->attrs.i, &c->out);
    pl_tensor_release(t);
    return st;
}

static pl_status view_backward(const pl_op_back *b) {
    pl_tensor *g = NULL;
    PL_TRY(pl_contiguous(b->grad, &g));
    pl_status st = pl_tensor_view(g, b->in[0].ndim, b->in[0].shape, &b->out[0]);
    pl_tensor_release(g);
    return st;
}

const pl_op pl_op_view = {"view", PL_AMP_KEEP, 0, view_forward, view_backward, true};

static pl_status permute_forward(pl_op_call *c) {
    int dims[PL_MAX_DIMS];
    if (c->attrs.n != c->in[0]->ndim) {
        return pl_fail(PL_ERUNTIME, "[permute] got %d dimensions for a tensor of %d", c->attrs.n,
                       c->in[0]->ndim);
    }
    for (int d = 0; d < c->attrs.n; d++) dims[d] = (int)c->attrs.i[d];
    return pl_tensor_permute(c->in[0], dims, &c->out);
}

static pl_status permute_backward(const pl_op_back *b) {
    int inverse[PL_MAX_DIMS];
    for (int d = 0; d < b->attrs->n; d++) {
        int from = (int)b->attrs->i[d];
        inverse[from < 0 ? from + b->attrs->n : from] = d;
    }
    return pl_tensor_permute(b->grad, inverse, &b->out[0]);
}

const pl_op pl_op_permute = {"permute", PL_AMP_KEEP, 0, permute_forward, permute_backward, true};

static pl_status expand_forward(pl_op_call *c) {
    return pl_tensor_expand(c->in[0], c->attrs.n, c->attrs.i, &c->out);
}

static pl_status expand_backward(const pl_op_back *b) {
    return pl_sum_to(b->grad, b->in[0].ndim, b->in[0].shape, &b->out[0]);
}

const pl_op pl_op_expand = {"expand", PL_AMP_KEEP, 0, expand_forward, expand_backward, true};

static pl_status slice_forward(pl_op_call *c) {
    const int64_t *i = c->attrs.i;
    return pl_tensor_slice(c->in[0], (int)i[0], i[1], i[2], i[3], &c->out);
}

// Zeros in what of t (contiguous) lies before and behind its slice `part` of step 1.
static pl_status fill_outside(pl_tensor *t, const pl_tensor *part, int dim) {
    dim = dim < 0 ? dim + t->ndim : dim;
    if (part->numel == 0) return pl_fill_any(t, 0.0);
    int64_t offset = ((char *)part->data - (char *)t->data) / (int64_t)pl_dtype_size(t->dtype);
    int64_t start = offset / t->strides[dim], stop = start + part->shape[dim];
    int64_t ends[2][2] = {{0, start}, {stop, t->shape[dim]}};
    for (int side = 0; side < 2; side++) {
        pl_tensor *rest = NULL;
        if (ends[side][0] == ends[side][1]) continue;
        PL_TRY(pl_tensor_slice(t, dim, ends[side][0], ends[side][1], 1, &rest));
        pl_status st = pl_fill_any(rest, 0.0);
        pl_tensor_release(rest);
        PL_TRY(st);
    }
    return PL_OK;
}

// Writes the slice's gradient into the sum under way, or beside zeros: several slices of one tensor
// (q, k, v of a packed projection) then cost one buffer with zeros, not one each.
static pl_status slice_backward(const pl_op_back *b) {
    const int64_t *i = b->attrs->i;
    pl_tensor *dest = NULL, *part = NULL;
    bool accumulate;
    PL_TRY(pl_back_dest(b, 0, &dest, &accumulate));
    pl_status st = pl_tensor_slice(dest, (int)i[0], i[1], i[2], i[3], &part);
    if (st == PL_OK && !accumulate) {
        st = i[3] == 1 ? fill_outside(dest, part, (int)i[0]) : pl_fill_any(dest, 0.0);
    }
    if (st == PL_OK && accumulate) st = pl_k(part)->binary(PL_BINARY_ADD, part, b->grad, part);
    if (st == PL_OK && !accumulate) st = pl_k(b->grad)->copy(b->grad, part);
    pl_tensor_release(part);
    if (st != PL_OK) {
        pl_tensor_release(dest);
        return st;
    }
    b->out[0] = dest;
    return PL_OK;
}

const pl_op pl_op_slice = {"slice", PL_AMP_KEEP, 0, slice_forward, slice_backward, true};

static pl_status cat_check(pl_op_call *c, int dim, int64_t *total, pl_dtype *dt) {
    pl_tensor *first = c->in[0];
    char a[128], b[128];
    *total = 0;
    *dt = first->dtype;
    for (int k = 0; k < c->n_in; k++) {
        pl_tensor *t = c->in[k];
        bool same = t->ndim == first->ndim;
        for (int d = 0; same && d < t->ndim; d++) {
            if (d != dim && t->shape[d] != first->shape[d]) same = false;
        }
        if (!same) {
            return pl_fail(PL_ERUNTIME,
                           "[cat] sizes must match except in dimension %d: got %s for tensor %d "
                           "and %s for the first",
                           dim, pl_shape_text(t->ndim, t->shape, a, sizeof a), k,
                           pl_shape_text(first->ndim, first->shape, b, sizeof b));
        }
        *total += t->shape[dim];
        *dt = pl_dtype_promote(*dt, t->dtype);
    }
    return PL_OK;
}

static pl_status cat_forward(pl_op_call *c) {
    int dim;
    int64_t total, at = 0, shape[PL_MAX_DIMS];
    pl_dtype dt;
    pl_tensor *first = c->n_in ? c->in[0] : NULL, *out = NULL;
    if (!first) return pl_fail(PL_EINVAL, "[cat] expected at least one tensor, got none");
    if (first->ndim == 0) {
        return pl_fail(PL_ERUNTIME, "[cat] 0-d tensors cannot be concatenated: use stack");
    }
    PL_TRY(pl_dim_wrap("cat", (int)c->attrs.i[0], first->ndim, &dim));
    c->attrs.i[0] = dim;
    PL_TRY(cat_check(c, dim, &total, &dt));
    memcpy(shape, first->shape, sizeof shape);
    shape[dim] = total;
    PL_TRY(pl_tensor_empty_beside(first, dt, first->ndim, shape, &out));
    for (int k = 0; k < c->n_in; k++) {
        pl_tensor *part = NULL;
        int64_t n = c->in[k]->shape[dim];
        pl_status st = pl_tensor_slice(out, dim, at, at + n, 1, &part);
        if (st == PL_OK && n > 0) st = pl_k(c->in[k])->copy(c->in[k], part);
        pl_tensor_release(part);
        if (st != PL_OK) {
            pl_tensor_release(out);
            return st;
        }
        at += n;
    }
    c->out = out;
    return PL_OK;
}

static pl_status cat_backward(const pl_op_back *b) {
    int dim = (int)b->attrs->i[0];
    int64_t at = 0;
    for (int k = 0; k < b->n_in; k++) {
        int64_t n = b->in[k].shape[dim];
        pl_tensor *part = NULL;
        if (b->needs[k]) {
            PL_TRY(pl_tensor_slice(b->grad, dim, at, at + n, 1, &part));
            pl_status st = pl_copy_new(part, b->in[k].dtype, &b->out[k]);
            pl_tensor_release(part);
            PL_TRY(st);
        }
        at += n;
    }
    return PL_OK;
}

const pl_op pl_op_cat = {"cat", PL_AMP_KEEP, 0, cat_forward, cat_backward, false};

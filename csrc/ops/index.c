// SPDX-License-Identifier: Apache-2.0
// Operators by index: embedding (rows of a table, also x[index] and index_select) and gather.
#include <string.h>

#include "ops/ops.h"

static pl_status check_index(const char *op, const pl_tensor *index) {
    if (index->dtype == PL_I64 || index->dtype == PL_I32 || index->dtype == PL_U8) return PL_OK;
    return pl_fail(PL_EINDEX, "[%s] an index must be an integer tensor: got %s", op,
                   pl_dtype_name(index->dtype));
}

// index as i64, contiguous.
static pl_status index64(pl_tensor *index, pl_tensor **out) {
    pl_tensor *c = NULL;
    PL_TRY(pl_cast(index, PL_I64, &c));
    pl_status st = pl_contiguous(c, out);
    pl_tensor_release(c);
    return st;
}

// The table as (N, D) rows: its first dimension and everything behind it.
static pl_status table_rows(pl_tensor *w, pl_tensor **out) {
    int64_t shape[2] = {w->shape[0], 1};
    for (int d = 1; d < w->ndim; d++) shape[1] *= w->shape[d];
    pl_tensor *c = NULL;
    PL_TRY(pl_contiguous(w, &c));
    pl_status st = pl_tensor_view(c, 2, shape, out);
    pl_tensor_release(c);
    return st;
}

static pl_status embedding_forward(pl_op_call *c) {
    pl_tensor *w = c->in[0], *index = NULL, *table = NULL, *flat = NULL;
    int64_t shape[PL_MAX_DIMS * 2];
    PL_TRY(check_index("embedding", c->in[1]));
    if (w->ndim < 1) return pl_fail(PL_EINDEX, "[embedding] a 0-d tensor has no rows");
    int n = c->in[1]->ndim + w->ndim - 1;
    if (n > PL_MAX_DIMS) {
        return pl_fail(PL_EINVAL, "[embedding] the result would have %d dimensions: at most %d", n,
                       PL_MAX_DIMS);
    }
    memcpy(shape, c->in[1]->shape, (size_t)c->in[1]->ndim * sizeof *shape);
    memcpy(shape + c->in[1]->ndim, w->shape + 1, (size_t)(w->ndim - 1) * sizeof *shape);
    pl_status st = index64(c->in[1], &index);
    if (st == PL_OK) st = table_rows(w, &table);
    int64_t flat_shape[2] = {c->in[1]->numel, table ? table->shape[1] : 0};
    if (st == PL_OK) st = pl_tensor_empty_beside(w, w->dtype, 2, flat_shape, &flat);
    if (st == PL_OK) st = pl_k(table)->take(table, index, flat);
    if (st == PL_OK) st = pl_tensor_view(flat, n, shape, &c->out);
    if (st == PL_OK) st = pl_op_save(c, 0, index);
    pl_tensor_release(index);
    pl_tensor_release(table);
    pl_tensor_release(flat);
    return st;
}

static pl_status embedding_backward(const pl_op_back *b) {
    pl_tensor *index = b->saved[0], *dest = NULL, *table = NULL, *g = NULL, *rows = NULL;
    bool accumulate;
    const pl_in_meta *m = &b->in[0];
    int64_t shape[2] = {m->shape[0], 1};
    for (int d = 1; d < m->ndim; d++) shape[1] *= m->shape[d];
    int64_t flat_shape[2] = {index->numel, shape[1]};
    PL_TRY(pl_back_dest(b, 0, &dest, &accumulate));
    pl_tensor *cast = NULL;
    pl_status st = pl_cast(b->grad, m->dtype, &cast);
    if (st == PL_OK) st = pl_contiguous(cast, &g);
    if (st == PL_OK) st = pl_tensor_view(g, 2, flat_shape, &rows);
    if (st == PL_OK) st = pl_tensor_view(dest, 2, shape, &table);
    if (st == PL_OK) st = pl_k(rows)->take_grad(rows, index, b->attrs->i[0], accumulate, table);
    pl_tensor_release(cast);
    pl_tensor_release(g);
    pl_tensor_release(rows);
    pl_tensor_release(table);
    if (st != PL_OK) {
        pl_tensor_release(dest);
        return st;
    }
    b->out[0] = dest;
    return PL_OK;
}

const pl_op pl_op_embedding = {"embedding",       PL_AMP_KEEP,        0,
                               embedding_forward, embedding_backward, false};

static pl_status gather_forward(pl_op_call *c) {
    pl_tensor *x = c->in[0], *index = NULL, *out = NULL;
    int dim;
    PL_TRY(check_index("gather", c->in[1]));
    PL_TRY(pl_dim_wrap("gather", (int)c->attrs.i[0], x->ndim, &dim));
    c->attrs.i[0] = dim;
    bool fits = x->ndim == c->in[1]->ndim;
    for (int d = 0; fits && d < x->ndim; d++) {
        fits = d == dim || c->in[1]->shape[d] <= x->shape[d];
    }
    if (!fits) {
        char a[128], b[128];
        return pl_fail(PL_ERUNTIME,
                       "[gather] the index must have the input's number of dimensions and be no "
                       "larger but along dimension %d: got input %s and index %s",
                       dim, pl_shape_text(x->ndim, x->shape, a, sizeof a),
                       pl_shape_text(c->in[1]->ndim, c->in[1]->shape, b, sizeof b));
    }
    pl_status st = index64(c->in[1], &index);
    if (st == PL_OK) st = pl_tensor_empty_like(index, x->dtype, &out);
    if (st == PL_OK) st = pl_k(x)->gather(x, dim, index, out);
    if (st == PL_OK) st = pl_op_save(c, 0, index);
    pl_tensor_release(index);
    if (st != PL_OK) {
        pl_tensor_release(out);
        return st;
    }
    c->out = out;
    return PL_OK;
}

static pl_status gather_backward(const pl_op_back *b) {
    pl_tensor *dest = NULL;
    bool accumulate;
    PL_TRY(pl_back_dest(b, 0, &dest, &accumulate));
    pl_status st = accumulate ? PL_OK : pl_fill_any(dest, 0.0);
    if (st == PL_OK) {
        st = pl_k(b->grad)->scatter_add(b->grad, (int)b->attrs->i[0], b->saved[0], dest);
    }
    if (st != PL_OK) {
        pl_tensor_release(dest);
        return st;
    }
    b->out[0] = dest;
    return PL_OK;
}

const pl_op pl_op_gather = {"gather", PL_AMP_KEEP, 0, gather_forward, gather_backward, false};

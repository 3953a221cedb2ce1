// SPDX-License-Identifier: Apache-2.0
// The oracle's indexing: rows of a table, gather and scatter along a dimension, places of nonzeros.

#include "ref/ref.h"

static pl_status wrap(const char *op, int64_t at, int64_t n, int64_t *out) {
    if (at < -n || at >= n) {
        return pl_fail(PL_EINDEX, "[%s] index out of range: got %lld, expected [-%lld, %lld)", op,
                       (long long)at, (long long)n, (long long)n);
    }
    *out = at < 0 ? at + n : at;
    return PL_OK;
}

static void copy_element(const pl_tensor *from, int64_t i, pl_tensor *to, int64_t o) {
    if (ref_is_int(from)) {
        ref_set_int(to, o, ref_get_int(from, i));
    } else {
        ref_set(to, o, ref_get(from, i));
    }
}

static void add_element(const pl_tensor *from, int64_t i, pl_tensor *to, int64_t o) {
    if (ref_is_int(from)) {
        uint64_t sum = (uint64_t)ref_get_int(to, o) + (uint64_t)ref_get_int(from, i);
        ref_set_int(to, o, (int64_t)sum);
    } else {
        ref_set(to, o, ref_get(to, o) + ref_get(from, i));
    }
}

pl_status pl_ref_take(const pl_tensor *x, const pl_tensor *index, pl_tensor *out) {
    int64_t width = x->shape[1];
    for (int64_t i = 0; i < index->numel; i++) {
        int64_t at = 0;
        PL_TRY(wrap("take", ref_get_int(index, i), x->shape[0], &at));
        for (int64_t j = 0; j < width; j++) {
            copy_element(x, at * x->strides[0] + j * x->strides[1], out, i * width + j);
        }
    }
    return PL_OK;
}

pl_status pl_ref_take_grad(const pl_tensor *g, const pl_tensor *index, int64_t skip,
                           bool accumulate, pl_tensor *dx) {
    int64_t width = dx->shape[1];
    if (!accumulate) memset(dx->data, 0, pl_tensor_nbytes(dx));
    for (int64_t i = 0; i < index->numel; i++) {
        int64_t at = 0;
        PL_TRY(wrap("take_grad", ref_get_int(index, i), dx->shape[0], &at));
        if (at == skip) continue;
        for (int64_t j = 0; j < width; j++) {
            add_element(g, i * g->strides[0] + j * g->strides[1], dx, at * width + j);
        }
    }
    return PL_OK;
}

// The offset in t of index `at`, with `pick` in place of dimension dim.
static pl_status picked_offset(const char *op, const pl_tensor *t, const int64_t *at, int dim,
                               int64_t pick, int64_t *out) {
    int64_t n = t->ndim == 0 ? 1 : t->shape[dim];
    if (pick < 0 || pick >= n) {
        return pl_fail(PL_EINDEX, "[%s] index out of range: got %lld, expected [0, %lld)", op,
                       (long long)pick, (long long)n);
    }
    int64_t moved[PL_MAX_DIMS];
    memcpy(moved, at, sizeof(moved));
    moved[dim] = pick;
    *out = ref_offset(t, moved);
    return PL_OK;
}

pl_status pl_ref_gather(const pl_tensor *x, int dim, const pl_tensor *index, pl_tensor *out) {
    if (index->numel == 0) return PL_OK;
    int64_t at[PL_MAX_DIMS] = {0}, from = 0;
    do {
        int64_t pick = ref_get_int(index, ref_offset(index, at));
        PL_TRY(picked_offset("gather", x, at, dim, pick, &from));
        copy_element(x, from, out, ref_offset(out, at));
    } while (ref_next(index->ndim, index->shape, at));
    return PL_OK;
}

pl_status pl_ref_scatter_add(const pl_tensor *g, int dim, const pl_tensor *index, pl_tensor *dx) {
    if (index->numel == 0) return PL_OK;
    int64_t at[PL_MAX_DIMS] = {0}, to = 0;
    do {
        int64_t pick = ref_get_int(index, ref_offset(index, at));
        PL_TRY(picked_offset("scatter_add", dx, at, dim, pick, &to));
        add_element(g, ref_offset(g, at), dx, to);
    } while (ref_next(index->ndim, index->shape, at));
    return PL_OK;
}

pl_status pl_ref_count_nonzero(const pl_tensor *x, int64_t *out) {
    *out = 0;
    if (x->numel == 0) return PL_OK;
    int64_t at[PL_MAX_DIMS] = {0};
    do {
        *out += ref_get(x, ref_offset(x, at)) != 0.0;
    } while (ref_next(x->ndim, x->shape, at));
    return PL_OK;
}

pl_status pl_ref_nonzero(const pl_tensor *x, pl_tensor *out) {
    if (x->numel == 0) return PL_OK;
    int64_t at[PL_MAX_DIMS] = {0}, row = 0;
    do {
        if (ref_get(x, ref_offset(x, at)) == 0.0) continue;
        for (int d = 0; d < x->ndim; d++) ref_set_int(out, row * x->ndim + d, at[d]);
        row++;
    } while (ref_next(x->ndim, x->shape, at));
    return PL_OK;
}

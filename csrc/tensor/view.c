// SPDX-License-Identifier: Apache-2.0
// Views: new shapes and strides over the same storage. See tensor.h.
#include <string.h>

#include "tensor/tensor.h"

pl_status pl_tensor_as_strided(pl_tensor *t, int ndim, const int64_t *shape, const int64_t *strides,
                               int64_t offset, pl_tensor **out) {
    ptrdiff_t bytes = (char *)t->data - (char *)t->storage->data;
    int64_t base = (int64_t)(bytes / (ptrdiff_t)pl_dtype_size(t->dtype));
    return pl_tensor_from_storage(t->storage, t->dtype, ndim, shape, strides, base + offset, out);
}

// The strides that give `shape` over t's elements in order, if they exist: walks both shapes from
// the right, matching groups of t's dimensions that lie contiguously with groups of new sizes.
static bool view_strides(const pl_tensor *t, int ndim, const int64_t *shape, int64_t *strides) {
    int nd = ndim - 1;
    if (t->numel == 0 || t->ndim == 0) {
        int64_t step = 1;
        for (int d = ndim - 1; d >= 0; d--) {
            strides[d] = step;
            step *= shape[d] > 0 ? shape[d] : 1;
        }
        return true;
    }
    int64_t group_stride = t->strides[t->ndim - 1], group_numel = 1, new_numel = 1;
    for (int d = t->ndim - 1; d >= 0; d--) {
        group_numel *= t->shape[d];
        bool ends =
            d == 0 || (t->shape[d - 1] != 1 && t->strides[d - 1] != group_numel * group_stride);
        if (!ends) continue;
        while (nd >= 0 && (new_numel < group_numel || shape[nd] == 1)) {
            strides[nd] = new_numel * group_stride;
            new_numel *= shape[nd];
            nd--;
        }
        if (new_numel != group_numel) return false;
        if (d > 0) {
            group_stride = t->strides[d - 1];
            group_numel = 1;
            new_numel = 1;
        }
    }
    return nd == -1;
}

pl_status pl_tensor_view(pl_tensor *t, int ndim, const int64_t *shape, pl_tensor **out) {
    int64_t sizes[PL_MAX_DIMS], strides[PL_MAX_DIMS];
    if (ndim > PL_MAX_DIMS) {
        return pl_fail(PL_EINVAL, "[view] too many dimensions: got %d, at most %d", ndim,
                       PL_MAX_DIMS);
    }
    memcpy(sizes, shape, (size_t)ndim * sizeof *shape);
    PL_TRY(pl_shape_resolve("view", t->numel, ndim, sizes));
    if (!view_strides(t, ndim, sizes, strides)) {
        char a[128], b[128];
        return pl_fail(PL_ERUNTIME,
                       "[view] shape %s is not a view of this tensor of shape %s, whose memory is "
                       "not contiguous there: use reshape, which copies",
                       pl_shape_text(ndim, sizes, a, sizeof a),
                       pl_shape_text(t->ndim, t->shape, b, sizeof b));
    }
    return pl_tensor_as_strided(t, ndim, sizes, strides, 0, out);
}

pl_status pl_tensor_transpose(pl_tensor *t, int d0, int d1, pl_tensor **out) {
    int64_t shape[PL_MAX_DIMS], strides[PL_MAX_DIMS];
    PL_TRY(pl_dim_wrap("transpose", d0, t->ndim, &d0));
    PL_TRY(pl_dim_wrap("transpose", d1, t->ndim, &d1));
    memcpy(shape, t->shape, sizeof shape);
    memcpy(strides, t->strides, sizeof strides);
    if (t->ndim > 0) {
        shape[d0] = t->shape[d1];
        shape[d1] = t->shape[d0];
        strides[d0] = t->strides[d1];
        strides[d1] = t->strides[d0];
    }
    return pl_tensor_as_strided(t, t->ndim, shape, strides, 0, out);
}

pl_status pl_tensor_permute(pl_tensor *t, const int *dims, pl_tensor **out) {
    int64_t shape[PL_MAX_DIMS], strides[PL_MAX_DIMS];
    uint32_t seen = 0;
    for (int i = 0; i < t->ndim; i++) {
        int d;
        PL_TRY(pl_dim_wrap("permute", dims[i], t->ndim, &d));
        if (seen & (1u << d)) {
            return pl_fail(PL_ERUNTIME, "[permute] dimension %d is given twice", dims[i]);
        }
        seen |= 1u << d;
        shape[i] = t->shape[d];
        strides[i] = t->strides[d];
    }
    return pl_tensor_as_strided(t, t->ndim, shape, strides, 0, out);
}

pl_status pl_tensor_expand(pl_tensor *t, int ndim, const int64_t *shape, pl_tensor **out) {
    int64_t sizes[PL_MAX_DIMS], strides[PL_MAX_DIMS];
    char a[128], b[128];
    if (ndim < t->ndim || ndim > PL_MAX_DIMS) {
        return pl_fail(PL_ERUNTIME,
                       "[expand] got %d sizes for a tensor of %d dimensions, expected %d to %d",
                       ndim, t->ndim, t->ndim, PL_MAX_DIMS);
    }
    for (int i = 0; i < ndim; i++) {
        int d = i - (ndim - t->ndim);
        int64_t have = d >= 0 ? t->shape[d] : 1;
        int64_t want = shape[i] == -1 && d >= 0 ? have : shape[i];
        if (want < 0 || (have != want && have != 1)) {
            return pl_fail(PL_ERUNTIME, "[expand] shape %s does not expand to %s",
                           pl_shape_text(t->ndim, t->shape, a, sizeof a),
                           pl_shape_text(ndim, shape, b, sizeof b));
        }
        sizes[i] = want;
        strides[i] = have == want && d >= 0 ? t->strides[d] : 0;
    }
    return pl_tensor_as_strided(t, ndim, sizes, strides, 0, out);
}

pl_status pl_tensor_slice(pl_tensor *t, int dim, int64_t start, int64_t stop, int64_t step,
                          pl_tensor **out) {
    int64_t shape[PL_MAX_DIMS], strides[PL_MAX_DIMS];
    if (t->ndim == 0) return pl_fail(PL_EINDEX, "[slice] a 0-d tensor cannot be sliced");
    PL_TRY(pl_dim_wrap("slice", dim, t->ndim, &dim));
    if (step < 1) {
        return pl_fail(PL_EINVAL, "[slice] step must be greater than zero: got %lld",
                       (long long)step);
    }
    int64_t n = t->shape[dim];
    if (start < 0) start += n;
    if (stop < 0) stop += n;
    start = start < 0 ? 0 : start > n ? n : start;
    stop = stop < start ? start : stop > n ? n : stop;
    memcpy(shape, t->shape, sizeof shape);
    memcpy(strides, t->strides, sizeof strides);
    shape[dim] = (stop - start + step - 1) / step;
    strides[dim] = t->strides[dim] * step;
    return pl_tensor_as_strided(t, t->ndim, shape, strides,
                                shape[dim] ? start * t->strides[dim] : 0, out);
}

static void drop_dim(int ndim, int dim, int64_t *sizes) {
    memmove(sizes + dim, sizes + dim + 1, (size_t)(ndim - dim - 1) * sizeof *sizes);
}

pl_status pl_tensor_select(pl_tensor *t, int dim, int64_t index, pl_tensor **out) {
    int64_t shape[PL_MAX_DIMS], strides[PL_MAX_DIMS];
    if (t->ndim == 0) return pl_fail(PL_EINDEX, "[select] a 0-d tensor cannot be indexed");
    PL_TRY(pl_dim_wrap("select", dim, t->ndim, &dim));
    int64_t n = t->shape[dim];
    if (index < -n || index >= n) {
        return pl_fail(PL_EINDEX,
                       "[select] index %lld is out of bounds for dimension %d with size %lld",
                       (long long)index, dim, (long long)n);
    }
    if (index < 0) index += n;
    int64_t offset = index * t->strides[dim];
    memcpy(shape, t->shape, sizeof shape);
    memcpy(strides, t->strides, sizeof strides);
    drop_dim(t->ndim, dim, shape);
    drop_dim(t->ndim, dim, strides);
    return pl_tensor_as_strided(t, t->ndim - 1, shape, strides, offset, out);
}

pl_status pl_tensor_unsqueeze(pl_tensor *t, int dim, pl_tensor **out) {
    int64_t shape[PL_MAX_DIMS + 1], strides[PL_MAX_DIMS + 1];
    PL_TRY(pl_dim_wrap("unsqueeze", dim, t->ndim + 1, &dim));
    for (int d = 0; d <= t->ndim; d++) {
        int from = d < dim ? d : d - 1;
        shape[d] = d == dim ? 1 : t->shape[from];
        strides[d] = d == dim ? 1 : t->strides[from];
    }
    return pl_tensor_as_strided(t, t->ndim + 1, shape, strides, 0, out);
}

pl_status pl_tensor_squeeze(pl_tensor *t, int dim, pl_tensor **out) {
    int64_t shape[PL_MAX_DIMS], strides[PL_MAX_DIMS];
    PL_TRY(pl_dim_wrap("squeeze", dim, t->ndim, &dim));
    memcpy(shape, t->shape, sizeof shape);
    memcpy(strides, t->strides, sizeof strides);
    if (t->ndim == 0 || t->shape[dim] != 1) {
        return pl_tensor_as_strided(t, t->ndim, shape, strides, 0, out);
    }
    drop_dim(t->ndim, dim, shape);
    drop_dim(t->ndim, dim, strides);
    return pl_tensor_as_strided(t, t->ndim - 1, shape, strides, 0, out);
}

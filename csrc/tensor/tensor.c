// SPDX-License-Identifier: Apache-2.0
// Making, sharing and dropping tensors. See tensor.h for the contract and the thread rule.
#include <string.h>

#include "tensor/tensor.h"

static pl_status check_shape(int ndim, const int64_t *shape, pl_dtype dt, int64_t *numel) {
    char text[128];
    if (ndim < 0 || ndim > PL_MAX_DIMS) {
        return pl_fail(PL_EINVAL, "[tensor] too many dimensions: got %d, at most %d are supported",
                       ndim, PL_MAX_DIMS);
    }
    int64_t n = 1, bytes;
    for (int d = 0; d < ndim; d++) {
        if (shape[d] < 0) {
            return pl_fail(PL_EINVAL, "[tensor] negative size: got shape %s",
                           pl_shape_text(ndim, shape, text, sizeof text));
        }
        if (__builtin_mul_overflow(n, shape[d], &n)) n = INT64_MAX;
    }
    if (__builtin_mul_overflow(n, (int64_t)pl_dtype_size(dt), &bytes)) {
        return pl_fail(PL_ENOMEM, "[tensor] shape %s of %s does not fit in memory",
                       pl_shape_text(ndim, shape, text, sizeof text), pl_dtype_name(dt));
    }
    *numel = n;
    return PL_OK;
}

static void contiguous_strides(int ndim, const int64_t *shape, int64_t *strides) {
    int64_t step = 1;
    for (int d = ndim - 1; d >= 0; d--) {
        strides[d] = step;
        step *= shape[d] > 0 ? shape[d] : 1;
    }
}

pl_status pl_tensor_from_storage(pl_storage *s, pl_dtype dt, int ndim, const int64_t *shape,
                                 const int64_t *strides, int64_t offset, pl_tensor **out) {
    int64_t numel;
    PL_TRY(check_shape(ndim, shape, dt, &numel));
    pl_tensor *t = NULL;
    PL_TRY(pl_alloc(sizeof *t, (void **)&t));
    t->refs = 1;
    t->dtype = dt;
    t->ndim = ndim;
    t->numel = numel;
    t->meta = NULL;
    t->meta_free = NULL;
    if (ndim > 0) memcpy(t->shape, shape, (size_t)ndim * sizeof *shape);
    if (strides && ndim > 0) {
        memcpy(t->strides, strides, (size_t)ndim * sizeof *strides);
    } else {
        contiguous_strides(ndim, shape, t->strides);
    }
    pl_storage_retain(s);
    t->storage = s;
    t->data = (char *)s->data + (ptrdiff_t)offset * (ptrdiff_t)pl_dtype_size(dt);
    pl_live_add(PL_KIND_TENSOR, 1);
    *out = t;
    return PL_OK;
}

pl_status pl_tensor_empty(pl_dtype dt, int ndim, const int64_t *shape, pl_tensor **out) {
    return pl_tensor_empty_on((pl_device){PL_CPU, 0}, dt, ndim, shape, out);
}

pl_status pl_tensor_empty_on(pl_device d, pl_dtype dt, int ndim, const int64_t *shape,
                             pl_tensor **out) {
    int64_t numel;
    PL_TRY(check_shape(ndim, shape, dt, &numel));
    pl_storage *s = NULL;
    size_t nbytes = (size_t)numel * pl_dtype_size(dt);
    PL_TRY(PL_LIKELY(d.type == PL_CPU) ? pl_storage_new(nbytes, &s)
                                       : pl_storage_new_on(d, nbytes, &s));
    pl_status st = pl_tensor_from_storage(s, dt, ndim, shape, NULL, 0, out);
    pl_storage_release(s);  // the tensor keeps its own reference
    return st;
}

pl_status pl_tensor_zeros(pl_dtype dt, int ndim, const int64_t *shape, pl_tensor **out) {
    PL_TRY(pl_tensor_empty(dt, ndim, shape, out));
    if ((*out)->numel > 0) memset((*out)->data, 0, pl_tensor_nbytes(*out));
    return PL_OK;
}

pl_status pl_tensor_empty_beside(const pl_tensor *t, pl_dtype dt, int ndim, const int64_t *shape,
                                 pl_tensor **out) {
    return pl_tensor_empty_on(pl_tensor_device(t), dt, ndim, shape, out);
}

pl_status pl_tensor_empty_like(const pl_tensor *t, pl_dtype dt, pl_tensor **out) {
    return pl_tensor_empty_on(pl_tensor_device(t), dt, t->ndim, t->shape, out);
}

pl_tensor *pl_tensor_retain(pl_tensor *t) {
    __atomic_add_fetch(&t->refs, 1, __ATOMIC_RELAXED);  // as in storage.c
    return t;
}

void pl_tensor_release(pl_tensor *t) {
    if (!t || __atomic_sub_fetch(&t->refs, 1, __ATOMIC_ACQ_REL) != 0) return;
    if (t->meta && t->meta_free) t->meta_free(t->meta);
    pl_storage_release(t->storage);
    pl_live_add(PL_KIND_TENSOR, -1);
    pl_free(t);
}

bool pl_tensor_is_only(const pl_tensor *t) {
    // Acquire: whoever dropped the other references has finished with the bytes.
    return __atomic_load_n(&t->refs, __ATOMIC_ACQUIRE) == 1 &&
           __atomic_load_n(&t->storage->refs, __ATOMIC_ACQUIRE) == 1 && pl_tensor_is_contiguous(t);
}

void pl_tensor_rebind(pl_tensor *t, pl_storage *s, int64_t offset_elements) {
    pl_storage_retain(s);
    pl_storage_release(t->storage);
    t->storage = s;
    t->data = (char *)s->data + (ptrdiff_t)offset_elements * (ptrdiff_t)pl_dtype_size(t->dtype);
}

bool pl_tensor_is_contiguous(const pl_tensor *t) {
    int64_t step = 1;
    if (t->numel == 0) return true;
    for (int d = t->ndim - 1; d >= 0; d--) {
        if (t->shape[d] != 1 && t->strides[d] != step) return false;
        step *= t->shape[d];
    }
    return true;
}

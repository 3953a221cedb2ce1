// SPDX-License-Identifier: Apache-2.0
// tensor: shape, strides, storage and views. Knows dtypes and memory; knows no operator, no
// gradient, no device library. A tensor is reference-counted and may be shared between threads;
// its fields are written by its creator only, before it is shared (grad state: see autograd.h).
#ifndef PL_TENSOR_H
#define PL_TENSOR_H

#include "base/base.h"
#include "base/device.h"

#define PL_MAX_DIMS 8

// Bytes that one or more tensors look at. `version` counts in-place writes, so that the backward
// pass can tell that something it saved has changed.
typedef struct pl_storage {
    int32_t refs;      // atomic; with the last the bytes go
    int32_t watchers;  // atomic; with the last this struct goes; all of refs count as one
    uint32_t version;  // atomic
    pl_device device;
    size_t nbytes;
    void *data;
    void (*release)(void *owner, void *data);  // NULL: pl_free(data)
    void *owner;
} pl_storage;

struct pl_grad_meta;  // autograd's own; opaque here

typedef struct pl_tensor {
    int32_t refs;  // atomic
    pl_dtype dtype;
    int ndim;
    int64_t shape[PL_MAX_DIMS];
    int64_t strides[PL_MAX_DIMS];  // in elements; 0 for an expanded dimension; never negative
    int64_t numel;
    void *data;  // storage->data plus this view's offset
    pl_storage *storage;
    struct pl_grad_meta *meta;                     // NULL: no gradient history, none required
    void (*meta_free)(struct pl_grad_meta *meta);  // set by autograd with meta
} pl_tensor;

// Storage. `release` is called once, with the last reference, from whichever thread drops it.
pl_status pl_storage_new(size_t nbytes, pl_storage **out) PL_MUST_USE;
// On a device that is open (PL_EDEVICE where it is not); no bytes give no memory.
pl_status pl_storage_new_on(pl_device d, size_t nbytes, pl_storage **out) PL_MUST_USE;
// Page-locked memory of the host (device: the CPU), which copies reach without the host: kept when
// it is released, and given again once the copies that used it are done. Needs an open device.
pl_status pl_storage_new_pinned(size_t nbytes, pl_storage **out) PL_MUST_USE;
bool pl_storage_is_pinned(const pl_storage *s);
// A copy that touches s was put on the device's current stream.
pl_status pl_storage_pinned_used(pl_storage *s) PL_MUST_USE;
pl_status pl_storage_pinned_done(pl_storage *s, bool *out) PL_MUST_USE;  // is the last one over?
pl_status pl_storage_pinned_trim(void) PL_MUST_USE;  // what nobody holds goes back to the system
// On a GPU, for an upload (Note [uploads], base/device.h).
pl_status pl_storage_new_ahead(pl_device d, size_t nbytes, pl_storage **out) PL_MUST_USE;
// Work that touches s was put on this stream: told to the allocator where its memory is another's.
pl_status pl_storage_used_on(const pl_storage *s, pl_stream *stream) PL_MUST_USE;
pl_status pl_storage_wrap(void *data, size_t nbytes, void (*release)(void *owner, void *data),
                          void *owner, pl_storage **out) PL_MUST_USE;
void pl_storage_retain(pl_storage *s);
void pl_storage_release(pl_storage *s);  // NULL is legal
// A weak reference: it keeps the version readable, not the bytes.
void pl_storage_watch(pl_storage *s);
void pl_storage_unwatch(pl_storage *s);
uint32_t pl_storage_version(const pl_storage *s);
void pl_storage_bump(pl_storage *s);

// Tensors: the caller owns *out. On the CPU, but where the name says otherwise.
pl_status pl_tensor_empty(pl_dtype dt, int ndim, const int64_t *shape,
                          pl_tensor **out) PL_MUST_USE;  // contiguous, contents undefined
pl_status pl_tensor_zeros(pl_dtype dt, int ndim, const int64_t *shape, pl_tensor **out) PL_MUST_USE;
pl_status pl_tensor_empty_on(pl_device d, pl_dtype dt, int ndim, const int64_t *shape,
                             pl_tensor **out) PL_MUST_USE;
// On t's device; of its shape too.
pl_status pl_tensor_empty_beside(const pl_tensor *t, pl_dtype dt, int ndim, const int64_t *shape,
                                 pl_tensor **out) PL_MUST_USE;
pl_status pl_tensor_empty_like(const pl_tensor *t, pl_dtype dt, pl_tensor **out) PL_MUST_USE;
// A tensor over a storage (retained). offset and strides in elements.
pl_status pl_tensor_from_storage(pl_storage *s, pl_dtype dt, int ndim, const int64_t *shape,
                                 const int64_t *strides, int64_t offset,
                                 pl_tensor **out) PL_MUST_USE;
pl_tensor *pl_tensor_retain(pl_tensor *t);  // gives t back
void pl_tensor_release(pl_tensor *t);       // NULL is legal
// True where nobody else holds t or its storage, and t is contiguous.
bool pl_tensor_is_only(const pl_tensor *t);
// The same for these (NULL is legal) and the current stream. Note [chosen streams], base/device.h.
pl_status pl_tensors_used_here(int n, pl_tensor *const *t) PL_MUST_USE;
// Makes t look at another storage of the same dtype, shape and strides (bucket placement).
void pl_tensor_rebind(pl_tensor *t, pl_storage *s, int64_t offset_elements);

// Views share t's storage (and keep it); none of them copies.
pl_status pl_tensor_as_strided(pl_tensor *t, int ndim, const int64_t *shape, const int64_t *strides,
                               int64_t offset,
                               pl_tensor **out) PL_MUST_USE;  // offset relative to t
pl_status pl_tensor_view(pl_tensor *t, int ndim, const int64_t *shape, pl_tensor **out)
    PL_MUST_USE;  // fails with PL_EINVAL where a copy would be needed; -1 once for "the rest"
pl_status pl_tensor_transpose(pl_tensor *t, int d0, int d1, pl_tensor **out) PL_MUST_USE;
pl_status pl_tensor_permute(pl_tensor *t, const int *dims, pl_tensor **out) PL_MUST_USE;
pl_status pl_tensor_expand(pl_tensor *t, int ndim, const int64_t *shape,
                           pl_tensor **out) PL_MUST_USE;  // -1 keeps a size
pl_status pl_tensor_slice(pl_tensor *t, int dim, int64_t start, int64_t stop, int64_t step,
                          pl_tensor **out) PL_MUST_USE;  // Python's clamping; step >= 1
pl_status pl_tensor_select(pl_tensor *t, int dim, int64_t index, pl_tensor **out) PL_MUST_USE;
pl_status pl_tensor_unsqueeze(pl_tensor *t, int dim, pl_tensor **out) PL_MUST_USE;
pl_status pl_tensor_squeeze(pl_tensor *t, int dim, pl_tensor **out) PL_MUST_USE;

// Shapes.
bool pl_tensor_is_contiguous(const pl_tensor *t);
bool pl_shape_equal(int na, const int64_t *a, int nb, const int64_t *b);
// Resolves the single -1 of a reshape; checks the element count.
pl_status pl_shape_resolve(const char *op, int64_t numel, int ndim, int64_t *shape) PL_MUST_USE;
pl_status pl_shape_broadcast(const char *op, int na, const int64_t *a, int nb, const int64_t *b,
                             int *n_out, int64_t *out) PL_MUST_USE;
// dim in [-ndim, ndim) to [0, ndim); a 0-d tensor takes 0 and -1.
pl_status pl_dim_wrap(const char *op, int dim, int ndim, int *out) PL_MUST_USE;
// "[2, 3]" into buf, which is given back.
const char *pl_shape_text(int ndim, const int64_t *shape, char *buf, size_t cap);

// Bytes, wherever they lie.
pl_status pl_bytes_zero(pl_device d, void *p, size_t nbytes) PL_MUST_USE;
// Afterwards src may change, and dst be read: a copy to the host waits.
pl_status pl_bytes_copy(pl_device to, void *dst, pl_device from, const void *src,
                        size_t nbytes) PL_MUST_USE;

// From the host's memory, by way of page-locked memory while there is some: then nobody waits.
pl_status pl_bytes_upload(const pl_device_services *s, void *dst, const void *src,
                          size_t nbytes) PL_MUST_USE;

// Numbers that kernels write beside tensors of a device (Note [numbers of kernels], kernels.h):
// zeroed memory at `at`, which is `host` itself on the CPU, and else read into it at once.
typedef struct pl_numbers {
    pl_device device;
    size_t nbytes;
    void *at, *host;
} pl_numbers;
pl_status pl_numbers_open(pl_device d, size_t nbytes, void *host, pl_numbers *out) PL_MUST_USE;
// Where st is PL_OK: reads them, and waits for what was computed before. Frees them in any case.
pl_status pl_numbers_close(pl_numbers *n, pl_status st) PL_MUST_USE;

static inline pl_device pl_tensor_device(const pl_tensor *t) { return t->storage->device; }
static inline bool pl_tensor_is_cpu(const pl_tensor *t) {
    return PL_LIKELY(t->storage->device.type == PL_CPU);
}
static inline size_t pl_tensor_nbytes(const pl_tensor *t) {
    return (size_t)t->numel * pl_dtype_size(t->dtype);
}

#endif

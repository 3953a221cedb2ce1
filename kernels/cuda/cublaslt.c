// SPDX-License-Identifier: Apache-2.0
// cublaslt: see cublaslt.h. The state, and matmul; linear and its gradient are in
// cublaslt_linear.c.
#include "cuda/cublaslt.h"

#include <stdatomic.h>
#include <string.h>

#include "cuda/cublaslt_internal.h"

pl_status pl_cuda_blas_new(const pl_cuda_blas_args *args, pl_cuda_blas **out) {
    void *p;
    PL_TRY(pl_calloc(sizeof(pl_cuda_blas), &p));
    pl_cuda_blas *blas = p;
    blas->args = *args;
    blas->workspace = &blas->first_workspace;
    *out = blas;
    return PL_OK;
}

void pl_cuda_blas_free(pl_cuda_blas *blas) {
    if (!blas) return;
    if (blas->lib) {
        pl__blas_plans_free(blas);
        (void)blas->lib->destroy(blas->handle);
        blas->args.release(blas->first_workspace);
        pl__choices_deinit(&blas->memory);
    }
    pl_free(blas);
}

void pl_cuda_blas_on(pl_cuda_blas *blas, pl_stream *stream, pl_cuda_queue *queue,
                     void **workspace) {
    blas->args.stream = stream;
    blas->args.queue = queue;
    blas->workspace = workspace;
}

static atomic_bool tf32;  // relaxed: which product is the first with it is the caller's affair

void pl_cuda_blas_allow_tf32(bool allow) {
    atomic_store_explicit(&tf32, allow, memory_order_relaxed);
}

bool pl__blas_tf32(pl_dtype dt) {
    return dt == PL_F32 && atomic_load_explicit(&tf32, memory_order_relaxed);
}

// A new thread's device is CUDA's first one until a call of the run time has said otherwise, and
// the library takes the thread's.
static pl_status enter(pl_cuda_blas *blas) {
    static _Thread_local bool entered;
    if (entered) return PL_OK;
    size_t free_bytes, total_bytes;
    PL_TRY(blas->args.runtime->memory(blas->args.runtime, &free_bytes, &total_bytes));
    entered = true;
    return PL_OK;
}

static pl_status open(pl_cuda_blas *blas) {
    const pl_lt_library *lib;
    PL_TRY(pl__blas_library(&lib));
    void *handle;
    int made = lib->create(&handle);
    if (made != PL_LT_SUCCESS) return pl__blas_failed("starting", made);
    pl_status st =
        pl__choices_init(&blas->memory, &pl__blas_form, blas->args.device_name, lib->version());
    if (st != PL_OK) {
        (void)lib->destroy(handle);
        return st;
    }
    blas->handle = handle;
    blas->lib = lib;
    return PL_OK;
}

pl_status pl__blas_ready(pl_cuda_blas *blas) {
    PL_TRY(enter(blas));
    if (PL_UNLIKELY(blas->lib == NULL)) PL_TRY(open(blas));
    if (PL_LIKELY(*blas->workspace != NULL)) return PL_OK;
    return blas->args.alloc(PL_BLAS_WORKSPACE, "workspace of products", blas->workspace);
}

pl_tensor pl__blas_transposed(const pl_tensor *t) {
    pl_tensor r = *t;
    r.shape[0] = t->shape[1];
    r.shape[1] = t->shape[0];
    r.strides[0] = t->strides[1];
    r.strides[1] = t->strides[0];
    return r;
}

pl_tensor pl__blas_over(void *data, pl_dtype dt, int ndim, const int64_t *shape) {
    pl_tensor t = {.refs = 1, .dtype = dt, .ndim = ndim, .numel = 1, .data = data};
    for (int d = ndim - 1; d >= 0; d--) {
        t.shape[d] = shape[d];
        t.strides[d] = t.numel;
        t.numel *= shape[d];
    }
    return t;
}

pl_status pl__blas_factor(pl_cuda_blas *blas, const pl_tensor *t, pl_blas_factor *out) {
    *out = (pl_blas_factor){.t = *t};
    if (pl__blas_readable(t)) return PL_OK;
    size_t nbytes = (size_t)t->numel * pl_dtype_size(t->dtype);
    PL_TRY(blas->args.alloc(nbytes, "a factor copied for a product", &out->copy));
    out->t = pl__blas_over(out->copy, t->dtype, t->ndim, t->shape);
    pl_status st = blas->args.backend->copy(t, &out->t, blas->args.queue);
    if (st != PL_OK) pl__blas_factor_release(blas, out);
    return st;
}

void pl__blas_factor_release(pl_cuda_blas *blas, pl_blas_factor *f) {
    if (f->copy) blas->args.release(f->copy);
    f->copy = NULL;
}

pl_status pl_cuda_blas_matmul(const pl_tensor *a, const pl_tensor *b, bool accumulate,
                              pl_tensor *out, pl_cuda_blas *blas) {
    if (out->numel == 0) return PL_OK;
    if (a->shape[a->ndim - 1] == 0) {
        return accumulate ? PL_OK : blas->args.backend->fill(out, 0.0, blas->args.queue);
    }
    PL_TRY(pl__blas_ready(blas));
    pl_blas_factor fa, fb;
    pl_blas_product p;
    PL_TRY(pl__blas_factor(blas, a, &fa));
    pl_status st = pl__blas_factor(blas, b, &fb);
    if (st == PL_OK) {
        st = pl__blas_product(&fa.t, &fb.t, accumulate, out, &p);
        if (st == PL_OK) st = pl__blas_product_run(blas, &p);
        pl__blas_factor_release(blas, &fb);
    }
    pl__blas_factor_release(blas, &fa);
    return st;
}

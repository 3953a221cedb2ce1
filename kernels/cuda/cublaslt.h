// SPDX-License-Identifier: Apache-2.0
// cublaslt: the products of pl_kernels (matmul, linear, linear_grad) on a GPU, by NVIDIA's
// cuBLASLt, which is opened (base/library.h) at the first product. Plain C in the core: knows the
// run-time table and the table of kernels, no CUDA header. docs/cuda.md says how an algorithm is
// chosen.
//
// Note [one blas per queue]: a pl_cuda_blas serves one queue at a time (pl_cuda_blas_on): a
// workspace is used by one stream alone, in order, and a blas is no more thread-safe than a queue.
#ifndef PL_CUDA_CUBLASLT_H
#define PL_CUDA_CUBLASLT_H

#include "base/device.h"
#include "cuda/backend.h"
#include "cuda/cuda.h"

typedef struct pl_cuda_blas pl_cuda_blas;

// All is borrowed and must outlive the blas.
typedef struct pl_cuda_blas_args {
    pl_runtime *runtime;
    const pl_cuda_backend *backend;  // copies, activations and sums around a product
    const char *device_name;         // of the hardware, as in pl_cuda_properties
    pl_stream *stream;               // the queue's, for synchronisation while measuring
    pl_cuda_queue *queue;
    // The allocator for use on `stream`, as in pl_device_services.
    pl_status (*alloc)(size_t nbytes, const char *tag, void **out);
    void (*release)(void *p);
} pl_cuda_blas_args;

// Opens nothing yet; *args is copied.
pl_status pl_cuda_blas_new(const pl_cuda_blas_args *args, pl_cuda_blas **out) PL_MUST_USE;
void pl_cuda_blas_free(pl_cuda_blas *blas);  // NULL is legal; the stream must be idle
// From now on products go to this queue, with workspace of its own: *workspace is NULL at first,
// the caller keeps it for the stream, and releases what is in it at the end.
void pl_cuda_blas_on(pl_cuda_blas *blas, pl_stream *stream, pl_cuda_queue *queue, void **workspace);

// The members of pl_kernels; tensors' data are device memory. Enqueued on the queue's stream,
// except that the first product of a shape may be measured (PACELINE_BLAS_MEASURE), which waits.
pl_status pl_cuda_blas_matmul(const pl_tensor *a, const pl_tensor *b, bool accumulate,
                              pl_tensor *out, pl_cuda_blas *blas) PL_MUST_USE;
pl_status pl_cuda_blas_linear(const pl_tensor *x, const pl_tensor *w, const pl_tensor *bias,
                              pl_activation act, pl_tensor *preact, pl_tensor *out,
                              pl_cuda_blas *blas) PL_MUST_USE;
pl_status pl_cuda_blas_linear_grad(const pl_tensor *g, const pl_tensor *x, pl_tensor *dw,
                                   bool accumulate_w, pl_tensor *db, bool accumulate_b,
                                   pl_cuda_blas *blas) PL_MUST_USE;
pl_status pl_cuda_blas_linear_grad_gelu(const pl_tensor *g, const pl_tensor *w, const pl_tensor *x,
                                        pl_tensor *dx, pl_cuda_blas *blas) PL_MUST_USE;

// fp32 products by TF32 (19 bits of each factor), faster and less exact: of this process, from the
// next product on. Off at first; opens nothing. Any thread.
void pl_cuda_blas_allow_tf32(bool allow);

#endif

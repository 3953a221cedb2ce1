// SPDX-License-Identifier: Apache-2.0
// cudnn: attention on a GPU by NVIDIA's cuDNN where that is faster than the kernels of
// attention*.cu, and by these everywhere else: what cuDNN does not take (masks, dropout, fp32, odd
// widths), where it is not installed, and where measuring says so. Plain C in the core: knows the
// run-time table and the table of kernels, no CUDA header. docs/cuda.md says how it is chosen.
#ifndef PL_CUDA_CUDNN_H
#define PL_CUDA_CUDNN_H

#include "cuda/cublaslt.h"

typedef struct pl_cuda_dnn pl_cuda_dnn;

// Opens nothing yet. `blas`, whose queue, memory and time for measuring it shares, is borrowed and
// must outlive it. capability: of the GPU, 90 for 9.0. PL_EINVAL where PACELINE_ATTENTION is none.
pl_status pl_cuda_dnn_new(pl_cuda_blas *blas, int capability, pl_cuda_dnn **out) PL_MUST_USE;
void pl_cuda_dnn_free(pl_cuda_dnn *dnn);  // NULL is legal; the stream must be idle

// The members of pl_kernels; tensors' data are device memory. Enqueued on the queue's stream,
// except that the first call of a shape may build a plan, and be measured, which waits.
pl_status pl_cuda_dnn_attention(const pl_tensor *q, const pl_tensor *k, const pl_tensor *v,
                                const pl_attention_args *args, pl_tensor *out, pl_tensor *lse,
                                pl_cuda_dnn *dnn) PL_MUST_USE;
pl_status pl_cuda_dnn_attention_grad(const pl_tensor *g, const pl_tensor *q, const pl_tensor *k,
                                     const pl_tensor *v, const pl_tensor *out, const pl_tensor *lse,
                                     const pl_attention_args *args, pl_tensor *dq, pl_tensor *dk,
                                     pl_tensor *dv, pl_cuda_dnn *dnn) PL_MUST_USE;

// "cuDNN 9.19.0 (/path)" or "not loaded".
const char *pl_cuda_dnn_library(void);

#endif

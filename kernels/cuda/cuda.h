// SPDX-License-Identifier: Apache-2.0
// cuda: what kernels/cuda offers its callers. The members of pl_kernels (kernels.h) under the same
// names and contracts, with these differences: tensors' data are device pointers; the last argument
// is the queue; a call returns once its kernels are enqueued, so what depends on values (an index
// out of range, a division by zero) is written to the queue's fault record and told by
// pl_cuda_fault_status after a synchronisation; a result that the CPU returns as a number stays on
// the device. Knows no CUDA header: the C tests include it. What a member cannot do yet it says
// with PL_ENOSUP before anything is launched.
#ifndef PL_KERNELS_CUDA_H
#define PL_KERNELS_CUDA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#include "kernels.h"  // C

// The first complaint of the kernels on a queue, in device memory, zeroed by the owner.
typedef enum pl_cuda_fault_kind {
    PL_CUDA_FAULT_NONE,
    PL_CUDA_FAULT_DIVIDE,  // integer division by zero
    PL_CUDA_FAULT_TAKE,    // got: the index, limit: the number of rows
    PL_CUDA_FAULT_TAKE_GRAD,
    PL_CUDA_FAULT_GATHER,  // limit: the size of the dimension
    PL_CUDA_FAULT_SCATTER,
    PL_CUDA_FAULT_TARGET,  // limit: the number of classes
} pl_cuda_fault_kind;
typedef struct pl_cuda_fault {
    int32_t kind;
    int32_t unused;
    int64_t got, limit;
} pl_cuda_fault;
// PL_OK, or the failure that the CPU's kernel would have given. `f` is a host copy.
pl_status pl_cuda_fault_status(const pl_cuda_fault *f) PL_MUST_USE;

// A stream, and what the kernels on it share. Not thread-safe: one caller at a time.
typedef struct pl_cuda_queue {
    void *stream;          // cudaStream_t
    pl_cuda_fault *fault;  // device memory
    // Device memory for one call's partial results, 256-byte aligned, which the next call on this
    // queue may reuse: its kernels run after this one's. `owner` is passed through.
    pl_status (*scratch)(void *owner, size_t nbytes, void **out);
    void *owner;
} pl_cuda_queue;

// ---- elementwise.cu, copy.cu, scale.cu ----------------------------------------------------------
pl_status pl_cuda_unary(pl_unary op, const pl_tensor *x, pl_tensor *out, pl_cuda_queue *q);
pl_status pl_cuda_binary(pl_binary op, const pl_tensor *a, const pl_tensor *b, pl_tensor *out,
                         pl_cuda_queue *q);
pl_status pl_cuda_where(const pl_tensor *cond, const pl_tensor *a, const pl_tensor *b,
                        pl_tensor *out, pl_cuda_queue *q);
pl_status pl_cuda_copy(const pl_tensor *src, pl_tensor *dst, pl_cuda_queue *q);
pl_status pl_cuda_scale(const pl_tensor *x, const pl_tensor *factor, bool accumulate,
                        pl_tensor *out, pl_cuda_queue *q);
pl_status pl_cuda_fill(pl_tensor *dst, double value, pl_cuda_queue *q);
pl_status pl_cuda_fill_int(pl_tensor *dst, int64_t value, pl_cuda_queue *q);
pl_status pl_cuda_arange(pl_tensor *out, double start, double step, pl_cuda_queue *q);

// ---- norm.cu ------------------------------------------------------------------------------------
pl_status pl_cuda_norm(const pl_row_norm_args *args, pl_cuda_queue *q);
pl_status pl_cuda_norm_grad(const pl_row_norm_grad_args *args, pl_cuda_queue *q);

// ---- softmax.cu, dropout.cu ---------------------------------------------------------------------
pl_status pl_cuda_softmax(bool log, const pl_tensor *x, pl_tensor *out, pl_cuda_queue *q);
pl_status pl_cuda_softmax_grad(bool log, const pl_tensor *g, const pl_tensor *y, pl_tensor *dx,
                               pl_cuda_queue *q);
pl_status pl_cuda_dropout(const pl_tensor *x, double p, uint64_t seed, uint64_t offset,
                          pl_tensor *out, pl_cuda_queue *q);

// ---- random.cu ----------------------------------------------------------------------------------
pl_status pl_cuda_uniform(pl_tensor *out, double lo, double hi, uint64_t seed, uint64_t offset,
                          pl_cuda_queue *q);
pl_status pl_cuda_normal(pl_tensor *out, double mean, double std, uint64_t seed, uint64_t offset,
                         pl_cuda_queue *q);
pl_status pl_cuda_randint(pl_tensor *out, int64_t lo, int64_t hi, uint64_t seed, uint64_t offset,
                          pl_cuda_queue *q);

// ---- loss.cu ------------------------------------------------------------------------------------
typedef struct pl_cuda_loss {
    const pl_tensor *target, *weight;  // weight: NULL or (C)
    int64_t ignore_index;
    double label_smoothing;
    pl_tensor *losses, *lse;  // (M); the gradient alone reads lse and needs no losses
} pl_cuda_loss;
pl_status pl_cuda_cross_entropy(const pl_cuda_loss *loss, const pl_tensor *logits,
                                pl_cuda_queue *q);
pl_status pl_cuda_cross_entropy_grad(const pl_cuda_loss *loss, const pl_tensor *g,
                                     const pl_tensor *logits, pl_tensor *dlogits, pl_cuda_queue *q);
// lse is not written.
pl_status pl_cuda_cross_entropy_fused(const pl_cuda_loss *loss, const pl_tensor *g,
                                      pl_tensor *logits, pl_cuda_queue *q);

// ---- optimizer.cu, grad_norm.cu: Note [lists] of kernels.h; all numbers are device memory -------
pl_status pl_cuda_list_adam(const pl_adam_args *args, int count, const pl_run *runs,
                            pl_cuda_queue *q);
pl_status pl_cuda_list_sgd(const pl_sgd_args *args, int count, const pl_run *runs,
                           pl_cuda_queue *q);
pl_status pl_cuda_list_unscale(const pl_unscale_args *args, int count, const pl_run *runs,
                               pl_cuda_queue *q);
pl_status pl_cuda_list_norm(const pl_norm_args *args, int count, const pl_run *runs,
                            pl_cuda_queue *q);

// ---- reduce.cu, arg.cu --------------------------------------------------------------------------
pl_status pl_cuda_reduce(pl_reduce op, const pl_tensor *x, uint32_t dims, pl_tensor *out,
                         pl_cuda_queue *q);
// out (N) contiguous, of g's dtype or f32, = or += the sum of the rows of g (M, N): rounded once.
pl_status pl_cuda_sum_rows(const pl_tensor *g, bool accumulate, pl_tensor *out, pl_cuda_queue *q);
pl_status pl_cuda_argreduce(bool max, const pl_tensor *x, int dim, pl_tensor *out,
                            pl_cuda_queue *q);
pl_status pl_cuda_cumsum(const pl_tensor *x, int dim, pl_tensor *out, pl_cuda_queue *q);

// ---- index.cu, take_grad.cu, sort.cu ------------------------------------------------------------
pl_status pl_cuda_take(const pl_tensor *x, const pl_tensor *index, pl_tensor *out,
                       pl_cuda_queue *q);
pl_status pl_cuda_take_grad(const pl_tensor *g, const pl_tensor *index, int64_t skip,
                            bool accumulate, pl_tensor *dx, pl_cuda_queue *q);
pl_status pl_cuda_gather(const pl_tensor *x, int dim, const pl_tensor *index, pl_tensor *out,
                         pl_cuda_queue *q);
pl_status pl_cuda_scatter_add(const pl_tensor *g, int dim, const pl_tensor *index, pl_tensor *dx,
                              pl_cuda_queue *q);
pl_status pl_cuda_count_nonzero(const pl_tensor *x, int64_t *out, pl_cuda_queue *q);  // out: device
pl_status pl_cuda_nonzero(const pl_tensor *x, pl_tensor *out, pl_cuda_queue *q);
pl_status pl_cuda_sort(const pl_tensor *x, bool descending, pl_tensor *values, pl_tensor *indices,
                       pl_cuda_queue *q);

// ---- attention.cu -------------------------------------------------------------------------------
// bf16 up to a width of 128 on tensor cores, the rest without; width at most 512. g may have any
// strides.
pl_status pl_cuda_attention(const pl_tensor *q, const pl_tensor *k, const pl_tensor *v,
                            const pl_attention_args *args, pl_tensor *out, pl_tensor *lse,
                            pl_cuda_queue *queue);
pl_status pl_cuda_attention_grad(const pl_tensor *g, const pl_tensor *q, const pl_tensor *k,
                                 const pl_tensor *v, const pl_tensor *out, const pl_tensor *lse,
                                 const pl_attention_args *args, pl_tensor *dq, pl_tensor *dk,
                                 pl_tensor *dv, pl_cuda_queue *queue);

// ---- swiglu.cu, rotary.cu -----------------------------------------------------------------------
pl_status pl_cuda_swiglu(const pl_tensor *x, pl_tensor *out, pl_cuda_queue *q);
pl_status pl_cuda_swiglu_grad(const pl_tensor *g, const pl_tensor *x, pl_tensor *dx,
                              pl_cuda_queue *q);
pl_status pl_cuda_rotary(const pl_tensor *x, const pl_tensor *cosine, const pl_tensor *sine,
                         int64_t first, bool back, pl_tensor *out, pl_cuda_queue *q);

#ifdef __cplusplus
}
#endif
#endif

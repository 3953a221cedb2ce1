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

// ---- elementwise.cu, copy.cu --------------------------------------------------------------------
pl_status pl_cuda_unary(pl_unary op, const pl_tensor *x, pl_tensor *out, pl_cuda_queue *q);
pl_status pl_cuda_binary(pl_binary op, const pl_tensor *a, const pl_tensor *b, pl_tensor *out,
                         pl_cuda_queue *q);
pl_status pl_cuda_where(const pl_tensor *cond, const pl_tensor *a, const pl_tensor *b,
                        pl_tensor *out, pl_cuda_queue *q);
pl_status pl_cuda_copy(const pl_tensor *src, pl_tensor *dst, pl_cuda_queue *q);
pl_status pl_cuda_fill(pl_tensor *dst, double value, pl_cuda_queue *q);
pl_status pl_cuda_fill_int(pl_tensor *dst, int64_t value, pl_cuda_queue *q);
pl_status pl_cuda_arange(pl_tensor *out, double start, double step, pl_cuda_queue *q);

#ifdef __cplusplus
}
#endif
#endif

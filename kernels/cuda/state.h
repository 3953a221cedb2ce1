// SPDX-License-Identifier: Apache-2.0
// state: what stands on the open GPU, shared by device.c and table.c only.
//
// Note [two locks]: `queue_lock` orders calls of kernels (a queue and a blas serve one caller at a
// time), `memory_lock` guards the allocator. A kernel's call may allocate: queue before memory.
#ifndef PL_CUDA_STATE_H
#define PL_CUDA_STATE_H

#include <pthread.h>

#include "cuda/backend.h"
#include "cuda/cache.h"
#include "cuda/cublaslt.h"

typedef struct pl_cuda_state {
    const pl_cuda_backend *backend;
    pl_runtime *runtime;
    pl_cuda_properties properties;
    pl_stream *compute, *uploads;  // Note [uploads], base/device.h
    pl_event *uploaded;
    pthread_mutex_t queue_lock;
    pl_cuda_queue queue;
    pl_cuda_blas *blas;
    void *scratch;
    size_t scratch_nbytes;
    pthread_mutex_t memory_lock;
    pl_cuda_cache *cache;
} pl_cuda_state;

extern pl_cuda_state pl__cuda;

// Makes all this on device `index`, which exists, and registers it. One caller.
pl_status pl__cuda_start(const pl_cuda_backend *backend, int index);
extern const pl_kernels pl__cuda_kernels;

#endif

// SPDX-License-Identifier: Apache-2.0
// state: what stands on the open GPU, shared by device.c, streams.c and table.c only.
//
// Note [two locks]: `queue_lock` orders calls of kernels (a queue and a blas serve one caller at a
// time), `memory_lock` guards the allocator. A kernel's call may allocate: queue before memory.
#ifndef PL_CUDA_STATE_H
#define PL_CUDA_STATE_H

#include <pthread.h>

#include "cuda/backend.h"
#include "cuda/cache.h"
#include "cuda/cublaslt.h"
#include "cuda/cudnn.h"

// A stream that threads may choose, and what kernels on it share. Number 0 is `compute`.
typedef struct pl_cuda_lane {
    pl_stream *stream;
    pl_cuda_queue queue;
    void *scratch;
    size_t scratch_nbytes;
    void *workspace;  // of products
    pl_event *order;  // guarded as the list of lanes
} pl_cuda_lane;

enum { PL_CUDA_POOL = 32, PL_CUDA_LANES = 1 + 2 * PL_CUDA_POOL };

typedef struct pl_cuda_state {
    const pl_cuda_backend *backend;
    pl_runtime *runtime;
    pl_cuda_properties properties;
    pl_stream *compute, *uploads;  // Note [uploads], base/device.h
    pl_event *uploaded;
    pthread_mutex_t queue_lock;
    pl_cuda_lane lanes[PL_CUDA_LANES];
    _Atomic int lane_count;  // those below are written
    pl_cuda_fault *fault;    // of all lanes, in device memory
    pl_cuda_blas *blas;
    pl_cuda_dnn *dnn;
    pthread_mutex_t memory_lock;
    pl_cuda_cache *cache;
} pl_cuda_state;

extern pl_cuda_state pl__cuda;

// ---- streams.c ----------------------------------------------------------------------------------
pl_status pl__cuda_lane_start(pl_stream *stream) PL_MUST_USE;  // the next lane
pl_cuda_lane *pl__cuda_lane(void);                             // this thread's
pl_stream *pl__cuda_current(void);
pl_stream *pl__cuda_stream(int number);
pl_status pl__cuda_stream_new(bool high_priority, int *number);
int pl__cuda_choose(int number);
pl_status pl__cuda_order_streams(bool before);

// ---- device.c -----------------------------------------------------------------------------------
pl_status pl__cuda_scratch(void *owner, size_t nbytes, void **out);  // of a lane
// Makes all this on device `index`, which exists, and registers it. One caller.
pl_status pl__cuda_start(const pl_cuda_backend *backend, int index);
extern const pl_kernels pl__cuda_kernels;

#endif

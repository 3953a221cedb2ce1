// SPDX-License-Identifier: Apache-2.0
// backend: the one symbol of paceline/_cuda.so. The library holds no part of the core: what it
// needs of it (messages of failures) it gets from who opens it. C and C++, no CUDA header.
#ifndef PL_CUDA_BACKEND_H
#define PL_CUDA_BACKEND_H

#include "cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

#include "base/device.h"  // C

enum { PL_CUDA_BACKEND_VERSION = 5 };

// What the opener gives. `fail` records a finished message for this thread, as pl_fail does.
typedef struct pl_cuda_host {
    pl_status (*fail)(pl_status st, const char *file, int line, const char *message);
} pl_cuda_host;

// What a GPU is.
typedef struct pl_cuda_properties {
    char name[128];
    int major, minor;  // compute capability
    int processors;
    size_t memory;  // bytes
} pl_cuda_properties;

// The kernels of cuda.h under their names there. Grows at its end; `version` says how far.
typedef struct pl_cuda_backend {
    int version;
    // Devices that CUDA shows, or PL_EDEVICE with what to do: no driver, or one that is too old.
    // Initialises the driver: after it a forked child cannot use CUDA.
    pl_status (*device_count)(int *out);
    pl_status (*properties)(int index, pl_cuda_properties *out);
    // The run time on one device, made the first time and then given again (streams, events and
    // memory of two devices never meet in one process: base/device.h). Never freed.
    pl_status (*runtime)(int index, pl_runtime **out);
    pl_status (*fault_status)(const pl_cuda_fault *f);
#define PL_CUDA_KERNEL(name) __typeof__(pl_cuda_##name) *name;
#include "cuda/kernels.inc.h"
#undef PL_CUDA_KERNEL
} pl_cuda_backend;

// NULL where `version` is not this library's. `host` must outlive the library's use.
__attribute__((visibility("default"))) const pl_cuda_backend *pl_cuda_backend_open(
    int version, const pl_cuda_host *host);

#ifdef __cplusplus
}
#endif
#endif

// SPDX-License-Identifier: Apache-2.0
// runtime: what backend.cu and the launches need of runtime.cu. Host code only; no CUDA header.
#ifndef PL_CUDA_RUNTIME_CUH
#define PL_CUDA_RUNTIME_CUH

extern "C" {
#include "base/device.h"  // C
}

// Right after the launches of a call: PL_OK, or what CUDA says against them.
pl_status pl_cuda_launched(const char *op);

// Before this thread's first launch, since CUDA keeps the current device per thread: nothing once
// that is done, and nothing for the device that a thread has anyway.
void pl_cuda_enter(void);

// PL_OK where CUDA may be called: not in a child of a process that has used it, nor after the GPU
// has failed. The first call makes later forks known.
pl_status pl_cuda_usable(void);

// cudaError_t `e` of the call `what` as a status, with its message.
pl_status pl_cuda_status(const char *what, int e);

// The table of device `index` (which exists).
pl_status pl_cuda_runtime(int index, pl_runtime **out);

#endif

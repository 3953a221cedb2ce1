// SPDX-License-Identifier: Apache-2.0
// open: the GPU of this process. Opened once, it is registered as the device of base/device.h and
// never closed: tensors may outlive everything else. Any thread.
#ifndef PL_CUDA_OPEN_H
#define PL_CUDA_OPEN_H

#include "cuda/backend.h"

// The library of kernels: opened by the first of these three, where library.h finds it. PL_EDEVICE
// where there is none, or one of another version, or no driver.
pl_status pl_cuda_device_count(int *out) PL_MUST_USE;
pl_status pl_cuda_device_properties(int index, pl_cuda_properties *out) PL_MUST_USE;
// Nothing where `index` is open already; PL_EDEVICE where another one is.
pl_status pl_cuda_open(int index) PL_MUST_USE;
pl_status pl_cuda_backend_find(const pl_cuda_backend **out) PL_MUST_USE;

#endif

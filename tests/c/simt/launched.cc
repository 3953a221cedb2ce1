// SPDX-License-Identifier: Apache-2.0
// launched: what kernels/cuda/runtime.cu says of a launch, for the tests that call kernels without
// a run time and without a stream: launches have ended, and the stand-in's complaint is the answer.
#include "cuda/runtime.cuh"
#include "simt_control.h"

pl_status pl_cuda_launched(const char *op) {
    if (simt_error()[0] == 0) return PL_OK;
    return pl_fail(PL_EDEVICE, "[%s] %s", op, simt_error());
}

// SPDX-License-Identifier: Apache-2.0
// The CPU's tests of scale, for kernels/cuda on the host stand-in.
#include "cuda_on_host.h"

#include "test_kernels_scale.c"

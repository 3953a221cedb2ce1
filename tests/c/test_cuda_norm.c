// SPDX-License-Identifier: Apache-2.0
// The CPU's tests of the norms, for kernels/cuda on the host stand-in.
#include "cuda_on_host.h"

#include "test_kernels_norm.c"

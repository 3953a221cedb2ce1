// SPDX-License-Identifier: Apache-2.0
// The CPU's tests of matrix products, for kernels/cuda/cublaslt.c on the stand-in for cuBLASLt.
#include "blas_on_host.h"

#define pl_cpu_matmul_library() "blocked loops"  // oneDNN's absence is not this file's subject
#include "test_kernels_matmul.c"

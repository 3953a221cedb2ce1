// SPDX-License-Identifier: Apache-2.0
// The CPU's tests of linear and its gradients, for kernels/cuda/cublaslt_linear*.c on the stand-in
// for cuBLASLt: fused where it can be, then once more with a library that fuses nothing.
#include "blas_on_host.h"

#include "test_kernels_linear.c"

TEST(without_epilogues_results_agree_too) {
    setenv("VCUDA_CUBLASLT_ONLY", "plain", 1);
    for (size_t d = 0; d < sizeof FLOATS / sizeof *FLOATS; d++) {
        for (int act = PL_ACT_NONE; act <= PL_ACT_GELU_TANH; act++) {
            check_linear(FLOATS[d], FLOATS[d], (int64_t[]){5, 9, 16}, (pl_activation)act, true);
            check_linear(FLOATS[d], PL_F32, (int64_t[]){5, 9, 16}, (pl_activation)act, false);
        }
        check_linear_grad(FLOATS[d], false, (int64_t[]){33, 20, 65}, true, true);
        check_linear_grad(FLOATS[d], FLOATS[d] != PL_F64, (int64_t[]){33, 20, 65}, false, true);
        check_linear_grad_gelu(FLOATS[d], FLOATS[d] != PL_F64, (int64_t[]){5, 16, 9});
    }
}

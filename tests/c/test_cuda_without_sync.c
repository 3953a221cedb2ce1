// SPDX-License-Identifier: Apache-2.0
// Linked with kernels that were built without the barrier in the middle of a block's sum
// (PL_CUDA_WITHOUT_SYNC): the host stand-in must show that it is missing. The same kernel with its
// barrier passes in test_cuda_fused.c.
#include "cuda/cuda.h"
#include "simt/simt_control.h"
#include "test.h"

TEST(a_barrier_removed_from_a_shipped_kernel_is_noticed) {
    enum { N = 1500 };  // longer than what one warp takes, so that warps must wait for each other
    pl_tensor *x, *out;
    CHECK_OK(pl_tensor_empty(PL_F32, 1, (int64_t[]){N}, &x));
    CHECK_OK(pl_tensor_empty(PL_F32, 1, (int64_t[]){N}, &out));
    for (int i = 0; i < N; i++) ((float *)x->data)[i] = (float)(i % 37) * 0.1f;
    static float results[SIMT_SCHEDULES][N];
    pl_cuda_fault fault = {0};
    pl_cuda_queue q = {.fault = &fault};
    for (int s = 0; s < SIMT_SCHEDULES; s++) {
        simt_set_schedule((simt_schedule)s, 3);
        CHECK_OK(pl_cuda_softmax(false, x, out, &q));
        memcpy(results[s], out->data, sizeof results[s]);
    }
    CHECK(memcmp(results[SIMT_FORWARD], results[SIMT_REVERSE], sizeof results[0]) != 0);
    CHECK(memcmp(results[SIMT_FORWARD], results[SIMT_RANDOM], sizeof results[0]) != 0);
    pl_tensor_release(out);
    pl_tensor_release(x);
}

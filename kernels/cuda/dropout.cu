// SPDX-License-Identifier: Apache-2.0
// dropout: keeps what ref/random.c's stream keeps; four elements share a Philox block. The mask is
// never stored: the gradient is the same call. Not measured on a GPU yet.
#include "cuda/philox.cuh"

namespace {

template <typename T>
__global__ void dropout_kernel(const T *x, T *out, int64_t n, uint64_t seed, uint64_t offset,
                               uint32_t threshold, pl_acc<T> scale) {
    PL_GRID_LOOP(block, (n + 3) / 4) {
        uint32_t w[4];
        pl_philox_block(seed, offset + (uint64_t)block, w);
        for (int k = 0; k < 4 && block * 4 + k < n; k++) {
            int64_t i = block * 4 + k;
            pl_acc<T> v = w[k] >> 8 >= threshold ? pl_get(x[i]) * scale : (pl_acc<T>)0;
            pl_put(&out[i], v);
        }
    }
}

}  // namespace

pl_status pl_cuda_dropout(const pl_tensor *x, double p, uint64_t seed, uint64_t offset,
                          pl_tensor *out, pl_cuda_queue *q) {
    if (x->numel == 0) return PL_OK;
    uint32_t threshold = pl_keep_threshold(p);
    unsigned blocks = pl_blocks((x->numel + 3) / 4, PL_BLOCK);
#define CALL(T)                                                                              \
    PL_LAUNCH(dropout_kernel<T>, blocks, PL_BLOCK, 0, q, (const T *)x->data, (T *)out->data, \
              x->numel, seed, offset, threshold, (pl_acc<T>)(1.0 / (1.0 - p)))
    PL_CUDA_FLOATS(x->dtype, CALL);
#undef CALL
    return pl_launched("dropout");
}

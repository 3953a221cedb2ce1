// SPDX-License-Identifier: Apache-2.0
// scale: factor * x, written or added, where the factor lies on the device, so that nobody waits
// for it. 16-byte packs where the addresses allow it. Not measured on a GPU yet.
#include "cuda/device.cuh"

namespace {

template <typename T, int P>
__global__ void scale_kernel(const T *x, const pl_acc<T> *factor, bool add, T *out, int64_t n) {
    pl_acc<T> f = *factor;
    PL_GRID_LOOP(i, (n + P - 1) / P) {
        if (i * P + P <= n) {
            pl_pack<T, P> in = pl_load<P>(x + i * P), old, to;
            if (add) old = pl_load<P>(out + i * P);
            PL_UNROLL
            for (int k = 0; k < P; k++) {
                pl_acc<T> v = f * pl_get(in.v[k]);
                pl_put(&to.v[k], add ? v + pl_get(old.v[k]) : v);
            }
            pl_store_global(out + i * P, to);
        } else {
            for (int64_t j = i * P; j < n; j++) {
                pl_acc<T> v = f * pl_get(x[j]);
                pl_put(&out[j], add ? v + pl_get(out[j]) : v);
            }
        }
    }
}

}  // namespace

pl_status pl_cuda_scale(const pl_tensor *x, const pl_tensor *factor, bool accumulate,
                        pl_tensor *out, pl_cuda_queue *q) {
    if (x->numel == 0) return PL_OK;
    bool packed = pl_is_aligned(x->data, 16) && pl_is_aligned(out->data, 16);
#define CALL(T)                                                                            \
    do {                                                                                   \
        enum { P = 16 / sizeof(T) };                                                       \
        const pl_acc<T> *f = (const pl_acc<T> *)factor->data;                              \
        unsigned blocks = pl_blocks(x->numel, packed ? PL_BLOCK * P : PL_BLOCK);           \
        if (packed) {                                                                      \
            PL_LAUNCH((scale_kernel<T, P>), blocks, PL_BLOCK, 0, q, (const T *)x->data, f, \
                      accumulate, (T *)out->data, x->numel);                               \
        } else {                                                                           \
            PL_LAUNCH((scale_kernel<T, 1>), blocks, PL_BLOCK, 0, q, (const T *)x->data, f, \
                      accumulate, (T *)out->data, x->numel);                               \
        }                                                                                  \
    } while (0)
    PL_CUDA_FLOATS(x->dtype, CALL);
#undef CALL
    return pl_launched("scale");
}

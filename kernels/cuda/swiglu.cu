// SPDX-License-Identifier: Apache-2.0
// swiglu: silu(gate) * up of a packed (M, 2N) [gate | up], as one wide product leaves it, and the
// gradient in the same layout. 16-byte packs where N allows it; gate and up are two loads in
// flight. Not measured on a GPU yet.
#include "cuda/math.cuh"
#include "cuda/rows.cuh"

namespace {

template <typename T, int P>
__global__ void forward_kernel(const T *x, T *out, int64_t rows, int64_t n) {
    typedef pl_acc<T> A;
    bool narrow = pl_divides_narrow(rows * (n / P));
    PL_GRID_LOOP(i, rows * (n / P)) {
        int64_t j, row = pl_divide(i, n / P, narrow, &j);
        j *= P;
        pl_pack<T, P> gate = pl_load<P>(x + row * 2 * n + j),
                      up = pl_load<P>(x + row * 2 * n + n + j);
        A v[P];
        PL_UNROLL
        for (int k = 0; k < P; k++) v[k] = pl_silu((A)pl_get(gate.v[k])) * pl_get(up.v[k]);
        pl_store_pack<P>(out + row * n + j, v);
    }
}

template <typename T, int P>
__global__ void grad_kernel(const T *g, const T *x, T *dx, int64_t rows, int64_t n) {
    typedef pl_acc<T> A;
    bool narrow = pl_divides_narrow(rows * (n / P));
    PL_GRID_LOOP(i, rows * (n / P)) {
        int64_t j, row = pl_divide(i, n / P, narrow, &j);
        j *= P;
        int64_t at = row * 2 * n + j;
        pl_pack<T, P> gate = pl_load<P>(x + at), up = pl_load<P>(x + at + n);
        pl_pack<T, P> grad = pl_load<P>(g + row * n + j);
        A dgate[P], dup[P];
        PL_UNROLL
        for (int k = 0; k < P; k++) {
            A gk = pl_get(grad.v[k]), z = pl_get(gate.v[k]);
            dgate[k] = gk * pl_get(up.v[k]) * pl_silu_slope(z);
            dup[k] = gk * pl_silu(z);
        }
        pl_store_pack<P>(dx + at, dgate);
        pl_store_pack<P>(dx + at + n, dup);
    }
}

}  // namespace

pl_status pl_cuda_swiglu(const pl_tensor *x, pl_tensor *out, pl_cuda_queue *q) {
    if (out->numel == 0) return PL_OK;
    int64_t n = pl_last_dim(out), rows = out->numel / n;
#define CALL(T)                                                                                    \
    do {                                                                                           \
        enum { P = 16 / sizeof(T) };                                                               \
        if (pl_rows_packed(n, sizeof(T), x->data, out->data, NULL)) {                              \
            PL_LAUNCH((forward_kernel<T, P>), pl_blocks(out->numel / P, PL_BLOCK), PL_BLOCK, 0, q, \
                      (const T *)x->data, (T *)out->data, rows, n);                                \
        } else {                                                                                   \
            PL_LAUNCH((forward_kernel<T, 1>), pl_blocks(out->numel, PL_BLOCK), PL_BLOCK, 0, q,     \
                      (const T *)x->data, (T *)out->data, rows, n);                                \
        }                                                                                          \
    } while (0)
    PL_CUDA_FLOATS(x->dtype, CALL);
#undef CALL
    return pl_launched("swiglu");
}

pl_status pl_cuda_swiglu_grad(const pl_tensor *g, const pl_tensor *x, pl_tensor *dx,
                              pl_cuda_queue *q) {
    if (g->numel == 0) return PL_OK;
    int64_t n = pl_last_dim(g), rows = g->numel / n;
#define CALL(T)                                                                               \
    do {                                                                                      \
        enum { P = 16 / sizeof(T) };                                                          \
        if (pl_rows_packed(n, sizeof(T), x->data, g->data, dx->data)) {                       \
            PL_LAUNCH((grad_kernel<T, P>), pl_blocks(g->numel / P, PL_BLOCK), PL_BLOCK, 0, q, \
                      (const T *)g->data, (const T *)x->data, (T *)dx->data, rows, n);        \
        } else {                                                                              \
            PL_LAUNCH((grad_kernel<T, 1>), pl_blocks(g->numel, PL_BLOCK), PL_BLOCK, 0, q,     \
                      (const T *)g->data, (const T *)x->data, (T *)dx->data, rows, n);        \
        }                                                                                     \
    } while (0)
    PL_CUDA_FLOATS(x->dtype, CALL);
#undef CALL
    return pl_launched("swiglu");
}

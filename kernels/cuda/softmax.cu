// SPDX-License-Identifier: Apache-2.0
// softmax and log-softmax over the last dimension, and their gradients: a warp or a block per row,
// the row read three times (twice from the caches). Not measured on a GPU yet.
#include "cuda/math.cuh"
#include "cuda/rows.cuh"

namespace {

template <typename T, int WARPS, int P>
__global__ void forward_kernel(const T *in, T *out, int64_t rows, int64_t n, bool log_form) {
    typedef pl_acc<T> A;
    for (int64_t i = pl_first_row<WARPS>(); i < rows; i += pl_row_step<WARPS>()) {
        const T *x = in + i * n;
        A top = -(A)INFINITY, sum = 0;
        pl_each_pack<WARPS, P>(x, n, [&](int64_t, const A *v) {
            PL_UNROLL
            for (int k = 0; k < P; k++) top = pl_larger()(v[k], top);
        });
        top = pl_block_max<WARPS>(top);
        pl_each_pack<WARPS, P>(x, n, [&](int64_t, const A *v) {
            PL_UNROLL
            for (int k = 0; k < P; k++) sum += pl_exp(v[k] - top);
        });
        sum = pl_block_sum<WARPS>(sum);
        A shift = log_form ? pl_log(sum) : (A)0;
        pl_each_pack<WARPS, P>(x, n, [&](int64_t j, A *v) {
            PL_UNROLL
            for (int k = 0; k < P; k++) {
                v[k] = log_form ? v[k] - top - shift : pl_exp(v[k] - top) / sum;
            }
            pl_store_pack<P>(out + i * n + j, v);
        });
    }
}

template <typename T, int WARPS, int P>
__global__ void grad_kernel(const T *grad, const T *result, T *dx, int64_t rows, int64_t n,
                            bool log_form) {
    typedef pl_acc<T> A;
    for (int64_t i = pl_first_row<WARPS>(); i < rows; i += pl_row_step<WARPS>()) {
        const T *g = grad + i * n, *y = result + i * n;
        A sum = 0;
        pl_each_pack<WARPS, P>(g, n, [&](int64_t j, const A *v) {
            pl_pack<T, P> in = pl_load<P>(y + j);
            PL_UNROLL
            for (int k = 0; k < P; k++) sum += log_form ? v[k] : v[k] * pl_get(in.v[k]);
        });
        sum = pl_block_sum<WARPS>(sum);
        pl_each_pack<WARPS, P>(g, n, [&](int64_t j, A *v) {
            pl_pack<T, P> in = pl_load<P>(y + j);
            PL_UNROLL
            for (int k = 0; k < P; k++) {
                A yk = pl_get(in.v[k]);
                v[k] = log_form ? v[k] - pl_exp(yk) * sum : yk * (v[k] - sum);
            }
            pl_store_pack<P>(dx + i * n + j, v);
        });
    }
}

}  // namespace

pl_status pl_cuda_softmax(bool log, const pl_tensor *x, pl_tensor *out, pl_cuda_queue *q) {
    if (x->numel == 0) return PL_OK;
    int64_t n = pl_last_dim(x), rows = x->numel / n;
#define CALL(T)                                                                                   \
    PL_LAUNCH_ROWS(forward_kernel, T, rows, n,                                                    \
                   pl_rows_packed(n, sizeof(T), x->data, out->data, NULL), q, (const T *)x->data, \
                   (T *)out->data, rows, n, log)
    PL_CUDA_FLOATS(x->dtype, CALL);
#undef CALL
    return pl_launched("softmax");
}

pl_status pl_cuda_softmax_grad(bool log, const pl_tensor *g, const pl_tensor *y, pl_tensor *dx,
                               pl_cuda_queue *q) {
    if (y->numel == 0) return PL_OK;
    int64_t n = pl_last_dim(y), rows = y->numel / n;
#define CALL(T)                                                                 \
    PL_LAUNCH_ROWS(grad_kernel, T, rows, n,                                     \
                   pl_rows_packed(n, sizeof(T), g->data, y->data, dx->data), q, \
                   (const T *)g->data, (const T *)y->data, (T *)dx->data, rows, n, log)
    PL_CUDA_FLOATS(y->dtype, CALL);
#undef CALL
    return pl_launched("softmax");
}

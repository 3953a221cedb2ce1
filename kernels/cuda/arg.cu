// SPDX-License-Identifier: Apache-2.0
// arg: places of extremes (a warp per line, for short lines a thread) and running sums (a thread
// per line). Simple and in a fixed order; one element per access; a single long line uses one warp
// or one thread. Not measured on a GPU yet.
#include "cuda/math.cuh"
#include "cuda/walk.cuh"

namespace {

enum { WARPS = 8, BLOCK = WARPS * PL_LANES };

template <typename A>
struct place {
    A value;
    int64_t at;  // below 0: nothing seen
};

// Whether b comes before a: strictly better, or the first of equals; the first NaN beats all.
template <typename A>
PL_DEVICE bool beats(bool max, const place<A> &b, const place<A> &a) {
    if (b.at < 0 || a.at < 0) return a.at < 0 && b.at >= 0;
    bool nan_a = a.value != a.value, nan_b = b.value != b.value;
    if (nan_a || nan_b) return nan_b && (!nan_a || b.at < a.at);
    if (a.value == b.value) return b.at < a.at;
    return max ? b.value > a.value : b.value < a.value;
}

// This thread's elements of a line: first, first + step, ...
template <typename T>
PL_DEVICE place<pl_acc<T>> best_of(bool max, const T *x, int64_t first, int64_t n, int64_t step,
                                   int64_t stride) {
    place<pl_acc<T>> best = {0, -1};
    for (int64_t j = first; j < n; j += step) {
        place<pl_acc<T>> next = {pl_get(x[j * stride]), j};
        if (beats(max, next, best)) best = next;
    }
    return best;
}

template <typename T, bool SHORT>
__global__ void arg_kernel(bool max, const T *x, int64_t *out, pl_walk lines, int64_t n,
                           int64_t stride) {
    enum { GROUP = SHORT ? 1 : PL_LANES };
    int lane = (int)(threadIdx.x % GROUP);
    for (int64_t i = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) / GROUP; i < lines.n;
         i += (int64_t)gridDim.x * BLOCK / GROUP) {
        int64_t base[1];
        pl_walk_offsets<1>(lines, i, base);
        place<pl_acc<T>> best = best_of(max, x + base[0], lane, n, GROUP, stride);
        for (int half = GROUP / 2; half > 0; half /= 2) {
            place<pl_acc<T>> other = {__shfl_xor_sync(PL_ALL_LANES, best.value, half),
                                      __shfl_xor_sync(PL_ALL_LANES, best.at, half)};
            if (beats(max, other, best)) best = other;
        }
        if (lane == 0) out[i] = best.at;
    }
}

template <typename T>
void arg_launch(bool max, const T *x, int64_t *out, const pl_walk &lines, int64_t n, int64_t stride,
                pl_cuda_queue *q) {
    if (n <= PL_LANES) {
        unsigned blocks = pl_blocks(lines.n, BLOCK);
        PL_LAUNCH((arg_kernel<T, true>), blocks, BLOCK, 0, q, max, x, out, lines, n, stride);
    } else {
        unsigned blocks = pl_blocks(lines.n, WARPS);
        PL_LAUNCH((arg_kernel<T, false>), blocks, BLOCK, 0, q, max, x, out, lines, n, stride);
    }
}

PL_DEVICE double widen(float x) { return x; }
PL_DEVICE double widen(double x) { return x; }
PL_DEVICE int64_t widen(int64_t x) { return x; }
// One element after the other, so that the order is the CPU's: a thread per line.
template <typename T>
__global__ void cumsum_kernel(const T *x, T *out, pl_walk lines, int64_t n, int64_t step_x,
                              int64_t step_out) {
    PL_GRID_LOOP(i, lines.n) {
        int64_t base[2];
        pl_walk_offsets<2>(lines, i, base);
        decltype(widen(pl_get(T()))) sum = 0;
        for (int64_t j = 0; j < n; j++) {
            sum = pl_sum(sum, widen(pl_get(x[base[1] + j * step_x])));
            pl_put(&out[base[0] + j * step_out], sum);
        }
    }
}

// t without dimension dim: where each line begins.
pl_tensor without(const pl_tensor *t, int dim) {
    pl_tensor rest = *t;
    if (t->ndim == 0) return rest;
    rest.numel = 1;
    rest.shape[dim] = 1;
    for (int d = 0; d < t->ndim; d++) rest.numel *= rest.shape[d];
    return rest;
}

}  // namespace

pl_status pl_cuda_argreduce(bool max, const pl_tensor *x, int dim, pl_tensor *out,
                            pl_cuda_queue *q) {
    if (out->numel == 0) return PL_OK;
    int64_t n = x->ndim == 0 ? 1 : x->shape[dim], step = x->ndim == 0 ? 0 : x->strides[dim];
    pl_tensor rest = without(x, dim);
    const pl_tensor *one[] = {&rest};
    pl_walk lines = pl_walk_over(1, one);
#define CALL(T) arg_launch<T>(max, (const T *)x->data, (int64_t *)out->data, lines, n, step, q)
    PL_CUDA_TYPES(x->dtype, CALL);
#undef CALL
    return pl_launched("argreduce");
}

pl_status pl_cuda_cumsum(const pl_tensor *x, int dim, pl_tensor *out, pl_cuda_queue *q) {
    if (out->numel == 0) return PL_OK;
    int64_t n = x->ndim == 0 ? 1 : x->shape[dim];
    int64_t step_x = x->ndim == 0 ? 0 : x->strides[dim];
    int64_t step_out = x->ndim == 0 ? 0 : out->strides[dim];
    pl_tensor rest_out = without(out, dim), rest_x = without(x, dim);
    const pl_tensor *both[] = {&rest_out, &rest_x};
    pl_walk lines = pl_walk_over(2, both);
#define CALL(T)                                                                             \
    PL_LAUNCH(cumsum_kernel<T>, pl_blocks(lines.n, BLOCK), BLOCK, 0, q, (const T *)x->data, \
              (T *)out->data, lines, n, step_x, step_out)
    PL_CUDA_TYPES(x->dtype, CALL);
#undef CALL
    return pl_launched("cumsum");
}

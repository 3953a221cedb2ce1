// SPDX-License-Identifier: Apache-2.0
// random: uniform, normal and integer streams, bit for bit those of Note [random streams]
// (ref/random.c). A thread draws one Philox block and writes its elements. Normals need double
// arithmetic that is not fused: this folder is compiled with -fmad=false. Not measured on a GPU
// yet.
#include "cuda/philox.cuh"

#define PL_NORMAL_FN static PL_DEVICE
#define PL_NORMAL_SQRT(x) sqrt(x)
#include "normal.h"

namespace {

// Elements of one Philox block: four, or two of eight bytes.
template <typename T>
struct per_block {
    enum { N = sizeof(T) == 8 ? 2 : 4 };
};

PL_DEVICE uint64_t word64(const uint32_t *w, int k) {
    return (uint64_t)w[2 * k] << 32 | w[2 * k + 1];
}

// One step of the dtype further down.
PL_DEVICE void step_down(double *p) { *p = nextafter(*p, -(double)INFINITY); }
PL_DEVICE void step_down(float *p) { *p = nextafterf(*p, -INFINITY); }
template <typename T>
PL_DEVICE void step_down(T *p) {
    float v = pl_get(*p);
    p->bits = v == 0 ? 0x8001 : (uint16_t)(p->bits + (v > 0 ? 0xffff : 1));
}

template <typename T>
__global__ void uniform_kernel(T *out, int64_t n, double lo, double hi, uint64_t seed,
                               uint64_t offset) {
    enum { N = per_block<T>::N };
    PL_GRID_LOOP(block, (n + N - 1) / N) {
        uint32_t w[4];
        pl_philox_block(seed, offset + (uint64_t)block, w);
        PL_UNROLL
        for (int k = 0; k < N; k++) {
            if (block * N + k >= n) break;
            double u = N == 2 ? (double)(word64(w, k & 1) >> 11) * 1.1102230246251565e-16
                              : (double)(w[k] >> 8) * 5.9604644775390625e-08;
            T v;
            pl_put(&v, lo + u * (hi - lo));
            if ((double)pl_get(v) >= hi && hi > lo) {  // rounding brought it up
                pl_put(&v, hi);
                if ((double)pl_get(v) >= hi) step_down(&v);
            }
            out[block * N + k] = v;
        }
    }
}

// A block makes one pair in double, two pairs in the other dtypes.
template <typename T>
__global__ void normal_kernel(T *out, int64_t n, double mean, double std, uint64_t seed,
                              uint64_t offset) {
    enum { N = per_block<T>::N };
    PL_GRID_LOOP(block, (n + N - 1) / N) {
        uint32_t w[4];
        pl_philox_block(seed, offset + (uint64_t)block, w);
        PL_UNROLL
        for (int k = 0; k < N; k += 2) {
            double u1, u2, z[2];
            if (N == 2) {
                u1 = ((double)(word64(w, 0) >> 11) + 1.0) * 1.1102230246251565e-16;
                u2 = (double)(word64(w, 1) >> 11) * 1.1102230246251565e-16;
            } else {
                u1 = ((double)w[k] + 1.0) * 2.3283064365386963e-10;
                u2 = (double)w[k + 1] * 2.3283064365386963e-10;
            }
            pl_normal_pair(u1, u2, &z[0], &z[1]);
            for (int e = 0; e < 2 && block * N + k + e < n; e++) {
                pl_put(&out[block * N + k + e], mean + std * z[e]);
            }
        }
    }
}

template <typename T>
__global__ void randint_kernel(T *out, int64_t n, int64_t lo, uint64_t width, uint64_t seed,
                               uint64_t offset) {
    enum { N = per_block<T>::N };
    PL_GRID_LOOP(block, (n + N - 1) / N) {
        uint32_t w[4];
        pl_philox_block(seed, offset + (uint64_t)block, w);
        PL_UNROLL
        for (int k = 0; k < N; k++) {
            if (block * N + k >= n) break;
            uint64_t draw = N == 2 ? __umul64hi(word64(w, k & 1), width) : w[k] * width >> 32;
            pl_put(&out[block * N + k], (pl_acc<T>)(int64_t)((uint64_t)lo + draw));
        }
    }
}

// A thread per Philox block of `out`.
#define LAUNCH(kernel, T, out, q, ...)                                                            \
    PL_LAUNCH(kernel<T>, pl_blocks(((out)->numel - 1) / per_block<T>::N + 1, PL_BLOCK), PL_BLOCK, \
              0, q, (T *)(out)->data, (out)->numel, __VA_ARGS__)

}  // namespace

pl_status pl_cuda_uniform(pl_tensor *out, double lo, double hi, uint64_t seed, uint64_t offset,
                          pl_cuda_queue *q) {
    if (out->numel == 0) return PL_OK;
#define CALL(T) LAUNCH(uniform_kernel, T, out, q, lo, hi, seed, offset)
    PL_CUDA_FLOATS(out->dtype, CALL);
#undef CALL
    return pl_launched("uniform");
}

pl_status pl_cuda_normal(pl_tensor *out, double mean, double std, uint64_t seed, uint64_t offset,
                         pl_cuda_queue *q) {
    if (out->numel == 0) return PL_OK;
#define CALL(T) LAUNCH(normal_kernel, T, out, q, mean, std, seed, offset)
    PL_CUDA_FLOATS(out->dtype, CALL);
#undef CALL
    return pl_launched("normal");
}

pl_status pl_cuda_randint(pl_tensor *out, int64_t lo, int64_t hi, uint64_t seed, uint64_t offset,
                          pl_cuda_queue *q) {
    if (out->numel == 0) return PL_OK;
    uint64_t width = (uint64_t)hi - (uint64_t)lo;
#define CALL(T) LAUNCH(randint_kernel, T, out, q, lo, width, seed, offset)
    PL_CUDA_TYPES(out->dtype, CALL);
#undef CALL
    return pl_launched("randint");
}

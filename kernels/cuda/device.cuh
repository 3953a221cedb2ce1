// SPDX-License-Identifier: Apache-2.0
// device: what the .cu files share: launching, element types, wide accesses, sums over a warp and a
// block. Compiled by nvcc, or as host C++ with the tests' stand-in (tests/c/simt) in place of
// CUDA's headers; everything that differs between the two is in this file, mma.cuh and fetch.cuh.
// Rules for kernels: no inline PTX elsewhere; every warp operation has its mask; arithmetic is not
// fused unless fma() says so (nvcc -fmad=false, as gcc -ffp-contract=off); a result never depends
// on the order in which threads or blocks run.
#ifndef PL_CUDA_DEVICE_CUH
#define PL_CUDA_DEVICE_CUH

#ifdef __CUDACC__
#include <cuda_runtime.h>
#include <math.h>
#else
#include <simt.h>
#endif

#include "cuda/cuda.h"
#include "cuda/runtime.cuh"

#define PL_DEVICE __device__ __forceinline__

// ---- Launching ----------------------------------------------------------------------------------

#ifdef __CUDACC__
#define PL_LAUNCH(kernel, grid, block, dynamic_bytes, queue, ...)                        \
    do {                                                                                 \
        auto *pl_launch_kernel = kernel;                                                 \
        pl_cuda_enter();                                                                 \
        pl_launch_kernel<<<grid, block, dynamic_bytes, (cudaStream_t)(queue)->stream>>>( \
            __VA_ARGS__);                                                                \
    } while (0)
#define PL_UNROLL _Pragma("unroll")
#define PL_UNROLL_TWICE _Pragma("unroll 2")
#define PL_NO_UNROLL _Pragma("unroll 1")
#define PL_SHARED(type, name, count) __shared__ type name[count]
#define PL_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#else
#define PL_LAUNCH(kernel, grid, block, dynamic_bytes, queue, ...)                               \
    do {                                                                                        \
        auto *pl_launch_kernel = kernel;                                                        \
        simt_start(pl_launch_kernel, grid, block, dynamic_bytes, (queue)->stream, __VA_ARGS__); \
    } while (0)
#define PL_UNROLL
#define PL_UNROLL_TWICE
#define PL_NO_UNROLL
#define PL_SHARED(type, name, count)    \
    static const char name##_place = 0; \
    type *name = (type *)simt_shared(&name##_place, sizeof(type) * (count))
#define PL_DYNAMIC_SHARED(name) unsigned char *name = (unsigned char *)simt_dynamic_shared()
#endif

// Right after a launch: PL_OK, or what CUDA says against it.
static inline pl_status pl_launched(const char *op) { return pl_cuda_launched(op); }

// More than 48 KB of dynamic shared memory must be asked for, per kernel and device; cheap.
template <typename Kernel>
static inline pl_status pl_allow_shared(const char *op, Kernel *kernel, size_t nbytes) {
#ifdef __CUDACC__
    PL_TRY(pl_cuda_usable());
    pl_cuda_enter();
    return pl_cuda_status(
        op, cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 (int)nbytes));
#else
    (void)op;
    simt_allow_shared((const void *)kernel, nbytes);
    return PL_OK;
#endif
}

// Blocks for n threads in grid-stride loops. A bound that fills every GPU of today: 132
// processors of 2048 threads are 1056 blocks of 256; loops take the rest.
enum { PL_BLOCK = 256, PL_MAX_BLOCKS = 4096 };
static inline unsigned pl_blocks(int64_t n, int64_t per_block) {
    int64_t blocks = (n + per_block - 1) / per_block;
    return (unsigned)(blocks < 1 ? 1 : blocks > PL_MAX_BLOCKS ? (int64_t)PL_MAX_BLOCKS : blocks);
}
#define PL_GRID_LOOP(i, n)                                                    \
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n); \
         i += (int64_t)gridDim.x * blockDim.x)

static PL_DEVICE void pl_report(pl_cuda_fault *fault, int kind, int64_t got, int64_t limit) {
    if (atomicCAS(&fault->kind, 0, kind) == 0) {
        fault->got = got;
        fault->limit = limit;
    }
}

// ---- Elements -----------------------------------------------------------------------------------

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

static PL_DEVICE float pl_float_bits(uint32_t u) {
#ifdef __CUDACC__
    return __uint_as_float(u);
#else
    float f;
    memcpy(&f, &u, sizeof(f));
    return f;
#endif
}

static PL_DEVICE uint16_t pl_round_bf16(float x) {
#ifdef __CUDACC__
    uint16_t h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return h;
#else
    return pl_f32_to_bf16(x);
#endif
}

static PL_DEVICE uint16_t pl_round_f16(float x) {
#ifdef __CUDACC__
    uint16_t h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(x));
    return h;
#else
    return pl_f32_to_f16(x);
#endif
}

static PL_DEVICE float pl_widen_f16(uint16_t h) {
#ifdef __CUDACC__
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(h));
    return x;
#else
    return pl_f16_to_f32(h);
#endif
}

// 2^x in one instruction: right to 2^-22, and 0 where the result would be subnormal. For fp64 the
// library's function.
static PL_DEVICE float pl_exp2(float x) {
#ifdef __CUDACC__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}
static PL_DEVICE double pl_exp2(double x) { return exp2(x); }
static PL_DEVICE float pl_fma(float a, float b, float c) { return fmaf(a, b, c); }
static PL_DEVICE double pl_fma(double a, double b, double c) { return fma(a, b, c); }

// What an element computes in: pl_acc<T>, and the way there and back. Integers wrap in int64.
template <typename T>
struct pl_type {
    typedef int64_t acc;
};
template <>
struct pl_type<float> {
    typedef float acc;
};
template <>
struct pl_type<bf16> {
    typedef float acc;
};
template <>
struct pl_type<f16> {
    typedef float acc;
};
template <>
struct pl_type<double> {
    typedef double acc;
};
template <typename T>
using pl_acc = typename pl_type<T>::acc;

static PL_DEVICE float pl_get(float x) { return x; }
static PL_DEVICE double pl_get(double x) { return x; }
static PL_DEVICE float pl_get(bf16 x) { return pl_float_bits((uint32_t)x.bits << 16); }
static PL_DEVICE float pl_get(f16 x) { return pl_widen_f16(x.bits); }
static PL_DEVICE int64_t pl_get(bool x) { return x; }
static PL_DEVICE int64_t pl_get(uint8_t x) { return x; }
static PL_DEVICE int64_t pl_get(int32_t x) { return x; }
static PL_DEVICE int64_t pl_get(int64_t x) { return x; }

static PL_DEVICE void pl_put(float *p, float x) { *p = x; }
static PL_DEVICE void pl_put(float *p, double x) { *p = (float)x; }
static PL_DEVICE void pl_put(double *p, double x) { *p = x; }
static PL_DEVICE void pl_put(bf16 *p, float x) { p->bits = pl_round_bf16(x); }
static PL_DEVICE void pl_put(bf16 *p, double x) { p->bits = pl_round_bf16((float)x); }
static PL_DEVICE void pl_put(f16 *p, float x) { p->bits = pl_round_f16(x); }
static PL_DEVICE void pl_put(f16 *p, double x) { p->bits = pl_round_f16((float)x); }
static PL_DEVICE void pl_put(bool *p, int64_t x) { *p = x != 0; }
static PL_DEVICE void pl_put(bool *p, float x) { *p = x != 0; }
static PL_DEVICE void pl_put(bool *p, double x) { *p = x != 0; }
static PL_DEVICE void pl_put(uint8_t *p, int64_t x) { *p = (uint8_t)x; }
static PL_DEVICE void pl_put(int32_t *p, int64_t x) { *p = (int32_t)(uint32_t)(uint64_t)x; }
static PL_DEVICE void pl_put(int64_t *p, int64_t x) { *p = x; }

// Integers wrap.
static PL_DEVICE float pl_sum(float a, float b) { return a + b; }
static PL_DEVICE double pl_sum(double a, double b) { return a + b; }
static PL_DEVICE int64_t pl_sum(int64_t a, int64_t b) {
    return (int64_t)((uint64_t)a + (uint64_t)b);
}

// Some elements that one access moves: N * sizeof(T) is 16 bytes or less.
template <typename T, int N>
struct alignas(sizeof(T) * N) pl_pack {
    T v[N];
};
template <int N, typename T>
static PL_DEVICE pl_pack<T, N> pl_load(const T *p) {
    static_assert(sizeof(T) * N <= 16, "one access moves up to 16 bytes");
#ifndef __CUDACC__
    simt_aligned(SIMT_SITE("load"), p, sizeof(T) * N);
#endif
    return *(const pl_pack<T, N> *)p;
}
template <int N, typename T>
static PL_DEVICE void pl_store(T *p, const pl_pack<T, N> &pack) {
#ifndef __CUDACC__
    simt_aligned(SIMT_SITE("store"), p, sizeof(T) * N);
#endif
    *(pl_pack<T, N> *)p = pack;
}
// The same to global memory, for sure by one access: nvcc may split a struct of 16 bytes into four
// stores where another access stands beside it (seen in SASS).
template <int N, typename T>
static PL_DEVICE void pl_store_global(T *p, const pl_pack<T, N> &pack) {
#ifdef __CUDACC__
    if constexpr (sizeof(pack) == 16) {
        uint4 v;
        memcpy(&v, &pack, sizeof(v));
        asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(p)),
                     "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                     : "memory");
        return;
    }
#endif
    pl_store(p, pack);
}
static inline bool pl_is_aligned(const void *p, size_t nbytes) {
    return (uintptr_t)p % nbytes == 0;
}

// A tensor's elements; of none, NULL.
template <typename T>
static inline T *pl_data(const pl_tensor *t) {
    return t != NULL ? (T *)t->data : NULL;
}

// Calls CALL(type) for a floating dtype, for any dtype.
#define PL_CUDA_FLOATS(dt, CALL)      \
    do {                              \
        if ((dt) == PL_F32) {         \
            CALL(float);              \
        } else if ((dt) == PL_BF16) { \
            CALL(bf16);               \
        } else if ((dt) == PL_F16) {  \
            CALL(f16);                \
        } else {                      \
            CALL(double);             \
        }                             \
    } while (0)
#define PL_CUDA_TYPES(dt, CALL)       \
    do {                              \
        if ((dt) == PL_BOOL) {        \
            CALL(bool);               \
        } else if ((dt) == PL_U8) {   \
            CALL(uint8_t);            \
        } else if ((dt) == PL_I32) {  \
            CALL(int32_t);            \
        } else if ((dt) == PL_I64) {  \
            CALL(int64_t);            \
        } else {                      \
            PL_CUDA_FLOATS(dt, CALL); \
        }                             \
    } while (0)

// For what only moves elements: CALL(an unsigned type of that size).
#define PL_CUDA_SIZES(size, CALL) \
    do {                          \
        if ((size) == 1) {        \
            CALL(uint8_t);        \
        } else if ((size) == 2) { \
            CALL(uint16_t);       \
        } else if ((size) == 4) { \
            CALL(uint32_t);       \
        } else {                  \
            CALL(uint64_t);       \
        }                         \
    } while (0)

// ---- Sums over lanes and threads ----------------------------------------------------------------

struct pl_plus {
    template <typename A>
    PL_DEVICE A operator()(A a, A b) const {
        return a + b;
    }
};
struct pl_larger {  // a NaN loses, as in fmax
    template <typename A>
    PL_DEVICE A operator()(A a, A b) const {
        return a > b || b != b ? a : b;
    }
};

enum { PL_LANES = 32 };
static const uint32_t PL_ALL_LANES = 0xffffffffu;

// Over the 32 lanes of a warp, by halves; every lane gets the same bits.
template <typename A, typename Op>
static PL_DEVICE A pl_warp_fold(A x, Op op) {
    for (int step = PL_LANES / 2; step > 0; step /= 2) {
        x = op(x, __shfl_xor_sync(PL_ALL_LANES, x, step));
    }
    return x;
}

// tests/c builds the kernels once more without this barrier, and wants to see it missed.
#ifdef PL_CUDA_WITHOUT_SYNC
#define PL_FOLD_SYNC() ((void)0)
#else
#define PL_FOLD_SYNC() __syncthreads()
#endif

// Over a block of WARPS warps; every thread calls it and gets the same bits. With one warp no
// barrier. `empty` is op's neutral value.
template <int WARPS, typename A, typename Op>
static PL_DEVICE A pl_block_fold(A x, A empty, Op op) {
    x = pl_warp_fold(x, op);
    if (WARPS == 1) return x;
    PL_SHARED(A, parts, WARPS);
    int lane = (int)(threadIdx.x % PL_LANES), warp = (int)(threadIdx.x / PL_LANES);
    if (lane == 0) parts[warp] = x;
    PL_FOLD_SYNC();
    x = pl_warp_fold(lane < WARPS ? parts[lane] : empty, op);
    __syncthreads();  // parts may be written again
    return x;
}
template <int WARPS, typename A>
static PL_DEVICE A pl_block_sum(A x) {
    return pl_block_fold<WARPS>(x, (A)0, pl_plus());
}
template <int WARPS, typename A>
static PL_DEVICE A pl_block_max(A x) {
    return pl_block_fold<WARPS>(x, -(A)INFINITY, pl_larger());
}

#endif

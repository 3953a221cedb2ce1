// SPDX-License-Identifier: Apache-2.0
// copy: any dtype to any dtype with any strides, fills and arange. Bound by memory: dense tensors
// of one dtype move in 16-byte packs, dense ones of two dtypes in packs of the wider, others one
// element at a time. Not measured on a GPU yet.
#include "cuda/walk.cuh"

namespace {

// Truncation where the value fits; NaN and the rest become the smallest, as on the CPU.
__host__ PL_DEVICE int64_t to_int(double v) {
    return v >= -9223372036854775808.0 && v < 9223372036854775808.0 ? (int64_t)v : INT64_MIN;
}

PL_DEVICE float to_float(float v) { return v; }
PL_DEVICE float to_float(double v) { return (float)v; }
PL_DEVICE float to_float(int64_t v) { return (float)v; }

template <typename A>
PL_DEVICE void convert(bool *p, A v) {
    *p = v != 0;
}
PL_DEVICE void convert(uint8_t *p, int64_t v) { *p = (uint8_t)v; }
PL_DEVICE void convert(uint8_t *p, double v) { *p = (uint8_t)(uint64_t)to_int(v); }
PL_DEVICE void convert(uint8_t *p, float v) { convert(p, (double)v); }
PL_DEVICE void convert(int32_t *p, int64_t v) { *p = (int32_t)(uint32_t)(uint64_t)v; }
PL_DEVICE void convert(int32_t *p, double v) {
    *p = v > -2147483649.0 && v < 2147483648.0 ? (int32_t)v : INT32_MIN;
}
PL_DEVICE void convert(int32_t *p, float v) { convert(p, (double)v); }
PL_DEVICE void convert(int64_t *p, int64_t v) { *p = v; }
PL_DEVICE void convert(int64_t *p, double v) { *p = to_int(v); }
PL_DEVICE void convert(int64_t *p, float v) { *p = to_int((double)v); }
template <typename A>
PL_DEVICE void convert(float *p, A v) {
    *p = to_float(v);
}
template <typename A>
PL_DEVICE void convert(double *p, A v) {
    *p = (double)v;
}
template <typename A>
PL_DEVICE void convert(bf16 *p, A v) {
    pl_put(p, to_float(v));
}
template <typename A>
PL_DEVICE void convert(f16 *p, A v) {
    pl_put(p, to_float(v));
}

template <typename S, typename D>
__global__ void convert_packs(const S *src, D *dst, int64_t n) {
    enum { N = 16 / (sizeof(S) > sizeof(D) ? sizeof(S) : sizeof(D)) };
    int64_t packs = n / N, rest = packs * N + blockIdx.x * blockDim.x + threadIdx.x;
    PL_GRID_LOOP(i, packs) {
        pl_pack<S, N> in = pl_load<N>(src + i * N);
        pl_pack<D, N> out;
        for (int k = 0; k < N; k++) convert(&out.v[k], pl_get(in.v[k]));
        pl_store(dst + i * N, out);
    }
    if (rest < n) convert(&dst[rest], pl_get(src[rest]));
}

template <typename S, typename D>
__global__ void convert_walk(const S *src, D *dst, pl_walk walk) {
    PL_GRID_LOOP(i, walk.n) {
        int64_t at[2];
        pl_walk_offsets<2>(walk, i, at);
        convert(&dst[at[0]], pl_get(src[at[1]]));
    }
}

template <typename S, typename D>
void convert_launch(const pl_tensor *src, pl_tensor *dst, pl_cuda_queue *q) {
    const pl_tensor *both[] = {dst, src};
    pl_walk walk = pl_walk_over(2, both);
    bool dense = pl_walk_dense(&walk, 0) && pl_walk_dense(&walk, 1) &&
                 pl_is_aligned(src->data, 16) && pl_is_aligned(dst->data, 16);
    const S *from = (const S *)src->data;
    D *to = (D *)dst->data;
    if (dense) {
        enum { N = 16 / (sizeof(S) > sizeof(D) ? sizeof(S) : sizeof(D)) };
        unsigned blocks = pl_blocks(walk.n / N + 1, PL_BLOCK);
        PL_LAUNCH((convert_packs<S, D>), blocks, PL_BLOCK, 0, q, from, to, walk.n);
    } else {
        unsigned blocks = pl_blocks(walk.n, PL_BLOCK);
        PL_LAUNCH((convert_walk<S, D>), blocks, PL_BLOCK, 0, q, from, to, walk);
    }
}

template <typename S>
void convert_from(const pl_tensor *src, pl_tensor *dst, pl_cuda_queue *q) {
#define CALL(D) convert_launch<S, D>(src, dst, q)
    PL_CUDA_TYPES(dst->dtype, CALL);
#undef CALL
}

// One element's bits, already in dst's dtype.
typedef struct element {
    uint64_t bits;
} element;

template <typename T>
__global__ void fill_walk(T *dst, element value, pl_walk walk) {
    T v = (T)value.bits;
    PL_GRID_LOOP(i, walk.n) {
        int64_t at[1];
        pl_walk_offsets<1>(walk, i, at);
        dst[at[0]] = v;
    }
}

template <typename T>
__global__ void fill_packs(T *dst, element value, int64_t n) {
    enum { N = 16 / sizeof(T) };
    int64_t packs = n / N, rest = packs * N + blockIdx.x * blockDim.x + threadIdx.x;
    pl_pack<T, N> out;
    for (int k = 0; k < N; k++) out.v[k] = (T)value.bits;
    PL_GRID_LOOP(i, packs) { pl_store(dst + i * N, out); }
    if (rest < n) dst[rest] = (T)value.bits;
}

template <typename T>
void fill_launch(pl_tensor *dst, element value, pl_cuda_queue *q) {
    const pl_tensor *one[] = {dst};
    pl_walk walk = pl_walk_over(1, one);
    T *to = (T *)dst->data;
    if (pl_walk_dense(&walk, 0) && pl_is_aligned(to, 16)) {
        unsigned blocks = pl_blocks(walk.n / (16 / (int64_t)sizeof(T)) + 1, PL_BLOCK);
        PL_LAUNCH(fill_packs<T>, blocks, PL_BLOCK, 0, q, to, value, walk.n);
    } else {
        PL_LAUNCH(fill_walk<T>, pl_blocks(walk.n, PL_BLOCK), PL_BLOCK, 0, q, to, value, walk);
    }
}

pl_status fill_bits(pl_tensor *dst, element value, pl_cuda_queue *q) {
    if (dst->numel == 0) return PL_OK;
#define CALL(U) fill_launch<U>(dst, value, q)
    PL_CUDA_SIZES(pl_dtype_size(dst->dtype), CALL);
#undef CALL
    return pl_launched("fill");
}

template <typename T>
__global__ void arange_kernel(T *out, double start, double step, int64_t n) {
    PL_GRID_LOOP(i, n) { convert(&out[i], start + (double)i * step); }
}

// A value of dst's dtype, as ref_set and ref_set_int make it.
element element_of(pl_dtype dt, double value, int64_t integer) {
    element e = {0};
    float single = (float)value;
    if (dt == PL_F64) {
        memcpy(&e.bits, &value, sizeof(value));
    } else if (dt == PL_F32) {
        memcpy(&e.bits, &single, sizeof(single));
    } else if (dt == PL_BF16 || dt == PL_F16) {
        e.bits = dt == PL_BF16 ? pl_f32_to_bf16(single) : pl_f32_to_f16(single);
    } else {
        e.bits = dt == PL_BOOL ? (uint64_t)(value != 0.0) : (uint64_t)integer;
    }
    return e;
}

}  // namespace

pl_status pl_cuda_copy(const pl_tensor *src, pl_tensor *dst, pl_cuda_queue *q) {
    if (dst->numel == 0) return PL_OK;
#define CALL(S) convert_from<S>(src, dst, q)
    PL_CUDA_TYPES(src->dtype, CALL);
#undef CALL
    return pl_launched("copy");
}

pl_status pl_cuda_fill(pl_tensor *dst, double value, pl_cuda_queue *q) {
    return fill_bits(dst, element_of(dst->dtype, value, to_int(value)), q);
}

pl_status pl_cuda_fill_int(pl_tensor *dst, int64_t value, pl_cuda_queue *q) {
    return fill_bits(dst, element_of(dst->dtype, (double)value, value), q);
}

// Element i is start + i * step in double, so that no error builds up along the way.
pl_status pl_cuda_arange(pl_tensor *out, double start, double step, pl_cuda_queue *q) {
    if (out->numel == 0) return PL_OK;
    unsigned blocks = pl_blocks(out->numel, PL_BLOCK);
#define CALL(T) \
    PL_LAUNCH(arange_kernel<T>, blocks, PL_BLOCK, 0, q, (T *)out->data, start, step, out->numel)
    PL_CUDA_TYPES(out->dtype, CALL);
#undef CALL
    return pl_launched("arange");
}

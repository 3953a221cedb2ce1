// SPDX-License-Identifier: Apache-2.0
// rows: what kernels over the last dimension share. Up to 1024 columns a warp takes a row, so that
// no barrier is needed, and a block eight rows; longer rows take a block each. Elements move in
// packs of 16 bytes where row length and address allow it.
#ifndef PL_CUDA_ROWS_CUH
#define PL_CUDA_ROWS_CUH

#include "cuda/device.cuh"

enum { PL_ROW_BLOCK = 256, PL_ROW_WARPS = PL_ROW_BLOCK / PL_LANES, PL_WARP_COLUMNS = 1024 };

// The rows of this group of threads, WARPS warps that share a row: first, first + step, ...
template <int WARPS>
static PL_DEVICE int64_t pl_first_row(void) {
    return WARPS == 1 ? (int64_t)blockIdx.x * PL_ROW_WARPS + threadIdx.x / PL_LANES : blockIdx.x;
}
template <int WARPS>
static PL_DEVICE int64_t pl_row_step(void) {
    return (int64_t)gridDim.x * (WARPS == 1 ? PL_ROW_WARPS : 1);
}
// This thread's place among the threads of its row, and their number.
template <int WARPS>
static PL_DEVICE int pl_row_thread(void) {
    return (int)(WARPS == 1 ? threadIdx.x % PL_LANES : threadIdx.x);
}

// Calls each(column, values) for this thread's share of a row of n, P elements at a time.
template <int WARPS, int P, typename T, typename Each>
static PL_DEVICE void pl_each_pack(const T *row, int64_t n, Each each) {
    for (int64_t j = (int64_t)pl_row_thread<WARPS>() * P; j < n; j += WARPS * PL_LANES * P) {
        pl_pack<T, P> in = pl_load<P>(row + j);
        pl_acc<T> v[P];
        PL_UNROLL
        for (int k = 0; k < P; k++) v[k] = pl_get(in.v[k]);
        each(j, v);
    }
}

// As pl_each_pack for a row at any address: calls each(column, values) with arrays of 16 bytes'
// worth of elements for the middle, and of one for the few before and after it. 32-bit columns.
template <int WARPS, typename T, typename Each>
static PL_DEVICE void pl_each_span(const T *row, int n, Each each) {
    enum { P = 16 / sizeof(T), STEP = WARPS * PL_LANES };
    int thread = pl_row_thread<WARPS>(), head = (int)(-(uintptr_t)row % 16 / sizeof(T));
    if (head > n) head = n;
    int packs = (n - head) / P, ends = n - packs * P;
    auto give = [&](int j, const pl_pack<T, P> &in) {
        pl_acc<T> v[P];
        PL_UNROLL
        for (int k = 0; k < P; k++) v[k] = pl_get(in.v[k]);
        each(j, v);
    };
    int at = thread;
    PL_NO_UNROLL
    for (; at + STEP < packs; at += 2 * STEP) {  // two loads under way
        int j = head + at * P;
        pl_pack<T, P> one = pl_load<P>(row + j), two = pl_load<P>(row + j + STEP * P);
        give(j, one);
        give(j + STEP * P, two);
    }
    if (at < packs) give(head + at * P, pl_load<P>(row + head + at * P));
    if (thread < ends) {  // fewer than two packs, so fewer than a warp
        int j = thread < head ? thread : thread + packs * P;
        pl_acc<T> v[1] = {pl_get(row[j])};
        each(j, v);
    }
}

// To global memory.
template <int P, typename T>
static PL_DEVICE void pl_store_pack(T *to, const pl_acc<T> *v) {
    pl_pack<T, P> out;
    PL_UNROLL
    for (int k = 0; k < P; k++) pl_put(&out.v[k], v[k]);
    pl_store_global(to, out);
}

// Whether rows of n elements at these addresses (NULL counts) can move in 16-byte packs.
static inline bool pl_rows_packed(int64_t n, size_t size, const void *a, const void *b,
                                  const void *c) {
    return n * (int64_t)size % 16 == 0 && pl_is_aligned(a, 16) && pl_is_aligned(b, 16) &&
           pl_is_aligned(c, 16);
}

// Launches kernel<T, WARPS, P> for rows of n elements, on so many blocks; for so many rows.
#define PL_LAUNCH_ROWS_ON(blocks, kernel, T, n, packed, queue, ...)                               \
    do {                                                                                          \
        enum { PL_P = 16 / sizeof(T) };                                                           \
        bool pl_long = (n) > PL_WARP_COLUMNS;                                                     \
        if (pl_long && (packed)) {                                                                \
            PL_LAUNCH((kernel<T, PL_ROW_WARPS, PL_P>), blocks, PL_ROW_BLOCK, 0, queue,            \
                      __VA_ARGS__);                                                               \
        } else if (pl_long) {                                                                     \
            PL_LAUNCH((kernel<T, PL_ROW_WARPS, 1>), blocks, PL_ROW_BLOCK, 0, queue, __VA_ARGS__); \
        } else if (packed) {                                                                      \
            PL_LAUNCH((kernel<T, 1, PL_P>), blocks, PL_ROW_BLOCK, 0, queue, __VA_ARGS__);         \
        } else {                                                                                  \
            PL_LAUNCH((kernel<T, 1, 1>), blocks, PL_ROW_BLOCK, 0, queue, __VA_ARGS__);            \
        }                                                                                         \
    } while (0)
#define PL_LAUNCH_ROWS(kernel, T, rows, n, packed, queue, ...)                                 \
    PL_LAUNCH_ROWS_ON(pl_blocks(rows, (n) > PL_WARP_COLUMNS ? 1 : PL_ROW_WARPS), kernel, T, n, \
                      packed, queue, __VA_ARGS__)

// i / n, and what is left in *rest; narrow: i and n are below 2^32, since a division of 64 bits
// takes as long as a hundred instructions.
static PL_DEVICE int64_t pl_divide(int64_t i, int64_t n, bool narrow, int64_t *rest) {
    if (narrow) {
        uint32_t q = (uint32_t)i / (uint32_t)n;
        *rest = (uint32_t)i - q * (uint32_t)n;
        return q;
    }
    int64_t q = i / n;
    *rest = i - q * n;
    return q;
}
static PL_DEVICE bool pl_divides_narrow(int64_t count) { return count <= 0xffffffff; }

static inline int64_t pl_last_dim(const pl_tensor *t) {
    return t->ndim == 0 ? 1 : t->shape[t->ndim - 1];
}

#endif

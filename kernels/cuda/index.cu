// SPDX-License-Identifier: Apache-2.0
// index: rows of a table (embedding), gather and scatter_add along a dimension, places of what is
// not zero. Elements are moved by size. scatter_add gives a line of `dim` to one thread, which adds
// in index order: fixed, but slow where there are few lines. Not measured on a GPU yet.
#include "cuda/walk.cuh"

namespace {

// Units of 16 bytes where rows allow it, else elements.
template <typename U>
__global__ void take_kernel(const U *x, const int64_t *index, U *out, int64_t rows, int64_t width,
                            int64_t stride, int64_t table, pl_cuda_fault *fault) {
    PL_GRID_LOOP(i, rows * width) {
        int64_t row = i / width, at = index[row];
        if (at < -table || at >= table) {
            pl_report(fault, PL_CUDA_FAULT_TAKE, at, table);
            continue;
        }
        out[i] = x[(at < 0 ? at + table : at) * stride + (i - row * width)];
    }
}

template <typename U>
void take_launch(const pl_tensor *x, const pl_tensor *index, pl_tensor *out, pl_cuda_queue *q) {
    int64_t size = (int64_t)pl_dtype_size(x->dtype), unit = (int64_t)sizeof(U);
    int64_t width = x->shape[1] * size / unit, stride = x->strides[0] * size / unit;
    unsigned blocks = pl_blocks(index->numel * width, PL_BLOCK);
    PL_LAUNCH(take_kernel<U>, blocks, PL_BLOCK, 0, q, (const U *)x->data,
              (const int64_t *)index->data, (U *)out->data, index->numel, width, stride,
              x->shape[0], q->fault);
}

template <typename U>
__global__ void gather_kernel(const U *x, const int64_t *index, U *out, pl_walk walk, int64_t size,
                              int64_t stride, pl_cuda_fault *fault) {
    PL_GRID_LOOP(i, walk.n) {  // out, index, x without dim
        int64_t at[3];
        pl_walk_offsets<3>(walk, i, at);
        int64_t pick = index[at[1]];
        if (pick < 0 || pick >= size) {
            pl_report(fault, PL_CUDA_FAULT_GATHER, pick, size);
            continue;
        }
        out[at[0]] = x[at[2] + pick * stride];
    }
}

struct strides {
    int64_t g, index, dx;  // along dim
};

template <typename T>
__global__ void scatter_kernel(const T *g, const int64_t *index, T *dx, pl_walk lines, int64_t n,
                               int64_t size, strides step, pl_cuda_fault *fault) {
    PL_GRID_LOOP(i, lines.n) {  // dx, g, index: where a line begins
        int64_t at[3];
        pl_walk_offsets<3>(lines, i, at);
        for (int64_t j = 0; j < n; j++) {
            int64_t pick = index[at[2] + j * step.index];
            if (pick < 0 || pick >= size) {
                pl_report(fault, PL_CUDA_FAULT_SCATTER, pick, size);
                continue;
            }
            T *to = dx + at[0] + pick * step.dx;
            pl_put(to, pl_sum(pl_get(*to), pl_get(g[at[1] + j * step.g])));
        }
    }
}

// ---- nonzero ------------------------------------------------------------------------------------

enum { PER_THREAD = 8, CHUNK = PL_BLOCK * PER_THREAD };

template <typename T>
PL_DEVICE bool is_set(const T *x, const pl_walk &walk, int64_t i) {
    int64_t at[1];
    pl_walk_offsets<1>(walk, i, at);
    return pl_get(x[at[0]]) != 0;
}

// How many of this thread's PER_THREAD elements, which lie one after the other, are not zero.
template <typename T>
PL_DEVICE int count_mine(const T *x, const pl_walk &walk) {
    int64_t first = (int64_t)blockIdx.x * CHUNK + (int64_t)threadIdx.x * PER_THREAD;
    int count = 0;
    for (int k = 0; k < PER_THREAD && first + k < walk.n; k++) count += is_set(x, walk, first + k);
    return count;
}

template <typename T>
__global__ void count_kernel(const T *x, pl_walk walk, int64_t *counts) {
    int count = pl_block_sum<PL_BLOCK / PL_LANES>(count_mine(x, walk));
    if (threadIdx.x == 0) counts[blockIdx.x] = count;
}

// counts[i] becomes the sum of those before it; *total their sum. One thread: a chunk is 2,048
// elements.
__global__ void offsets_kernel(int64_t *counts, int64_t n, int64_t *total) {
    int64_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t count = counts[i];
        counts[i] = sum;
        sum += count;
    }
    if (total != nullptr) *total = sum;
}

template <typename T>
__global__ void places_kernel(const T *x, pl_walk walk, const int64_t *offsets, int64_t *out,
                              int ndim, pl_walk shape) {
    PL_SHARED(int, counts, PL_BLOCK);
    counts[threadIdx.x] = count_mine(x, walk);
    __syncthreads();
    int64_t row = offsets[blockIdx.x];
    for (unsigned t = 0; t < threadIdx.x; t++) row += counts[t];
    int64_t first = (int64_t)blockIdx.x * CHUNK + (int64_t)threadIdx.x * PER_THREAD;
    for (int k = 0; k < PER_THREAD && first + k < walk.n; k++) {
        if (!is_set(x, walk, first + k)) continue;
        int64_t left = first + k;
        for (int d = ndim - 1; d >= 0; d--) {
            out[row * ndim + d] = left % shape.shape[d];
            left /= shape.shape[d];
        }
        row++;
    }
}

// Counts per chunk, then where each chunk's places begin, in the queue's scratch memory.
pl_status chunk_offsets(const pl_tensor *x, int64_t *total, int64_t **out, pl_cuda_queue *q) {
    int64_t chunks = (x->numel + CHUNK - 1) / CHUNK;
    if (chunks > 0x7fffffff) {
        return pl_fail(PL_ENOSUP, "[nonzero] too many elements for one call: got %lld",
                       (long long)x->numel);
    }
    void *scratch;
    PL_TRY(q->scratch(q->owner, (size_t)chunks * sizeof(int64_t), &scratch));
    const pl_tensor *one[] = {x};
    pl_walk walk = pl_walk_over(1, one);
#define CALL(T)                                                                            \
    PL_LAUNCH(count_kernel<T>, (unsigned)chunks, PL_BLOCK, 0, q, (const T *)x->data, walk, \
              (int64_t *)scratch)
    PL_CUDA_TYPES(x->dtype, CALL);
#undef CALL
    PL_TRY(pl_launched("nonzero"));
    PL_LAUNCH(offsets_kernel, 1, 1, 0, q, (int64_t *)scratch, chunks, total);
    *out = (int64_t *)scratch;
    return pl_launched("nonzero");
}

// t as the walk over `index` sees it: index's shape, t's strides, none along dim.
pl_tensor along(const pl_tensor *t, const pl_tensor *index, int dim, bool keep) {
    pl_tensor view = *index;
    for (int d = 0; d < index->ndim; d++) {
        view.strides[d] = d == dim && !keep ? 0 : t->strides[d];
    }
    return view;
}

}  // namespace

pl_status pl_cuda_take(const pl_tensor *x, const pl_tensor *index, pl_tensor *out,
                       pl_cuda_queue *q) {
    if (out->numel == 0 && x->shape[1] == 0) return PL_OK;
    int64_t size = (int64_t)pl_dtype_size(x->dtype);
    if (index->numel == 0) return PL_OK;
    if (x->shape[1] * size % 16 == 0 && x->strides[0] * size % 16 == 0 && x->strides[1] == 1 &&
        pl_is_aligned(x->data, 16) && pl_is_aligned(out->data, 16)) {
        take_launch<pl_pack<uint32_t, 4>>(x, index, out, q);
    } else {
#define CALL(U) take_launch<U>(x, index, out, q)
        PL_CUDA_SIZES(size, CALL);
#undef CALL
    }
    return pl_launched("take");
}

pl_status pl_cuda_gather(const pl_tensor *x, int dim, const pl_tensor *index, pl_tensor *out,
                         pl_cuda_queue *q) {
    if (index->numel == 0) return PL_OK;
    pl_tensor view = along(x, index, dim, false);
    const pl_tensor *all[] = {out, index, &view};
    pl_walk walk = pl_walk_over(3, all);
    int64_t size = x->ndim == 0 ? 1 : x->shape[dim], stride = x->ndim == 0 ? 0 : x->strides[dim];
    unsigned blocks = pl_blocks(walk.n, PL_BLOCK);
#define CALL(U)                                                             \
    PL_LAUNCH(gather_kernel<U>, blocks, PL_BLOCK, 0, q, (const U *)x->data, \
              (const int64_t *)index->data, (U *)out->data, walk, size, stride, q->fault)
    PL_CUDA_SIZES(pl_dtype_size(x->dtype), CALL);
#undef CALL
    return pl_launched("gather");
}

pl_status pl_cuda_scatter_add(const pl_tensor *g, int dim, const pl_tensor *index, pl_tensor *dx,
                              pl_cuda_queue *q) {
    if (index->numel == 0) return PL_OK;
    bool scalar = index->ndim == 0;
    pl_tensor to = along(dx, index, dim, true), from = along(g, index, dim, true), line = *index;
    int64_t n = scalar ? 1 : index->shape[dim], size = dx->ndim == 0 ? 1 : dx->shape[dim];
    strides step = {0, 0, 0};
    if (!scalar) {
        step = {g->strides[dim], index->strides[dim], dx->strides[dim]};
        line.shape[dim] = to.shape[dim] = from.shape[dim] = 1;
        to.numel = from.numel = line.numel = index->numel / n;
    }
    const pl_tensor *all[] = {&to, &from, &line};
    pl_walk lines = pl_walk_over(3, all);
    unsigned blocks = pl_blocks(lines.n, PL_BLOCK);
#define CALL(T)                                                              \
    PL_LAUNCH(scatter_kernel<T>, blocks, PL_BLOCK, 0, q, (const T *)g->data, \
              (const int64_t *)index->data, (T *)dx->data, lines, n, size, step, q->fault)
    PL_CUDA_TYPES(dx->dtype, CALL);
#undef CALL
    return pl_launched("scatter_add");
}

pl_status pl_cuda_count_nonzero(const pl_tensor *x, int64_t *out, pl_cuda_queue *q) {
    if (x->numel == 0) {
        PL_LAUNCH(offsets_kernel, 1, 1, 0, q, (int64_t *)NULL, (int64_t)0, out);
        return pl_launched("count_nonzero");
    }
    int64_t *offsets;
    return chunk_offsets(x, out, &offsets, q);
}

pl_status pl_cuda_nonzero(const pl_tensor *x, pl_tensor *out, pl_cuda_queue *q) {
    if (x->numel == 0) return PL_OK;
    int64_t *offsets;
    PL_TRY(chunk_offsets(x, NULL, &offsets, q));
    const pl_tensor *one[] = {x};
    pl_walk walk = pl_walk_over(1, one), shape = {};
    memcpy(shape.shape, x->shape, sizeof(shape.shape));
    unsigned chunks = (unsigned)((x->numel + CHUNK - 1) / CHUNK);
#define CALL(T)                                                                            \
    PL_LAUNCH(places_kernel<T>, chunks, PL_BLOCK, 0, q, (const T *)x->data, walk, offsets, \
              (int64_t *)out->data, x->ndim, shape)
    PL_CUDA_TYPES(x->dtype, CALL);
#undef CALL
    return pl_launched("nonzero");
}

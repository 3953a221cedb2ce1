// SPDX-License-Identifier: Apache-2.0
// take_grad: the gradient of rows of a table, deterministic without atomics on floats. The indices
// are sorted with their positions (radix, 8 bits a pass, stable, so that equal ones stay in the
// order of rows); then a block takes each run of equal indices and adds its rows in that order, a
// thread per column. A very frequent index is one long run of one block. Not measured on a GPU yet.
#include "cuda/walk.cuh"

namespace {

enum { WARPS = PL_BLOCK / PL_LANES, DIGITS = 256, ROUNDS = 8, TILE = PL_BLOCK * ROUNDS };

struct sorted {
    uint32_t *key, *position;
};

// Index i as a key in [0, table]; `table` itself is what is left out.
__global__ void keys_kernel(const int64_t *index, int64_t n, int64_t table, int64_t skip,
                            sorted out, pl_cuda_fault *fault) {
    PL_GRID_LOOP(i, n) {
        int64_t at = index[i];
        if (at < -table || at >= table) {
            pl_report(fault, PL_CUDA_FAULT_TAKE_GRAD, at, table);
            at = table;
        }
        if (at < 0) at += table;
        out.key[i] = (uint32_t)(at == skip ? table : at);
        out.position[i] = (uint32_t)i;
    }
}

// counts[digit * tiles + tile]: how often a digit is in a tile.
__global__ void count_kernel(const uint32_t *key, int64_t n, int shift, uint32_t *counts) {
    PL_SHARED(uint32_t, mine, DIGITS);
    mine[threadIdx.x] = 0;
    __syncthreads();
    int64_t first = (int64_t)blockIdx.x * TILE;
    for (int64_t i = first + threadIdx.x; i < first + TILE && i < n; i += PL_BLOCK) {
        atomicAdd(&mine[key[i] >> shift & (DIGITS - 1)], 1u);
    }
    __syncthreads();
    counts[threadIdx.x * gridDim.x + blockIdx.x] = mine[threadIdx.x];
}

// Each count becomes the sum of those before it. One block: a thread adds up its share, the
// shares are added up, a thread goes over its share again.
__global__ void offsets_kernel(uint32_t *counts, int64_t n) {
    PL_SHARED(uint32_t, shares, PL_BLOCK);
    int64_t share = (n + PL_BLOCK - 1) / PL_BLOCK, first = threadIdx.x * share;
    uint32_t sum = 0, before = 0;
    for (int64_t i = first; i < first + share && i < n; i++) sum += counts[i];
    shares[threadIdx.x] = sum;
    __syncthreads();
    for (unsigned t = 0; t < threadIdx.x; t++) before += shares[t];
    for (int64_t i = first; i < first + share && i < n; i++) {
        uint32_t count = counts[i];
        counts[i] = before;
        before += count;
    }
}

// A tile's elements go to their places, 256 at a time in order. An element's place: where its
// digit's next one goes, plus how many lower threads of the round have the same digit.
__global__ void scatter_kernel(sorted in, sorted out, int64_t n, int shift,
                               const uint32_t *offsets) {
    PL_SHARED(uint32_t, next, DIGITS);
    PL_SHARED(uint32_t, counts, WARPS *DIGITS);
    int warp = (int)(threadIdx.x / PL_LANES), lane = (int)(threadIdx.x % PL_LANES);
    next[threadIdx.x] = offsets[threadIdx.x * gridDim.x + blockIdx.x];
    for (int round = 0; round < ROUNDS; round++) {
        for (int w = 0; w < WARPS; w++) counts[w * DIGITS + (int)threadIdx.x] = 0;
        __syncthreads();
        int64_t i = (int64_t)blockIdx.x * TILE + round * PL_BLOCK + threadIdx.x;
        bool valid = i < n;
        uint32_t key = valid ? in.key[i] : 0, position = valid ? in.position[i] : 0;
        uint32_t digit = valid ? key >> shift & (DIGITS - 1) : (uint32_t)DIGITS;
        uint32_t same = __match_any_sync(PL_ALL_LANES, digit);
        uint32_t lower = (uint32_t)__popc(same & ((1u << lane) - 1));
        if (valid && lower == 0) counts[warp * DIGITS + (int)digit] = (uint32_t)__popc(same);
        __syncthreads();
        if (valid) {
            uint32_t place = next[digit] + lower;
            for (int w = 0; w < warp; w++) place += counts[w * DIGITS + (int)digit];
            out.key[place] = key;
            out.position[place] = position;
        }
        __syncthreads();
        for (int w = 0; w < WARPS; w++) next[threadIdx.x] += counts[w * DIGITS + (int)threadIdx.x];
        __syncthreads();
    }
}

// Rounded to dx's dtype after every row, as the CPU does it: the same bits.
template <typename T>
__global__ void add_kernel(sorted run, int64_t n, uint32_t table, const T *g, int64_t stride_row,
                           int64_t stride_column, T *dx, int64_t width) {
    for (int64_t i = blockIdx.x; i < n; i += gridDim.x) {
        uint32_t key = run.key[i];
        if (key == table || (i > 0 && run.key[i - 1] == key)) continue;  // not where a run begins
        for (int64_t c = threadIdx.x; c < width; c += PL_BLOCK) {
            T *to = dx + (int64_t)key * width + c, sum = *to;
            for (int64_t j = i; j < n && run.key[j] == key; j++) {
                pl_acc<T> row = pl_get(g[run.position[j] * stride_row + c * stride_column]);
                pl_put(&sum, pl_sum(pl_get(sum), row));
            }
            *to = sum;
        }
    }
}

pl_status sort_keys(sorted *from, sorted *to, int64_t n, uint32_t table, uint32_t *counts,
                    pl_cuda_queue *q) {
    unsigned tiles = (unsigned)((n + TILE - 1) / TILE);
    for (int shift = 0; shift < 32 && table >> shift != 0; shift += 8) {
        PL_LAUNCH(count_kernel, tiles, PL_BLOCK, 0, q, from->key, n, shift, counts);
        PL_TRY(pl_launched("take_grad"));
        PL_LAUNCH(offsets_kernel, 1, PL_BLOCK, 0, q, counts, (int64_t)DIGITS * tiles);
        PL_TRY(pl_launched("take_grad"));
        PL_LAUNCH(scatter_kernel, tiles, PL_BLOCK, 0, q, *from, *to, n, shift, counts);
        PL_TRY(pl_launched("take_grad"));
        sorted kept = *from;
        *from = *to;
        *to = kept;
    }
    return PL_OK;
}

}  // namespace

pl_status pl_cuda_take_grad(const pl_tensor *g, const pl_tensor *index, int64_t skip,
                            bool accumulate, pl_tensor *dx, pl_cuda_queue *q) {
    int64_t n = index->numel, table = dx->shape[0], width = dx->shape[1];
    if (!accumulate) PL_TRY(pl_cuda_fill(dx, 0.0, q));
    if (n == 0) return PL_OK;
    if (n > 0x7fffffff || table > 0x7fffffff) {
        return pl_fail(PL_ENOSUP, "[take_grad] too large: got %lld rows of %lld, expected < 2^31",
                       (long long)n, (long long)table);
    }
    int64_t tiles = (n + TILE - 1) / TILE;
    void *scratch;
    PL_TRY(q->scratch(q->owner, (size_t)(4 * n + DIGITS * tiles) * sizeof(uint32_t), &scratch));
    uint32_t *words = (uint32_t *)scratch;
    sorted from = {words, words + n}, to = {words + 2 * n, words + 3 * n};
    PL_LAUNCH(keys_kernel, pl_blocks(n, PL_BLOCK), PL_BLOCK, 0, q, (const int64_t *)index->data, n,
              table, skip, from, q->fault);
    PL_TRY(pl_launched("take_grad"));
    PL_TRY(sort_keys(&from, &to, n, (uint32_t)table, words + 4 * n, q));
    unsigned blocks = pl_blocks(n, 1);
#define CALL(T)                                                                                    \
    PL_LAUNCH(add_kernel<T>, blocks, PL_BLOCK, 0, q, from, n, (uint32_t)table, (const T *)g->data, \
              g->strides[0], g->strides[1], (T *)dx->data, width)
    PL_CUDA_TYPES(dx->dtype, CALL);
#undef CALL
    return pl_launched("take_grad");
}

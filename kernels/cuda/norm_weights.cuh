// SPDX-License-Identifier: Apache-2.0
// norm_weights: the gradients of a norm's weight and bias, sums over rows of g * xhat and of g. A
// first kernel makes parts (norm.cu's, which makes dx too, or the one here), whose number depends
// on the shape only; the last one joins them, always in the same order.
#ifndef PL_CUDA_NORM_WEIGHTS_CUH
#define PL_CUDA_NORM_WEIGHTS_CUH

#include "cuda/rows.cuh"

// Columns of which a thread keeps sums in registers: rows up to 1,024 for a warp, 8,192 for a
// block.
enum { PL_THREAD_COLUMNS = PL_WARP_COLUMNS / PL_LANES };

// A gradient, or NULL; and whether it is added to.
struct pl_norm_out {
    const pl_tensor *t;
    bool add;
};

template <typename T>
struct pl_norm_weights {
    const T *g, *x;
    const pl_acc<T> *mean, *rstd;
    pl_acc<T> *parts;  // (count, 2, n): sums of g * xhat, of g
    pl_norm_out dw, db;
    int64_t rows, n, count;
    bool rms;
};

// Blocks for the kernel that makes dx too: two on each of 132 processors, 16 rows or more for each
// warp that has rows of its own.
static inline int64_t pl_sum_blocks(int64_t rows, int64_t n) {
    int64_t each = n > PL_WARP_COLUMNS ? 16 : 16 * PL_ROW_WARPS, blocks = (rows + each - 1) / each;
    return blocks < 264 ? blocks : 264;
}

template <typename T>
static pl_status pl_norm_parts(pl_norm_weights<T> *w, int64_t count, pl_cuda_queue *q) {
    void *scratch;
    w->count = count;
    PL_TRY(q->scratch(q->owner, (size_t)(count * 2 * w->n) * sizeof(pl_acc<T>), &scratch));
    w->parts = (pl_acc<T> *)scratch;
    return PL_OK;
}

// A thread's sums of P columns from column j, to `out`. Where each warp has rows of its own (WARPS
// is 1) the block's warps are added up first, in order; then all of its threads come here.
template <int WARPS, int P, typename A>
static PL_DEVICE void pl_give_sums(const A *mine, int64_t j, int64_t n, A *shared, A *out) {
    if (WARPS > 1) {
        PL_UNROLL
        for (int k = 0; k < P; k++) {
            if (j + k < n) out[j + k] = mine[k];
        }
        return;
    }
    enum { STEP = PL_LANES * P };
    int lane = (int)(threadIdx.x % PL_LANES), warp = (int)(threadIdx.x / PL_LANES);
    PL_UNROLL
    for (int k = 0; k < P; k++) shared[warp * STEP + lane * P + k] = mine[k];
    __syncthreads();
    for (int c = (int)threadIdx.x; c < STEP; c += PL_ROW_BLOCK) {
        A sum = 0;
        for (int l = 0; l < PL_ROW_WARPS; l++) sum += shared[l * STEP + c];
        int64_t column = j - lane * P + c;
        if (column < n) out[column] = sum;
    }
    __syncthreads();
}

// ---- Parts by a kernel of their own -------------------------------------------------------------

// A block takes 32 columns and one part of the rows, eight rows at a time.
enum { PL_NORM_COLUMNS = 32, PL_NORM_LINES = 8, PL_NORM_ROWS = 64, PL_NORM_PARTS = 128 };

// Adds up the lines of a block, in order; line 0's threads have the result.
template <typename A>
static PL_DEVICE A pl_join_lines(A mine, A *shared) {
    int column = (int)(threadIdx.x % PL_NORM_COLUMNS), line = (int)(threadIdx.x / PL_NORM_COLUMNS);
    shared[line * PL_NORM_COLUMNS + column] = mine;
    __syncthreads();
    A total = 0;
    for (int l = 0; line == 0 && l < PL_NORM_LINES; l++) {
        total += shared[l * PL_NORM_COLUMNS + column];
    }
    __syncthreads();
    return total;
}

template <typename T>
__global__ void pl_norm_rows_kernel(pl_norm_weights<T> args, int64_t part_rows) {
    typedef pl_acc<T> A;
    PL_SHARED(A, sums, PL_NORM_LINES * PL_NORM_COLUMNS);
    int column = (int)(threadIdx.x % PL_NORM_COLUMNS), line = (int)(threadIdx.x / PL_NORM_COLUMNS);
    int64_t j = (int64_t)blockIdx.x * PL_NORM_COLUMNS + column;
    int64_t begin = blockIdx.y * part_rows, end = begin + part_rows;
    A w = 0, b = 0;
    for (int64_t i = begin + line; i < end && i < args.rows && j < args.n; i += PL_NORM_LINES) {
        A g = pl_get(args.g[i * args.n + j]), mu = args.rms ? (A)0 : args.mean[i];
        w += g * (pl_get(args.x[i * args.n + j]) - mu) * args.rstd[i];
        b += g;
    }
    w = pl_join_lines(w, sums);
    b = pl_join_lines(b, sums);
    if (line == 0 && j < args.n) {
        args.parts[(int64_t)blockIdx.y * 2 * args.n + j] = w;
        args.parts[((int64_t)blockIdx.y * 2 + 1) * args.n + j] = b;
    }
}

template <typename T>
static pl_status pl_norm_sum_rows(pl_norm_weights<T> *w, pl_cuda_queue *q) {
    int64_t count = (w->rows + PL_NORM_ROWS - 1) / PL_NORM_ROWS;
    count = count < 1 ? 1 : count > PL_NORM_PARTS ? (int64_t)PL_NORM_PARTS : count;
    PL_TRY(pl_norm_parts(w, count, q));
    dim3 grid((unsigned)((w->n + PL_NORM_COLUMNS - 1) / PL_NORM_COLUMNS), (unsigned)count);
    PL_LAUNCH(pl_norm_rows_kernel<T>, grid, PL_NORM_COLUMNS * PL_NORM_LINES, 0, q, *w,
              (w->rows + count - 1) / count);
    return pl_launched("norm");
}

// ---- The parts together -------------------------------------------------------------------------

// Where the sum of a column goes: T or float.
template <typename T>
struct pl_norm_column {
    T *as_t;
    float *as_float;  // one of the two, or neither
    bool add;
};

template <typename T>
static inline pl_norm_column<T> pl_norm_column_of(const pl_norm_out &out) {
    bool wide = out.t != NULL && out.t->dtype == PL_F32;
    return {wide ? NULL : pl_data<T>(out.t), wide ? pl_data<float>(out.t) : NULL, out.add};
}

template <typename T>
static PL_DEVICE void pl_norm_put(const pl_norm_column<T> &to, int64_t j, pl_acc<T> sum) {
    if (to.as_t != nullptr) {
        pl_put(&to.as_t[j], sum + (to.add ? pl_get(to.as_t[j]) : (pl_acc<T>)0));
    } else if (to.as_float != nullptr) {
        pl_put(&to.as_float[j], sum + (to.add ? (pl_acc<T>)to.as_float[j] : (pl_acc<T>)0));
    }
}

template <typename T>
__global__ void pl_norm_join_kernel(const pl_acc<T> *parts, int64_t count, int64_t n,
                                    pl_norm_column<T> w, pl_norm_column<T> b) {
    typedef pl_acc<T> A;
    PL_SHARED(A, sums, PL_NORM_LINES * PL_NORM_COLUMNS);
    int column = (int)(threadIdx.x % PL_NORM_COLUMNS), line = (int)(threadIdx.x / PL_NORM_COLUMNS);
    int64_t j = (int64_t)blockIdx.x * PL_NORM_COLUMNS + column;
    A sum[2] = {0, 0};
    for (int64_t p = line; p < count && j < n; p += PL_NORM_LINES) {
        sum[0] += parts[p * 2 * n + j];
        sum[1] += parts[(p * 2 + 1) * n + j];
    }
    A of_w = pl_join_lines(sum[0], sums), of_b = pl_join_lines(sum[1], sums);
    if (line > 0 || j >= n) return;
    pl_norm_put(w, j, of_w);
    pl_norm_put(b, j, of_b);
}

template <typename T>
static pl_status pl_norm_sum_parts(const pl_norm_weights<T> *w, pl_cuda_queue *q) {
    unsigned blocks = (unsigned)((w->n + PL_NORM_COLUMNS - 1) / PL_NORM_COLUMNS);
    PL_LAUNCH(pl_norm_join_kernel<T>, blocks, PL_NORM_COLUMNS * PL_NORM_LINES, 0, q, w->parts,
              w->count, w->n, pl_norm_column_of<T>(w->dw), pl_norm_column_of<T>(w->db));
    return pl_launched("norm");
}

#endif

// SPDX-License-Identifier: Apache-2.0
// attention for every floating dtype and any width, without tensor cores: a block per query (for dk
// and dv per key), 128 keys at a time. A thread computes the score of one key, then the block adds
// up columns, a thread per column. Right and deterministic rather than fast; fp32, fp16 and fp64
// come here, and bf16 of more than 128 columns. Not measured on a GPU yet.
#include "cuda/attention.cuh"

namespace {

enum { BLOCK = 128, WARPS = BLOCK / PL_LANES, MOST_COLUMNS = 4 * BLOCK };

template <typename T>
PL_DEVICE pl_acc<T> dot(const T *a, const pl_heads &ta, const T *b, const pl_heads &tb, int64_t n) {
    pl_acc<T> sum = 0;
    for (int64_t d = 0; d < n; d++) sum += pl_get(a[d * ta.column]) * pl_get(b[d * tb.column]);
    return sum;
}

// A block's place: (b, h, row).
struct place {
    int64_t b, h, row;
};
PL_DEVICE place place_of(const pl_attention_job &job, int64_t line, int64_t rows) {
    int64_t head = line / rows;
    return {head / job.heads, head % job.heads, line % rows};
}

// sums[c] += weight[j] * t[first + j][column] over the chunk, for this thread's columns. What is
// not seen is skipped, so that its NaN stays out.
template <typename T>
PL_DEVICE void add_rows(pl_acc<T> *sums, const pl_acc<T> *weight, const pl_heads &t, place p,
                        int64_t first, int64_t count, int64_t width) {
    for (int64_t j = 0; j < count; j++) {
        if (weight[j] == 0) continue;
        const T *row = pl_row<T>(t, p.b, p.h, first + j);
        int c = 0;
        for (int64_t d = threadIdx.x; d < width; d += BLOCK, c++) {
            sums[c] += weight[j] * pl_get(row[d * t.column]);
        }
    }
}

template <typename T>
PL_DEVICE void store_row(const pl_heads &t, place p, const pl_acc<T> *sums, pl_acc<T> factor,
                         int64_t width) {
    T *row = pl_row<T>(t, p.b, p.h, p.row);
    int c = 0;
    for (int64_t d = threadIdx.x; d < width; d += BLOCK, c++) {
        pl_put(&row[d * t.column], sums[c] * factor);
    }
}

template <typename T>
__global__ void forward_kernel(pl_attention_job job) {
    typedef pl_acc<T> A;
    PL_SHARED(A, weight, BLOCK);
    int64_t lines = job.batch * job.heads * job.queries;
    for (int64_t line = blockIdx.x; line < lines; line += gridDim.x) {
        place p = place_of(job, line, job.queries);
        const T *q = pl_row<T>(job.q, p.b, p.h, p.row);
        A top = -(A)INFINITY, total = 0, sums[MOST_COLUMNS / BLOCK] = {};
        int64_t end = job.causal && p.row + 1 < job.keys ? p.row + 1 : job.keys;
        for (int64_t first = 0; first < end; first += BLOCK) {
            int64_t j = first + threadIdx.x;
            A s = -(A)INFINITY;
            if (j < end) {
                const T *k = pl_row<T>(job.k, p.b, p.h, j);
                s = pl_score(job, p.b, p.h, p.row, j, dot(q, job.q, k, job.k, job.width));
            }
            A higher = pl_larger()(pl_block_max<WARPS>(s), top);
            A shrink = top == -(A)INFINITY ? (A)1 : pl_exp(top - higher);
            A w = pl_probability(s, higher);
            total = total * shrink + pl_block_sum<WARPS>(w);
            weight[threadIdx.x] = w == 0 ? w : w * pl_kept<A>(job, p.b, p.h, p.row, j);
            __syncthreads();
            for (int c = 0; c < MOST_COLUMNS / BLOCK; c++) sums[c] *= shrink;
            int64_t count = end - first < BLOCK ? end - first : (int64_t)BLOCK;
            add_rows<T>(sums, weight, job.v, p, first, count, job.width);
            __syncthreads();
            top = higher;
        }
        store_row<T>(job.out, p, sums, total == 0 ? (A)0 : (A)1 / total, job.width);
        if (threadIdx.x == 0) {
            ((A *)job.lse)[line] = total == 0 ? -(A)INFINITY : top + pl_log(total);
        }
    }
}

// ds and p * keep of query i and key j. delta: the sum of g * out of row i.
template <typename T>
PL_DEVICE void pair_grad(const pl_attention_job &job, place p, int64_t i, int64_t j, pl_acc<T> *ds,
                         pl_acc<T> *kept) {
    typedef pl_acc<T> A;
    const T *q = pl_row<T>(job.q, p.b, p.h, i), *g = pl_row<T>(job.g, p.b, p.h, i);
    const T *out = pl_row<T>(job.out, p.b, p.h, i), *k = pl_row<T>(job.k, p.b, p.h, j);
    const T *v = pl_row<T>(job.v, p.b, p.h, j);
    A lse = ((const A *)job.lse)[(p.b * job.heads + p.h) * job.queries + i];
    A s = pl_score(job, p.b, p.h, i, j, dot(q, job.q, k, job.k, job.width));
    A prob = pl_probability(s, lse);
    *ds = *kept = 0;
    if (prob == 0) return;
    A keep = pl_kept<A>(job, p.b, p.h, i, j);
    A delta = dot(g, job.g, out, job.out, job.width);
    *kept = prob * keep;
    *ds = prob * (keep * dot(g, job.g, v, job.v, job.width) - delta) * (A)job.scale;
}

template <typename T>
__global__ void query_kernel(pl_attention_job job) {
    typedef pl_acc<T> A;
    PL_SHARED(A, weight, BLOCK);
    int64_t lines = job.batch * job.heads * job.queries;
    for (int64_t line = blockIdx.x; line < lines; line += gridDim.x) {
        place p = place_of(job, line, job.queries);
        A sums[MOST_COLUMNS / BLOCK] = {};
        int64_t end = job.causal && p.row + 1 < job.keys ? p.row + 1 : job.keys;
        for (int64_t first = 0; first < end; first += BLOCK) {
            A ds = 0, kept;
            int64_t j = first + threadIdx.x;
            if (j < end) pair_grad<T>(job, p, p.row, j, &ds, &kept);
            weight[threadIdx.x] = ds;
            __syncthreads();
            int64_t count = end - first < BLOCK ? end - first : (int64_t)BLOCK;
            add_rows<T>(sums, weight, job.k, p, first, count, job.width);
            __syncthreads();
        }
        store_row<T>(job.dq, p, sums, (A)1, job.width);
    }
}

template <typename T>
__global__ void key_kernel(pl_attention_job job) {
    typedef pl_acc<T> A;
    PL_SHARED(A, weight, BLOCK);
    PL_SHARED(A, kept, BLOCK);
    int64_t lines = job.batch * job.heads * job.keys;
    for (int64_t line = blockIdx.x; line < lines; line += gridDim.x) {
        place p = place_of(job, line, job.keys);
        A dk[MOST_COLUMNS / BLOCK] = {}, dv[MOST_COLUMNS / BLOCK] = {};
        for (int64_t first = job.causal ? p.row : 0; first < job.queries; first += BLOCK) {
            A ds = 0, keep = 0;
            int64_t i = first + threadIdx.x;
            if (i < job.queries) pair_grad<T>(job, p, i, p.row, &ds, &keep);
            weight[threadIdx.x] = ds;
            kept[threadIdx.x] = keep;
            __syncthreads();
            int64_t count = job.queries - first < BLOCK ? job.queries - first : (int64_t)BLOCK;
            add_rows<T>(dk, weight, job.q, p, first, count, job.width);
            add_rows<T>(dv, kept, job.g, p, first, count, job.width);
            __syncthreads();
        }
        store_row<T>(job.dk, p, dk, (A)1, job.width);
        store_row<T>(job.dv, p, dv, (A)1, job.width);
    }
}

pl_status check_width(const pl_attention_job *job) {
    if (job->width <= MOST_COLUMNS) return PL_OK;
    return pl_fail(PL_ENOSUP, "[attention] head width: got %lld, expected at most %d on a GPU",
                   (long long)job->width, (int)MOST_COLUMNS);
}

}  // namespace

pl_status pl_attention_any(const pl_attention_job *job, pl_dtype dt, pl_cuda_queue *q) {
    PL_TRY(check_width(job));
    unsigned blocks = pl_blocks(job->batch * job->heads * job->queries, 1);
#define CALL(T) PL_LAUNCH(forward_kernel<T>, blocks, BLOCK, 0, q, *job)
    PL_CUDA_FLOATS(dt, CALL);
#undef CALL
    return pl_launched("attention");
}

pl_status pl_attention_any_grad(const pl_attention_job *job, pl_dtype dt, pl_cuda_queue *q) {
    PL_TRY(check_width(job));
    if (job->queries > 0) {
        unsigned blocks = pl_blocks(job->batch * job->heads * job->queries, 1);
#define CALL(T) PL_LAUNCH(query_kernel<T>, blocks, BLOCK, 0, q, *job)
        PL_CUDA_FLOATS(dt, CALL);
#undef CALL
        PL_TRY(pl_launched("attention"));
    }
    unsigned blocks = pl_blocks(job->batch * job->heads * job->keys, 1);
#define CALL(T) PL_LAUNCH(key_kernel<T>, blocks, BLOCK, 0, q, *job)
    PL_CUDA_FLOATS(dt, CALL);
#undef CALL
    return pl_launched("attention");
}

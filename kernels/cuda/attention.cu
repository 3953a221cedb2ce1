// SPDX-License-Identifier: Apache-2.0
// attention: the entry, and the forward pass on tensor cores (bf16, f16, width up to 128): the
// tiled softmax of FlashAttention-2 (Dao, 2023). A block takes 64 or 128 queries of a head and goes
// over the keys 64 at a time: scores, running maximum and sum of each row, and the result rescaled
// when the maximum rises; powers are of two, so that one instruction gives them. Values come while
// the scores are computed, the next keys while the values are multiplied. Probabilities are rounded
// to the inputs' dtype for the second product. Not measured on a GPU yet.
#include "cuda/attention.cuh"
#include "cuda/attention_tile.cuh"

namespace {

// Of the rows that a lane has results of: maximum (times log2 e), sum of this lane's columns.
template <int M>
struct rows_so_far {
    float top[M][2], sum[M][2];
};

// A tile that is not seen as a whole. Special: scores become what the softmax takes, scaled and
// masked, times log2 e; else they only lose what is hidden.
template <int M, bool SPECIAL>
PL_DEVICE void mask_tile(const pl_attention_job &job, const pl_tile_place &p, int first_key,
                         float (*s)[PL_TILE / 8][4]) {
    PL_UNROLL
    for (int m = 0; m < M; m++) {
        PL_UNROLL
        for (int half = 0; half < 2; half++) {
            int row = pl_tile_row(p, m, half), last = (int)job.keys - 1;
            if (job.causal && row < last) last = row;
            PL_UNROLL
            for (int i = 0; i < PL_TILE / 4; i++) {
                int n = i / 2, e = 2 * half + i % 2, key = first_key + pl_tile_column(n, e);
                float *x = &s[m][n][e];
                if (SPECIAL) {
                    *x = pl_score(job, p.b, p.h, row, key, *x) * PL_LOG2_E;
                } else if (key > last) {
                    *x = -INFINITY;
                }
            }
        }
    }
}

// The scores s * factor of a warp become weights; `shrink` is by how much what was added up so far
// does. A row that has seen nothing yet keeps a maximum of -infinity, and 0 stands in for it.
template <int M>
PL_DEVICE void softmax_tile(float factor, float (*s)[PL_TILE / 8][4], rows_so_far<M> *rows,
                            float (*shrink)[2]) {
    PL_UNROLL
    for (int m = 0; m < M; m++) {
        PL_UNROLL
        for (int r = 0; r < 2; r++) {
            float high = -INFINITY;
            PL_UNROLL
            for (int n = 0; n < PL_TILE / 8; n++) {
                high = pl_larger()(s[m][n][2 * r], high);
                high = pl_larger()(s[m][n][2 * r + 1], high);
            }
            high = pl_larger()(__shfl_xor_sync(PL_ALL_LANES, high, 1), high);  // a row's 4 lanes
            high = pl_larger()(__shfl_xor_sync(PL_ALL_LANES, high, 2), high) * factor;
            high = pl_larger()(high, rows->top[m][r]);
            float from = high == -INFINITY ? 0.0f : high, sum = 0;
            shrink[m][r] = pl_exp2(rows->top[m][r] - from);
            PL_UNROLL
            for (int i = 0; i < PL_TILE / 4; i++) {
                float *w = &s[m][i / 2][2 * r + i % 2];
                *w = pl_exp2(fmaf(*w, factor, -from));
                sum += *w;
            }
            rows->sum[m][r] = fmaf(rows->sum[m][r], shrink[m][r], sum);
            rows->top[m][r] = high;
        }
    }
}

template <int M>
PL_DEVICE void drop_weights(const pl_attention_job &job, const pl_tile_place &p, int first_key,
                            float (*s)[PL_TILE / 8][4]) {
    PL_UNROLL
    for (int m = 0; m < M; m++) {
        PL_UNROLL
        for (int i = 0; i < PL_TILE / 2; i++) {
            int n = i / 4, e = i % 4, key = first_key + pl_tile_column(n, e);
            if (s[m][n][e] == 0) continue;
            s[m][n][e] *= pl_kept<float>(job, p.b, p.h, pl_tile_row(p, m, e / 2), key);
        }
    }
}

// What came of the whole row: the factor for its result, and lse for the gradient.
template <int M>
PL_DEVICE void finish_rows(const pl_attention_job &job, const pl_tile_place &p,
                           const rows_so_far<M> &rows, float (*factor)[2]) {
    PL_UNROLL
    for (int m = 0; m < M; m++) {
        PL_UNROLL
        for (int r = 0; r < 2; r++) {
            float sum = rows.sum[m][r];
            sum += __shfl_xor_sync(PL_ALL_LANES, sum, 1);
            sum += __shfl_xor_sync(PL_ALL_LANES, sum, 2);
            int i = pl_tile_row(p, m, r);
            if (threadIdx.x % 4 == 0 && i < job.queries) {
                ((float *)job.lse)[(p.b * job.heads + p.h) * job.queries + i] =
                    sum == 0 ? -INFINITY : fmaf(rows.top[m][r], PL_LN_2, logf(sum));
            }
            factor[m][r] = sum == 0 ? 0.0f : 1.0f / sum;
        }
    }
}

// Dynamic shared memory: a tile of keys and one of values, which hold the queries first.
template <typename T, int D>
size_t forward_bytes(void) {
    return 2 * PL_TILE * (D + PL_TILE_PAD) * sizeof(T);
}

// The queries of a warp to registers, by way of a tile that is free again then.
template <int D, int M, typename T>
PL_DEVICE void take_queries(T *tile, const pl_lines<T> &queries, const pl_tile_place &p,
                            uint32_t (*q)[D / 16][4]) {
    enum { STRIDE = D + PL_TILE_PAD };
    pl_tile_fetch<D, pl_tile_rows<M>::ROWS>(tile, queries, p.first);
    pl_fetch_commit();
    pl_fetch_wait<0>();
    __syncthreads();
    const T *lane = pl_lane_of_a(tile + p.warp * STRIDE, STRIDE);
    PL_UNROLL
    for (int i = 0; i < M * (D / 16); i++) {
        int m = i / (D / 16), k = i % (D / 16);
        pl_frag_a(q[m][k], lane + m * 16 * STRIDE + k * 16);
    }
    __syncthreads();
}

template <typename T, int D, int M, bool SPECIAL>
__global__ void __launch_bounds__(PL_TILE_BLOCK) forward_kernel(pl_attention_job job) {
    enum { ROWS = pl_tile_rows<M>::ROWS, STRIDE = D + PL_TILE_PAD };
    PL_DYNAMIC_SHARED(shared);
    PL_SHARED(unsigned long long, odd_rows, 1);
    T *keys = (T *)shared, *values = keys + PL_TILE * STRIDE;
    // The longest first: with a causal mask the last queries see most.
    pl_tile_place p = pl_tile_of<M>(job, gridDim.x - 1 - blockIdx.x, job.queries);
    pl_lines<T> k = pl_lines_of<T>(job.k, p, job.keys, job.width);
    pl_lines<T> v = pl_lines_of<T>(job.v, p, job.keys, job.width);
    uint32_t q[M][D / 16][4];
    take_queries<D, M>(keys, pl_lines_of<T>(job.q, p, job.queries, job.width), p, q);
    float out[M][D / 8][4] = {}, shrink[M][2];
    rows_so_far<M> rows;
    PL_UNROLL
    for (int i = 0; i < 2 * M; i++) rows.top[i / 2][i % 2] = -INFINITY, rows.sum[i / 2][i % 2] = 0;
    const float factor = SPECIAL ? 1.0f : (float)job.scale * PL_LOG2_E;
    const int mine = p.first + p.warp;  // this warp's first query
    int end = (int)job.keys;
    if (job.causal && p.first + ROWS < end) end = p.first + ROWS;
    if (end > 0) pl_tile_fetch<D, PL_TILE>(keys, k, 0);
    pl_fetch_commit();
    for (int key = 0; key < end; key += PL_TILE) {
        pl_fetch_wait<0>();
        __syncthreads();  // the keys are here, and nobody reads the last values any more
        pl_tile_fetch<D, PL_TILE>(values, v, key);
        pl_fetch_commit();
        float s[M][PL_TILE / 8][4] = {};
        pl_tile_product_rows<D, PL_TILE, M>(s, q, keys);
        pl_fetch_wait<0>();
        __syncthreads();  // the values are here, and nobody reads the keys any more
        if (key + PL_TILE < end) pl_tile_fetch<D, PL_TILE>(keys, k, key + PL_TILE);
        pl_fetch_commit();
        const int last = key + PL_TILE - 1;
        uint64_t odd = 0;
        if (SPECIAL || (job.causal && last > p.first)) {
            odd = pl_tile_clean<D, PL_TILE>(values, odd_rows);
        }
        if (job.causal && key >= mine + p.rows) continue;  // this warp sees none
        if (SPECIAL || last >= job.keys || (job.causal && last > mine)) {
            mask_tile<M, SPECIAL>(job, p, key, s);
        }
        softmax_tile<M>(factor, s, &rows, shrink);
        if (SPECIAL && job.drops) drop_weights<M>(job, p, key, s);
        PL_UNROLL
        for (int i = 0; i < M * (D / 2); i++) {
            out[i / (D / 2)][i / 4 % (D / 8)][i % 4] *= shrink[i / (D / 2)][i % 4 / 2];
        }
        pl_tile_add_product<D, PL_TILE, M>(out, s, values, odd);
    }
    pl_fetch_wait<0>();
    finish_rows<M>(job, p, rows, shrink);
    pl_tile_store<T, D, M>(job.out, p, out, shrink, job.queries, job.width);
}

template <typename T, int D, int M, bool SPECIAL>
pl_status forward(const pl_attention_job *job, pl_cuda_queue *q) {
    unsigned blocks = 0;
    PL_TRY(pl_tile_blocks(job, job->queries, pl_tile_rows<M>::ROWS, &blocks));
    size_t nbytes = forward_bytes<T, D>();
    PL_LAUNCH((forward_kernel<T, D, M, SPECIAL>), blocks, PL_TILE_BLOCK, nbytes, q, *job);
    return pl_launched("attention");
}

pl_heads heads_of(const pl_tensor *t, int64_t heads) {
    int64_t group = t->shape[1] > 0 ? heads / t->shape[1] : 1;
    return {t->data, t->strides[0], t->strides[1], t->strides[2], t->strides[3], (uint32_t)group};
}

pl_attention_job job_of(const pl_tensor *q, const pl_tensor *k, const pl_tensor *v,
                        const pl_attention_args *args) {
    pl_attention_job job = {};
    job.q = heads_of(q, q->shape[1]);
    job.k = heads_of(k, q->shape[1]);
    job.v = heads_of(v, q->shape[1]);
    job.batch = q->shape[0];
    job.heads = q->shape[1];
    job.queries = q->shape[2];
    job.keys = k->shape[2];
    job.width = q->shape[3];
    job.scale = args->scale;
    job.causal = args->causal;
    job.drops = args->dropout_p > 0.0;
    job.keep_scale = 1.0 / (1.0 - args->dropout_p);
    job.threshold = pl_keep_threshold(args->dropout_p);
    job.seed = args->seed;
    job.offset = args->offset;
    if (args->mask != NULL) {
        job.mask = args->mask->data;
        job.mask_dtype = args->mask->dtype;
        for (int d = 0; d < 4; d++) job.mask_strides[d] = args->mask->strides[d];
    }
    return job;
}

bool on_tensor_cores(const pl_tensor *q) {
    return (q->dtype == PL_BF16 || q->dtype == PL_F16) && q->shape[3] <= 128;
}

}  // namespace

pl_status pl_cuda_attention(const pl_tensor *q, const pl_tensor *k, const pl_tensor *v,
                            const pl_attention_args *args, pl_tensor *out, pl_tensor *lse,
                            pl_cuda_queue *queue) {
    if (lse->numel == 0) return PL_OK;
    pl_attention_job job = job_of(q, k, v, args);
    job.out = heads_of(out, q->shape[1]);
    job.lse = lse->data;
    if (!on_tensor_cores(q)) return pl_attention_any(&job, q->dtype, queue);
#define CALL(T, D, M, SPECIAL) return forward<T, D, M, SPECIAL>(&job, queue)
    PL_TILE_CASES(&job, q->dtype, CALL);
#undef CALL
}

pl_status pl_cuda_attention_grad(const pl_tensor *g, const pl_tensor *q, const pl_tensor *k,
                                 const pl_tensor *v, const pl_tensor *out, const pl_tensor *lse,
                                 const pl_attention_args *args, pl_tensor *dq, pl_tensor *dk,
                                 pl_tensor *dv, pl_cuda_queue *queue) {
    if (q->shape[0] == 0 || q->shape[1] == 0) return PL_OK;
    pl_attention_job job = job_of(q, k, v, args);
    job.g = heads_of(g, q->shape[1]);
    job.out = heads_of(out, q->shape[1]);
    job.dq = heads_of(dq, q->shape[1]);
    job.dk = heads_of(dk, q->shape[1]);
    job.dv = heads_of(dv, q->shape[1]);
    job.lse = lse->data;
    if (!on_tensor_cores(q)) return pl_attention_any_grad(&job, q->dtype, queue);
    return pl_attention_tile_grad(&job, q->dtype, queue);
}

// SPDX-License-Identifier: Apache-2.0
// attention_grad: the gradient on tensor cores, without atomics: one kernel goes over the keys for
// each tile of queries (dq), another over the queries for each tile of keys (dk, dv), so that every
// sum has one order; both recompute the scores. delta, the sum of g * out of a row, comes first.
// With p the probability and keep the dropout's factor: ds = p * (keep * g.v - delta) * scale,
// dq = ds k, dk = ds^T q, dv = (p * keep)^T g; ds and p are rounded to the inputs' dtype for the
// products.
// In fp16 a ds past 65,504 is infinite, which a scaler of gradients sees and answers.
// Not measured on a GPU yet: seven products where an atomic dq would need five.
#include "cuda/attention_tile.cuh"

namespace {

enum { STEP = 32 };  // rows of the other side at a time

// A warp per row, which is 128 columns at most.
template <typename T>
__global__ void delta_kernel(pl_attention_job job, float *delta) {
    int lane = (int)(threadIdx.x % PL_LANES);
    int64_t lines = job.batch * job.heads * job.queries;
    for (int64_t i = (int64_t)blockIdx.x * (PL_BLOCK / PL_LANES) + threadIdx.x / PL_LANES;
         i < lines; i += (int64_t)gridDim.x * (PL_BLOCK / PL_LANES)) {
        int64_t head = i / job.queries, row = i % job.queries;
        int64_t b = head / job.heads, h = head % job.heads;
        const T *g = pl_row<T>(job.g, b, h, row), *out = pl_row<T>(job.out, b, h, row);
        float sum = 0;
        for (int64_t d = lane; d < job.width; d += PL_LANES) {
            sum += pl_get(g[d * job.g.column]) * pl_get(out[d * job.out.column]);
        }
        sum = pl_warp_fold(sum, pl_plus());
        if (lane == 0) delta[i] = sum;
    }
}

// One element: what the products s = q.k and dp = g.v become, p * keep and ds.
PL_DEVICE void element(const pl_attention_job &job, const pl_tile_place &p, const float *delta,
                       int64_t i, int64_t j, float *s, float *dp) {
    float score = pl_score(job, p.b, p.h, i, j, *s), kept = 0, ds = 0;
    if (score != -INFINITY) {
        int64_t line = (p.b * job.heads + p.h) * job.queries + i;
        float prob = expf(score - ((const float *)job.lse)[line]);
        float keep = pl_kept<float>(job, p.b, p.h, i, j);
        kept = prob * keep;
        ds = prob * (keep * *dp - delta[line]) * (float)job.scale;
    }
    *s = kept;
    *dp = ds;
}

// Dynamic shared memory: two tiles of 64 rows, two of STEP.
template <typename T, int D>
PL_DEVICE T *tile_at(unsigned char *shared, int which) {
    int row = which <= 2 ? which * PL_TILE : 2 * PL_TILE + STEP;
    return (T *)shared + row * (D + PL_TILE_PAD);
}
template <int D>
size_t tile_bytes(void) {
    return (size_t)(2 * PL_TILE + 2 * STEP) * (D + PL_TILE_PAD) * sizeof(bf16);
}

template <typename T, int D>
__global__ void __launch_bounds__(PL_TILE_BLOCK)
    query_kernel(pl_attention_job job, const float *delta) {
    PL_DYNAMIC_SHARED(shared);
    T *q = tile_at<T, D>(shared, 0), *g = tile_at<T, D>(shared, 1), *k = tile_at<T, D>(shared, 2),
      *v = tile_at<T, D>(shared, 3);
    pl_tile_place p = pl_tile_of(job, blockIdx.x, job.queries);
    int t = (int)(threadIdx.x % PL_LANES) % 4;
    pl_tile_load<D>(q, PL_TILE, job.q, p, p.first, job.queries, job.width);
    pl_tile_load<D>(g, PL_TILE, job.g, p, p.first, job.queries, job.width);
    float dq[D / 8][4] = {}, one[2] = {1, 1};
    int64_t end = job.keys;
    if (job.causal && p.first + PL_TILE < end) end = p.first + PL_TILE;
    for (int64_t key = 0; key < end; key += STEP) {
        bool odd = pl_tile_load<D>(k, STEP, job.k, p, key, job.keys, job.width);
        pl_tile_load<D>(v, STEP, job.v, p, key, job.keys, job.width);
        odd = __syncthreads_or(odd) != 0;
        float s[STEP / 8][4] = {}, dp[STEP / 8][4] = {};
        pl_tile_product_tiles<D, STEP>(s, q, p.warp * 16, k);
        pl_tile_product_tiles<D, STEP>(dp, g, p.warp * 16, v);
        PL_UNROLL
        for (int n = 0; n < STEP / 8; n++) {
            PL_UNROLL
            for (int e = 0; e < 4; e++) {
                int64_t j = key + n * 8 + 2 * t + e % 2;
                element(job, p, delta, pl_tile_row(p, e / 2), j, &s[n][e], &dp[n][e]);
            }
        }
        pl_tile_add_product<D, STEP>(dq, dp, k, odd);
        __syncthreads();
    }
    pl_tile_store<T, D>(job.dq, p, dq, one, job.queries, job.width);
}

// Rows of a warp are keys here: s and dp are the transposes.
template <typename T, int D>
__global__ void __launch_bounds__(PL_TILE_BLOCK)
    key_kernel(pl_attention_job job, const float *delta) {
    PL_DYNAMIC_SHARED(shared);
    T *k = tile_at<T, D>(shared, 0), *v = tile_at<T, D>(shared, 1), *q = tile_at<T, D>(shared, 2),
      *g = tile_at<T, D>(shared, 3);
    pl_tile_place p = pl_tile_of(job, blockIdx.x, job.keys);
    int t = (int)(threadIdx.x % PL_LANES) % 4;
    pl_tile_load<D>(k, PL_TILE, job.k, p, p.first, job.keys, job.width);
    pl_tile_load<D>(v, PL_TILE, job.v, p, p.first, job.keys, job.width);
    float dk[D / 8][4] = {}, dv[D / 8][4] = {}, one[2] = {1, 1};
    for (int64_t query = job.causal ? p.first : 0; query < job.queries; query += STEP) {
        bool odd = pl_tile_load<D>(q, STEP, job.q, p, query, job.queries, job.width);
        odd = pl_tile_load<D>(g, STEP, job.g, p, query, job.queries, job.width) || odd;
        odd = __syncthreads_or(odd) != 0;
        float s[STEP / 8][4] = {}, dp[STEP / 8][4] = {};
        pl_tile_product_tiles<D, STEP>(s, k, p.warp * 16, q);
        pl_tile_product_tiles<D, STEP>(dp, v, p.warp * 16, g);
        PL_UNROLL
        for (int n = 0; n < STEP / 8; n++) {
            PL_UNROLL
            for (int e = 0; e < 4; e++) {
                int64_t i = query + n * 8 + 2 * t + e % 2;
                element(job, p, delta, i, pl_tile_row(p, e / 2), &s[n][e], &dp[n][e]);
            }
        }
        pl_tile_add_product<D, STEP>(dv, s, g, odd);
        pl_tile_add_product<D, STEP>(dk, dp, q, odd);
        __syncthreads();
    }
    pl_tile_store<T, D>(job.dk, p, dk, one, job.keys, job.width);
    pl_tile_store<T, D>(job.dv, p, dv, one, job.keys, job.width);
}

template <typename T, int D>
pl_status launch(const pl_attention_job *job, float *delta, pl_cuda_queue *q) {
    int64_t lines = job->batch * job->heads * job->queries;
    unsigned by_query = 0, by_key = 0;
    PL_TRY(pl_tile_blocks(job, job->queries, &by_query));
    PL_TRY(pl_tile_blocks(job, job->keys, &by_key));
    PL_LAUNCH(delta_kernel<T>, pl_blocks(lines, PL_BLOCK / PL_LANES), PL_BLOCK, 0, q, *job, delta);
    PL_TRY(pl_launched("attention"));
    const float *sums = delta;
    if (by_query > 0) {
        PL_TRY(pl_allow_shared("attention", query_kernel<T, D>, tile_bytes<D>()));
        PL_LAUNCH((query_kernel<T, D>), by_query, PL_TILE_BLOCK, tile_bytes<D>(), q, *job, sums);
        PL_TRY(pl_launched("attention"));
    }
    if (by_key == 0) return PL_OK;
    PL_TRY(pl_allow_shared("attention", key_kernel<T, D>, tile_bytes<D>()));
    PL_LAUNCH((key_kernel<T, D>), by_key, PL_TILE_BLOCK, tile_bytes<D>(), q, *job, sums);
    return pl_launched("attention");
}

}  // namespace

pl_status pl_attention_tile_grad(const pl_attention_job *job, pl_dtype dt, pl_cuda_queue *q) {
    int64_t lines = job->batch * job->heads * job->queries;
    void *delta;
    PL_TRY(q->scratch(q->owner, (size_t)(lines + 1) * sizeof(float), &delta));
#define CALL(T, D) return launch<T, D>(job, (float *)delta, q)
    PL_TILE_CASES(job, dt, CALL);
#undef CALL
}

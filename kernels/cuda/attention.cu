// SPDX-License-Identifier: Apache-2.0
// attention: the entry, and the forward pass on tensor cores (bf16, f16, width up to 128): the
// tiled softmax of FlashAttention (Dao et al., 2022). A block takes 64 queries of a head, a warp 16
// of them, and goes over the keys 64 at a time: scores, running maximum and sum of each row, and
// the result rescaled when the maximum rises. Probabilities are rounded to the inputs' dtype for
// the second product. Not measured on a GPU yet: tiles are loaded without cp.async, fragments
// without ldmatrix.
#include "cuda/attention.cuh"
#include "cuda/attention_tile.cuh"

namespace {

// This warp's 16 x 64 scores become probabilities; rows g and g + 8 of a lane have each a maximum,
// a sum (of this lane's columns) and the factor by which what was added up so far shrinks.
PL_DEVICE void softmax_tile(const pl_attention_job &job, pl_tile_place p, int64_t first_key,
                            float s[PL_TILE / 8][4], float top[2], float sum[2], float shrink[2]) {
    int t = (int)(threadIdx.x % PL_LANES) % 4;
    float higher[2] = {top[0], top[1]};
    PL_UNROLL
    for (int n = 0; n < PL_TILE / 8; n++) {
        PL_UNROLL
        for (int e = 0; e < 4; e++) {
            int64_t i = pl_tile_row(p, e / 2), j = first_key + n * 8 + 2 * t + e % 2;
            s[n][e] = pl_score(job, p.b, p.h, i, j, s[n][e]);
            higher[e / 2] = pl_larger()(s[n][e], higher[e / 2]);
        }
    }
    PL_UNROLL
    for (int r = 0; r < 2; r++) {  // the four lanes of a row
        higher[r] = pl_larger()(__shfl_xor_sync(PL_ALL_LANES, higher[r], 1), higher[r]);
        higher[r] = pl_larger()(__shfl_xor_sync(PL_ALL_LANES, higher[r], 2), higher[r]);
        shrink[r] = top[r] == -INFINITY ? 1.0f : expf(top[r] - higher[r]);
        sum[r] *= shrink[r];
        top[r] = higher[r];
    }
    PL_UNROLL
    for (int n = 0; n < PL_TILE / 8; n++) {
        PL_UNROLL
        for (int e = 0; e < 4; e++) {
            float w = pl_probability(s[n][e], top[e / 2]);
            sum[e / 2] += w;
            if (job.drops && w != 0) {
                int64_t j = first_key + n * 8 + 2 * t + e % 2;
                w *= pl_kept<float>(job, p.b, p.h, pl_tile_row(p, e / 2), j);
            }
            s[n][e] = w;
        }
    }
}

template <typename T, int D>
__global__ void __launch_bounds__(PL_TILE_BLOCK) forward_kernel(pl_attention_job job) {
    PL_SHARED(T, first, PL_TILE * (D + PL_TILE_PAD));  // queries, then keys
    PL_SHARED(T, second, PL_TILE * (D + PL_TILE_PAD));
    pl_tile_place p = pl_tile_of(job, blockIdx.x, job.queries);
    uint32_t q[D / 16][4];
    pl_tile_load<D>(first, PL_TILE, job.q, p, p.first, job.queries, job.width);
    __syncthreads();
    PL_UNROLL
    for (int k = 0; k < D / 16; k++) pl_frag_a(q[k], first, D + PL_TILE_PAD, p.warp * 16, k * 16);
    __syncthreads();
    float out[D / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, shrink[2];
    int64_t end = job.keys;
    if (job.causal && p.first + PL_TILE < end) end = p.first + PL_TILE;
    for (int64_t key = 0; key < end; key += PL_TILE) {
        pl_tile_load<D>(first, PL_TILE, job.k, p, key, job.keys, job.width);
        bool odd = pl_tile_load<D>(second, PL_TILE, job.v, p, key, job.keys, job.width);
        odd = __syncthreads_or(odd) != 0;
        float s[PL_TILE / 8][4] = {};
        pl_tile_product_rows<D, PL_TILE>(s, q, first);
        softmax_tile(job, p, key, s, top, sum, shrink);
        PL_UNROLL
        for (int n = 0; n < D / 8; n++) {
            PL_UNROLL
            for (int e = 0; e < 4; e++) out[n][e] *= shrink[e / 2];
        }
        pl_tile_add_product<D, PL_TILE>(out, s, second, odd);
        __syncthreads();
    }
    PL_UNROLL
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(PL_ALL_LANES, sum[r], 1);
        sum[r] += __shfl_xor_sync(PL_ALL_LANES, sum[r], 2);
        int64_t i = pl_tile_row(p, r);
        if (threadIdx.x % 4 == 0 && i < job.queries) {
            ((float *)job.lse)[(p.b * job.heads + p.h) * job.queries + i] =
                sum[r] == 0 ? -INFINITY : top[r] + logf(sum[r]);
        }
        sum[r] = sum[r] == 0 ? 0.0f : 1.0f / sum[r];
    }
    pl_tile_store<T, D>(job.out, p, out, sum, job.queries, job.width);
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
    unsigned blocks = 0;
    PL_TRY(pl_tile_blocks(&job, job.queries, &blocks));
#define CALL(T, D) PL_LAUNCH((forward_kernel<T, D>), blocks, PL_TILE_BLOCK, 0, queue, job)
    PL_TILE_CASES(&job, q->dtype, CALL);
#undef CALL
    return pl_launched("attention");
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

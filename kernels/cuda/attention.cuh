// SPDX-License-Identifier: Apache-2.0
// attention: what its two implementations share: addresses, what a score becomes, what dropout
// keeps. attention.cu chooses: tensor cores for bf16 and f16 up to 128 columns, else
// attention_any.cu.
#ifndef PL_CUDA_ATTENTION_CUH
#define PL_CUDA_ATTENTION_CUH

#include "cuda/math.cuh"
#include "cuda/philox.cuh"

// A (B, H / group, rows, D) tensor, whose head h / group serves head h: where it is, and its
// strides in elements.
struct pl_heads {
    void *data;
    int64_t b, h, row, column;
    uint32_t group;
};

struct pl_attention_job {
    pl_heads q, k, v, out, g, dq, dk, dv;
    void *lse;  // (B, H, T)
    int64_t batch, heads, queries, keys, width;
    double scale, keep_scale;  // keep_scale: 1 / (1 - p)
    bool causal, drops;
    uint32_t threshold;
    uint64_t seed, offset;
    const void *mask;  // NULL: none
    pl_dtype mask_dtype;
    int64_t mask_strides[4];
};

template <typename T>
static PL_DEVICE T *pl_row(const pl_heads &t, int64_t b, int64_t h, int64_t row) {
    if (t.group != 1) h = (uint32_t)h / t.group;
    return (T *)t.data + b * t.b + h * t.h + row * t.row;
}

// The score of query i and key j after scaling and masking; -infinity: not seen.
template <typename A>
static PL_DEVICE A pl_score(const pl_attention_job &job, int64_t b, int64_t h, int64_t i, int64_t j,
                            A product) {
    if (i >= job.queries || j >= job.keys || (job.causal && j > i)) return -(A)INFINITY;
    A s = (A)job.scale * product;
    if (job.mask == nullptr) return s;
    const int64_t *step = job.mask_strides;
    int64_t at = b * step[0] + h * step[1] + i * step[2] + j * step[3];
    switch (job.mask_dtype) {
        case PL_BOOL:
            return ((const bool *)job.mask)[at] ? s : -(A)INFINITY;
        case PL_F32:
            return s + (A)((const float *)job.mask)[at];
        case PL_BF16:
            return s + (A)pl_get(((const bf16 *)job.mask)[at]);
        case PL_F16:
            return s + (A)pl_get(((const f16 *)job.mask)[at]);
        default:
            return s + (A)((const double *)job.mask)[at];
    }
}

// exp(score - reference), 0 for what is not seen; a row that sees nothing has reference -infinity.
template <typename A>
static PL_DEVICE A pl_probability(A score, A reference) {
    return score == -(A)INFINITY ? (A)0 : pl_exp(score - reference);
}

// What dropout multiplies the probability of (i, j) by.
template <typename A>
static PL_DEVICE A pl_kept(const pl_attention_job &job, int64_t b, int64_t h, int64_t i,
                           int64_t j) {
    if (!job.drops) return (A)1;
    uint64_t element = (uint64_t)(((b * job.heads + h) * job.queries + i) * job.keys + j);
    return pl_keep(job.seed, job.offset, element, job.threshold) ? (A)job.keep_scale : (A)0;
}

// attention_any.cu; the dtype is q's.
pl_status pl_attention_any(const pl_attention_job *job, pl_dtype dt, pl_cuda_queue *q);
pl_status pl_attention_any_grad(const pl_attention_job *job, pl_dtype dt, pl_cuda_queue *q);

#endif

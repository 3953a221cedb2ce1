// SPDX-License-Identifier: Apache-2.0
// attention: checks out what the tensors are and hands tiles (forward) or heads (backward) to the
// loops; Note [attention in tiles], attention.h. bf16 goes to the dot-product loops where the
// processor has them.
#include "attention.h"

#include "cpu.h"
#include "rows.h"

static pl_attention_view view_of(const pl_tensor *t, int64_t heads) {
    return (pl_attention_view){t->data, t->strides[0], t->strides[1], t->strides[2],
                               t->shape[1] > 0 ? heads / t->shape[1] : 1};
}

size_t pl__attention_scratch(const pl_attention_job *job, bool backward, size_t real) {
    size_t rows = (size_t)(job->keys + 63) / 64 * 64;
    size_t dp = (size_t)(job->width + 31) / 32 * 32, dvp = (size_t)(job->vwidth + 31) / 32 * 32;
    size_t tiles = 64 * 64, lanes = 64;
    size_t n = backward
                   ? rows * (3 * dp + 2 * dvp) + 64 * (3 * dp + 2 * dvp) + 7 * tiles + 3 * lanes
                   : rows * (dp + dvp) + 64 * (dp + dvp) + 4 * tiles + 2 * lanes;
    return (n * real + 4095) / 4096 * 4096;
}

// The loops of this job's dtype.
static pl_range_fn pick_loop(const pl_attention_job *job, bool backward) {
    if (job->dt == PL_BF16) {
        pl_range_fn dot = pl__attention_dot(backward);
        if (dot) return dot;
    }
    const pl_rows *rows = pl__rows();
    bool wide = job->dt == PL_F64;
    return backward ? rows->attention_grad[wide] : rows->attention[wide];
}

static pl_status run(pl_attention_job *job, bool backward, int64_t items) {
    int threads = pl_num_threads();
    int64_t pieces = items < threads ? items : threads;
    job->scratch_nbytes = pl__attention_scratch(job, backward, job->dt == PL_F64 ? 8 : 4);
    PL_TRY(pl_alloc((size_t)pieces * job->scratch_nbytes, (void **)&job->scratch));
    pl_parallel_for(items, 1, pick_loop(job, backward), job);
    pl_free(job->scratch);
    return PL_OK;
}

static pl_attention_job make_job(const pl_tensor *q, const pl_tensor *k, const pl_tensor *v,
                                 const pl_attention_args *args, const pl_tensor *out,
                                 const pl_tensor *lse) {
    pl_attention_job job = {.q = view_of(q, q->shape[1]),
                            .k = view_of(k, q->shape[1]),
                            .v = view_of(v, q->shape[1]),
                            .out = view_of(out, q->shape[1]),
                            .lse = lse->data,
                            .lse_b = lse->strides[0],
                            .lse_h = lse->strides[1],
                            .lse_row = lse->strides[2],
                            .heads = q->shape[1],
                            .queries = q->shape[2],
                            .keys = k->shape[2],
                            .width = q->shape[3],
                            .vwidth = v->shape[3],
                            .scale = args->scale,
                            .causal = args->causal,
                            .mask = args->mask,
                            .dropout_p = args->dropout_p,
                            .seed = args->seed,
                            .offset = args->offset,
                            .dt = q->dtype};
    return job;
}

pl_status pl_cpu_attention(const pl_tensor *q, const pl_tensor *k, const pl_tensor *v,
                           const pl_attention_args *args, pl_tensor *out, pl_tensor *lse) {
    if (lse->numel == 0) return PL_OK;
    pl_attention_job job = make_job(q, k, v, args, out, lse);
    int64_t tiles = (job.queries + PL_ATT_Q - 1) / PL_ATT_Q;
    return run(&job, false, q->shape[0] * q->shape[1] * tiles);
}

// A gradient may come expanded (of a sum): a copy then.
static pl_status adjacent(const pl_tensor *t, pl_tensor **owned, const pl_tensor **out) {
    *owned = NULL;
    *out = t;
    if (t->strides[3] == 1 || t->shape[3] <= 1) return PL_OK;
    PL_TRY(pl_tensor_empty(t->dtype, t->ndim, t->shape, owned));
    *out = *owned;
    return pl_cpu_copy(t, *owned);
}

pl_status pl_cpu_attention_grad(const pl_tensor *g, const pl_tensor *q, const pl_tensor *k,
                                const pl_tensor *v, const pl_tensor *out, const pl_tensor *lse,
                                const pl_attention_args *args, pl_tensor *dq, pl_tensor *dk,
                                pl_tensor *dv) {
    int64_t heads = q->shape[0] * q->shape[1];
    if (heads == 0) return PL_OK;
    pl_tensor *owned = NULL;
    const pl_tensor *use = NULL;
    pl_status st = adjacent(g, &owned, &use);
    if (st == PL_OK) {
        pl_attention_job job = make_job(q, k, v, args, out, lse);
        job.g = view_of(use, q->shape[1]);
        job.dq = view_of(dq, q->shape[1]);
        job.dk = view_of(dk, q->shape[1]);
        job.dv = view_of(dv, q->shape[1]);
        st = run(&job, true, heads);
    }
    pl_tensor_release(owned);
    return st;
}

// SPDX-License-Identifier: Apache-2.0
// Attention's gradient, one head at a time: its tiles of queries in order, so that dk and dv are
// summed in one order whatever the thread count; Note [attention in tiles]. Compiled for float, for
// double, and for float with bf16 operands.

typedef struct FN(att_backward) {
    E *k, *v;                 // (keys, dp), (keys, dvp) form A
    E *kt;                    // per tile of keys (width, 64) form A
    E *q, *g;                 // (64, dp), (64, dvp) form B
    E *qt, *gt;               // (width, 64), (vwidth, 64) form B
    E *pt;                    // (64, 64) form A
    E *dst_a, *dst_b;         // (64, 64) forms A and B
    R *dk, *dv;               // (keys, dp), (keys, dvp)
    R *st, *dpt;              // (64, 64)
    R *dqt;                   // (width, 64)
    R *bias, *keep;           // (64, 64)
    R *lse, *delta, *factor;  // (64)
    int64_t dp, dvp;
} FN(att_backward);

static void FN(backward_carve)(const pl_attention_job *job, char *at, FN(att_backward) * s) {
    int64_t rows = (job->keys + 63) / 64 * 64;
    s->dp = (job->width + 31) / 32 * 32;
    s->dvp = (job->vwidth + 31) / 32 * 32;
    s->k = (E *)FN(take_scratch)(&at, rows * s->dp);
    s->kt = (E *)FN(take_scratch)(&at, rows * s->dp);
    s->v = (E *)FN(take_scratch)(&at, rows * s->dvp);
    s->dk = FN(take_scratch)(&at, rows * s->dp);
    s->dv = FN(take_scratch)(&at, rows * s->dvp);
    s->q = (E *)FN(take_scratch)(&at, 64 * s->dp);
    s->qt = (E *)FN(take_scratch)(&at, 64 * s->dp);
    s->dqt = FN(take_scratch)(&at, 64 * s->dp);
    s->g = (E *)FN(take_scratch)(&at, 64 * s->dvp);
    s->gt = (E *)FN(take_scratch)(&at, 64 * s->dvp);
    s->pt = (E *)FN(take_scratch)(&at, 64 * 64);
    s->dst_a = (E *)FN(take_scratch)(&at, 64 * 64);
    s->dst_b = FORMS_SHARED ? s->dst_a : (E *)FN(take_scratch)(&at, 64 * 64);
    s->st = FN(take_scratch)(&at, 64 * 64);
    s->dpt = FN(take_scratch)(&at, 64 * 64);
    s->bias = FN(take_scratch)(&at, 64 * 64);
    s->keep = FN(take_scratch)(&at, 64 * 64);
    s->lse = FN(take_scratch)(&at, 64);
    s->delta = FN(take_scratch)(&at, 64);
    s->factor = FN(take_scratch)(&at, 64);
}

PL_INLINE void FN(row_dots)(pl_dtype dt, const void *x, int64_t xstep, const void *y, int64_t ystep,
                            int64_t rows, int64_t cols, R *out) {
    for (int64_t r = 0; r < rows; r++) {
        VR sum = V(set1)(0);
        for (int64_t c = 0; c < cols; c += VN) {
            sum = V(fma)(FN(get_part)(dt, x, r * xstep + c, cols - c),
                         FN(get_part)(dt, y, r * ystep + c, cols - c), sum);
        }
        out[r] = V(sum)(sum);
    }
}

// What one tile of queries needs of its own: forms of q and g, lse (times log2 e), delta. A query
// that saw nothing, and one beyond the last, gets lse = inf, so that its probabilities are e^-inf =
// 0.
static void FN(load_queries)(const pl_attention_job *job, const att_tile *t, FN(att_backward) * s) {
    const void *q = att_row(job, &job->q, t, t->q0), *g = att_row(job, &job->g, t, t->q0);
    const void *out = att_row(job, &job->out, t, t->q0);
    FN(form_b)(job->dt, s->q, s->dp, q, job->q.row, t->queries, job->width);
    FN(form_b)(job->dt, s->g, s->dvp, g, job->g.row, t->queries, job->vwidth);
    FN(form_b_transposed)(job->dt, s->qt, q, job->q.row, t->queries, job->width);
    FN(form_b_transposed)(job->dt, s->gt, g, job->g.row, t->queries, job->vwidth);
    for (int l = 0; l < 64; l++) s->delta[l] = 0;
    PL_EACH_DTYPE(job->dt, FN(row_dots), g, job->g.row, out, job->out.row, t->queries, job->vwidth,
                  s->delta);
    const R *lse = (const R *)job->lse + t->b * job->lse_b + t->h * job->lse_h;
    for (int64_t l = 0; l < 64; l++) {
        R v = l < t->queries ? lse[(t->q0 + l) * job->lse_row] : (R)INFINITY;
        s->lse[l] = v == -(R)INFINITY ? (R)INFINITY : v * (R)PL_LOG2_E;
    }
}

// p and ds = p * (dp * keep - delta) of one key and one vector of queries; p comes back times keep.
PL_INLINE VR FN(grad_score)(const pl_attention_job *job, const FN(att_backward) * s, int64_t kk,
                            int64_t lane, VR shift, VR *p) {
    VR x = V(load)(s->st + kk * 64 + lane), dp = V(load)(s->dpt + kk * 64 + lane);
    VR score = V(fma)(x, V(set1)((R)(job->scale * PL_LOG2_E)), shift);
    if (job->mask) score = score + V(load)(s->bias + kk * 64 + lane);
    VR y = V(exp2)(score, FORM_ROUGH), delta = V(load)(s->delta + lane);
    if (job->dropout_p > 0.0) {
        VR keep = V(load)(s->keep + kk * 64 + lane);
        *p = y * keep;
        return y * V(fma)(dp, keep, V(set1)(0) - delta);
    }
    *p = y;
    return y * (dp - delta);
}

// PT and dST of one vector of queries, for all keys of the tile: zeros where nothing is seen.
PL_INLINE void FN(softmax_grad_step)(const pl_attention_job *job, const att_tile *t,
                                     FN(att_backward) * s, int64_t lane) {
    int64_t seen = FN(keys_seen)(job, t, lane, VN);
    bool clipped = job->causal && t->k0 + seen - 1 > t->q0 + lane;
    VR zero = V(set1)(0), shift = zero - V(load)(s->lse + lane);
    VR query = FN(lanes)(t->q0 - t->k0 + lane);
    for (int64_t kk = 0; kk < t->keys; kk += 2) {
        VR p0 = zero, p1 = zero, d0 = zero, d1 = zero;
        if (kk < seen) d0 = FN(grad_score)(job, s, kk, lane, shift, &p0);
        if (kk + 1 < seen) d1 = FN(grad_score)(job, s, kk + 1, lane, shift, &p1);
        if (clipped) {
            VR key0 = V(set1)((R)kk), key1 = V(set1)((R)(kk + 1));
            p0 = V(less)(query, key0, zero, p0);
            d0 = V(less)(query, key0, zero, d0);
            p1 = V(less)(query, key1, zero, p1);
            d1 = V(less)(query, key1, zero, d1);
        }
        FN(put_a)(s->pt, kk, lane, p0, p1);
        FN(put_both)(s->dst_a, s->dst_b, kk, lane, d0, d1);
    }
}

// C (keys, n) += A (keys, queries) B (queries, n), where causal from the first query that sees.
PL_INLINE void FN(gather_queries)(const pl_attention_job *job, const att_tile *t, int64_t n,
                                  const E *a, const E *b, R *c) {
    int64_t queries = FORM_DEPTH(t->queries);
    if (FN(keys_seen)(job, t, 0, 1) == t->keys) {
        FN(product)(true, t->keys, n, queries, a, 64, b, n, c, n);
        return;
    }
    for (int64_t kk = 0; kk < t->keys; kk += 8) {
        int64_t first = t->k0 + kk > t->q0 ? (t->k0 + kk - t->q0) & ~1 : 0;
        int64_t keys = t->keys - kk < 8 ? t->keys - kk : 8;
        if (first >= queries) break;
        FN(product)(true, keys, n, queries - first, a + kk * 64 + first, 64, b + first * n, n,
                    c + kk * n, n);
    }
}

static void FN(backward_queries)(const pl_attention_job *job, att_tile *t, FN(att_backward) * s) {
    int64_t limit = job->causal && t->q0 + t->queries < job->keys ? t->q0 + t->queries : job->keys;
    int64_t lanes = (t->queries + 2 * VN - 1) / (2 * VN) * (2 * VN);
    FN(load_queries)(job, t, s);
    att_prefetch(job, &job->q, t, t->q0, job->queries, job->width);
    att_prefetch(job, &job->g, t, t->q0, job->queries, job->vwidth);
    att_prefetch(job, &job->out, t, t->q0, job->queries, job->vwidth);
    att_prefetch(job, &job->k, t, t->q0, job->keys, job->width);
    att_prefetch(job, &job->v, t, t->q0, job->keys, job->vwidth);
    if (limit == 0) memset(s->dqt, 0, (size_t)(64 * s->dp) * sizeof(R));
    for (t->k0 = 0; t->k0 < limit; t->k0 += 64) {
        t->keys = limit - t->k0 < 64 ? limit - t->k0 : 64;
        FN(scores)(job, t, s->k + t->k0 * s->dp, s->dp, s->qt, FORM_DEPTH(job->width), s->st);
        FN(scores)(job, t, s->v + t->k0 * s->dvp, s->dvp, s->gt, FORM_DEPTH(job->vwidth), s->dpt);
        if (job->mask) FN(fill_bias)(job, t, s->bias);
        if (job->dropout_p > 0.0) FN(fill_keep)(job, t, s->keep);
        for (int64_t lane = 0; lane < lanes; lane += VN) FN(softmax_grad_step)(job, t, s, lane);
        FN(gather_queries)(job, t, s->dvp, s->pt, s->g, s->dv + t->k0 * s->dvp);
        FN(gather_queries)(job, t, s->dp, s->dst_a, s->q, s->dk + t->k0 * s->dp);
        FN(gather_keys)(job, t, t->k0 > 0, job->width, s->kt + t->k0 * s->dp, s->dst_b, s->dqt);
    }
    for (int l = 0; l < 64; l++) s->factor[l] = (R)job->scale;
    FN(write_transposed)(job->dt, att_row(job, &job->dq, t, t->q0), job->dq.row, t->queries,
                         job->width, s->dqt, s->factor);
}

static void FN(backward_head)(const pl_attention_job *job, att_tile *t, FN(att_backward) * s) {
    int64_t keys = job->keys;
    FN(form_a)(job->dt, s->k, s->dp, att_row(job, &job->k, t, 0), job->k.row, keys, job->width);
    FN(form_a)(job->dt, s->v, s->dvp, att_row(job, &job->v, t, 0), job->v.row, keys, job->vwidth);
    for (int64_t k0 = 0; k0 < keys; k0 += 64) {
        FN(form_a_transposed)(job->dt, s->kt + k0 * s->dp, att_row(job, &job->k, t, k0), job->k.row,
                              keys - k0 < 64 ? keys - k0 : 64, job->width);
    }
    memset(s->dk, 0, (size_t)(keys * s->dp) * sizeof(R));
    memset(s->dv, 0, (size_t)(keys * s->dvp) * sizeof(R));
    for (t->q0 = 0; t->q0 < job->queries; t->q0 += 64) {
        t->queries = job->queries - t->q0 < 64 ? job->queries - t->q0 : 64;
        FN(backward_queries)(job, t, s);
    }
    FN(write_rows)(job->dt, att_row(job, &job->dk, t, 0), job->dk.row, keys, job->width, s->dk,
                   s->dp, (R)job->scale);
    FN(write_rows)(job->dt, att_row(job, &job->dv, t, 0), job->dv.row, keys, job->vwidth, s->dv,
                   s->dvp, 1);
}

static void FN(attention_grad)(int64_t begin, int64_t end, void *ctx) {
    pl_attention_job *job = ctx;
    int piece = atomic_fetch_add_explicit(&job->next_scratch, 1, memory_order_relaxed);
    FN(att_backward) s;
    FN(backward_carve)(job, job->scratch + (size_t)piece * job->scratch_nbytes, &s);
    for (int64_t head = begin; head < end; head++) {
        att_tile t = {head / job->heads, head % job->heads, 0, 0, 0, 0};
        FN(backward_head)(job, &t, &s);
    }
}

// SPDX-License-Identifier: Apache-2.0
// Attention forward, one tile of queries at a time; Note [attention in tiles]. Compiled for float,
// for double, and for float with bf16 operands.

typedef struct FN(att_forward) {
    E *k;            // (keys, dp) form A
    E *vt;           // per tile of keys (vwidth, 64) form A
    E *qt;           // (width, 64) form B
    E *pt;           // (64, 64) form B
    R *st;           // (64, 64)
    R *ot;           // (vwidth, 64)
    R *bias, *keep;  // (64, 64)
    R *m, *l;        // (64)
    int64_t dp, dvp;
} FN(att_forward);

PL_INLINE R *FN(take_scratch)(char **at, int64_t n) {
    R *p = (R *)*at;
    *at += (size_t)n * sizeof(R);
    return p;
}

static void FN(forward_carve)(const pl_attention_job *job, char *at, FN(att_forward) * s) {
    int64_t tiles = (job->keys + 63) / 64;
    s->dp = (job->width + 31) / 32 * 32;
    s->dvp = (job->vwidth + 31) / 32 * 32;
    s->k = (E *)FN(take_scratch)(&at, tiles * 64 * s->dp);
    s->vt = (E *)FN(take_scratch)(&at, tiles * 64 * s->dvp);
    s->qt = (E *)FN(take_scratch)(&at, 64 * s->dp);
    s->pt = (E *)FN(take_scratch)(&at, 64 * 64);
    s->st = FN(take_scratch)(&at, 64 * 64);
    s->ot = FN(take_scratch)(&at, 64 * s->dvp);
    s->bias = FN(take_scratch)(&at, 64 * 64);
    s->keep = FN(take_scratch)(&at, 64 * 64);
    s->m = FN(take_scratch)(&at, 64);
    s->l = FN(take_scratch)(&at, 64);
}

// The greatest score of each query in lanes [lane, lane + VN). Scores that are masked, or beyond
// the diagonal, or have a scale that is not positive, are finished and stored on the way; else
// they stay as they are, and *scale is what they are still to be multiplied by.
PL_INLINE VR FN(top_scores)(const pl_attention_job *job, const att_tile *t, FN(att_forward) * s,
                            int64_t lane, int64_t seen, R *scale) {
    VR top[4], lowest = V(set1)(-(R)INFINITY);
    for (int i = 0; i < 4; i++) top[i] = lowest;
    R *st = s->st + lane;
    bool clipped = job->causal && t->k0 + seen - 1 > t->q0 + lane;
    if (!job->mask && !clipped && *scale > 0) {
        int64_t kk = 0;
        for (; kk + 4 <= seen; kk += 4) {
            PL_UNROLL
            for (int i = 0; i < 4; i++) top[i] = V(max)(top[i], V(load)(st + (kk + i) * 64));
        }
        for (; kk < seen; kk++) top[0] = V(max)(top[0], V(load)(st + kk * 64));
        return V(max)(V(max)(top[0], top[1]), V(max)(top[2], top[3])) * V(set1)(*scale);
    }
    VR query = FN(lanes)(t->q0 - t->k0 + lane), factor = V(set1)(*scale);
    for (int64_t kk = 0; kk < seen; kk++) {
        VR x = V(load)(st + kk * 64) * factor;
        if (job->mask) x = x + V(load)(s->bias + kk * 64 + lane);
        if (clipped) x = V(less)(query, V(set1)((R)kk), lowest, x);
        V(store)(st + kk * 64, x);
        top[kk % 4] = V(max)(top[kk % 4], x);
    }
    *scale = 1;
    return V(max)(V(max)(top[0], top[1]), V(max)(top[2], top[3]));
}

// Scores to probabilities for one vector of queries: PT, and m, l and OT brought to the new m.
PL_INLINE void FN(softmax_step)(const pl_attention_job *job, const att_tile *t, FN(att_forward) * s,
                                int64_t lane) {
    int64_t seen = FN(keys_seen)(job, t, lane, VN);
    int64_t filled = FN(keys_seen)(job, t, lane / (2 * VN) * (2 * VN), 2 * VN), kk = 0;
    R scale = (R)(job->scale * PL_LOG2_E);
    VR lowest = V(set1)(-(R)INFINITY), zero = V(set1)(0), old = V(load)(s->m + lane);
    VR top = V(max)(old, FN(top_scores)(job, t, s, lane, seen, &scale));
    VR m = V(less)(lowest, top, top, zero);  // nothing seen yet: any number does; NaN goes by p
    VR shift = zero - m, factor = V(set1)(scale), sum0 = zero, sum1 = zero;
    bool drop = job->dropout_p > 0.0;
    for (; kk < filled; kk += 2) {
        const R *st = s->st + kk * 64 + lane, *keep = s->keep + kk * 64 + lane;
        VR p0 = zero, p1 = zero;
        if (kk < seen) p0 = V(exp2)(V(fma)(V(load)(st), factor, shift), FORM_ROUGH);
        if (kk + 1 < seen) p1 = V(exp2)(V(fma)(V(load)(st + 64), factor, shift), FORM_ROUGH);
        sum0 = sum0 + p0;
        sum1 = sum1 + p1;
        if (drop && kk < seen) p0 = p0 * V(load)(keep);
        if (drop && kk + 1 < seen) p1 = p1 * V(load)(keep + 64);
        FN(put_b)(s->pt, kk, lane, p0, p1);
    }
    VR alpha = V(exp2)(old - m, FORM_ROUGH);  // 0 at first, when old is -inf
    V(store)(s->m + lane, top);
    V(store)(s->l + lane, V(fma)(V(load)(s->l + lane), alpha, sum0 + sum1));
    if (t->k0 == 0) return;
    for (int64_t d = 0; d < job->vwidth; d++) {
        R *o = s->ot + d * 64 + lane;
        V(store)(o, V(load)(o) * alpha);
    }
}

static void FN(forward_tile)(const pl_attention_job *job, att_tile *t, FN(att_forward) * s) {
    int64_t limit = job->causal && t->q0 + t->queries < job->keys ? t->q0 + t->queries : job->keys;
    for (int l = 0; l < 64; l++) {
        s->m[l] = -(R)INFINITY;
        s->l[l] = 0;
    }
    FN(form_b_transposed)(job->dt, s->qt, att_row(job, &job->q, t, t->q0), job->q.row, t->queries,
                          job->width);
    att_prefetch(job, &job->q, t, t->q0, job->queries, job->width);
    att_prefetch(job, &job->k, t, t->q0, job->keys, job->width);
    att_prefetch(job, &job->v, t, t->q0, job->keys, job->vwidth);
    if (limit == 0) memset(s->ot, 0, (size_t)(64 * s->dvp) * sizeof(R));
    for (t->k0 = 0; t->k0 < limit; t->k0 += 64) {
        t->keys = limit - t->k0 < 64 ? limit - t->k0 : 64;
        FN(scores)(job, t, s->k + t->k0 * s->dp, s->dp, s->qt, FORM_DEPTH(job->width), s->st);
        if (job->mask) FN(fill_bias)(job, t, s->bias);
        if (job->dropout_p > 0.0) FN(fill_keep)(job, t, s->keep);
        int64_t lanes = (t->queries + 2 * VN - 1) / (2 * VN) * (2 * VN);
        for (int64_t lane = 0; lane < lanes; lane += VN) FN(softmax_step)(job, t, s, lane);
        FN(gather_keys)(job, t, t->k0 > 0, job->vwidth, s->vt + t->k0 * s->dvp, s->pt, s->ot);
    }
    R *lse = (R *)job->lse + t->b * job->lse_b + t->h * job->lse_h + t->q0 * job->lse_row;
    for (int64_t l = 0; l < t->queries; l++) {
        bool blind = s->l[l] == 0;  // saw nothing
        lse[l * job->lse_row] =
            blind ? -(R)INFINITY : (R)((double)s->m[l] * PL_LN_2 + log((double)s->l[l]));
        s->l[l] = blind ? 0 : 1 / s->l[l];
    }
    FN(write_transposed)(job->dt, att_row(job, &job->out, t, t->q0), job->out.row, t->queries,
                         job->vwidth, s->ot, s->l);
}

static void FN(attention)(int64_t begin, int64_t end, void *ctx) {
    pl_attention_job *job = ctx;
    // Relaxed: only the number itself matters; pl_parallel_for orders everything else.
    int piece = atomic_fetch_add_explicit(&job->next_scratch, 1, memory_order_relaxed);
    FN(att_forward) s;
    FN(forward_carve)(job, job->scratch + (size_t)piece * job->scratch_nbytes, &s);
    int64_t tiles = (job->queries + 63) / 64, packed = -1;
    for (int64_t i = begin; i < end; i++) {
        int64_t head = i / tiles, q0 = i % tiles * 64, left = job->queries - q0;
        att_tile t = {head / job->heads, head % job->heads, q0, 0, left < 64 ? left : 64, 0};
        if (head / job->k.group != packed) {
            FN(form_a)(job->dt, s.k, s.dp, att_row(job, &job->k, &t, 0), job->k.row, job->keys,
                       job->width);
            for (int64_t k0 = 0; k0 < job->keys; k0 += 64) {
                int64_t keys = job->keys - k0 < 64 ? job->keys - k0 : 64;
                FN(form_a_transposed)(job->dt, s.vt + k0 * s.dvp, att_row(job, &job->v, &t, k0),
                                      job->v.row, keys, job->vwidth);
            }
            packed = head / job->k.group;
        }
        FN(forward_tile)(job, &t, &s);
    }
}

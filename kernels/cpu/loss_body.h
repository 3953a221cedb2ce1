// SPDX-License-Identifier: Apache-2.0
// Cross-entropy over rows of logits. With p = e^(x - lse), e the smoothing, t the target and
// W the sum of the weights w: loss = (1-e) w[t] (lse - x[t]) + e/C (W lse - sum w[c] x[c]), and
// dx[c] = g ((1-e) w[t] (p[c] - [c = t]) + e/C (W p[c] - w[c])). For float and for double
// (simd_real.h).

// sum of w[c] * (lse - x[c]): the difference first, so that infinities stay where they belong.
PL_INLINE R FN(smooth_sum)(pl_dtype dt, const pl_loss_job *job, int64_t at, R lse) {
    const R *w = job->weight;
    VR l = V(set1)(lse), acc = V(set1)(0);
    int64_t n = job->n, j = 0;
    pl_dtype dr = sizeof(R) == 8 ? PL_F64 : PL_F32;
    for (; j + VN <= n; j += VN) {
        VR d = l - V(get)(job->logits, at + j, dt);
        acc = w ? V(fma)(V(load)(w + j), d, acc) : acc + d;
    }
    if (j < n) {
        VR d = l - V(get_n)(job->logits, at + j, n - j, dt, lse);
        acc = w ? V(fma)(V(get_n)(w, j, n - j, dr, 0), d, acc) : acc + d;
    }
    return V(sum)(acc);
}

PL_INLINE R FN(logit)(pl_dtype dt, const pl_loss_job *job, int64_t i) {
    if (dt == PL_BF16) return (R)pl_bf16_to_f32(((const pl_bf16 *)job->logits)[i]);
    if (dt == PL_F16) return (R)pl_f16_to_f32(((const pl_f16 *)job->logits)[i]);
    return ((const R *)job->logits)[i];
}

PL_INLINE R FN(loss_lse)(pl_dtype dt, const pl_loss_job *job, int64_t at) {
    R top, sum = FN(row_log_sum)(dt, job->logits, at, job->n, &top);
    return top == -(R)INFINITY || top == (R)INFINITY ? top : top + (R)log((double)sum);
}

PL_INLINE R FN(loss_row)(pl_dtype dt, const pl_loss_job *job, int64_t at, int64_t t, R lse) {
    const R *w = job->weight;
    R e = (R)job->smoothing;
    R loss = ((R)1 - e) * (w ? w[t] : (R)1) * (lse - FN(logit)(dt, job, at + t));
    if (e != 0) loss += e / (R)job->n * FN(smooth_sum)(dt, job, at, lse);
    return loss;
}

PL_INLINE void FN(loss_rows)(pl_dtype dt, const pl_loss_job *job, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
        int64_t t = job->target[i * job->target_stride], at = i * job->ld;
        R lse = FN(loss_lse)(dt, job, at);
        bool used = t != job->ignore_index;
        ((R *)job->lse)[i] = lse;
        ((R *)job->losses)[i] = used ? FN(loss_row)(dt, job, at, t, lse) : (R)0;
    }
}

static void FN(cross_entropy)(int64_t begin, int64_t end, void *ctx) {
    const pl_loss_job *job = ctx;
    PL_EACH_DTYPE(job->dt, FN(loss_rows), job, begin, end);
}

// One row: dx[c] = e^(x - lse) * scale - w[c] * smooth, and at the target less `hit`.
PL_INLINE void FN(loss_grad_row)(pl_dtype dt, const pl_loss_job *job, int64_t at, int64_t t, R lse,
                                 R scale, R smooth, R hit) {
    int64_t n = job->n;
    const R *w = job->weight;
    pl_dtype dr = sizeof(R) == 8 ? PL_F64 : PL_F32;
    VR l = V(set1)(lse), vs = V(set1)(scale), ve = V(set1)(smooth);
    R x_t = FN(logit)(dt, job, at + t);  // read first: dlogits may be logits
    for (int64_t j = 0; j < n; j += VN) {
        bool whole = n - j >= VN;
        VR x =
            whole ? V(get)(job->logits, at + j, dt) : V(get_n)(job->logits, at + j, n - j, dt, 0);
        VR dx = V(exp)(x - l) * vs;
        if (smooth != 0) {
            VR wj = !w ? V(set1)(1) : whole ? V(load)(w + j) : V(get_n)(w, j, n - j, dr, 0);
            dx = dx - wj * ve;
        }
        if (whole) {
            V(put)(job->dlogits, at + j, dt, dx);
        } else {
            V(put_n)(job->dlogits, at + j, n - j, dt, dx);
        }
    }
    R p = sizeof(R) == 8 ? (R)exp((double)x_t - (double)lse) : (R)expf((float)x_t - (float)lse);
    VR d_t = V(set1)(p * scale - (w ? w[t] : (R)1) * smooth - hit);
    V(put_n)(job->dlogits, at + t, 1, dt, d_t);
}

// Row i, whose loss is wanted g times.
PL_INLINE void FN(loss_grad_of)(pl_dtype dt, const pl_loss_job *job, int64_t i, R lse, R g) {
    int64_t n = job->n, t = job->target[i * job->target_stride], at = i * job->ld;
    size_t size = pl_dtype_size(job->dt);
    const R *w = job->weight;
    R e = (R)job->smoothing, share = e / (R)n;
    if (t == job->ignore_index) {
        memset((char *)job->dlogits + (size_t)at * size, 0, (size_t)n * size);
        return;
    }
    R hit = g * ((R)1 - e) * (w ? w[t] : (R)1);
    FN(loss_grad_row)(dt, job, at, t, lse, hit + g * share * (R)job->weight_sum, g * share, hit);
}

PL_INLINE void FN(loss_grad_rows)(pl_dtype dt, const pl_loss_job *job, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
        FN(loss_grad_of)(dt, job, i, ((const R *)job->lse)[i],
                         ((const R *)job->g)[i * job->g_stride]);
    }
}

static void FN(cross_entropy_grad)(int64_t begin, int64_t end, void *ctx) {
    const pl_loss_job *job = ctx;
    PL_EACH_DTYPE(job->dt, FN(loss_grad_rows), job, begin, end);
}

// Each row's loss and its gradient in place while the row is in the cache.
PL_INLINE void FN(loss_fused_rows)(pl_dtype dt, const pl_loss_job *job, int64_t begin,
                                   int64_t end) {
    const R *g = job->g;
    R *losses = job->losses;
    for (int64_t i = begin; i < end; i++) {
        int64_t t = job->target[i * job->target_stride], at = i * job->ld;
        bool used = t != job->ignore_index;
        R lse = used ? FN(loss_lse)(dt, job, at) : (R)0;
        if (losses) losses[i] = used ? FN(loss_row)(dt, job, at, t, lse) : (R)0;
        FN(loss_grad_of)(dt, job, i, lse, g ? g[i * job->g_stride] : (R)1);
    }
}

static void FN(cross_entropy_fused)(int64_t begin, int64_t end, void *ctx) {
    const pl_loss_job *job = ctx;
    PL_EACH_DTYPE(job->dt, FN(loss_fused_rows), job, begin, end);
}

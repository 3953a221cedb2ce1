// SPDX-License-Identifier: Apache-2.0
// Layer norm, RMS norm and their gradient over rows. Each row is read into the first-level cache
// once and passed over a few times there: for the sum of two inputs, which is written and read back
// from the cache, the mean, the variance, the result. For float and for double (simd_real.h).

// Sum of (x - shift)^power over a row, power 1 or 2, in four interleaved sums.
PL_INLINE R FN(row_moment)(pl_dtype dt, const void *x, int64_t at, int64_t n, R shift, int power) {
    VR sums[4] = {V(set1)(0), V(set1)(0), V(set1)(0), V(set1)(0)}, s = V(set1)(shift);
    int64_t j = 0;
    for (; j + 4 * VN <= n; j += 4 * VN) {
        PL_UNROLL
        for (int u = 0; u < 4; u++) {
            VR d = V(get)(x, at + j + u * VN, dt) - s;
            sums[u] = power == 1 ? sums[u] + d : V(fma)(d, d, sums[u]);
        }
    }
    for (; j + VN <= n; j += VN) {
        VR d = V(get)(x, at + j, dt) - s;
        sums[0] = power == 1 ? sums[0] + d : V(fma)(d, d, sums[0]);
    }
    if (j < n) {  // filling with `shift` adds nothing
        VR d = V(get_n)(x, at + j, n - j, dt, shift) - s;
        sums[1] = power == 1 ? sums[1] + d : V(fma)(d, d, sums[1]);
    }
    return V(sum)((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// VN elements of sum = x + residual from `at`, as they are stored.
PL_INLINE VR FN(norm_add_at)(pl_dtype x_dt, pl_dtype dt, const pl_norm_job *job, int64_t at) {
    VR v = V(get)(job->x, at, x_dt) + V(get)(job->residual, at, dt);
    V(put)(job->sum, at, dt, v);
    return dt == PL_BF16 || dt == PL_F16 ? V(get)(job->sum, at, dt) : v;
}

// sum = x + residual over a row, rounded to dt; gives the sum's row_moment about 0, which is added
// up in the same order.
PL_INLINE R FN(norm_add_from)(pl_dtype x_dt, pl_dtype dt, const pl_norm_job *job, int64_t at,
                              int power) {
    VR sums[4] = {V(set1)(0), V(set1)(0), V(set1)(0), V(set1)(0)};
    int64_t n = job->n, j = 0;
    for (; j + 4 * VN <= n; j += 4 * VN) {
        PL_UNROLL
        for (int u = 0; u < 4; u++) {
            VR v = FN(norm_add_at)(x_dt, dt, job, at + j + u * VN);
            sums[u] = power == 1 ? sums[u] + v : V(fma)(v, v, sums[u]);
        }
    }
    for (; j + VN <= n; j += VN) {
        VR v = FN(norm_add_at)(x_dt, dt, job, at + j);
        sums[0] = power == 1 ? sums[0] + v : V(fma)(v, v, sums[0]);
    }
    if (j < n) {
        VR x = V(get_n)(job->x, at + j, n - j, x_dt, 0);
        V(put_n)(job->sum, at + j, n - j, dt, x + V(get_n)(job->residual, at + j, n - j, dt, 0));
        VR v = V(get_n)(job->sum, at + j, n - j, dt, 0);
        sums[1] = power == 1 ? sums[1] + v : V(fma)(v, v, sums[1]);
    }
    return V(sum)((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

PL_INLINE R FN(norm_add)(pl_dtype dt, const pl_norm_job *job, int64_t at, int power) {
    if (dt != PL_F32 || job->x_dt == PL_F32) return FN(norm_add_from)(dt, dt, job, at, power);
    if (job->x_dt == PL_BF16) return FN(norm_add_from)(PL_BF16, dt, job, at, power);
    return FN(norm_add_from)(PL_F16, dt, job, at, power);
}

// The sum of a row, or of its squares; the row is made first where there is a residual.
PL_INLINE R FN(norm_first)(pl_dtype dt, const pl_norm_job *job, int64_t at) {
    if (job->residual) {
        return job->rms ? FN(norm_add)(dt, job, at, 2) : FN(norm_add)(dt, job, at, 1);
    }
    return job->rms ? FN(row_moment)(dt, job->x, at, job->n, 0, 2)
                    : FN(row_moment)(dt, job->x, at, job->n, 0, 1);
}

// RMS norm is layer norm with a mean of 0: subtracting that changes no bit.
PL_INLINE void FN(norm_rows)(pl_dtype dt, const pl_norm_job *job, int64_t begin, int64_t end) {
    int64_t n = job->n;
    const R *w = job->w, *b = job->b;
    const void *x = job->residual ? job->sum : job->x;
    for (int64_t i = begin; i < end; i++) {
        int64_t at = i * n;
        R first = FN(norm_first)(dt, job, at) / (R)n, mean = job->rms ? (R)0 : first;
        R var = job->rms ? first : FN(row_moment)(dt, x, at, n, mean, 2) / (R)n;
        R rstd = (R)1 / (R)sqrt((double)var + job->eps);
        if (!job->rms) ((R *)job->mean)[i] = mean;
        ((R *)job->rstd)[i] = rstd;
        VR vm = V(set1)(mean), vr = V(set1)(rstd);
        int64_t j = 0;
        for (; j + VN <= n; j += VN) {
            VR y = (V(get)(x, at + j, dt) - vm) * vr;
            V(put)(job->out, at + j, dt, V(fma)(y, V(load)(w + j), V(load)(b + j)));
        }
        if (j < n) {
            pl_dtype dr = sizeof(R) == 8 ? PL_F64 : PL_F32;
            VR y = (V(get_n)(x, at + j, n - j, dt, 0) - vm) * vr;
            VR wj = V(get_n)(w, j, n - j, dr, 0), bj = V(get_n)(b, j, n - j, dr, 0);
            V(put_n)(job->out, at + j, n - j, dt, V(fma)(y, wj, bj));
        }
    }
}

static void FN(norm)(int64_t begin, int64_t end, void *ctx) {
    const pl_norm_job *job = ctx;
    PL_EACH_DTYPE(job->dt, FN(norm_rows), job, begin, end);
}

// One row of the gradient at columns [j, j + VN): g, xhat and g * w.
typedef struct FN(norm_terms) {
    VR g, xhat, gw;
} FN(norm_terms);

PL_INLINE FN(norm_terms)
    FN(norm_load)(pl_dtype dt, const pl_norm_job *job, int64_t i, int64_t j, VR mean, VR rstd) {
    int64_t left = job->n - j, at = i * job->n + j;
    pl_dtype dr = sizeof(R) == 8 ? PL_F64 : PL_F32;
    FN(norm_terms) t;
    if (left >= VN) {
        t.g = V(get)(job->g, at, dt);
        t.xhat = (V(get)(job->x, at, dt) - mean) * rstd;
        t.gw = t.g * V(get)(job->w, j, dr);
    } else {
        t.g = V(get_n)(job->g, at, left, dt, 0);
        t.xhat = (V(get_n)(job->x, at, left, dt, 0) - mean) * rstd;
        t.gw = t.g * V(get_n)(job->w, j, left, dr, 0);
    }
    return t;
}

// sums[j] += v, or the first n - j lanes of it.
PL_INLINE void FN(add_at)(R *sums, int64_t j, int64_t n, VR v) {
    pl_dtype dr = sizeof(R) == 8 ? PL_F64 : PL_F32;
    if (n - j >= VN) {
        V(store)(sums + j, V(load)(sums + j) + v);
    } else {
        V(put_n)(sums, j, n - j, dr, V(get_n)(sums, j, n - j, dr, 0) + v);
    }
}

// dx (+)= rstd * (gw - mean(gw) - xhat * mean(gw * xhat)), for RMS without mean(gw); sums for dw
// and db beside it.
PL_INLINE void FN(norm_grad_row)(pl_dtype dt, const pl_norm_job *job, int64_t i, R *sum_w,
                                 R *sum_b) {
    int64_t n = job->n;
    VR mean = V(set1)(job->rms ? (R)0 : ((const R *)job->mean)[i]);
    VR rstd = V(set1)(((const R *)job->rstd)[i]);
    VR total = V(set1)(0), dot = V(set1)(0);
    for (int64_t j = 0; j < n; j += VN) {
        FN(norm_terms) t = FN(norm_load)(dt, job, i, j, mean, rstd);
        total = total + t.gw;
        dot = V(fma)(t.gw, t.xhat, dot);
        if (sum_w) FN(add_at)(sum_w, j, n, t.g * t.xhat);
        if (sum_b) FN(add_at)(sum_b, j, n, t.g);
    }
    if (!job->out) return;
    VR c1 = V(set1)(job->rms ? (R)0 : V(sum)(total) / (R)n), c2 = V(set1)(V(sum)(dot) / (R)n);
    for (int64_t j = 0; j < n; j += VN) {
        FN(norm_terms) t = FN(norm_load)(dt, job, i, j, mean, rstd);
        VR dx = rstd * (t.gw - c1 - t.xhat * c2);
        int64_t at = i * n + j, left = n - j;
        if (left >= VN) {
            if (job->accumulate) dx = dx + V(get)(job->out, at, dt);
            V(put)(job->out, at, dt, dx);
        } else {
            if (job->accumulate) dx = dx + V(get_n)(job->out, at, left, dt, 0);
            V(put_n)(job->out, at, left, dt, dx);
        }
    }
}

PL_INLINE void FN(norm_grad_blocks)(pl_dtype dt, const pl_norm_job *job, int64_t begin,
                                    int64_t end) {
    int64_t n = job->n;
    for (int64_t block = begin; block < end; block++) {
        R *sum_w = job->partial_w ? (R *)job->partial_w + block * n : NULL;
        R *sum_b = job->partial_b ? (R *)job->partial_b + block * n : NULL;
        if (sum_w) memset(sum_w, 0, (size_t)n * sizeof(R));
        if (sum_b) memset(sum_b, 0, (size_t)n * sizeof(R));
        int64_t last = (block + 1) * job->block_rows;
        for (int64_t i = block * job->block_rows; i < last && i < job->m; i++) {
            FN(norm_grad_row)(dt, job, i, sum_w, sum_b);
        }
    }
}

static void FN(norm_grad)(int64_t begin, int64_t end, void *ctx) {
    const pl_norm_job *job = ctx;
    PL_EACH_DTYPE(job->dt, FN(norm_grad_blocks), job, begin, end);
}

PL_INLINE void FN(sum_columns_typed)(pl_dtype dt, const pl_column_job *job, int64_t begin,
                                     int64_t end) {
    const R *partial = job->partial;
    pl_dtype dr = sizeof(R) == 8 ? PL_F64 : PL_F32;
    for (int64_t j = begin; j < end; j += VN) {
        int64_t left = end - j < VN ? end - j : VN;
        VR sum = V(set1)(0);
        for (int64_t i = 0; i < job->rows; i++) {
            sum = sum + (left == VN ? V(load)(partial + i * job->n + j)
                                    : V(get_n)(partial, i * job->n + j, left, dr, 0));
        }
        if (left == VN) {
            if (job->accumulate) sum = sum + V(get)(job->out, j, dt);
            V(put)(job->out, j, dt, sum);
        } else {
            if (job->accumulate) sum = sum + V(get_n)(job->out, j, left, dt, 0);
            V(put_n)(job->out, j, left, dt, sum);
        }
    }
}

static void FN(sum_columns)(int64_t begin, int64_t end, void *ctx) {
    const pl_column_job *job = ctx;
    PL_EACH_DTYPE(job->dt, FN(sum_columns_typed), job, begin, end);
}

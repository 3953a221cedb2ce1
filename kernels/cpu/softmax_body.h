// SPDX-License-Identifier: Apache-2.0
// Softmax and log-softmax over rows, and the passes over a row that cross-entropy shares. For
// float and for double (simd_real.h).

// The row's maximum m and the sum of e^(x - m), in one pass over memory: blocks that stay in the
// first-level cache, the sum rescaled when a block brings a new maximum. All -inf: m -inf, sum 0.
PL_INLINE R FN(row_log_sum)(pl_dtype dt, const void *x, int64_t at, int64_t n, R *top) {
    enum { BLOCK = 1024 };
    R m = -(R)INFINITY, sum = 0;
    for (int64_t from = 0; from < n; from += BLOCK) {
        int64_t to = from + BLOCK < n ? from + BLOCK : n, j;
        VR vm = V(set1)(m);
        for (j = from; j + VN <= to; j += VN) vm = V(max)(vm, V(get)(x, at + j, dt));
        if (j < to) vm = V(max)(vm, V(get_n)(x, at + j, to - j, dt, -(R)INFINITY));
        R new_m = V(top)(vm);
        if (new_m == -(R)INFINITY) continue;
        VR shift = V(set1)(new_m), s = V(set1)(0);
        for (j = from; j + VN <= to; j += VN) s = s + V(exp)(V(get)(x, at + j, dt) - shift);
        if (j < to) s = s + V(exp)(V(get_n)(x, at + j, to - j, dt, -(R)INFINITY) - shift);
        // m = -inf (nothing yet, sum 0) scales by e^-inf = 0.
        sum = sum * (sizeof(R) == 8 ? (R)exp((double)m - (double)new_m)
                                    : (R)expf((float)m - (float)new_m)) +
              V(sum)(s);
        m = new_m;
    }
    *top = m;
    return sum;
}

PL_INLINE void FN(softmax_rows)(pl_dtype dt, const pl_softmax_job *job, int64_t begin,
                                int64_t end) {
    int64_t n = job->n;
    for (int64_t i = begin; i < end; i++) {
        int64_t at = i * n, j = 0;
        R top, sum = FN(row_log_sum)(dt, job->x, at, n, &top);
        VR m = V(set1)(top), inv = V(set1)((R)1 / sum);
        VR shift = V(set1)((R)log((double)sum));
        for (; j < n; j += VN) {
            bool whole = n - j >= VN;
            VR x = whole ? V(get)(job->x, at + j, dt) : V(get_n)(job->x, at + j, n - j, dt, 0);
            VR y = job->log_form ? (x - m) - shift : V(exp)(x - m) * inv;
            if (whole) {
                V(put)(job->out, at + j, dt, y);
            } else {
                V(put_n)(job->out, at + j, n - j, dt, y);
            }
        }
    }
}

static void FN(softmax)(int64_t begin, int64_t end, void *ctx) {
    const pl_softmax_job *job = ctx;
    PL_EACH_DTYPE(job->dt, FN(softmax_rows), job, begin, end);
}

// dx = y * (g - sum(g * y)), or with log dx = g - e^y * sum(g).
PL_INLINE void FN(softmax_grad_rows)(pl_dtype dt, const pl_softmax_job *job, int64_t begin,
                                     int64_t end) {
    int64_t n = job->n;
    for (int64_t i = begin; i < end; i++) {
        int64_t at = i * n, j = 0;
        VR acc = V(set1)(0);
        for (; j + VN <= n; j += VN) {
            VR g = V(get)(job->g, at + j, dt);
            acc = job->log_form ? acc + g : V(fma)(g, V(get)(job->x, at + j, dt), acc);
        }
        if (j < n) {
            VR g = V(get_n)(job->g, at + j, n - j, dt, 0);
            VR y = V(get_n)(job->x, at + j, n - j, dt, 0);
            acc = job->log_form ? acc + g : V(fma)(g, y, acc);
        }
        VR total = V(set1)(V(sum)(acc));
        for (j = 0; j < n; j += VN) {
            bool whole = n - j >= VN;
            VR g = whole ? V(get)(job->g, at + j, dt) : V(get_n)(job->g, at + j, n - j, dt, 0);
            VR y = whole ? V(get)(job->x, at + j, dt) : V(get_n)(job->x, at + j, n - j, dt, 0);
            VR dx = job->log_form ? g - V(exp)(y) * total : y * (g - total);
            if (whole) {
                V(put)(job->out, at + j, dt, dx);
            } else {
                V(put_n)(job->out, at + j, n - j, dt, dx);
            }
        }
    }
}

static void FN(softmax_grad)(int64_t begin, int64_t end, void *ctx) {
    const pl_softmax_job *job = ctx;
    PL_EACH_DTYPE(job->dt, FN(softmax_grad_rows), job, begin, end);
}

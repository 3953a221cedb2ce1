// SPDX-License-Identifier: Apache-2.0
// SwiGLU and its gradient over pieces of PL_GATED_PIECE columns of a row: each number is read once
// and written once, so that memory is what bounds it. For float and for double (simd_real.h).

// Below it e^x is 0 in R, and so are sigmoid and the slope.
#define GATED_LOWEST (sizeof(R) == 8 ? (R) - 750 : (R) - 110)

// sigmoid(x) by e^-|x|, which never overflows.
PL_INLINE VR FN(sigmoid)(VR x) {
    VR zero = V(set1)(0), one = V(set1)(1), e = V(exp)(V(min)(zero - x, x));
    return V(less)(x, zero, e, one) / (one + e);
}

PL_INLINE VR FN(silu)(VR x) {  // at -inf the limit, not inf * 0
    return V(less)(x, V(set1)(GATED_LOWEST), V(set1)(-(R)0), x * FN(sigmoid)(x));
}

PL_INLINE VR FN(silu_slope)(VR x) {
    VR one = V(set1)(1);
    VR c = V(min)(V(set1)(-GATED_LOWEST), V(max)(V(set1)(GATED_LOWEST), x)), s = FN(sigmoid)(c);
    return s * V(fma)(c, one - s, one);
}

PL_INLINE void FN(put_part)(pl_dtype dt, void *p, int64_t i, int64_t n, VR v) {
    if (n >= VN) {
        V(put)(p, i, dt, v);
    } else {
        V(put_n)(p, i, n, dt, v);
    }
}

PL_INLINE void FN(swiglu_pieces)(pl_dtype dt, const pl_gated_job *job, int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; piece++) {
        int64_t row = piece / job->pieces, j = piece % job->pieces * PL_GATED_PIECE;
        int64_t stop = j + PL_GATED_PIECE < job->n ? j + PL_GATED_PIECE : job->n;
        for (; j < stop; j += VN) {
            int64_t at = row * 2 * job->n + j;
            VR gate = FN(get_part)(dt, job->x, at, stop - j);
            VR up = FN(get_part)(dt, job->x, at + job->n, stop - j);
            FN(put_part)(dt, job->out, row * job->n + j, stop - j, FN(silu)(gate) * up);
        }
    }
}

static void FN(swiglu)(int64_t begin, int64_t end, void *ctx) {
    const pl_gated_job *job = ctx;
    PL_EACH_DTYPE(job->dt, FN(swiglu_pieces), job, begin, end);
}

// out may be x: both halves are read before they are written.
PL_INLINE void FN(swiglu_grad_pieces)(pl_dtype dt, const pl_gated_job *job, int64_t begin,
                                      int64_t end) {
    for (int64_t piece = begin; piece < end; piece++) {
        int64_t row = piece / job->pieces, j = piece % job->pieces * PL_GATED_PIECE;
        int64_t stop = j + PL_GATED_PIECE < job->n ? j + PL_GATED_PIECE : job->n;
        for (; j < stop; j += VN) {
            int64_t at = row * 2 * job->n + j, left = stop - j;
            VR gate = FN(get_part)(dt, job->x, at, left);
            VR up = FN(get_part)(dt, job->x, at + job->n, left);
            VR g = FN(get_part)(dt, job->g, row * job->n + j, left);
            FN(put_part)(dt, job->out, at, left, g * up * FN(silu_slope)(gate));
            FN(put_part)(dt, job->out, at + job->n, left, g * FN(silu)(gate));
        }
    }
}

static void FN(swiglu_grad)(int64_t begin, int64_t end, void *ctx) {
    const pl_gated_job *job = ctx;
    PL_EACH_DTYPE(job->dt, FN(swiglu_grad_pieces), job, begin, end);
}
#undef GATED_LOWEST

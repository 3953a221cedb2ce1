// SPDX-License-Identifier: Apache-2.0
// out = factor * x, or out += factor * x, over chunks of PL_SCALE_CHUNK elements. For float and for
// double (simd_real.h).

PL_INLINE void FN(scale_typed)(pl_dtype dt, const pl_scale_job *job, int64_t begin, int64_t end) {
    int64_t stop = end * PL_SCALE_CHUNK < job->n ? end * PL_SCALE_CHUNK : job->n;
    int64_t i = begin * PL_SCALE_CHUNK, left;
    VR f = V(set1)((R)job->factor);
    for (; i + VN <= stop; i += VN) {
        VR x = V(get)(job->x, i, dt);
        V(put)(job->out, i, dt, job->add ? V(fma)(f, x, V(get)(job->out, i, dt)) : f * x);
    }
    if ((left = stop - i) > 0) {
        VR x = V(get_n)(job->x, i, left, dt, 0), old = V(get_n)(job->out, i, left, dt, 0);
        V(put_n)(job->out, i, left, dt, job->add ? V(fma)(f, x, old) : f * x);
    }
}

static void FN(scale)(int64_t begin, int64_t end, void *ctx) {
    const pl_scale_job *job = ctx;
    PL_EACH_DTYPE(job->dt, FN(scale_typed), job, begin, end);
}

// SPDX-License-Identifier: Apache-2.0
// Dropout over chunks of PL_DROPOUT_CHUNK elements: random words for a few vectors at a time, then
// x / (1 - p) or 0. For float and for double (simd_real.h).
#include "philox.h"

PL_INLINE void FN(dropout_typed)(pl_dtype dt, const pl_dropout_job *job, int64_t begin,
                                 int64_t end) {
    enum { STEP = 4 * PHILOX_LANES };
    uint32_t words[STEP], threshold = philox_threshold(job->p);
    R scale = (R)(1.0 / (1.0 - job->p)), factor[STEP];
    int64_t stop = end * PL_DROPOUT_CHUNK < job->n ? end * PL_DROPOUT_CHUNK : job->n;
    for (int64_t i = begin * PL_DROPOUT_CHUNK; i < stop; i += STEP) {
        philox_run(job->seed, job->offset + (uint64_t)i / 4, words);
        for (int l = 0; l < STEP; l++) factor[l] = words[l] >> 8 >= threshold ? scale : 0;
        for (int l = 0; l < STEP && i + l < stop; l += VN) {
            int64_t left = stop - i - l;
            VR f = V(load)(factor + l), zero = V(set1)(0);
            VR x = left >= VN ? V(get)(job->x, i + l, dt) : V(get_n)(job->x, i + l, left, dt, 0);
            VR y = V(less)(zero, f, x * f, zero);  // not x * 0, which keeps NaN
            if (left >= VN) {
                V(put)(job->out, i + l, dt, y);
            } else {
                V(put_n)(job->out, i + l, left, dt, y);
            }
        }
    }
}

static void FN(dropout)(int64_t begin, int64_t end, void *ctx) {
    const pl_dropout_job *job = ctx;
    PL_EACH_DTYPE(job->dt, FN(dropout_typed), job, begin, end);
}

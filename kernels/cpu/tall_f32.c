// SPDX-License-Identifier: Apache-2.0
// Tall products of fp32 with AVX-512; elsewhere an empty getter.
#include "tall.h"

#if defined(__x86_64__)
#define PL_SIMD_LEVEL 3
#include "simd.h"

#define TFN(name) name##_f32
#define E float
#define TALL_DEPTH 1

PL_INLINE vf unit_f32(const float *p, int64_t step, int64_t rows, int64_t n) {
    (void)step;
    (void)rows;
    return n == 16 ? vf_load(p) : vf_get_n(p, 0, n, PL_F32, 0);
}

PL_INLINE vf fold_f32(vf sum, vf a, vf b) { return vf_fma(a, b, sum); }

PL_INLINE vf add_f32(vf sum, vf u) { return sum + u; }

#include "tall_body.h"
PL_SIMD_END

pl_range_fn pl__tall_f32(void) { return tall_f32; }
#else
pl_range_fn pl__tall_f32(void) { return NULL; }
#endif

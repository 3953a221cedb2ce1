// SPDX-License-Identifier: Apache-2.0
// gelu_f32: GELU of fp32 with AVX-512; elsewhere an empty getter.
#include "gelu.h"

#if defined(__x86_64__)
#define PL_SIMD_LEVEL 3
#include "simd.h"

#define E float
#define GELU_DTYPE PL_F32
#define GELU_ROUGH 0

PL_INLINE void put(float *p, vf y) { vf_store(p, y); }

#include "gelu_body.h"

pl_gelu_fn pl__gelu_f32(bool gradient, bool by_tanh) {
    return pl_cpu()->avx512 ? pick(gradient, by_tanh) : NULL;
}
#else
pl_gelu_fn pl__gelu_f32(bool gradient, bool by_tanh) {
    (void)gradient;
    (void)by_tanh;
    return NULL;
}
#endif

// SPDX-License-Identifier: Apache-2.0
// gelu_dot: GELU of bf16 with AVX512-BF16; elsewhere an empty getter.
#include "gelu.h"

#if defined(__x86_64__)
#define PL_SIMD_LEVEL 3
#define PL_SIMD_BF16
#include "simd.h"

#define E pl_bf16
#define GELU_DTYPE PL_BF16
#define GELU_ROUGH 1

// The instruction takes denormals for zeros.
PL_INLINE void put(pl_bf16 *p, vf y) {
    __mmask16 tiny = _mm512_cmp_ps_mask(_mm512_abs_ps(y), vf_set1(0x1p-126f), _CMP_LT_OQ);
    __m256i h = PL_UNLIKELY(tiny) ? bf16_narrow(y) : (__m256i)_mm512_cvtneps_pbh(y);
    _mm256_storeu_si256((void *)p, h);
}

#include "gelu_body.h"

pl_gelu_fn pl__gelu_dot(bool gradient, bool by_tanh) {
    return pl_cpu()->avx512_bf16 ? pick(gradient, by_tanh) : NULL;
}
#else
pl_gelu_fn pl__gelu_dot(bool gradient, bool by_tanh) {
    (void)gradient;
    (void)by_tanh;
    return NULL;
}
#endif

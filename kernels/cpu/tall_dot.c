// SPDX-License-Identifier: Apache-2.0
// Tall products of bf16 with AVX512-BF16's dot products; elsewhere an empty getter. A unit is a
// pair: a column's numbers of two neighbouring rows.
#include "tall.h"

#if defined(__x86_64__)
#define PL_SIMD_LEVEL 3
#define PL_SIMD_BF16
#include "simd.h"

#define TFN(name) name##_dot
#define E pl_bf16
#define TALL_DEPTH 2

PL_INLINE __m512i words_dot(const pl_bf16 *p, int64_t n) {
    __m256i h =
        n == 16 ? _mm256_loadu_si256((const void *)p) : _mm256_maskz_loadu_epi16(vf_first(n), p);
    return _mm512_cvtepu16_epi32(h);
}

PL_INLINE vf unit_dot(const pl_bf16 *p, int64_t step, int64_t rows, int64_t n) {
    __m512i first = words_dot(p, n), second = _mm512_setzero_si512();
    if (rows == 2) second = _mm512_slli_epi32(words_dot(p + step, n), 16);
    return (vf)_mm512_or_si512(first, second);
}

PL_INLINE vf fold_dot(vf sum, vf a, vf b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

PL_INLINE vf add_dot(vf sum, vf u) {
    vf first = (vf)_mm512_slli_epi32((__m512i)u, 16);
    vf second = (vf)_mm512_and_si512((__m512i)u, _mm512_set1_epi32(-0x10000));
    return sum + (first + second);
}

#include "tall_body.h"
PL_SIMD_END

pl_range_fn pl__tall_dot(void) { return tall_dot; }
#else
pl_range_fn pl__tall_dot(void) { return NULL; }
#endif

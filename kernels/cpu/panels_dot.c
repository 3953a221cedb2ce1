// SPDX-License-Identifier: Apache-2.0
// Products by panels of bf16 with AVX512-BF16's dot products; elsewhere an empty getter. A unit is
// a pair: the numbers of two neighbouring k, the lower first.
#include "panels.h"

#if defined(__x86_64__)
#define PL_SIMD_LEVEL 3
#define PL_SIMD_BF16
#include "simd.h"

#define TFN(name) name##_dot
#define E pl_bf16
#define PANEL_DEPTH 2

// 16 numbers of each, rounded, then pairs of one of each.
PL_INLINE vf interleave_dot(__m512i both) {
    const __m512i order =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (vf)_mm512_permutexvar_epi16(order, both);
}

PL_INLINE __m256i words_dot(const void *p, int64_t n) {
    return n == 16 ? _mm256_loadu_si256(p) : _mm256_maskz_loadu_epi16(vf_first(n), p);
}

PL_INLINE vf pair_dot(const void *p, int64_t step, int64_t rows, int64_t n) {
    __m512i first = _mm512_castsi256_si512(words_dot(p, n));
    __m256i second = rows == 2 ? words_dot((const pl_bf16 *)p + step, n) : _mm256_setzero_si256();
    return interleave_dot(_mm512_inserti64x4(first, second, 1));
}

PL_INLINE vf run_dot(const void *p, int64_t n) {
    if (n == 32) return vf_load(p);
    return (vf)_mm512_maskz_loadu_epi16((__mmask32)((1u << n) - 1u), p);
}

PL_INLINE vf floats_dot(const float *p, int64_t n) {
    return n >= 16 ? vf_load(p) : n <= 0 ? vf_set1(0) : vf_get_n(p, 0, n, PL_F32, 0);
}

PL_INLINE __m512i round_dot(vf first, vf second) {
    return (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}

PL_INLINE vf wide_pair_dot(const void *p, int64_t step, int64_t rows, int64_t n) {
    const float *f = p;
    vf second = rows == 2 ? floats_dot(f + step, n) : vf_set1(0);
    return interleave_dot(round_dot(floats_dot(f, n), second));
}

PL_INLINE vf wide_run_dot(const void *p, int64_t n) {
    const float *f = p;
    return (vf)round_dot(floats_dot(f, n), floats_dot(f + 16, n - 16));
}

PL_INLINE vf fold_dot(vf sum, vf a, vf b) {
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}

PL_INLINE vf add_dot(vf sum, vf u) {
    vf first = (vf)_mm512_slli_epi32((__m512i)u, 16);
    vf second = (vf)_mm512_and_si512((__m512i)u, _mm512_set1_epi32(-0x10000));
    return sum + (first + second);
}

#include "panels_body.h"
PL_SIMD_END

pl_range_fn pl__panels_dot(void) { return panels_dot; }
#else
pl_range_fn pl__panels_dot(void) { return NULL; }
#endif

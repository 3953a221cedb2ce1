// SPDX-License-Identifier: Apache-2.0
// simd level 2: AVX2 with FMA and F16C. Included by simd.h only, which says what each function
// does.

#define VF 8
#define VD 4
typedef float vf __attribute__((vector_size(32)));
typedef double vd __attribute__((vector_size(32)));

PL_INLINE vf vf_set1(float x) { return _mm256_set1_ps(x); }
PL_INLINE vf vf_load(const float *p) { return _mm256_loadu_ps(p); }
PL_INLINE void vf_store(float *p, vf v) { _mm256_storeu_ps(p, v); }
PL_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
PL_INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
PL_INLINE vf vf_min(vf a, vf b) { return _mm256_min_ps(a, b); }
PL_INLINE vf vf_round(vf x) { return _mm256_round_ps(x, 8); }  // 8: no exception flags
PL_INLINE vf vf_less(vf a, vf b, vf x, vf y) {
    return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
PL_INLINE vf vf_pow2(__m256i n) {  // -127 < n < 128
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
PL_INLINE vf vf_scale(vf x, vf n) {  // in two steps, since 2^n itself may not be a float
    __m256i i = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(i, 1);
    return x * vf_pow2(half) * vf_pow2(_mm256_sub_epi32(i, half));
}

PL_INLINE vd vd_set1(double x) { return _mm256_set1_pd(x); }
PL_INLINE vd vd_load(const double *p) { return _mm256_loadu_pd(p); }
PL_INLINE void vd_store(double *p, vd v) { _mm256_storeu_pd(p, v); }
PL_INLINE vd vd_fma(vd a, vd b, vd c) { return _mm256_fmadd_pd(a, b, c); }
PL_INLINE vd vd_max(vd a, vd b) { return _mm256_max_pd(a, b); }
PL_INLINE vd vd_min(vd a, vd b) { return _mm256_min_pd(a, b); }
PL_INLINE vd vd_round(vd x) { return _mm256_round_pd(x, 8); }
PL_INLINE vd vd_less(vd a, vd b, vd x, vd y) {
    return _mm256_blendv_pd(y, x, _mm256_cmp_pd(a, b, _CMP_LT_OQ));
}
PL_INLINE vd vd_pow2(__m128i n) {  // -1023 < n < 1024
    __m256i biased = _mm256_cvtepi32_epi64(_mm_add_epi32(n, _mm_set1_epi32(1023)));
    return _mm256_castsi256_pd(_mm256_slli_epi64(biased, 52));
}
PL_INLINE vd vd_scale(vd x, vd n) {
    __m128i i = _mm256_cvtpd_epi32(n), half = _mm_srai_epi32(i, 1);
    return x * vd_pow2(half) * vd_pow2(_mm_sub_epi32(i, half));
}

PL_INLINE vf vf_get(const void *p, int64_t i, pl_dtype dt) {
    if (dt == PL_F32) return _mm256_loadu_ps((const float *)p + i);
    __m128i h = _mm_loadu_si128((const void *)((const uint16_t *)p + i));
    if (dt == PL_F16) return _mm256_cvtph_ps(h);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

// pl_f32_to_bf16's bits.
PL_INLINE __m128i bf16_narrow(vf v) {
    __m256i u = _mm256_castps_si256(v), high = _mm256_srli_epi32(u, 16);
    __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    r = _mm256_blendv_epi8(_mm256_srli_epi32(r, 16), _mm256_or_si256(high, _mm256_set1_epi32(0x40)),
                           nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}

PL_INLINE void vf_put(void *p, int64_t i, pl_dtype dt, vf v) {
    if (dt == PL_F32) {
        _mm256_storeu_ps((float *)p + i, v);
        return;
    }
    __m128i h = dt == PL_BF16 ? bf16_narrow(v) : _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128((void *)((uint16_t *)p + i), h);
}

#include "simd_tail.h"

// SPDX-License-Identifier: Apache-2.0
// simd level 3: AVX-512. Included by simd.h only, which says what each function does.

#define VF 16
#define VD 8
typedef float vf __attribute__((vector_size(64)));
typedef double vd __attribute__((vector_size(64)));

PL_INLINE vf vf_set1(float x) { return _mm512_set1_ps(x); }
PL_INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
PL_INLINE void vf_store(float *p, vf v) { _mm512_storeu_ps(p, v); }
PL_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
PL_INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
PL_INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
PL_INLINE vf vf_round(vf x) { return _mm512_roundscale_ps(x, 8); }  // 8: no exception flags
PL_INLINE vf vf_scale(vf x, vf n) { return _mm512_scalef_ps(x, n); }
PL_INLINE vf vf_less(vf a, vf b, vf x, vf y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}

PL_INLINE vd vd_set1(double x) { return _mm512_set1_pd(x); }
PL_INLINE vd vd_load(const double *p) { return _mm512_loadu_pd(p); }
PL_INLINE void vd_store(double *p, vd v) { _mm512_storeu_pd(p, v); }
PL_INLINE vd vd_fma(vd a, vd b, vd c) { return _mm512_fmadd_pd(a, b, c); }
PL_INLINE vd vd_max(vd a, vd b) { return _mm512_max_pd(a, b); }
PL_INLINE vd vd_min(vd a, vd b) { return _mm512_min_pd(a, b); }
PL_INLINE vd vd_round(vd x) { return _mm512_roundscale_pd(x, 8); }
PL_INLINE vd vd_scale(vd x, vd n) { return _mm512_scalef_pd(x, n); }
PL_INLINE vd vd_less(vd a, vd b, vd x, vd y) {
    return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(a, b, _CMP_LT_OQ), y, x);
}

PL_INLINE __mmask16 vf_first(int64_t n) { return (__mmask16)((1u << n) - 1u); }

PL_INLINE vf bf16_widen(__m256i h) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

// Round to nearest even; NaN stays NaN (pl_f32_to_bf16's bits, denormals included).
PL_INLINE __m256i bf16_narrow(vf v) {
    __m512i u = _mm512_castps_si512(v), high = _mm512_srli_epi32(u, 16);
    __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
    r = _mm512_srli_epi32(r, 16);
    r = _mm512_mask_or_epi32(r, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), high,
                             _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(r);
}

PL_INLINE vf vf_get(const void *p, int64_t i, pl_dtype dt) {
    if (dt == PL_BF16)
        return bf16_widen(_mm256_loadu_si256((const void *)((const pl_bf16 *)p + i)));
    if (dt == PL_F16) {
        return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)((const pl_f16 *)p + i)));
    }
    return _mm512_loadu_ps((const float *)p + i);
}

PL_INLINE vf vf_get_n(const void *p, int64_t i, int64_t n, pl_dtype dt, float fill) {
    __mmask16 m = vf_first(n);
    vf rest = _mm512_set1_ps(fill);
    if (dt == PL_F32) return _mm512_mask_loadu_ps(rest, m, (const float *)p + i);
    __m256i h = _mm256_maskz_loadu_epi16(m, (const uint16_t *)p + i);
    vf v = _mm512_cvtph_ps(h);
    if (dt == PL_BF16) v = bf16_widen(h);
    return _mm512_mask_blend_ps(m, rest, v);
}

PL_INLINE void vf_put(void *p, int64_t i, pl_dtype dt, vf v) {
    if (dt == PL_F32) {
        _mm512_storeu_ps((float *)p + i, v);
        return;
    }
    __m256i h = dt == PL_BF16 ? bf16_narrow(v) : _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256((void *)((uint16_t *)p + i), h);
}

PL_INLINE void vf_put_n(void *p, int64_t i, int64_t n, pl_dtype dt, vf v) {
    __mmask16 m = vf_first(n);
    if (dt == PL_F32) {
        _mm512_mask_storeu_ps((float *)p + i, m, v);
        return;
    }
    __m256i h = dt == PL_BF16 ? bf16_narrow(v) : _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    _mm256_mask_storeu_epi16((uint16_t *)p + i, m, h);
}

PL_INLINE vd vd_get(const void *p, int64_t i, pl_dtype dt) {
    (void)dt;
    return _mm512_loadu_pd((const double *)p + i);
}
PL_INLINE vd vd_get_n(const void *p, int64_t i, int64_t n, pl_dtype dt, double fill) {
    (void)dt;
    return _mm512_mask_loadu_pd(_mm512_set1_pd(fill), (__mmask8)vf_first(n), (const double *)p + i);
}
PL_INLINE void vd_put(void *p, int64_t i, pl_dtype dt, vd v) {
    (void)dt;
    _mm512_storeu_pd((double *)p + i, v);
}
PL_INLINE void vd_put_n(void *p, int64_t i, int64_t n, pl_dtype dt, vd v) {
    (void)dt;
    _mm512_mask_storeu_pd((double *)p + i, (__mmask8)vf_first(n), v);
}

// r[i] lane j <-> r[j] lane i: inside 128-bit quarters first, then the quarters.
PL_INLINE void vf_transpose(vf r[16]) {
    vf t[16];
    PL_UNROLL
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    PL_UNROLL
    for (int i = 0; i < 16; i += 4) {
        r[i] = (vf)_mm512_unpacklo_pd((vd)t[i], (vd)t[i + 2]);
        r[i + 1] = (vf)_mm512_unpackhi_pd((vd)t[i], (vd)t[i + 2]);
        r[i + 2] = (vf)_mm512_unpacklo_pd((vd)t[i + 1], (vd)t[i + 3]);
        r[i + 3] = (vf)_mm512_unpackhi_pd((vd)t[i + 1], (vd)t[i + 3]);
    }
    PL_UNROLL
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    }
    PL_UNROLL
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    }
}

PL_INLINE void vd_transpose(vd r[8]) {
    vd t[8];
    PL_UNROLL
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm512_unpacklo_pd(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_pd(r[i], r[i + 1]);
    }
    PL_UNROLL
    for (int i = 0; i < 2; i++) {
        r[i] = _mm512_shuffle_f64x2(t[i], t[i + 2], 0x88);
        r[i + 2] = _mm512_shuffle_f64x2(t[i], t[i + 2], 0xdd);
        r[i + 4] = _mm512_shuffle_f64x2(t[i + 4], t[i + 6], 0x88);
        r[i + 6] = _mm512_shuffle_f64x2(t[i + 4], t[i + 6], 0xdd);
    }
    PL_UNROLL
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_f64x2(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_f64x2(r[i], r[i + 4], 0xdd);
    }
    for (int i = 0; i < 8; i++) r[i] = t[i];
}

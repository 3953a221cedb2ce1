// SPDX-License-Identifier: Apache-2.0
// simd level 0: 16-byte vectors in GCC's and clang's own notation, for any processor. Included by
// simd.h only, which says what each function does.

#define VF 4
#define VD 2
typedef float vf __attribute__((vector_size(16)));
typedef double vd __attribute__((vector_size(16)));
typedef int32_t vf_mask __attribute__((vector_size(16)));
typedef int64_t vd_mask __attribute__((vector_size(16)));

PL_INLINE vf vf_set1(float x) { return (vf){x, x, x, x}; }
PL_INLINE vf vf_load(const float *p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
PL_INLINE void vf_store(float *p, vf v) { memcpy(p, &v, sizeof v); }
PL_INLINE vf vf_fma(vf a, vf b, vf c) { return a * b + c; }
PL_INLINE vf vf_less(vf a, vf b, vf x, vf y) {
    vf_mask m = a < b;
    return (vf)((m & (vf_mask)x) | (~m & (vf_mask)y));
}
PL_INLINE vf vf_max(vf a, vf b) { return vf_less(b, a, a, b); }
PL_INLINE vf vf_min(vf a, vf b) { return vf_less(a, b, a, b); }
PL_INLINE vf vf_round(vf x) {  // |x| < 2^22
    vf magic = vf_set1(0x1.8p23f);
    return (x + magic) - magic;
}
PL_INLINE vf vf_pow2(vf_mask n) { return (vf)((n + 127) << 23); }
PL_INLINE vf vf_scale(vf x, vf n) {  // in two steps, since 2^n itself may not be a float
    vf_mask i = __builtin_convertvector(n, vf_mask), half = i >> 1;
    return x * vf_pow2(half) * vf_pow2(i - half);
}

PL_INLINE vd vd_set1(double x) { return (vd){x, x}; }
PL_INLINE vd vd_load(const double *p) {
    vd v;
    memcpy(&v, p, sizeof v);
    return v;
}
PL_INLINE void vd_store(double *p, vd v) { memcpy(p, &v, sizeof v); }
PL_INLINE vd vd_fma(vd a, vd b, vd c) { return a * b + c; }
PL_INLINE vd vd_less(vd a, vd b, vd x, vd y) {
    vd_mask m = a < b;
    return (vd)((m & (vd_mask)x) | (~m & (vd_mask)y));
}
PL_INLINE vd vd_max(vd a, vd b) { return vd_less(b, a, a, b); }
PL_INLINE vd vd_min(vd a, vd b) { return vd_less(a, b, a, b); }
PL_INLINE vd vd_round(vd x) {  // |x| < 2^51
    vd magic = vd_set1(0x1.8p52);
    return (x + magic) - magic;
}
PL_INLINE vd vd_pow2(vd_mask n) { return (vd)((n + 1023) << 52); }
PL_INLINE vd vd_scale(vd x, vd n) {
    vd_mask i = __builtin_convertvector(n, vd_mask), half = i >> 1;
    return x * vd_pow2(half) * vd_pow2(i - half);
}

PL_INLINE vf vf_get(const void *p, int64_t i, pl_dtype dt) {
    if (dt == PL_F32) return vf_load((const float *)p + i);
    float t[VF];
    const uint16_t *h = (const uint16_t *)p + i;
    for (int l = 0; l < VF; l++) t[l] = dt == PL_BF16 ? pl_bf16_to_f32(h[l]) : pl_f16_to_f32(h[l]);
    return vf_load(t);
}
PL_INLINE void vf_put(void *p, int64_t i, pl_dtype dt, vf v) {
    if (dt == PL_F32) {
        vf_store((float *)p + i, v);
        return;
    }
    float t[VF];
    vf_store(t, v);
    uint16_t *h = (uint16_t *)p + i;
    for (int l = 0; l < VF; l++) h[l] = dt == PL_BF16 ? pl_f32_to_bf16(t[l]) : pl_f32_to_f16(t[l]);
}

#include "simd_tail.h"

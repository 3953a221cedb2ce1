// SPDX-License-Identifier: Apache-2.0
// simd: vectors of floats (vf) and doubles (vd) for the row kernels. A file that includes it first
// defines PL_SIMD_LEVEL: 0 any processor, 2 AVX2 with FMA and F16C, 3 AVX-512 F, BW, DQ, VL, and
// with PL_SIMD_BF16 its bf16 dot products. All code after the include is compiled for that level,
// and may run only where pl_cpu() has it.
#ifndef PL_KERNELS_CPU_SIMD_H
#define PL_KERNELS_CPU_SIMD_H

#include <math.h>
#include <string.h>

#include "base/base.h"

#define PL_INLINE static inline __attribute__((always_inline, unused))

#if PL_SIMD_LEVEL >= 2
#include <immintrin.h>
#endif

// Code from here to PL_SIMD_END is compiled for the level. GCC and clang spell this differently.
#define PL_PRAGMA(x) _Pragma(#x)
#if defined(__clang__)
#define PL_SIMD_TARGET(isa) \
    PL_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define PL_SIMD_END PL_PRAGMA(clang attribute pop)
#define PL_UNROLL PL_PRAGMA(clang loop unroll(full))
#else
#define PL_SIMD_TARGET(isa) PL_PRAGMA(GCC push_options) PL_PRAGMA(GCC target(isa))
#define PL_SIMD_END PL_PRAGMA(GCC pop_options)
#define PL_UNROLL PL_PRAGMA(GCC unroll 32)
#endif

#if PL_SIMD_LEVEL == 3 && defined(PL_SIMD_BF16)
PL_SIMD_TARGET("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "simd_avx512.h"
#elif PL_SIMD_LEVEL == 3
PL_SIMD_TARGET("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "simd_avx512.h"
#elif PL_SIMD_LEVEL == 2
PL_SIMD_TARGET("avx2,fma,f16c")
#include "simd_avx2.h"
#else
#undef PL_SIMD_END
#define PL_SIMD_END
#include "simd_any.h"
#endif

// What every level provides, for vf (VF lanes) and, with vd_, for vd (VD lanes):
//   vf_set1(x)  vf_load(p)  vf_store(p, v)      p unaligned
//   vf_fma(a, b, c) = a * b + c                 one rounding where the level has it
//   vf_max(a, b), vf_min(a, b)                  b when either is NaN
//   vf_round(x)                                 to nearest even
//   vf_scale(x, n) = x * 2^n                    n whole, -300 < n < 300 (doubles: 2100)
//   vf_less(a, b, x, y) = a < b ? x : y
//   vf_get(p, i, dt), vf_put(p, i, dt, v)       elements i.. of a buffer of dtype dt, converted
//   vf_get_n(p, i, n, dt, fill), vf_put_n(..)   the first n lanes only, n < VF
//   vf_transpose(r)                             r[i] lane j <-> r[j] lane i, VF vectors
// + - * / work on vectors as they are.

// e^x to 1.5 ulp; 0 below -104, inf above 89, NaN stays. x = n ln 2 + r, |r| <= ln 2 / 2, and
// e^r = 1 + r + r^2 p(r) with p the Chebyshev interpolant of degree 4 over that range.
PL_INLINE vf vf_exp(vf x) {
    x = vf_min(vf_set1(89.0f), vf_max(vf_set1(-104.0f), x));
    vf n = vf_round(x * vf_set1(0x1.715476p+0f));
    vf r = vf_fma(n, vf_set1(-0x1.62e4p-1f), x);  // ln 2 in two parts, the first of 15 bits
    r = vf_fma(n, vf_set1(-0x1.7f7d1cp-20f), r);
    vf p = vf_set1(0x1.6d113cp-10f);
    p = vf_fma(p, r, vf_set1(0x1.120ba2p-7f));
    p = vf_fma(p, r, vf_set1(0x1.55551ap-5f));
    p = vf_fma(p, r, vf_set1(0x1.5554dcp-3f));
    p = vf_fma(p, r, vf_set1(0.5f));
    p = vf_fma(p, r * r, r) + vf_set1(1.0f);
    return vf_scale(p, n);
}

// 2^x for x <= 0 or not far above, in place of e^x where the factor log2 e can ride on another
// product: to 4 ulp; 0 below -150, NaN stays. x = n + f, |f| <= 1/2, and 2^f is a Chebyshev
// interpolant. `rough` leaves out its last term: good to 4e-6, for what is rounded to bf16.
PL_INLINE vf vf_exp2(vf x, bool rough) {
    x = vf_max(vf_set1(-150.0f), x);
    vf n = vf_round(x), f = x - n, p;
    if (rough) {
        p = vf_fma(vf_set1(0x1.3cbf6p-7f), f, vf_set1(0x1.ca1ce2p-5f));
        p = vf_fma(p, f, vf_set1(0x1.ebfa4cp-3f));
        p = vf_fma(p, f, vf_set1(0x1.62e0c2p-1f));
        return vf_scale(vf_fma(p, f, vf_set1(1.0f)), n);
    }
    p = vf_fma(vf_set1(0x1.5f089p-10f), f, vf_set1(0x1.3d107p-7f));
    p = vf_fma(p, f, vf_set1(0x1.c6af6cp-5f));
    p = vf_fma(p, f, vf_set1(0x1.ebf906p-3f));
    p = vf_fma(p, f, vf_set1(0x1.62e43p-1f));
    return vf_scale(vf_fma(p, f, vf_set1(1.0f)), n);
}

// e^x for doubles: Taylor's series to r^13, whose next term is below 2^-57 of the sum.
PL_INLINE vd vd_exp(vd x) {
    x = vd_min(vd_set1(710.0), vd_max(vd_set1(-746.0), x));
    vd n = vd_round(x * vd_set1(0x1.71547652b82fep+0));
    vd r = vd_fma(n, vd_set1(-0x1.62e42fefap-1), x);
    r = vd_fma(n, vd_set1(-0x1.cf79abc9e3b39p-40), r);
    vd p = vd_set1(1.0 / 6227020800.0);
    static const double terms[] = {479001600.0, 39916800.0, 3628800.0, 362880.0, 40320.0,
                                   5040.0,      720.0,      120.0,     24.0,     6.0,
                                   2.0,         1.0,        1.0};
    for (int i = 0; i < 13; i++) p = vd_fma(p, r, vd_set1(1.0 / terms[i]));
    return vd_scale(p, n);
}

PL_INLINE vd vd_exp2(vd x, bool rough) {
    (void)rough;
    return vd_exp(x * vd_set1(0x1.62e42fefa39efp-1));
}

PL_INLINE float vf_sum(vf v) {  // pairwise, halves first: one order per level
    float t[VF];
    vf_store(t, v);
    for (int half = VF / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) t[i] += t[i + half];
    }
    return t[0];
}

PL_INLINE float vf_top(vf v) {  // the greatest lane; NaN does not win
    float t[VF];
    vf_store(t, v);
    for (int i = 1; i < VF; i++) t[0] = t[i] > t[0] || t[0] != t[0] ? t[i] : t[0];
    return t[0];
}

PL_INLINE double vd_sum(vd v) {
    double t[VD];
    vd_store(t, v);
    for (int half = VD / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; i++) t[i] += t[i + half];
    }
    return t[0];
}

PL_INLINE double vd_top(vd v) {
    double t[VD];
    vd_store(t, v);
    for (int i = 1; i < VD; i++) t[0] = t[i] > t[0] || t[0] != t[0] ? t[i] : t[0];
    return t[0];
}

#endif

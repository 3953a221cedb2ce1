// SPDX-License-Identifier: Apache-2.0
// vmath: float functions without branches, so that a loop over them vectorises. Included by files
// that each_isa.h instantiates, once per instruction set; no guard on purpose. Polynomials are
// minimax fits (Remez exchange in 40 digits) of our own; NaN in gives NaN out. Bounds are against
// libm in double over all floats: exp, expm1, log 2 ulp; tanh, sigmoid, erf 3 ulp; gelu 8 ulp from
// -3 up and 1e-7 absolute below, where exp(-x^2 / 2) carries the rounding of the square; slopes
// 4e-7.

#define VFN ISA_TARGET static inline __attribute__((always_inline))

VFN float ISA(from_bits)(uint32_t u) {
    union {
        uint32_t u;
        float f;
    } v = {u};
    return v.f;
}

VFN uint32_t ISA(to_bits)(float f) {
    union {
        float f;
        uint32_t u;
    } v = {f};
    return v.u;
}

// Adding 1.5 * 2^23 leaves the nearest integer in the low bits of the sum.
#define VM_ROUNDER 0x1.8p23f
#define VM_LOG2E 0x1.715476p0f
#define VM_LN2_HI 0x1.63p-1f  // 9 bits: its product with a small integer is exact
#define VM_LN2_LO (-0x1.bd0106p-13f)

// (e^r - 1 - r) / r^2 for |r| <= ln(2) / 2; relative error of e^r - 1: 2.4e-10.
VFN float ISA(exp_tail)(float r) {
    float p = 0x1.a1a3a8p-13f;
    p = MADD(p, r, 0x1.6d768ep-10f);
    p = MADD(p, r, 0x1.11108ep-7f);
    p = MADD(p, r, 0x1.5554acp-5f);
    p = MADD(p, r, 0x1.555556p-3f);
    return MADD(p, r, 0.5f);
}

// e^x = 2^n e^r. The power of two is applied in halves, so that a denormal result is right too.
VFN float ISA(vexp)(float x) {
    x = x > 89.0f ? 89.0f : x;
    x = x < -104.0f ? -104.0f : x;
    float t = MADD(x, VM_LOG2E, VM_ROUNDER);
    float n = t - VM_ROUNDER;
    float r = MADD(n, -VM_LN2_LO, MADD(n, -VM_LN2_HI, x));
    float y = MADD(r * r, ISA(exp_tail)(r), r) + 1.0f;
    int32_t e = (int32_t)(ISA(to_bits)(t) - ISA(to_bits)(VM_ROUNDER));
    int32_t half = e >> 1;
    float s1 = ISA(from_bits)((uint32_t)(half + 127) << 23);
    float s2 = ISA(from_bits)((uint32_t)(e - half + 127) << 23);
    return y * s1 * s2;
}

// e^x - 1 for |x| <= 40, exact to the last bits near 0.
VFN float ISA(vexpm1)(float x) {
    float t = MADD(x, VM_LOG2E, VM_ROUNDER);
    float n = t - VM_ROUNDER;
    float r = MADD(n, -VM_LN2_LO, MADD(n, -VM_LN2_HI, x));
    float y = MADD(r * r, ISA(exp_tail)(r), r);
    int32_t e = (int32_t)(ISA(to_bits)(t) - ISA(to_bits)(VM_ROUNDER));
    float s = ISA(from_bits)((uint32_t)(e + 127) << 23);
    return MADD(y, s, s - 1.0f);
}

VFN float ISA(vtanh)(float x) {
    float a = __builtin_fabsf(x);
    a = a > 10.0f ? 10.0f : a;  // 1 - tanh(10) is 4e-9; NaN stays
    float m = ISA(vexpm1)(2.0f * a);
    return __builtin_copysignf(m / (m + 2.0f), x);
}

// e^-|x| never overflows, so a small result is right down to the denormals.
VFN float ISA(vsigmoid)(float x) {
    float e = ISA(vexp)(-__builtin_fabsf(x));
    return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

// x = 2^e (1 + f) with 1 + f in [2/3, 4/3]; ln(1 + f) = f - f^2/2 + f^3 P(f), error 5e-9 of f.
VFN float ISA(vlog)(float x) {
    bool small = x < 0x1p-126f;  // denormal, or not in the domain
    float v = small ? x * 0x1p23f : x;
    uint32_t u = ISA(to_bits)(v);
    int32_t e = (int32_t)(u - 0x3f2aaaabu) >> 23;
    float f = ISA(from_bits)(u - ((uint32_t)e << 23)) - 1.0f;
    float p = -0x1.0e2a66p-3f;
    p = MADD(p, f, 0x1.1df336p-3f);
    p = MADD(p, f, -0x1.f03c42p-4f);
    p = MADD(p, f, 0x1.1ef19ep-3f);
    p = MADD(p, f, -0x1.55b7e6p-3f);
    p = MADD(p, f, 0x1.99ce42p-3f);
    p = MADD(p, f, -0x1.fffe5ep-3f);
    p = MADD(p, f, 0x1.55550cp-2f);
    float n = (float)(small ? e - 23 : e), f2 = f * f;
    float y = MADD(f2, MADD(p, f, -0.5f), n * VM_LN2_LO);
    y = n * VM_LN2_HI + (f + y);
    y = x == 0.0f ? -__builtin_inff() : y;
    y = x < 0.0f ? __builtin_nanf("") : y;
    return x < __builtin_inff() ? y : x;  // inf and NaN are their own results
}

// e^x for -86 <= x <= 0: shorter, for where nothing smaller matters.
VFN float ISA(vexp_short)(float x) {
    float t = MADD(x, VM_LOG2E, VM_ROUNDER);
    float n = t - VM_ROUNDER;
    float r = MADD(n, -VM_LN2_LO, MADD(n, -VM_LN2_HI, x));
    float p = 0x1.6a2154p-10f;
    p = MADD(p, r, 0x1.123b9ap-7f);
    p = MADD(p, r, 0x1.5558fcp-5f);
    p = MADD(p, r, 0x1.555490p-3f);
    p = MADD(p, r, 0x1.fffffcp-2f);
    float y = MADD(r * r, p, r) + 1.0f;
    return ISA(from_bits)(ISA(to_bits)(y) + (ISA(to_bits)(t) << 23));
}

VFN float ISA(vexp_down)(float x) { return ISA(vexp_short)(x < -86.0f ? -86.0f : x); }

// Phi(-z) = e * M(z) for z >= 0, where e = exp(-z^2 / 2) is given: a polynomial in
// t = 1 / (1 + 0.29 z), relative error 2e-8 for z <= 7 and 2e-5 up to 12.
VFN float ISA(vphi_tail)(float z, float e) {
    float t = 1.0f / MADD(z, 0.29f, 1.0f);
    float p = 0x1.3de844p-5f;
    p = MADD(p, t, -0x1.84dd66p-3f);
    p = MADD(p, t, 0x1.3218ecp-2f);
    p = MADD(p, t, -0x1.219348p-3f);
    p = MADD(p, t, 0x1.6b93a8p-3f);
    p = MADD(p, t, 0x1.4c1726p-4f);
    p = MADD(p, t, 0x1.e96e92p-4f);
    p = MADD(p, t, 0x1.d8dc7ep-4f);
    return e * (p * t);
}

VFN float ISA(verf)(float x) {
    float a = __builtin_fabsf(x), s = x * x;
    float p = 0x1.603538p-14f;
    p = MADD(p, s, -0x1.ab4744p-11f);
    p = MADD(p, s, 0x1.54e624p-8f);
    p = MADD(p, s, -0x1.b811bep-6f);
    p = MADD(p, s, 0x1.ce2e30p-4f);
    p = MADD(p, s, -0x1.812744p-2f);
    float near = a * MADD(p, s, 0x1.20dd76p0f);
    float far = 1.0f - 2.0f * ISA(vphi_tail)(a * 1.41421356f, ISA(vexp_down)(-s));
    float y = a < 0.9f ? near : far;
    y = x != x ? x : a > 4.0f ? 1.0f : y;  // the tail at infinity is 0 * 0, but inf * 0 on the way
    return __builtin_copysignf(y, x);
}

// The normal distribution function, and e = exp(-x^2 / 2) with it. Beyond 12 the tail is 1e-33.
VFN float ISA(vphi)(float x, float *e) {
    float a = __builtin_fabsf(x);
    a = a > 12.0f ? 12.0f : a;
    *e = ISA(vexp_short)(-0.5f * (a * a));
    float tail = ISA(vphi_tail)(a, *e);
    return x > 0.0f ? 1.0f - tail : tail;
}

VFN float ISA(vgelu)(float x) {
    float e, y = x * ISA(vphi)(x, &e);
    return x < -12.0f ? -0.0f : y;  // not -inf * 1e-33
}

VFN float ISA(vgelu_slope)(float x) {
    float e, phi = ISA(vphi)(x, &e);
    float c = x > 12.0f ? 12.0f : x < -12.0f ? -12.0f : x;  // not inf * 1e-32
    return MADD(c * 0.39894228f, e, phi);
}

// gelu_tanh(x) = x sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3): no cancellation in the tail.
VFN float ISA(vtanh_gate)(float c) {
    float u2 = c * MADD(c * c, 0.0713548163f, 1.59576912f);
    float e = ISA(vexp_down)(-__builtin_fabsf(u2));
    return (c < 0.0f ? e : 1.0f) / (1.0f + e);
}

VFN float ISA(vgelu_tanh)(float x) {
    float c = x < -12.0f ? -12.0f : x > 12.0f ? 12.0f : x;
    float y = x * ISA(vtanh_gate)(c);
    return x < -12.0f ? -0.0f : y;
}

VFN float ISA(vgelu_tanh_slope)(float x) {
    float c = x < -12.0f ? -12.0f : x > 12.0f ? 12.0f : x;
    float s = ISA(vtanh_gate)(c);
    float du2 = MADD(c * c, 0.214064449f, 1.59576912f);
    return MADD(c * s * (1.0f - s), du2, s);
}

VFN float ISA(vsilu)(float x) {
    float y = x * ISA(vsigmoid)(x);
    return x < -110.0f ? -0.0f : y;
}

VFN float ISA(vsilu_slope)(float x) {
    float c = x > 110.0f ? 110.0f : x < -110.0f ? -110.0f : x;
    float s = ISA(vsigmoid)(c);
    return s * MADD(c, 1.0f - s, 1.0f);
}

#undef VFN

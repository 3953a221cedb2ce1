// SPDX-License-Identifier: Apache-2.0
// GELU's loops for AVX-512; gelu.h. A file that includes this has simd.h at level 3 and defines E,
// the element, GELU_DTYPE, its pl_dtype, put(p, v), which stores 16 of them, and GELU_ROUGH: 1
// where precision beyond bf16's is in vain.

// Four vectors go through each step together: one alone is a chain of 30 instructions that wait for
// one another, longer than what the processor looks ahead to fill the gaps (24 cycles instead of
// 14).
enum { U = 4 };
#define EACH PL_UNROLL for (int i = 0; i < U; i++)

// y = 1 / x to 2^-28 for numbers far from overflow: an estimate and one step of Newton's.
PL_INLINE void inverse(const vf *x, vf *y) {
    EACH y[i] = _mm512_rcp14_ps(x[i]);
    EACH y[i] = vf_fma(y[i], _mm512_fnmadd_ps(x[i], y[i], vf_set1(1)), y[i]);
}

// y = 2^(c x), the exponent between -126 and 0; NaN stays NaN. The nearest integer n of the
// exponent is in the low bits of c x + 1.5 2^23; the rest, which the fused subtraction leaves
// exact, goes through minimax polynomials (relative errors 4e-6 and 2e-9).
PL_INLINE void exp2_of(float c, const vf *x, vf *y) {
    vf n[U], f[U];
    EACH n[i] = vf_fma(x[i], vf_set1(c), vf_set1(0x1.8p23f));
    EACH f[i] = vf_fma(x[i], vf_set1(c), vf_set1(0x1.8p23f) - n[i]);
    if (GELU_ROUGH) {
        EACH y[i] = vf_fma(vf_set1(0x1.3cbf6p-7f), f[i], vf_set1(0x1.ca1ce2p-5f));
        EACH y[i] = vf_fma(y[i], f[i], vf_set1(0x1.ebfa4cp-3f));
        EACH y[i] = vf_fma(y[i], f[i], vf_set1(0x1.62e0c2p-1f));
    } else {
        EACH y[i] = vf_fma(vf_set1(0x1.41fb9ep-13f), f[i], vf_set1(0x1.5f3e4ep-10f));
        EACH y[i] = vf_fma(y[i], f[i], vf_set1(0x1.3b2d4ep-7f));
        EACH y[i] = vf_fma(y[i], f[i], vf_set1(0x1.c6aee8p-5f));
        EACH y[i] = vf_fma(y[i], f[i], vf_set1(0x1.ebfbdcp-3f));
        EACH y[i] = vf_fma(y[i], f[i], vf_set1(0x1.62e43p-1f));
    }
    EACH y[i] = vf_fma(y[i], f[i], vf_set1(1.0f));
    EACH y[i] = (vf)_mm512_add_epi32((__m512i)y[i], _mm512_slli_epi32((__m512i)n[i], 23));
}

// y = x within +-12. Of NaN and a number vf_max and vf_min give the second operand: NaN stays.
PL_INLINE void clamp(const vf *x, vf *y) {
    EACH y[i] = vf_min(vf_set1(12), vf_max(vf_set1(-12), x[i]));
}

// The tail of the normal distribution, Phi(-z) = e t P(t) with e = exp(-z^2 / 2) and
// t = 1 / (1 + TAIL_SCALE z): P, minimax fits of our own, with a relative error of 6e-6 or 2e-8.
static const float TAIL[] = {
#if GELU_ROUGH
#define TAIL_SCALE 0.3f
    -0.0788169174f, 0.221241421f, -0.022947039f, 0.147466595f, 0.11290422f, 0.120154491f,
#else
#define TAIL_SCALE 0.29f
    0x1.3de844p-5f, -0x1.84dd66p-3f, 0x1.3218ecp-2f, -0x1.219348p-3f,
    0x1.6b93a8p-3f, 0x1.4c1726p-4f,  0x1.e96e92p-4f, 0x1.d8dc7ep-4f,
#endif
};

// phi = Phi(x) and e = exp(-x^2 / 2) for |x| <= 12.
PL_INLINE void normal(const vf *x, vf *phi, vf *e) {
    vf t[U], p[U];
    EACH p[i] = vf_fma(_mm512_abs_ps(x[i]), vf_set1(TAIL_SCALE), vf_set1(1));
    inverse(p, t);
    EACH e[i] = x[i] * x[i];
    exp2_of(-0.72134752f, e, e);  // -log2(e) / 2
    EACH p[i] = vf_set1(TAIL[0]);
    PL_UNROLL
    for (size_t k = 1; k < sizeof TAIL / sizeof *TAIL; k++) {
        EACH p[i] = vf_fma(p[i], t[i], vf_set1(TAIL[k]));
    }
    EACH p[i] = p[i] * t[i] * e[i];
    EACH phi[i] = vf_less(vf_set1(0), x[i], vf_set1(1) - p[i], p[i]);
}

// s = sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3), for |x| <= 12.
PL_INLINE void gate(const vf *x, vf *s) {
    vf e[U], d[U];
    EACH e[i] = vf_fma(x[i] * x[i], vf_set1(0.0713548163f), vf_set1(1.59576912f));
    EACH e[i] = vf_min(vf_set1(86), _mm512_abs_ps(x[i] * e[i]));
    exp2_of(-1.44269504f, e, e);
    EACH d[i] = e[i] + vf_set1(1);
    inverse(d, s);
    EACH s[i] = vf_less(vf_set1(0), x[i], s[i], e[i] * s[i]);
}

PL_INLINE void value(bool by_tanh, const vf *x, vf *y) {
    vf c[U], phi[U], e[U];
    clamp(x, c);
    if (by_tanh) {
        gate(c, phi);
    } else {
        normal(c, phi, e);
    }
    EACH y[i] = x[i] * phi[i];
    EACH y[i] = vf_less(x[i], vf_set1(-12), vf_set1(-0.0f), y[i]);  // not -inf * 1e-33
}

// y = g times the slope at x.
PL_INLINE void slope(bool by_tanh, const vf *g, const vf *x, vf *y) {
    vf c[U], e[U], d[U];
    clamp(x, c);
    if (!by_tanh) {
        normal(c, y, e);
        EACH y[i] = vf_fma(c[i] * vf_set1(0.39894228f), e[i], y[i]) * g[i];
        return;
    }
    gate(c, y);
    EACH d[i] = vf_fma(c[i] * c[i], vf_set1(0.214064449f), vf_set1(1.59576912f));
    EACH d[i] = d[i] * c[i] * (vf_set1(1) - y[i]);
    EACH y[i] = vf_fma(d[i], y[i], y[i]) * g[i];
}

// The first n, at most U vectors, through a copy on the stack.
PL_INLINE void load_some(const E *p, int64_t n, vf *x) {
    E part[U * VF] = {0};
    memcpy(part, p, (size_t)n * sizeof *p);
    EACH x[i] = vf_get(part, i * VF, GELU_DTYPE);
}

PL_INLINE void run(bool by_tanh, int64_t n, const E *g, const E *x, E *out) {
    vf vg[U], vx[U], y[U];
    for (int64_t at = 0; at < n; at += U * VF) {
        int64_t left = n - at;
        E part[U * VF], *to = left < U * VF ? part : out + at;
        if (left < U * VF) {
            load_some(x + at, left, vx);
            if (g) load_some(g + at, left, vg);
        } else {
            EACH vx[i] = vf_get(x, at + i * VF, GELU_DTYPE);
            if (g) EACH vg[i] = vf_get(g, at + i * VF, GELU_DTYPE);
        }
        if (g) {
            slope(by_tanh, vg, vx, y);
        } else {
            value(by_tanh, vx, y);
        }
        EACH put(to + i * VF, y[i]);
        if (to == part) memcpy(out + at, part, (size_t)left * sizeof *part);
    }
}

static void gelu(int64_t n, const void *g, const void *x, void *out) {
    (void)g;
    run(false, n, NULL, x, out);
}
static void gelu_tanh(int64_t n, const void *g, const void *x, void *out) {
    (void)g;
    run(true, n, NULL, x, out);
}
static void gelu_grad(int64_t n, const void *g, const void *x, void *out) {
    run(false, n, g, x, out);
}
static void gelu_tanh_grad(int64_t n, const void *g, const void *x, void *out) {
    run(true, n, g, x, out);
}
PL_SIMD_END

static pl_gelu_fn pick(bool gradient, bool by_tanh) {
    if (gradient) return by_tanh ? gelu_tanh_grad : gelu_grad;
    return by_tanh ? gelu_tanh : gelu;
}

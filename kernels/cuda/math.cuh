// SPDX-License-Identifier: Apache-2.0
// math: the elementwise formulas, for float and double (floating dtypes) and int64 (integers, which
// wrap). The same definitions as kernels/ref/elementwise.c; accurate functions, no fast-math ones.
#ifndef PL_CUDA_MATH_CUH
#define PL_CUDA_MATH_CUH

#include "cuda/device.cuh"

#define PL_MATH_PAIR(name)                                           \
    static PL_DEVICE float pl_##name(float x) { return name##f(x); } \
    static PL_DEVICE double pl_##name(double x) { return name(x); }
PL_MATH_PAIR(exp)
PL_MATH_PAIR(log)
PL_MATH_PAIR(sqrt)
PL_MATH_PAIR(sin)
PL_MATH_PAIR(cos)
PL_MATH_PAIR(tanh)
PL_MATH_PAIR(erf)
PL_MATH_PAIR(erfc)
PL_MATH_PAIR(floor)
PL_MATH_PAIR(ceil)
PL_MATH_PAIR(fabs)
PL_MATH_PAIR(rint)
#undef PL_MATH_PAIR
static PL_DEVICE float pl_pow(float a, float b) { return powf(a, b); }
static PL_DEVICE double pl_pow(double a, double b) { return pow(a, b); }
static PL_DEVICE float pl_fmod(float a, float b) { return fmodf(a, b); }
static PL_DEVICE double pl_fmod(double a, double b) { return fmod(a, b); }

template <typename A>
static PL_DEVICE bool pl_nan(A x) {
    return x != x;
}
template <typename A>
static PL_DEVICE bool pl_finite(A x) {
    return pl_fabs(x) < (A)INFINITY;
}

#define PL_SQRT_HALF 0.70710678118654752440
#define PL_INV_SQRT_2PI 0.39894228040143267794
#define PL_SQRT_2_OVER_PI 0.79788456080286535588

// At -infinity the functions are their limit -0 and the slopes 0 (at +infinity 1), not inf * 0.
// exp of what is not above 0, so that the far tail is not 1 / infinity.
template <typename A>
static PL_DEVICE A pl_sigmoid(A x) {
    A e = pl_exp(-pl_fabs(x));
    return (x < 0 ? e : (A)1) / ((A)1 + e);
}
template <typename A>
static PL_DEVICE A pl_silu(A x) {
    return x == -(A)INFINITY ? -(A)0 : x * pl_sigmoid(x);
}
template <typename A>
static PL_DEVICE A pl_silu_slope(A x) {
    if (pl_fabs(x) == (A)INFINITY) return x > 0;
    A s = pl_sigmoid(x);
    return s * ((A)1 + x * ((A)1 - s));
}
template <typename A>
static PL_DEVICE A pl_gelu(A x) {
    return x == -(A)INFINITY ? -(A)0 : (A)0.5 * x * pl_erfc(-x * (A)PL_SQRT_HALF);
}
template <typename A>
static PL_DEVICE A pl_gelu_slope(A x) {
    if (pl_fabs(x) == (A)INFINITY) return x > 0;
    return (A)0.5 * pl_erfc(-x * (A)PL_SQRT_HALF) +
           x * (A)PL_INV_SQRT_2PI * pl_exp((A)-0.5 * x * x);
}
// (1 + tanh(u)) / 2 is the sigmoid of 2u, whose tail is not a difference of numbers near 1.
template <typename A>
static PL_DEVICE A pl_gelu_twice_u(A x) {
    return (A)(2 * PL_SQRT_2_OVER_PI) * (x + (A)0.044715 * x * x * x);
}
template <typename A>
static PL_DEVICE A pl_gelu_tanh(A x) {
    return x == -(A)INFINITY ? -(A)0 : x * pl_sigmoid(pl_gelu_twice_u(x));
}
template <typename A>
static PL_DEVICE A pl_gelu_tanh_slope(A x) {
    if (pl_fabs(x) > (A)40) return x > 0;  // x^2 may overflow
    A u = pl_gelu_twice_u(x), s = pl_sigmoid(u);
    A ds = s * pl_sigmoid(-u) * (A)(2 * PL_SQRT_2_OVER_PI) * ((A)1 + (A)(3.0 * 0.044715) * x * x);
    return s + x * ds;
}

template <pl_unary OP, typename A>
static PL_DEVICE A pl_unary_float(A x) {
    if constexpr (OP == PL_UNARY_NEG) return -x;
    if constexpr (OP == PL_UNARY_ABS) return pl_fabs(x);
    if constexpr (OP == PL_UNARY_SIGN) return (A)((x > 0) - (x < 0));
    if constexpr (OP == PL_UNARY_EXP) return pl_exp(x);
    if constexpr (OP == PL_UNARY_LOG) return pl_log(x);
    if constexpr (OP == PL_UNARY_SQRT) return pl_sqrt(x);
    if constexpr (OP == PL_UNARY_RSQRT) return (A)1 / pl_sqrt(x);
    if constexpr (OP == PL_UNARY_RECIPROCAL) return (A)1 / x;
    if constexpr (OP == PL_UNARY_SQUARE) return x * x;
    if constexpr (OP == PL_UNARY_SIN) return pl_sin(x);
    if constexpr (OP == PL_UNARY_COS) return pl_cos(x);
    if constexpr (OP == PL_UNARY_TANH) return pl_tanh(x);
    if constexpr (OP == PL_UNARY_SIGMOID) return pl_sigmoid(x);
    if constexpr (OP == PL_UNARY_RELU) return x < 0 ? (A)0 : x;
    if constexpr (OP == PL_UNARY_GELU) return pl_gelu(x);
    if constexpr (OP == PL_UNARY_GELU_TANH) return pl_gelu_tanh(x);
    if constexpr (OP == PL_UNARY_SILU) return pl_silu(x);
    if constexpr (OP == PL_UNARY_ERF) return pl_erf(x);
    if constexpr (OP == PL_UNARY_FLOOR) return pl_floor(x);
    if constexpr (OP == PL_UNARY_CEIL) return pl_ceil(x);
    if constexpr (OP == PL_UNARY_ROUND) return pl_rint(x);
    if constexpr (OP == PL_UNARY_LOGICAL_NOT) return x == 0;
    if constexpr (OP == PL_UNARY_ISNAN) return pl_nan(x);
    if constexpr (OP == PL_UNARY_ISFINITE) return pl_finite(x);
    return x;
}

// Unsigned inside, so that overflow wraps. An operator that only floats have leaves x alone: the
// launcher refused it.
template <pl_unary OP>
static PL_DEVICE int64_t pl_unary_int(int64_t x) {
    if constexpr (OP == PL_UNARY_NEG) return (int64_t)(0 - (uint64_t)x);
    if constexpr (OP == PL_UNARY_ABS) return x < 0 ? (int64_t)(0 - (uint64_t)x) : x;
    if constexpr (OP == PL_UNARY_SIGN) return (x > 0) - (x < 0);
    if constexpr (OP == PL_UNARY_SQUARE) return (int64_t)((uint64_t)x * (uint64_t)x);
    if constexpr (OP == PL_UNARY_RELU) return x > 0 ? x : 0;
    if constexpr (OP == PL_UNARY_LOGICAL_NOT) return x == 0;
    if constexpr (OP == PL_UNARY_ISNAN) return 0;
    if constexpr (OP == PL_UNARY_ISFINITE) return 1;
    return x;
}

// Python's % and //: the remainder has the divisor's sign, the quotient comes from the remainder,
// because floor(a / b) can be one too high where a / b rounds up.
template <typename A>
static PL_DEVICE A pl_remainder_float(A a, A b) {
    A m = pl_fmod(a, b);
    return m != 0 && (m < 0) != (b < 0) ? m + b : m;
}
template <typename A>
static PL_DEVICE A pl_floor_divide_float(A a, A b) {
    if (b == 0) return a / b;
    A m = pl_fmod(a, b), q = (a - m) / b;
    if (m != 0 && (m < 0) != (b < 0)) q -= (A)1;
    return q == 0 ? (a / b < 0 || (A)1 / (a / b) < 0 ? -(A)0 : (A)0) : pl_rint(q);
}

template <pl_binary OP, typename A>
static PL_DEVICE bool pl_truth(A a, A b) {
    if constexpr (OP == PL_BINARY_EQ) return a == b;
    if constexpr (OP == PL_BINARY_NE) return a != b;
    if constexpr (OP == PL_BINARY_LT) return a < b;
    if constexpr (OP == PL_BINARY_LE) return a <= b;
    if constexpr (OP == PL_BINARY_GT) return a > b;
    if constexpr (OP == PL_BINARY_GE) return a >= b;
    if constexpr (OP == PL_BINARY_LOGICAL_AND) return a != 0 && b != 0;
    if constexpr (OP == PL_BINARY_LOGICAL_OR) return a != 0 || b != 0;
    return (a != 0) != (b != 0);
}
__host__ __device__ constexpr bool pl_gives_truth(pl_binary op) {
    return op >= PL_BINARY_EQ && op <= PL_BINARY_LOGICAL_XOR;
}

template <pl_binary OP, typename A>
static PL_DEVICE A pl_binary_float(A a, A b) {
    if constexpr (OP == PL_BINARY_ADD) return a + b;
    if constexpr (OP == PL_BINARY_SUB) return a - b;
    if constexpr (OP == PL_BINARY_MUL) return a * b;
    if constexpr (OP == PL_BINARY_DIV) return a / b;
    if constexpr (OP == PL_BINARY_POW) return pl_pow(a, b);
    if constexpr (OP == PL_BINARY_MAXIMUM) return a > b || pl_nan(a) ? a : b;
    if constexpr (OP == PL_BINARY_MINIMUM) return a < b || pl_nan(a) ? a : b;
    if constexpr (OP == PL_BINARY_REMAINDER) return pl_remainder_float(a, b);
    if constexpr (OP == PL_BINARY_FLOOR_DIVIDE) return pl_floor_divide_float(a, b);
    if constexpr (OP == PL_BINARY_RELU_GRAD) return b <= 0 ? (A)0 : a;
    if constexpr (OP == PL_BINARY_TANH_GRAD) return a * ((A)1 - b * b);
    if constexpr (OP == PL_BINARY_SIGMOID_GRAD) return a * b * ((A)1 - b);
    if constexpr (OP == PL_BINARY_GELU_GRAD) return a * pl_gelu_slope(b);
    if constexpr (OP == PL_BINARY_GELU_TANH_GRAD) return a * pl_gelu_tanh_slope(b);
    if constexpr (OP == PL_BINARY_SILU_GRAD) return a * pl_silu_slope(b);
    if constexpr (pl_gives_truth(OP)) return (A)pl_truth<OP>(a, b);
    return a;
}

// a to the power b modulo 2^64; a negative power is 1 / a^-b truncated.
static inline __device__ int64_t pl_pow_int(int64_t a, int64_t b) {
    if (b < 0) return a == 1 ? 1 : a == -1 ? (b % 2 == 0 ? 1 : -1) : 0;
    uint64_t result = 1, base = (uint64_t)a;
    for (uint64_t e = (uint64_t)b; e != 0; e >>= 1) {
        if (e & 1) result *= base;
        base *= base;
    }
    return (int64_t)result;
}

// b is not 0. -1 is apart because INT64_MIN / -1 overflows.
template <pl_binary OP>
static PL_DEVICE int64_t pl_divide_int(int64_t a, int64_t b) {
    if (b == -1) return OP == PL_BINARY_REMAINDER ? 0 : (int64_t)(0 - (uint64_t)a);
    int64_t q = a / b, m = a % b;
    bool lower = m != 0 && (m < 0) != (b < 0);
    if constexpr (OP == PL_BINARY_DIV) return q;
    if constexpr (OP == PL_BINARY_REMAINDER) return lower ? m + b : m;
    return q - lower;
}
__host__ __device__ constexpr bool pl_divides(pl_binary op) {
    return op == PL_BINARY_DIV || op == PL_BINARY_REMAINDER || op == PL_BINARY_FLOOR_DIVIDE;
}

template <pl_binary OP>
static PL_DEVICE int64_t pl_binary_int(int64_t a, int64_t b) {
    if constexpr (OP == PL_BINARY_ADD) return (int64_t)((uint64_t)a + (uint64_t)b);
    if constexpr (OP == PL_BINARY_SUB) return (int64_t)((uint64_t)a - (uint64_t)b);
    if constexpr (OP == PL_BINARY_MUL) return (int64_t)((uint64_t)a * (uint64_t)b);
    if constexpr (OP == PL_BINARY_POW) return pl_pow_int(a, b);
    if constexpr (OP == PL_BINARY_MAXIMUM) return a > b ? a : b;
    if constexpr (OP == PL_BINARY_MINIMUM) return a < b ? a : b;
    if constexpr (pl_divides(OP)) return b == 0 ? 0 : pl_divide_int<OP>(a, b);
    if constexpr (OP == PL_BINARY_RELU_GRAD) return b > 0 ? a : 0;
    if constexpr (pl_gives_truth(OP)) return pl_truth<OP>(a, b);
    return 0;
}

#endif

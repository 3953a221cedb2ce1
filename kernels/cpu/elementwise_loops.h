// SPDX-License-Identifier: Apache-2.0
// The loops of elementwise.c; included by each_isa.h only. v, or a and b, is the element.

#include "cpu/vmath.h"

#define UNARY_TO(id, T, R, expr)                                                       \
    ISA_TARGET static void ISA(un_##T##_##id)(int64_t n, const void *px, void *pout) { \
        const T *restrict x = px;                                                      \
        R *restrict out = pout;                                                        \
        for (int64_t i = 0; i < n; i++) {                                              \
            T v = x[i];                                                                \
            out[i] = (R)(expr);                                                        \
        }                                                                              \
    }
#define BINARY_TO(id, T, R, expr)                                                        \
    ISA_TARGET static void ISA(bi_##T##_##id)(int64_t n, const void *pa, const void *pb, \
                                              void *pout) {                              \
        const T *restrict pa_ = pa;                                                      \
        const T *restrict pb_ = pb;                                                      \
        R *restrict out = pout;                                                          \
        for (int64_t i = 0; i < n; i++) {                                                \
            T a = pa_[i], b = pb_[i];                                                    \
            out[i] = (R)(expr);                                                          \
        }                                                                                \
    }
#define UNARY(id, T, expr) UNARY_TO(id, T, T, expr)
#define BINARY(id, T, expr) BINARY_TO(id, T, T, expr)
#define WRAP(x) ((uint64_t)(x))  // signed overflow wraps

// ---- what floats of both sizes and integers share, by T

#define SHARED(T)                                            \
    UNARY(SIGN, T, (v > 0) - (v < 0))                        \
    UNARY(RELU, T, v < 0 ? 0 : v)                            \
    UNARY_TO(LOGICAL_NOT, T, uint8_t, v == 0)                \
    UNARY_TO(ISNAN, T, uint8_t, v != v)                      \
    BINARY_TO(EQ, T, uint8_t, a == b)                        \
    BINARY_TO(NE, T, uint8_t, a != b)                        \
    BINARY_TO(LT, T, uint8_t, a < b)                         \
    BINARY_TO(LE, T, uint8_t, a <= b)                        \
    BINARY_TO(GT, T, uint8_t, a > b)                         \
    BINARY_TO(GE, T, uint8_t, a >= b)                        \
    BINARY_TO(LOGICAL_AND, T, uint8_t, (a != 0) & (b != 0))  \
    BINARY_TO(LOGICAL_OR, T, uint8_t, (a != 0) | (b != 0))   \
    BINARY_TO(LOGICAL_XOR, T, uint8_t, (a != 0) != (b != 0)) \
    BINARY(MAXIMUM, T, ((a > b) | (a != a)) ? a : b)         \
    BINARY(MINIMUM, T, ((a < b) | (a != a)) ? a : b)         \
    BINARY(RELU_GRAD, T, b <= 0 ? 0 : a)
SHARED(float)
SHARED(double)
SHARED(int64_t)

#define SHARED_FLOAT(T)                     \
    UNARY(NEG, T, -v)                       \
    UNARY(RECIPROCAL, T, (T)1 / v)          \
    UNARY(SQUARE, T, v *v)                  \
    BINARY(ADD, T, a + b)                   \
    BINARY(SUB, T, a - b)                   \
    BINARY(MUL, T, a *b)                    \
    BINARY(DIV, T, a / b)                   \
    BINARY(TANH_GRAD, T, a *((T)1 - b * b)) \
    BINARY(SIGMOID_GRAD, T, a * b * ((T)1 - b))
SHARED_FLOAT(float)
SHARED_FLOAT(double)

// ---- float

UNARY(ABS, float, __builtin_fabsf(v))
UNARY(EXP, float, ISA(vexp)(v))
UNARY(LOG, float, ISA(vlog)(v))
UNARY(SQRT, float, __builtin_sqrtf(v))
UNARY(RSQRT, float, 1.0f / __builtin_sqrtf(v))
UNARY(SIN, float, sinf(v))
UNARY(COS, float, cosf(v))
UNARY(TANH, float, ISA(vtanh)(v))
UNARY(SIGMOID, float, ISA(vsigmoid)(v))
UNARY(GELU, float, ISA(vgelu)(v))
UNARY(GELU_TANH, float, ISA(vgelu_tanh)(v))
UNARY(SILU, float, ISA(vsilu)(v))
UNARY(ERF, float, ISA(verf)(v))
UNARY(FLOOR, float, __builtin_floorf(v))
UNARY(CEIL, float, __builtin_ceilf(v))
UNARY(ROUND, float, __builtin_rintf(v))
UNARY_TO(ISFINITE, float, uint8_t, __builtin_fabsf(v) < __builtin_inff())
BINARY(POW, float, powf(a, b))
BINARY(REMAINDER, float, (float)remainder_float(a, b))
BINARY(FLOOR_DIVIDE, float, (float)floor_divide_float(a, b))
BINARY(GELU_GRAD, float, a *ISA(vgelu_slope)(b))
BINARY(GELU_TANH_GRAD, float, a *ISA(vgelu_tanh_slope)(b))
BINARY(SILU_GRAD, float, a *ISA(vsilu_slope)(b))

// ---- double: libm's functions, one at a time

UNARY(ABS, double, __builtin_fabs(v))
UNARY(EXP, double, exp(v))
UNARY(LOG, double, log(v))
UNARY(SQRT, double, __builtin_sqrt(v))
UNARY(RSQRT, double, 1.0 / __builtin_sqrt(v))
UNARY(SIN, double, sin(v))
UNARY(COS, double, cos(v))
UNARY(TANH, double, tanh(v))
UNARY(SIGMOID, double, sigmoid(v))
UNARY(GELU, double, v <= -40.0 ? -0.0 : v * normal_cdf(v))
UNARY(GELU_TANH, double, v <= -40.0 ? -0.0 : v * sigmoid(2.0 * tanh_argument(v)))
UNARY(SILU, double, v <= -746.0 ? -0.0 : v * sigmoid(v))
UNARY(ERF, double, erf(v))
UNARY(FLOOR, double, __builtin_floor(v))
UNARY(CEIL, double, __builtin_ceil(v))
UNARY(ROUND, double, __builtin_rint(v))
UNARY_TO(ISFINITE, double, uint8_t, __builtin_fabs(v) < __builtin_inf())
BINARY(POW, double, pow(a, b))
BINARY(REMAINDER, double, remainder_float(a, b))
BINARY(FLOOR_DIVIDE, double, floor_divide_float(a, b))
BINARY(GELU_GRAD, double, a *gelu_slope(b))
BINARY(GELU_TANH_GRAD, double, a *gelu_tanh_slope(b))
BINARY(SILU_GRAD, double, a *silu_slope(b))

// ---- integers

UNARY(NEG, int64_t, 0 - WRAP(v))
UNARY(ABS, int64_t, v < 0 ? 0 - WRAP(v) : WRAP(v))
UNARY(SQUARE, int64_t, WRAP(v) * WRAP(v))
UNARY(FLOOR, int64_t, v)
UNARY_TO(ISFINITE, int64_t, uint8_t, v == v)
BINARY(ADD, int64_t, WRAP(a) + WRAP(b))
BINARY(SUB, int64_t, WRAP(a) - WRAP(b))
BINARY(MUL, int64_t, WRAP(a) * WRAP(b))
BINARY(DIV, int64_t, divide_int(a, b))
BINARY(POW, int64_t, power_int(a, b))
BINARY(REMAINDER, int64_t, remainder_int(a, b))
BINARY(FLOOR_DIVIDE, int64_t, floor_divide_int(a, b))

#define WHERE(id, T)                                                                     \
    ISA_TARGET static void ISA(where_##id)(int64_t n, const uint8_t *restrict cond,      \
                                           const void *pa, const void *pb, void *pout) { \
        const T *restrict a = pa;                                                        \
        const T *restrict b = pb;                                                        \
        T *restrict out = pout;                                                          \
        for (int64_t i = 0; i < n; i++) {                                                \
            T x = a[i], y = b[i];                                                        \
            out[i] = cond[i] != 0 ? x : y;                                               \
        }                                                                                \
    }
WHERE(1, uint8_t)
WHERE(2, uint16_t)
WHERE(4, uint32_t)
WHERE(8, uint64_t)

#define U(T, id) [PL_UNARY_##id] = ISA(un_##T##_##id)
#define B(T, id) [PL_BINARY_##id] = ISA(bi_##T##_##id)
#define UNARY_EXACT(T)                                                                          \
    U(T, NEG), U(T, ABS), U(T, SIGN), U(T, SQUARE), U(T, RELU), U(T, FLOOR), U(T, LOGICAL_NOT), \
        U(T, ISNAN), U(T, ISFINITE)
#define UNARY_FLOAT(T)                                                                            \
    U(T, CEIL), U(T, ROUND), U(T, EXP), U(T, LOG), U(T, SQRT), U(T, RSQRT), U(T, RECIPROCAL),     \
        U(T, SIN), U(T, COS), U(T, TANH), U(T, SIGMOID), U(T, GELU), U(T, GELU_TANH), U(T, SILU), \
        U(T, ERF)
#define BINARY_EXACT(T)                                                                        \
    B(T, ADD), B(T, SUB), B(T, MUL), B(T, DIV), B(T, POW), B(T, MAXIMUM), B(T, MINIMUM),       \
        B(T, REMAINDER), B(T, FLOOR_DIVIDE), B(T, EQ), B(T, NE), B(T, LT), B(T, LE), B(T, GT), \
        B(T, GE), B(T, LOGICAL_AND), B(T, LOGICAL_OR), B(T, LOGICAL_XOR), B(T, RELU_GRAD)
#define BINARY_FLOAT(T) \
    B(T, TANH_GRAD), B(T, SIGMOID_GRAD), B(T, GELU_GRAD), B(T, GELU_TANH_GRAD), B(T, SILU_GRAD)

static const pl_elementwise ISA(elementwise) = {
    .unary = {[PL_C_F32] = {UNARY_EXACT(float), UNARY_FLOAT(float)},
              [PL_C_F64] = {UNARY_EXACT(double), UNARY_FLOAT(double)},
              [PL_C_I64] = {UNARY_EXACT(int64_t), [PL_UNARY_CEIL] = ISA(un_int64_t_FLOOR),
                            [PL_UNARY_ROUND] = ISA(un_int64_t_FLOOR)}},
    .binary = {[PL_C_F32] = {BINARY_EXACT(float), BINARY_FLOAT(float)},
               [PL_C_F64] = {BINARY_EXACT(double), BINARY_FLOAT(double)},
               [PL_C_I64] = {BINARY_EXACT(int64_t)}},
    .where = {ISA(where_1), ISA(where_2), ISA(where_4), ISA(where_8)},
};

#undef UNARY_TO
#undef BINARY_TO
#undef UNARY
#undef BINARY
#undef WRAP
#undef SHARED
#undef SHARED_FLOAT
#undef WHERE
#undef U
#undef B
#undef UNARY_EXACT
#undef UNARY_FLOAT
#undef BINARY_EXACT
#undef BINARY_FLOAT

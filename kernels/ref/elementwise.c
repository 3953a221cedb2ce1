// SPDX-License-Identifier: Apache-2.0
// The oracle's elementwise operators: one element at a time, floats in double, integers in int64
// that wraps. Any strides; in place is safe because each element is read before it is written.

#include "ref/ref.h"

#define SQRT_HALF 0.70710678118654752440
#define INV_SQRT_2PI 0.39894228040143267794
#define SQRT_2_OVER_PI 0.79788456080286535588

// At -infinity the functions are their limit -0 and the slopes 0 (at +infinity 1), not inf * 0.
static double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
double pl_ref_silu(double x) { return x == -INFINITY ? -0.0 : x * sigmoid(x); }
double pl_ref_silu_slope(double x) {
    if (isinf(x)) return x > 0.0;
    return sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x)));
}
static double gelu(double x) { return x == -INFINITY ? -0.0 : 0.5 * x * erfc(-x * SQRT_HALF); }
static double gelu_slope(double x) {
    if (isinf(x)) return x > 0.0;
    return 0.5 * erfc(-x * SQRT_HALF) + x * INV_SQRT_2PI * exp(-0.5 * x * x);
}
static double gelu_tanh(double x) {
    if (x == -INFINITY) return -0.0;
    return 0.5 * x * (1.0 + tanh(SQRT_2_OVER_PI * (x + 0.044715 * x * x * x)));
}
double pl_ref_gelu_tanh_slope(double x) {
    if (fabs(x) > 40.0) return x > 0.0;  // x^2 may overflow
    double t = tanh(SQRT_2_OVER_PI * (x + 0.044715 * x * x * x));
    double dt = (1.0 - t * t) * SQRT_2_OVER_PI * (1.0 + 3.0 * 0.044715 * x * x);
    return 0.5 * (1.0 + t) + 0.5 * x * dt;
}

double pl_ref_activation(pl_activation act, double x) {
    switch (act) {
        case PL_ACT_RELU:
            return x < 0.0 ? 0.0 : x;
        case PL_ACT_GELU:
            return gelu(x);
        case PL_ACT_GELU_TANH:
            return gelu_tanh(x);
        case PL_ACT_NONE:
            break;
    }
    return x;
}

static double unary_float(pl_unary op, double x) {
    switch (op) {
        case PL_UNARY_NEG:
            return -x;
        case PL_UNARY_ABS:
            return fabs(x);
        case PL_UNARY_SIGN:
            return (double)((x > 0.0) - (x < 0.0));
        case PL_UNARY_EXP:
            return exp(x);
        case PL_UNARY_LOG:
            return log(x);
        case PL_UNARY_SQRT:
            return sqrt(x);
        case PL_UNARY_RSQRT:
            return 1.0 / sqrt(x);
        case PL_UNARY_RECIPROCAL:
            return 1.0 / x;
        case PL_UNARY_SQUARE:
            return x * x;
        case PL_UNARY_SIN:
            return sin(x);
        case PL_UNARY_COS:
            return cos(x);
        case PL_UNARY_TANH:
            return tanh(x);
        case PL_UNARY_SIGMOID:
            return sigmoid(x);
        case PL_UNARY_RELU:
            return x < 0.0 ? 0.0 : x;
        case PL_UNARY_GELU:
            return gelu(x);
        case PL_UNARY_GELU_TANH:
            return gelu_tanh(x);
        case PL_UNARY_SILU:
            return pl_ref_silu(x);
        case PL_UNARY_ERF:
            return erf(x);
        case PL_UNARY_FLOOR:
            return floor(x);
        case PL_UNARY_CEIL:
            return ceil(x);
        case PL_UNARY_ROUND:
            return nearbyint(x);
        case PL_UNARY_LOGICAL_NOT:
            return x == 0.0;
        case PL_UNARY_ISNAN:
            return isnan(x);
        case PL_UNARY_ISFINITE:
            return isfinite(x);
        case PL_UNARY_COUNT:
            break;
    }
    return NAN;
}

// Integers. Unsigned arithmetic inside, so that overflow wraps.
static int64_t unary_int(pl_unary op, int64_t x) {
    switch (op) {
        case PL_UNARY_NEG:
            return (int64_t)(0 - (uint64_t)x);
        case PL_UNARY_ABS:
            return x < 0 ? (int64_t)(0 - (uint64_t)x) : x;
        case PL_UNARY_SIGN:
            return (x > 0) - (x < 0);
        case PL_UNARY_SQUARE:
            return (int64_t)((uint64_t)x * (uint64_t)x);
        case PL_UNARY_RELU:
            return x > 0 ? x : 0;
        case PL_UNARY_LOGICAL_NOT:
            return x == 0;
        case PL_UNARY_ISNAN:
            return 0;
        case PL_UNARY_ISFINITE:
            return 1;
        default:
            return x;  // floor, ceil, round
    }
}

static bool unary_takes_int(pl_unary op) {
    switch (op) {
        case PL_UNARY_NEG:
        case PL_UNARY_ABS:
        case PL_UNARY_SIGN:
        case PL_UNARY_SQUARE:
        case PL_UNARY_RELU:
        case PL_UNARY_FLOOR:
        case PL_UNARY_CEIL:
        case PL_UNARY_ROUND:
        case PL_UNARY_LOGICAL_NOT:
        case PL_UNARY_ISNAN:
        case PL_UNARY_ISFINITE:
            return true;
        default:
            return false;
    }
}

pl_status pl_ref_unary(pl_unary op, const pl_tensor *x, pl_tensor *out) {
    if (x->numel == 0) return PL_OK;
    if (ref_is_int(x) && !unary_takes_int(op)) {
        return pl_fail(PL_ETYPE, "[unary] operator %d is not defined for dtype: got %s", (int)op,
                       pl_dtype_name(x->dtype));
    }
    int64_t at[PL_MAX_DIMS] = {0};
    do {
        int64_t i = ref_offset(x, at), o = ref_offset(out, at);
        if (ref_is_int(x)) {
            ref_set_int(out, o, unary_int(op, ref_get_int(x, i)));
        } else {
            ref_set(out, o, unary_float(op, ref_get(x, i)));
        }
    } while (ref_next(x->ndim, x->shape, at));
    return PL_OK;
}

// Python's %: the result has the divisor's sign.
static double remainder_float(double a, double b) {
    double m = fmod(a, b);
    return m != 0.0 && (m < 0.0) != (b < 0.0) ? m + b : m;
}

// Python's //: from the remainder, because floor(a / b) can be one too high where a / b rounds up.
static double floor_divide_float(double a, double b) {
    if (b == 0.0) return a / b;
    double m = fmod(a, b), q = (a - m) / b;
    if (m != 0.0 && (m < 0.0) != (b < 0.0)) q -= 1.0;
    return q == 0.0 ? copysign(0.0, a / b) : nearbyint(q);
}

// The operators that give a bool, alike for integers and floats.
#define TRUTHS(a, b)             \
    case PL_BINARY_EQ:           \
        return a == b;           \
    case PL_BINARY_NE:           \
        return a != b;           \
    case PL_BINARY_LT:           \
        return a < b;            \
    case PL_BINARY_LE:           \
        return a <= b;           \
    case PL_BINARY_GT:           \
        return a > b;            \
    case PL_BINARY_GE:           \
        return a >= b;           \
    case PL_BINARY_LOGICAL_AND:  \
        return a != 0 && b != 0; \
    case PL_BINARY_LOGICAL_OR:   \
        return a != 0 || b != 0; \
    case PL_BINARY_LOGICAL_XOR:  \
        return (a != 0) != (b != 0);

static double binary_float(pl_binary op, double a, double b) {
    switch (op) {
        case PL_BINARY_ADD:
            return a + b;
        case PL_BINARY_SUB:
            return a - b;
        case PL_BINARY_MUL:
            return a * b;
        case PL_BINARY_DIV:
            return a / b;
        case PL_BINARY_POW:
            return pow(a, b);
        case PL_BINARY_MAXIMUM:
            return a > b || isnan(a) ? a : b;
        case PL_BINARY_MINIMUM:
            return a < b || isnan(a) ? a : b;
        case PL_BINARY_REMAINDER:
            return remainder_float(a, b);
        case PL_BINARY_FLOOR_DIVIDE:
            return floor_divide_float(a, b);
            TRUTHS(a, b)
        case PL_BINARY_RELU_GRAD:
            return b <= 0.0 ? 0.0 : a;
        case PL_BINARY_TANH_GRAD:
            return a * (1.0 - b * b);
        case PL_BINARY_SIGMOID_GRAD:
            return a * b * (1.0 - b);
        case PL_BINARY_GELU_GRAD:
            return a * gelu_slope(b);
        case PL_BINARY_GELU_TANH_GRAD:
            return a * pl_ref_gelu_tanh_slope(b);
        case PL_BINARY_SILU_GRAD:
            return a * pl_ref_silu_slope(b);
        case PL_BINARY_COUNT:
            break;
    }
    return NAN;
}

// a to the power b modulo 2^64; a negative power is 1 / a^-b truncated.
static int64_t pow_int(int64_t a, int64_t b) {
    if (b < 0) return a == 1 ? 1 : a == -1 ? (b % 2 == 0 ? 1 : -1) : 0;
    uint64_t result = 1, base = (uint64_t)a;
    for (uint64_t e = (uint64_t)b; e != 0; e >>= 1) {
        if (e & 1) result *= base;
        base *= base;
    }
    return (int64_t)result;
}

// b is not 0. -1 is apart because INT64_MIN / -1 overflows.
static int64_t floor_divide_int(int64_t a, int64_t b) {
    if (b == -1) return (int64_t)(0 - (uint64_t)a);
    return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

static int64_t remainder_int(int64_t a, int64_t b) {
    if (b == -1) return 0;
    int64_t m = a % b;
    return m != 0 && (m < 0) != (b < 0) ? m + b : m;
}

static int64_t binary_int(pl_binary op, int64_t a, int64_t b) {
    switch (op) {
        case PL_BINARY_ADD:
            return (int64_t)((uint64_t)a + (uint64_t)b);
        case PL_BINARY_SUB:
            return (int64_t)((uint64_t)a - (uint64_t)b);
        case PL_BINARY_MUL:
            return (int64_t)((uint64_t)a * (uint64_t)b);
        case PL_BINARY_DIV:
            return b == -1 ? (int64_t)(0 - (uint64_t)a) : a / b;
        case PL_BINARY_POW:
            return pow_int(a, b);
        case PL_BINARY_MAXIMUM:
            return a > b ? a : b;
        case PL_BINARY_MINIMUM:
            return a < b ? a : b;
        case PL_BINARY_REMAINDER:
            return remainder_int(a, b);
        case PL_BINARY_FLOOR_DIVIDE:
            return floor_divide_int(a, b);
            TRUTHS(a, b)
        case PL_BINARY_RELU_GRAD:
            return b > 0 ? a : 0;
        default:
            return 0;
    }
}

static bool divides(pl_binary op) {
    return op == PL_BINARY_DIV || op == PL_BINARY_REMAINDER || op == PL_BINARY_FLOOR_DIVIDE;
}

pl_status pl_ref_binary(pl_binary op, const pl_tensor *a, const pl_tensor *b, pl_tensor *out) {
    if (out->numel == 0) return PL_OK;
    bool integer = ref_is_int(a) && ref_is_int(b);
    if (integer && op > PL_BINARY_RELU_GRAD) {
        return pl_fail(PL_ETYPE, "[binary] operator %d is not defined for dtype: got %s", (int)op,
                       pl_dtype_name(a->dtype));
    }
    int64_t at[PL_MAX_DIMS] = {0};
    do {
        int64_t i = ref_offset(a, at), j = ref_offset(b, at), o = ref_offset(out, at);
        if (!integer) {
            ref_set(out, o, binary_float(op, ref_get(a, i), ref_get(b, j)));
            continue;
        }
        int64_t y = ref_get_int(b, j);
        if (y == 0 && divides(op)) {
            return pl_fail(PL_EINVAL, "[%s] integer division by zero",
                           op == PL_BINARY_REMAINDER ? "remainder" : "floor_divide");
        }
        ref_set_int(out, o, binary_int(op, ref_get_int(a, i), y));
    } while (ref_next(out->ndim, out->shape, at));
    return PL_OK;
}

pl_status pl_ref_where(const pl_tensor *cond, const pl_tensor *a, const pl_tensor *b,
                       pl_tensor *out) {
    if (out->numel == 0) return PL_OK;
    int64_t at[PL_MAX_DIMS] = {0};
    do {
        const pl_tensor *from = ref_get(cond, ref_offset(cond, at)) != 0.0 ? a : b;
        int64_t i = ref_offset(from, at), o = ref_offset(out, at);
        if (ref_is_int(from)) {
            ref_set_int(out, o, ref_get_int(from, i));
        } else {
            ref_set(out, o, ref_get(from, i));
        }
    } while (ref_next(out->ndim, out->shape, at));
    return PL_OK;
}

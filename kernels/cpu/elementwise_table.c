// SPDX-License-Identifier: Apache-2.0
// The elementwise loops, one instance per instruction set, and the operators that have no
// vectorised form: division with a remainder, integer powers, and libm's functions for double.

#include <math.h>

#include "cpu/elementwise.h"
#include "cpu/isa.h"

#define SQRT_HALF 0.70710678118654752440
#define INV_SQRT_2PI 0.39894228040143267794
#define SQRT_2_OVER_PI 0.79788456080286535588

// Python's %: the result has the divisor's sign.
static double remainder_float(double a, double b) {
    double m = fmod(a, b);
    return m != 0.0 && (m < 0.0) != (b < 0.0) ? m + b : m;
}

// Python's //: by way of the remainder, because a / b may round up to the next integer.
static double floor_divide_float(double a, double b) {
    if (b == 0.0) return a / b;
    double m = fmod(a, b), q = (a - m) / b;
    if (m != 0.0 && (m < 0.0) != (b < 0.0)) q -= 1.0;
    return q == 0.0 ? copysign(0.0, a / b) : rint(q);
}

// b is not 0 in these three (checked before). -1 is apart because INT64_MIN / -1 overflows.
static int64_t divide_int(int64_t a, int64_t b) {
    return b == -1 ? (int64_t)(0 - (uint64_t)a) : a / b;
}
static int64_t floor_divide_int(int64_t a, int64_t b) {
    if (b == -1) return (int64_t)(0 - (uint64_t)a);
    return a / b - (a % b != 0 && (a < 0) != (b < 0));
}
static int64_t remainder_int(int64_t a, int64_t b) {
    int64_t m = b == -1 ? 0 : a % b;
    return m != 0 && (m < 0) != (b < 0) ? m + b : m;
}

// Modulo 2^64, by squaring; 1 / a^-b truncated where b is negative.
static int64_t power_int(int64_t a, int64_t b) {
    if (b < 0) return a == 1 ? 1 : a == -1 ? (b % 2 == 0 ? 1 : -1) : 0;
    uint64_t result = 1, base = (uint64_t)a;
    for (; b != 0; b >>= 1) {
        if (b & 1) result *= base;
        base *= base;
    }
    return (int64_t)result;
}

static double sigmoid(double x) { return 1.0 / (1.0 + exp(-x)); }
static double normal_cdf(double x) { return 0.5 * erfc(-x * SQRT_HALF); }
// Beyond +-40 the slope is 1 or 0; without the bound x^2 or inf * 0 would spoil it.
static double bounded(double x, double at) { return x > at ? at : x < -at ? -at : x; }
static double gelu_slope(double x) {
    double c = bounded(x, 40.0);
    return normal_cdf(x) + c * INV_SQRT_2PI * exp(-0.5 * c * c);
}
static double tanh_argument(double x) { return SQRT_2_OVER_PI * (x + 0.044715 * x * x * x); }
static double gelu_tanh_slope(double x) {
    double c = bounded(x, 40.0), s = sigmoid(2.0 * tanh_argument(c));
    return s + c * s * (1.0 - s) * 2.0 * SQRT_2_OVER_PI * (1.0 + 3.0 * 0.044715 * c * c);
}
static double silu_slope(double x) {
    double c = bounded(x, 746.0), s = sigmoid(c);
    return s * (1.0 + c * (1.0 - s));
}

#define PL_LOOPS "cpu/elementwise_loops.h"
#include "cpu/each_isa.h"

const pl_elementwise *pl__cpu_elementwise(void) { return PL_ISA_PICK(elementwise); }

// SPDX-License-Identifier: Apache-2.0
// normal: Box-Muller in double, part of Note [random streams] (ref/random.c). Only + - * / and
// square root, each rounded once and in this order, so that every processor and instruction set
// gives the same bits, which libm does not promise. Within 4e-16 of the exact functions (relative
// to the radius). A device includes it, or repeats it operation by operation, unfused.
#ifndef PL_KERNELS_NORMAL_H
#define PL_KERNELS_NORMAL_H

#include <stdint.h>

#ifndef PL_NORMAL_FN  // a device's compiler has its own words for both
#define PL_NORMAL_FN static inline __attribute__((always_inline, unused))
#define PL_NORMAL_SQRT(x) __builtin_sqrt(x)
#endif

PL_NORMAL_FN uint64_t pl_normal_bits(double x) {
    union {
        double d;
        uint64_t u;
    } v = {x};
    return v.u;
}

PL_NORMAL_FN double pl_normal_from_bits(uint64_t u) {
    union {
        uint64_t u;
        double d;
    } v = {u};
    return v.d;
}

// ln u for 2^-60 <= u <= 1: u = 2^e m with m in [sqrt(1/2), sqrt(2)), and with s = (m-1)/(m+1)
// ln m = 2 (s + s^3/3 + s^5/5 + ...), |s| < 0.172: the term after s^21 is below 2^-62.
PL_NORMAL_FN double pl_normal_log(double u) {
    const uint64_t root_half = 0x3fe6a09e667f3bcd, bias = (uint64_t)256 << 52;
    uint64_t bits = pl_normal_bits(u);
    uint64_t biased = (bits - root_half + bias) >> 52;  // e + 256
    double m = pl_normal_from_bits(bits - (biased << 52) + bias);
    double e = pl_normal_from_bits(biased | (uint64_t)0x433 << 52) - (0x1p52 + 256.0);
    double s = (m - 1.0) / (m + 1.0), t = s * s;
    double p = 1.0 / 21.0;
    p = p * t + 1.0 / 19.0;
    p = p * t + 1.0 / 17.0;
    p = p * t + 1.0 / 15.0;
    p = p * t + 1.0 / 13.0;
    p = p * t + 1.0 / 11.0;
    p = p * t + 1.0 / 9.0;
    p = p * t + 1.0 / 7.0;
    p = p * t + 1.0 / 5.0;
    p = p * t + 1.0 / 3.0;
    double low = s * t * p + e * (0.5 * 0x1.cf79abc9e3b39p-40);  // half of ln 2's lower part
    return e * 0x1.62e42fefap-1 + 2.0 * (s + low);
}

// cos and sin of 2 pi u for 0 <= u < 1: u is a quarter turn q plus r, |r| <= 1/8, and Taylor's
// series of x = 2 pi r, |x| <= pi/4, to x^16.
PL_NORMAL_FN void pl_normal_turn(double u, double *cosine, double *sine) {
    double shifted = 4.0 * u + 0x1.8p52;
    uint64_t q = pl_normal_bits(shifted) & 3;
    double x = (u - (shifted - 0x1.8p52) * 0.25) * 6.283185307179586, t = x * x;
    double s = -1.0 / 1307674368000.0;
    s = s * t + 1.0 / 6227020800.0;
    s = s * t - 1.0 / 39916800.0;
    s = s * t + 1.0 / 362880.0;
    s = s * t - 1.0 / 5040.0;
    s = s * t + 1.0 / 120.0;
    s = s * t - 1.0 / 6.0;
    s = x + x * t * s;
    double c = 1.0 / 20922789888000.0;
    c = c * t - 1.0 / 87178291200.0;
    c = c * t + 1.0 / 479001600.0;
    c = c * t - 1.0 / 3628800.0;
    c = c * t + 1.0 / 40320.0;
    c = c * t - 1.0 / 720.0;
    c = c * t + 1.0 / 24.0;
    c = c * t - 0.5;
    c = c * t + 1.0;
    double first = (q & 1) != 0 ? s : c, second = (q & 1) != 0 ? c : s;
    *cosine = pl_normal_from_bits(pl_normal_bits(first) ^ ((q + 1) & 2) << 62);
    *sine = pl_normal_from_bits(pl_normal_bits(second) ^ (q & 2) << 62);
}

// u1 in (0, 1] and u2 in [0, 1) make two independent normal values.
PL_NORMAL_FN void pl_normal_pair(double u1, double u2, double *z0, double *z1) {
    double c, s, radius = PL_NORMAL_SQRT(-2.0 * pl_normal_log(u1));
    pl_normal_turn(u2, &c, &s);
    *z0 = radius * c;
    *z1 = radius * s;
}

#endif

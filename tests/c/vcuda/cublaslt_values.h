// SPDX-License-Identifier: Apache-2.0
// cublaslt_values: elements of the stand-in's types, and the functions of its epilogues.
#ifndef VCUDA_CUBLASLT_VALUES_H
#define VCUDA_CUBLASLT_VALUES_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { R_32F = 0, R_64F = 1, R_16F = 2, R_16BF = 14 };

static size_t size_of(int type) {
    return type == R_64F ? 8 : type == R_32F ? 4 : type == R_16F || type == R_16BF ? 2 : 0;
}

static double widen(int type, const char *p, int64_t i) {
    if (type == R_64F) return ((const double *)p)[i];
    if (type == R_32F) return (double)((const float *)p)[i];
    uint16_t bits = ((const uint16_t *)p)[i];
    if (type == R_16BF) {
        uint32_t up = (uint32_t)bits << 16;
        float f;
        memcpy(&f, &up, sizeof f);
        return (double)f;
    }
    _Float16 h;
    memcpy(&h, &bits, sizeof h);
    return (double)h;
}

static void narrow(int type, char *p, int64_t i, double v) {
    float f = (float)v;
    if (type == R_64F) {
        ((double *)p)[i] = v;
    } else if (type == R_32F) {
        ((float *)p)[i] = f;
    } else if (type == R_16BF) {
        uint32_t u;
        memcpy(&u, &f, sizeof u);
        bool nan = isnan(f);
        ((uint16_t *)p)[i] =
            (uint16_t)(nan ? (u >> 16) | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16);
    } else {
        _Float16 h = (_Float16)f;
        memcpy(p + 2 * i, &h, sizeof h);
    }
}

// Ten bits of fraction stay; NaN and infinity too.
static double as_tf32(double v) {
    float f = (float)v;
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    if (isfinite(f)) bits = (bits + 0x1000) & ~UINT32_C(0x1fff);
    memcpy(&f, &bits, sizeof f);
    return (double)f;
}

static double gelu(double x) {
    return 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}

static double gelu_slope(double x) {
    double t = tanh(0.7978845608028654 * (x + 0.044715 * x * x * x));
    return 0.5 * (1.0 + t) +
           0.5 * x * (1.0 - t * t) * 0.7978845608028654 * (1.0 + 0.134145 * x * x);
}

#endif

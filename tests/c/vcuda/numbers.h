// SPDX-License-Identifier: Apache-2.0
// numbers: 16-bit floating-point numbers for the stand-ins of CUDA's libraries.
#ifndef VCUDA_NUMBERS_H
#define VCUDA_NUMBERS_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

static inline float vcuda_from_16(bool bf16, uint16_t bits) {
    if (bf16) {
        uint32_t up = (uint32_t)bits << 16;
        float f;
        memcpy(&f, &up, sizeof f);
        return f;
    }
    _Float16 h;
    memcpy(&h, &bits, sizeof h);
    return (float)h;
}

static inline uint16_t vcuda_to_16(bool bf16, float f) {
    uint16_t bits;
    if (bf16) {
        uint32_t u;
        memcpy(&u, &f, sizeof u);
        return (uint16_t)(isnan(f) ? (u >> 16) | 0x40 : (u + 0x7fff + (u >> 16 & 1)) >> 16);
    }
    _Float16 h = (_Float16)f;
    memcpy(&bits, &h, sizeof bits);
    return bits;
}

#endif

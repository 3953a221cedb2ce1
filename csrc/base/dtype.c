// SPDX-License-Identifier: Apache-2.0
// dtype: sizes, names, promotion and the conversions of half precision that need more than a
// shift. Knows no buffer: kernels convert arrays. Pure functions, any thread.
#include <string.h>

#include "base/base.h"

size_t pl_dtype_size(pl_dtype dt) {
    static const uint8_t sizes[] = {
#define X(name, text, size, kind) size,
        PL_DTYPE_MAP(X)
#undef X
    };
    return (unsigned)dt < PL_DTYPE_COUNT ? sizes[dt] : 0;
}

const char *pl_dtype_name(pl_dtype dt) {
    static const char *const names[] = {
#define X(name, text, size, kind) text,
        PL_DTYPE_MAP(X)
#undef X
    };
    return (unsigned)dt < PL_DTYPE_COUNT ? names[dt] : "?";
}

char pl_dtype_kind(pl_dtype dt) {
    static const char kinds[] = {
#define X(name, text, size, kind) kind,
        PL_DTYPE_MAP(X)
#undef X
    };
    return (unsigned)dt < PL_DTYPE_COUNT ? kinds[dt] : '?';
}

// The enum's order is that of promotion (bool < u8 < i32 < i64 < floats), with one exception: of
// f16 and bf16 neither holds the other.
pl_dtype pl_dtype_promote(pl_dtype a, pl_dtype b) {
    pl_dtype lo = a < b ? a : b;
    pl_dtype hi = a < b ? b : a;
    if (lo == PL_F16 && hi == PL_BF16) return PL_F32;
    return hi;
}

static uint32_t float_bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static float bits_float(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

float pl_f16_to_f32(pl_f16 h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 0x1fu;
    uint32_t fraction = h & 0x3ffu;
    if (exponent == 0x1f) {  // infinity; NaN, made quiet
        uint32_t quiet = fraction ? 0x400000u : 0;
        return bits_float(sign | 0x7f800000u | quiet | (fraction << 13));
    }
    if (exponent == 0) {  // zero or denormal: fraction * 2^-24 is exact in f32
        float magnitude = (float)fraction * 0x1p-24f;
        return bits_float(sign | float_bits(magnitude));
    }
    return bits_float(sign | ((exponent + 112) << 23) | (fraction << 13));
}

// Round to nearest even; overflow to infinity; NaN stays NaN (quiet, sign and high payload kept).
pl_f16 pl_f32_to_f16(float f) {
    uint32_t u = float_bits(f);
    uint32_t sign = (u >> 16) & 0x8000u;
    uint32_t magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return (pl_f16)(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
    }
    if (magnitude >= 0x477ff000u) return (pl_f16)(sign | 0x7c00u);  // 65520 and up
    if (magnitude < 0x38800000u) {                                  // below 2^-14: denormal
        // 0.5 has an ulp of 2^-24, f16's smallest step, so the addition does the rounding.
        uint32_t rounded = float_bits(bits_float(magnitude) + 0.5f);
        return (pl_f16)(sign | (rounded - 0x3f000000u));
    }
    uint32_t odd = (magnitude >> 13) & 1u;
    uint32_t rounded = magnitude - 0x38000000u + 0xfffu + odd;  // exponent rebased by 112
    return (pl_f16)(sign | (rounded >> 13));
}

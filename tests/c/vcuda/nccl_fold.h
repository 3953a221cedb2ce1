// SPDX-License-Identifier: Apache-2.0
// The arithmetic of the fake NCCL: rank after rank, each sum rounded to the element's type, as a
// ring does it.
#ifndef VCUDA_NCCL_FOLD_H
#define VCUDA_NCCL_FOLD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { FOLD_SUM = 0, FOLD_MAX = 2, FOLD_MIN = 3, FOLD_AVG = 4 };

static inline float from_half(uint16_t h) {
    int exponent = h >> 10 & 31;
    float m = (float)(h & 1023), sign = h >> 15 ? -1.0f : 1.0f;
    if (exponent == 0) return sign * ldexpf(m, -24);
    if (exponent == 31) return m != 0 ? NAN : sign * INFINITY;
    return sign * ldexpf(1024 + m, exponent - 25);
}

static inline uint16_t to_half(float f) {
    uint16_t sign = signbit(f) ? 0x8000 : 0;
    float a = fabsf(f);
    if (isnan(f)) return 0x7e00;
    if (a == 0) return sign;
    if (a >= 65520.0f) return (uint16_t)(sign | 0x7c00);
    int exponent;
    (void)frexpf(a, &exponent);
    int unit = exponent - 11 < -24 ? -24 : exponent - 11;  // of the last place
    uint32_t n = (uint32_t)nearbyintf(ldexpf(a, -unit));
    if (unit == -24) return (uint16_t)(sign | n);  // 1024 is the smallest normal number's code
    return (uint16_t)(sign | (((uint32_t)(unit + 24) << 10) + n));
}

static inline float from_bf16(uint16_t h) {
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline uint16_t to_bf16(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if (isnan(f)) return (uint16_t)(u >> 16 | 64);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

#define FOLD(name, type, mid, load, store, is_nan)                                            \
    static inline void name(void *out, const void *const *in, int n_in, uint64_t n, int op) { \
        for (uint64_t i = 0; i < n; i++) {                                                    \
            type e;                                                                           \
            memcpy(&e, (const char *)in[0] + i * sizeof e, sizeof e);                         \
            mid a = load(e);                                                                  \
            for (int r = 1; r < n_in; r++) {                                                  \
                memcpy(&e, (const char *)in[r] + i * sizeof e, sizeof e);                     \
                mid b = load(e);                                                              \
                if (op == FOLD_MAX) a = is_nan(b) || b > a ? b : a;                           \
                else if (op == FOLD_MIN) a = is_nan(b) || b < a ? b : a;                      \
                else a = load(store((mid)(a + b)));                                           \
            }                                                                                 \
            if (op == FOLD_AVG) a = (mid)(a / (mid)n_in);                                     \
            e = store(a);                                                                     \
            memcpy((char *)out + i * sizeof e, &e, sizeof e);                                 \
        }                                                                                     \
    }
#define SAME(x) (x)
#define NEVER(x) 0
#define TO_U8(x) ((uint8_t)(x))
#define TO_I32(x) ((int32_t)(uint32_t)(x))
#define TO_I64(x) ((int64_t)(x))
FOLD(fold_u8, uint8_t, uint32_t, SAME, TO_U8, NEVER)
FOLD(fold_i32, int32_t, int64_t, SAME, TO_I32, NEVER)
FOLD(fold_i64, int64_t, int64_t, SAME, TO_I64, NEVER)
FOLD(fold_f32, float, float, SAME, SAME, isnan)
FOLD(fold_f64, double, double, SAME, SAME, isnan)
FOLD(fold_half, uint16_t, float, from_half, to_half, isnan)
FOLD(fold_bf16, uint16_t, float, from_bf16, to_bf16, isnan)

typedef void (*fold_fn)(void *out, const void *const *in, int n_in, uint64_t n, int op);

// By ncclDataType_t; NULL where this project has no such type.
static inline fold_fn fold_of(int dtype) {
    static const fold_fn folds[] = {[1] = fold_u8,  [2] = fold_i32, [4] = fold_i64, [6] = fold_half,
                                    [7] = fold_f32, [8] = fold_f64, [9] = fold_bf16};
    return dtype >= 0 && dtype < 10 ? folds[dtype] : NULL;
}

static inline size_t size_of(int dtype) {
    static const size_t sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};
    return dtype >= 0 && dtype < 10 ? sizes[dtype] : 0;
}

#endif

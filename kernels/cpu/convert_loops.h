// SPDX-License-Identifier: Apache-2.0
// The loops of convert.c; included by each_isa.h only.

// A dense loop, a repeated element and a strided one: the first is the one that vectorises.
#define LOAD(id, S, C, expr)                                                           \
    ISA_TARGET static void ISA(load_##id)(int64_t n, const void *psrc, int64_t stride, \
                                          void *pdst) {                                \
        const S *restrict src = psrc;                                                  \
        C *restrict dst = pdst;                                                        \
        if (stride == 1) {                                                             \
            for (int64_t i = 0; i < n; i++) {                                          \
                S v = src[i];                                                          \
                dst[i] = (expr);                                                       \
            }                                                                          \
        } else if (stride == 0) {                                                      \
            S v = src[0];                                                              \
            C w = (expr);                                                              \
            for (int64_t i = 0; i < n; i++) dst[i] = w;                                \
        } else {                                                                       \
            for (int64_t i = 0; i < n; i++) {                                          \
                S v = src[i * stride];                                                 \
                dst[i] = (expr);                                                       \
            }                                                                          \
        }                                                                              \
    }

#define STORE(id, C, D, expr)                                                       \
    ISA_TARGET static void ISA(store_##id)(int64_t n, const void *psrc, void *pdst, \
                                           int64_t stride) {                        \
        const C *restrict src = psrc;                                               \
        D *restrict dst = pdst;                                                     \
        if (stride == 1) {                                                          \
            for (int64_t i = 0; i < n; i++) {                                       \
                C v = src[i];                                                       \
                dst[i] = (expr);                                                    \
            }                                                                       \
        } else {                                                                    \
            for (int64_t i = 0; i < n; i++) {                                       \
                C v = src[i];                                                       \
                dst[i * stride] = (expr);                                           \
            }                                                                       \
        }                                                                           \
    }

LOAD(bool, uint8_t, int64_t, v != 0)
LOAD(u8, uint8_t, int64_t, v)
LOAD(i32, int32_t, int64_t, v)
LOAD(bf16, pl_bf16, float, pl_bf16_to_f32(v))
LOAD(raw1, uint8_t, uint8_t, v)
LOAD(raw2, uint16_t, uint16_t, v)
LOAD(raw4, uint32_t, uint32_t, v)
LOAD(raw8, uint64_t, uint64_t, v)

// Float to integer truncates. What does not fit, and NaN, becomes the smallest integer: the value
// is replaced before the conversion, which would be undefined.
#define FITS64(v) ((v) >= -0x1p63 && (v) < 0x1p63 ? (v) : -0x1p63)
#define FITS64F(v) ((v) >= -0x1p63f && (v) < 0x1p63f ? (v) : -0x1p63f)
#define FITS32(v) ((v) > -0x1p31 - 1.0 && (v) < 0x1p31 ? (v) : -0x1p31)
#define FITS32F(v) ((v) >= -0x1p31f && (v) < 0x1p31f ? (v) : -0x1p31f)

STORE(f32_bool, float, uint8_t, v != 0.0f)
STORE(f32_u8, float, uint8_t, (uint8_t)(uint64_t)(int64_t)FITS64F(v))
STORE(f32_i32, float, int32_t, (int32_t)FITS32F(v))
STORE(f32_i64, float, int64_t, (int64_t)FITS64F(v))
STORE(f32_bf16, float, pl_bf16, pl_f32_to_bf16(v))
STORE(f32_f64, float, double, (double)v)
STORE(f64_bool, double, uint8_t, v != 0.0)
STORE(f64_u8, double, uint8_t, (uint8_t)(uint64_t)(int64_t)FITS64(v))
STORE(f64_i32, double, int32_t, (int32_t)FITS32(v))
STORE(f64_i64, double, int64_t, (int64_t)FITS64(v))
STORE(f64_f16, double, pl_f16, pl_f32_to_f16((float)v))
STORE(f64_bf16, double, pl_bf16, pl_f32_to_bf16((float)v))
STORE(f64_f32, double, float, (float)v)
STORE(i64_bool, int64_t, uint8_t, v != 0)
STORE(i64_u8, int64_t, uint8_t, (uint8_t)(uint64_t)v)
STORE(i64_i32, int64_t, int32_t, (int32_t)(uint32_t)(uint64_t)v)
STORE(i64_f16, int64_t, pl_f16, pl_f32_to_f16((float)v))
STORE(i64_bf16, int64_t, pl_bf16, pl_f32_to_bf16((float)v))
STORE(i64_f32, int64_t, float, (float)v)
STORE(i64_f64, int64_t, double, (double)v)
STORE(raw1, uint8_t, uint8_t, v)
STORE(raw2, uint16_t, uint16_t, v)
STORE(raw4, uint32_t, uint32_t, v)
STORE(raw8, uint64_t, uint64_t, v)

// f16: the processor's own conversion, eight at a time, where there is one.
LOAD(f16_each, pl_f16, float, pl_f16_to_f32(v))
STORE(f32_f16_each, float, pl_f16, pl_f32_to_f16(v))

ISA_TARGET static void ISA(load_f16)(int64_t n, const void *psrc, int64_t stride, void *pdst) {
    int64_t i = 0;
#if ISA_LEVEL > 0
    const pl_f16 *src = psrc;
    float *dst = pdst;
    for (; stride == 1 && i + 8 <= n; i += 8) {
        __m128i h = _mm_loadu_si128((const __m128i *)(const void *)(src + i));
        _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(h));
    }
#endif
    ISA(load_f16_each)(n - i, (const pl_f16 *)psrc + i * stride, stride, (float *)pdst + i);
}

ISA_TARGET static void ISA(store_f32_f16)(int64_t n, const void *psrc, void *pdst, int64_t stride) {
    int64_t i = 0;
#if ISA_LEVEL > 0
    const float *src = psrc;
    pl_f16 *dst = pdst;
    for (; stride == 1 && i + 8 <= n; i += 8) {
        __m128i h = _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT);
        _mm_storeu_si128((__m128i *)(void *)(dst + i), h);
    }
#endif
    ISA(store_f32_f16_each)(n - i, (const float *)psrc + i, (pl_f16 *)pdst + i * stride, stride);
}

static const pl_convert ISA(convert) = {
    .load = {[PL_BOOL] = ISA(load_bool),
             [PL_U8] = ISA(load_u8),
             [PL_I32] = ISA(load_i32),
             [PL_I64] = ISA(load_raw8),
             [PL_F16] = ISA(load_f16),
             [PL_BF16] = ISA(load_bf16),
             [PL_F32] = ISA(load_raw4),
             [PL_F64] = ISA(load_raw8)},
    .store = {[PL_C_F32] = {[PL_BOOL] = ISA(store_f32_bool),
                            [PL_U8] = ISA(store_f32_u8),
                            [PL_I32] = ISA(store_f32_i32),
                            [PL_I64] = ISA(store_f32_i64),
                            [PL_F16] = ISA(store_f32_f16),
                            [PL_BF16] = ISA(store_f32_bf16),
                            [PL_F32] = ISA(store_raw4),
                            [PL_F64] = ISA(store_f32_f64)},
              [PL_C_F64] = {[PL_BOOL] = ISA(store_f64_bool),
                            [PL_U8] = ISA(store_f64_u8),
                            [PL_I32] = ISA(store_f64_i32),
                            [PL_I64] = ISA(store_f64_i64),
                            [PL_F16] = ISA(store_f64_f16),
                            [PL_BF16] = ISA(store_f64_bf16),
                            [PL_F32] = ISA(store_f64_f32),
                            [PL_F64] = ISA(store_raw8)},
              [PL_C_I64] = {[PL_BOOL] = ISA(store_i64_bool),
                            [PL_U8] = ISA(store_i64_u8),
                            [PL_I32] = ISA(store_i64_i32),
                            [PL_I64] = ISA(store_raw8),
                            [PL_F16] = ISA(store_i64_f16),
                            [PL_BF16] = ISA(store_i64_bf16),
                            [PL_F32] = ISA(store_i64_f32),
                            [PL_F64] = ISA(store_i64_f64)}},
    .pick = {ISA(load_raw1), ISA(load_raw2), ISA(load_raw4), ISA(load_raw8)},
    .put = {ISA(store_raw1), ISA(store_raw2), ISA(store_raw4), ISA(store_raw8)},
};

#undef LOAD
#undef STORE
#undef FITS64
#undef FITS64F
#undef FITS32
#undef FITS32F

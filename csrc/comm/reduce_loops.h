// SPDX-License-Identifier: Apache-2.0
// The loops of reduce.c for one instruction set; included once per set with LOOPS_NAME(x),
// LOOPS_TARGET (an attribute) and LOOPS_LEVEL (0: baseline, 1: AVX2 + F16C, 2: AVX-512) defined.
//
// Written in vector types of 64 bytes, which the compiler lowers to what the set has: no epilogue
// and no peeling, so an element takes the same instructions wherever it stands. n counts elements
// and is a multiple of 64 / size. The pointers need no alignment; a destination may be a source.

// Shared memory has small pages, and no processor asks for memory beyond the end of one by itself:
// so the loop looks at what it will read a page later (43 MB in buckets of 2 MiB: 1.37 ms without,
// 1.05 with it, on two ranks).
#define AHEAD 4096  // bytes

// d0 (and d1, unless NULL) = EXPR of x and y.
#define FOLD(name, V, EXPR)                                                                     \
    LOOPS_TARGET static void LOOPS_NAME(name)(const void *a, const void *b, void *d0, void *d1, \
                                              int64_t n, double scale) {                        \
        const V *va = a, *vb = b;                                                               \
        V *v0 = d0, *v1 = d1;                                                                   \
        n /= (int64_t)(sizeof(V) / sizeof(va[0][0]));                                           \
        (void)scale;                                                                            \
        if (v1) {                                                                               \
            for (int64_t i = 0; i < n; i++) {                                                   \
                __builtin_prefetch((const char *)(va + i) + AHEAD);                             \
                __builtin_prefetch((const char *)(vb + i) + AHEAD);                             \
                V x = va[i], y = vb[i];                                                         \
                V r = EXPR;                                                                     \
                v0[i] = r;                                                                      \
                v1[i] = r;                                                                      \
            }                                                                                   \
        } else {                                                                                \
            for (int64_t i = 0; i < n; i++) {                                                   \
                V x = va[i], y = vb[i];                                                         \
                v0[i] = EXPR;                                                                   \
            }                                                                                   \
        }                                                                                       \
    }

// Takes x where `take` is all ones, else y.
#define PICK(V, I, take) ((V)(((take) & (I)x) | (~(take) & (I)y)))
#define MAX_OF(V, I) PICK(V, I, (I)((x > y) | (x != x)))
#define MIN_OF(V, I) PICK(V, I, (I)((x < y) | (x != x)))

FOLD(sum_f32, v_f32, x + y)
FOLD(mul_f32, v_f32, (x + y) * (float)scale)
FOLD(div_f32, v_f32, (x + y) / (float)scale)
FOLD(max_f32, v_f32, MAX_OF(v_f32, v_i32))
FOLD(min_f32, v_f32, MIN_OF(v_f32, v_i32))
FOLD(sum_f64, v_f64, x + y)
FOLD(mul_f64, v_f64, (x + y) * scale)
FOLD(div_f64, v_f64, (x + y) / scale)
FOLD(max_f64, v_f64, MAX_OF(v_f64, v_i64))
FOLD(min_f64, v_f64, MIN_OF(v_f64, v_i64))
FOLD(sum_i32, v_u32, x + y)
FOLD(max_i32, v_i32, MAX_OF(v_i32, v_i32))
FOLD(min_i32, v_i32, MIN_OF(v_i32, v_i32))
FOLD(sum_i64, v_u64, x + y)
FOLD(max_i64, v_i64, MAX_OF(v_i64, v_i64))
FOLD(min_i64, v_i64, MIN_OF(v_i64, v_i64))
FOLD(sum_u8, v_u8, x + y)
FOLD(max_u8, v_u8, MAX_OF(v_u8, v_u8))
FOLD(min_u8, v_u8, MIN_OF(v_u8, v_u8))
FOLD(or_u8, v_u8, x | y)
FOLD(and_u8, v_u8, x &y)
#undef FOLD
#undef AHEAD
#undef PICK
#undef MAX_OF
#undef MIN_OF

// Conversions between vectors of 16 and of 32 bits are spelled out: compilers lower the generic
// ones to shuffles that cost five times as much.
LOOPS_TARGET static void LOOPS_NAME(load_bf16)(const void *src, float *dst, int64_t n) {
    const pl_bf16 *s = src;
#if LOOPS_LEVEL == 2
    for (int64_t i = 0; i < n; i += 16) {
        __m512i w = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i_u *)(s + i)));
        _mm512_storeu_si512(dst + i, _mm512_slli_epi32(w, 16));
    }
#elif LOOPS_LEVEL == 1
    for (int64_t i = 0; i < n; i += 8) {
        __m256i w = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i_u *)(s + i)));
        _mm256_storeu_si256((__m256i_u *)(void *)(dst + i), _mm256_slli_epi32(w, 16));
    }
#else
    for (int64_t i = 0; i < n; i++) dst[i] = pl_bf16_to_f32(s[i]);
#endif
}

// pl_f32_to_bf16: to nearest even, NaN stays NaN. Not VCVTNEPS2BF16, which flushes subnormals.
LOOPS_TARGET static void LOOPS_NAME(store_bf16)(const float *src, void *dst, int64_t n) {
    pl_bf16 *d = dst;
#if LOOPS_LEVEL > 0
    for (int64_t i = 0; i < n; i += 16) {
        v_u32 u = *(const v_u32 *)(const void *)(src + i);
        v_u32 nan = (v_u32)((u & 0x7fffffffu) > 0x7f800000u);
        v_u32 r = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
        r = (nan & ((u >> 16) | 0x40u)) | (~nan & r);
#if LOOPS_LEVEL == 2
        _mm256_storeu_si256((__m256i_u *)(d + i), _mm512_cvtepi32_epi16((__m512i)r));
#else
        __m256i half[2];
        __builtin_memcpy(half, &r, sizeof half);
        // Packing works within halves of 128 bits: put the quarters back in order.
        __m256i packed = _mm256_packus_epi32(half[0], half[1]);
        _mm256_storeu_si256((__m256i_u *)(d + i), _mm256_permute4x64_epi64(packed, 0xd8));
#endif
    }
#else
    for (int64_t i = 0; i < n; i++) d[i] = pl_f32_to_bf16(src[i]);
#endif
}

LOOPS_TARGET static void LOOPS_NAME(load_f16)(const void *src, float *dst, int64_t n) {
    const pl_f16 *s = src;
#if LOOPS_LEVEL == 2
    for (int64_t i = 0; i < n; i += 16) {
        _mm512_storeu_ps(dst + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i_u *)(s + i))));
    }
#elif LOOPS_LEVEL == 1
    for (int64_t i = 0; i < n; i += 8) {
        _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i_u *)(s + i))));
    }
#else
    for (int64_t i = 0; i < n; i++) dst[i] = pl_f16_to_f32(s[i]);
#endif
}

LOOPS_TARGET static void LOOPS_NAME(store_f16)(const float *src, void *dst, int64_t n) {
    pl_f16 *d = dst;
#if LOOPS_LEVEL == 2
    for (int64_t i = 0; i < n; i += 16) {
        _mm256_storeu_si256((__m256i_u *)(d + i),
                            _mm512_cvtps_ph(_mm512_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
    }
#elif LOOPS_LEVEL == 1
    for (int64_t i = 0; i < n; i += 8) {
        _mm_storeu_si128((__m128i_u *)(d + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
    }
#else
    for (int64_t i = 0; i < n; i++) d[i] = pl_f32_to_f16(src[i]);
#endif
}

static const loops LOOPS_NAME(table) = {
#define T(name) LOOPS_NAME(name)
    .fold =
        {
            [PL_BOOL] = {T(or_u8), NULL, NULL, T(or_u8), T(and_u8)},
            [PL_U8] = {T(sum_u8), NULL, NULL, T(max_u8), T(min_u8)},
            [PL_I32] = {T(sum_i32), NULL, NULL, T(max_i32), T(min_i32)},
            [PL_I64] = {T(sum_i64), NULL, NULL, T(max_i64), T(min_i64)},
            [PL_F32] = {T(sum_f32), T(mul_f32), T(div_f32), T(max_f32), T(min_f32)},
            [PL_F64] = {T(sum_f64), T(mul_f64), T(div_f64), T(max_f64), T(min_f64)},
        },
    .load = {[PL_BF16] = T(load_bf16), [PL_F16] = T(load_f16)},
    .store = {[PL_BF16] = T(store_bf16), [PL_F16] = T(store_f16)},
#undef T
};

#undef LOOPS_NAME
#undef LOOPS_TARGET
#undef LOOPS_LEVEL

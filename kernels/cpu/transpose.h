// SPDX-License-Identifier: Apache-2.0
// transpose: one square tile in the first cache, by small blocks in registers (SSE2, which every
// x86-64 has). Private to copy.c.
#ifndef PL_KERNELS_CPU_TRANSPOSE_H
#define PL_KERNELS_CPU_TRANSPOSE_H

#include <stdint.h>
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#define TILE 64

// to[c][r] = from[r][c] for r < rows and c < cols; both tiles have rows of TILE elements.
#define PLAIN_TRANSPOSE(name, T)                                                           \
    static void name(const T *restrict from, T *restrict to, int64_t rows, int64_t cols) { \
        for (int64_t c = 0; c < cols; c++) {                                               \
            for (int64_t r = 0; r < rows; r++) to[c * TILE + r] = from[r * TILE + c];      \
        }                                                                                  \
    }
PLAIN_TRANSPOSE(transpose_1, uint8_t)
PLAIN_TRANSPOSE(transpose_8, uint64_t)

#if defined(__x86_64__)
static __m128i load_row(const void *p) { return _mm_loadu_si128(p); }
static void store_row(void *p, __m128i v) { _mm_storeu_si128(p, v); }

// 8 x 8 elements: pairs of rows, then of pairs, then of fours are interleaved.
static void block_2(const uint16_t *from, uint16_t *to) {
    __m128i a[8], b[8];
    for (int i = 0; i < 8; i++) a[i] = load_row(from + i * TILE);
    for (int i = 0; i < 4; i++) {
        b[2 * i] = _mm_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        for (int k = 0; k < 2; k++) {
            a[4 * i + 2 * k] = _mm_unpacklo_epi32(b[4 * i + k], b[4 * i + 2 + k]);
            a[4 * i + 2 * k + 1] = _mm_unpackhi_epi32(b[4 * i + k], b[4 * i + 2 + k]);
        }
    }
    for (int i = 0; i < 4; i++) {
        store_row(to + 2 * i * TILE, _mm_unpacklo_epi64(a[i], a[4 + i]));
        store_row(to + (2 * i + 1) * TILE, _mm_unpackhi_epi64(a[i], a[4 + i]));
    }
}

// 4 x 4 elements, likewise.
static void block_4(const uint32_t *from, uint32_t *to) {
    __m128i a = load_row(from), b = load_row(from + TILE);
    __m128i c = load_row(from + 2 * TILE), d = load_row(from + 3 * TILE);
    __m128i ab = _mm_unpacklo_epi32(a, b), ab_high = _mm_unpackhi_epi32(a, b);
    __m128i cd = _mm_unpacklo_epi32(c, d), cd_high = _mm_unpackhi_epi32(c, d);
    store_row(to, _mm_unpacklo_epi64(ab, cd));
    store_row(to + TILE, _mm_unpackhi_epi64(ab, cd));
    store_row(to + 2 * TILE, _mm_unpacklo_epi64(ab_high, cd_high));
    store_row(to + 3 * TILE, _mm_unpackhi_epi64(ab_high, cd_high));
}

// Whole blocks, also past rows and cols: the tiles are TILE x TILE in memory.
#define BLOCK_TRANSPOSE(name, T, SIDE, block)                            \
    static void name(const T *from, T *to, int64_t rows, int64_t cols) { \
        for (int64_t c = 0; c < cols; c += SIDE) {                       \
            for (int64_t r = 0; r < rows; r += SIDE)                     \
                block(from + r * TILE + c, to + c * TILE + r);           \
        }                                                                \
    }
BLOCK_TRANSPOSE(transpose_2, uint16_t, 8, block_2)
BLOCK_TRANSPOSE(transpose_4, uint32_t, 4, block_4)
#else
PLAIN_TRANSPOSE(transpose_2, uint16_t)
PLAIN_TRANSPOSE(transpose_4, uint32_t)
#endif

// Tiles of elements of `size` bytes.
static void transpose_tile(size_t size, const void *from, void *to, int64_t rows, int64_t cols) {
    if (size == 1) transpose_1(from, to, rows, cols);
    if (size == 2) transpose_2(from, to, rows, cols);
    if (size == 4) transpose_4(from, to, rows, cols);
    if (size == 8) transpose_8(from, to, rows, cols);
}

#endif

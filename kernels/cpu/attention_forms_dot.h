// SPDX-License-Identifier: Apache-2.0
// Forms A and B of attention's operands (Note [attention in tiles]) for bf16 dot products, which
// take two neighbours along k at once: in form A they lie side by side as they are, in form B rows
// 2i and 2i + 1 are interleaved. A depth that is odd is filled up with zeros. Input is bf16 only.
#define E pl_bf16
#define FORM_COLS 2
#define FORMS_SHARED 0
#define FORM_ROUGH true
#define FORM_DEPTH(k) (((k) + 1) & ~(int64_t)1)

// 32 adjacent bf16 of which the first n exist.
PL_INLINE __m512i dot_row(const pl_bf16 *p, int64_t n) {
    if (n >= 32) return _mm512_loadu_si512(p);
    return n > 0 ? _mm512_maskz_loadu_epi16((__mmask32)((1u << n) - 1u), p)
                 : _mm512_setzero_si512();
}

// dst (rows, ld): the rows of src, zeros beyond cols. ld is a multiple of 32.
static void form_a_dot(pl_dtype dt, E *dst, int64_t ld, const void *src, int64_t step, int64_t rows,
                       int64_t cols) {
    (void)dt;
    for (int64_t r = 0; r < rows; r++) {
        const pl_bf16 *from = (const pl_bf16 *)src + r * step;
        for (int64_t c = 0; c < ld; c += 32) {
            _mm512_storeu_si512(dst + r * ld + c, dot_row(from + c, cols - c));
        }
    }
}

// dst (cols, 64): at most 64 rows of src as columns, zeros beyond. By way of floats, which is
// exact.
static void form_a_transposed_dot(pl_dtype dt, E *dst, const void *src, int64_t step, int64_t rows,
                                  int64_t cols) {
    (void)dt;
    for (int64_t r = 0; r < 64; r += 16) {
        for (int64_t c = 0; c < cols; c += 16) {
            vf block[16];
            for (int i = 0; i < 16; i++) {
                block[i] = r + i < rows ? get_part_dot(PL_BF16, src, (r + i) * step + c, cols - c)
                                        : vf_set1(0);
            }
            vf_transpose(block);
            for (int i = 0; i < 16; i++) {
                __m512i upper = _mm512_srli_epi32((__m512i)block[i], 16);
                _mm256_storeu_si256((void *)(dst + (c + i) * 64 + r), _mm512_cvtepi32_epi16(upper));
            }
        }
    }
}

// dst (rows / 2, ld, 2): two rows of src interleaved. The interleaving of 16-bit numbers inside
// 128-bit quarters puts columns 0-3, 8-11, .. into one half: the permutation undoes that.
static void form_b_dot(pl_dtype dt, E *dst, int64_t ld, const void *src, int64_t step, int64_t rows,
                       int64_t cols) {
    (void)dt;
    const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    const __m512i high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    for (int64_t r = 0; r < rows; r += 2) {
        const pl_bf16 *from = (const pl_bf16 *)src + r * step;
        for (int64_t c = 0; c < ld; c += 32) {
            __m512i x = dot_row(from + c, cols - c), y = _mm512_setzero_si512();
            if (r + 1 < rows) y = dot_row(from + step + c, cols - c);
            __m512i a = _mm512_unpacklo_epi16(x, y), b = _mm512_unpackhi_epi16(x, y);
            _mm512_storeu_si512(dst + r * ld + 2 * c, _mm512_permutex2var_epi64(a, low, b));
            _mm512_storeu_si512(dst + r * ld + 2 * c + 32, _mm512_permutex2var_epi64(a, high, b));
        }
    }
}

// dst (cols / 2, 64, 2): at most 64 rows of src as columns. Pairs along a row of src are the pairs
// wanted, so this is a transpose of 32-bit units.
static void form_b_transposed_dot(pl_dtype dt, E *dst, const void *src, int64_t step, int64_t rows,
                                  int64_t cols) {
    (void)dt;
    for (int64_t r = 0; r < 64; r += 16) {
        for (int64_t c = 0; c < cols; c += 32) {
            vf block[16];
            for (int i = 0; i < 16; i++) {
                const pl_bf16 *from = (const pl_bf16 *)src + (r + i) * step + c;
                block[i] = r + i < rows ? (vf)dot_row(from, cols - c) : vf_set1(0);
            }
            vf_transpose(block);
            for (int i = 0; i < 16; i++) {
                _mm512_storeu_ps((float *)(void *)(dst + (c / 2 + i) * 128 + r * 2), block[i]);
            }
        }
    }
}

// Rows kk and kk + 1 of a tile (64, 64), at one vector of lanes.
PL_INLINE void put_a_dot(E *a, int64_t kk, int64_t lane, vf v0, vf v1) {
    _mm256_storeu_si256((void *)(a + kk * 64 + lane), (__m256i)_mm512_cvtneps_pbh(v0));
    _mm256_storeu_si256((void *)(a + (kk + 1) * 64 + lane), (__m256i)_mm512_cvtneps_pbh(v1));
}
PL_INLINE void put_both_dot(E *a, E *b, int64_t kk, int64_t lane, vf v0, vf v1) {
    __m256i h0 = (__m256i)_mm512_cvtneps_pbh(v0), h1 = (__m256i)_mm512_cvtneps_pbh(v1);
    if (a) {
        _mm256_storeu_si256((void *)(a + kk * 64 + lane), h0);
        _mm256_storeu_si256((void *)(a + (kk + 1) * 64 + lane), h1);
    }
    __m512i pairs = _mm512_or_si512(_mm512_cvtepu16_epi32(h0),
                                    _mm512_slli_epi32(_mm512_cvtepu16_epi32(h1), 16));
    _mm512_storeu_si512(b + kk * 64 + lane * 2, pairs);
}
PL_INLINE void put_b_dot(E *b, int64_t kk, int64_t lane, vf v0, vf v1) {
    put_both_dot(NULL, b, kk, lane, v0, v1);
}

PL_INLINE vf dot_add(vf sum, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

// As tile_rows (tile_body.h), two numbers of k at a time.
PL_INLINE void dot_rows(int rows, bool add, int64_t k, const E *a, int64_t lda, const E *b,
                        int64_t ldb, float *c, int64_t ldc) {
    vf lo[8], hi[8];
    PL_UNROLL
    for (int i = 0; i < rows; i++) {
        lo[i] = add ? vf_load(c + i * ldc) : vf_set1(0);
        hi[i] = add ? vf_load(c + i * ldc + 16) : vf_set1(0);
    }
    for (int64_t p = 0; p < k; p += 2) {
        __m512i b0 = _mm512_loadu_si512(b + p * ldb), b1 = _mm512_loadu_si512(b + p * ldb + 32);
        PL_UNROLL
        for (int i = 0; i < rows; i++) {
            int32_t pair;
            memcpy(&pair, a + i * lda + p, sizeof pair);
            __m512i x = _mm512_set1_epi32(pair);
            lo[i] = dot_add(lo[i], x, b0);
            hi[i] = dot_add(hi[i], x, b1);
        }
    }
    PL_UNROLL
    for (int i = 0; i < rows; i++) {
        vf_store(c + i * ldc, lo[i]);
        vf_store(c + i * ldc + 16, hi[i]);
    }
}

PL_INLINE void dot_columns(bool add, int64_t m, int64_t k, const E *a, int64_t lda, const E *b,
                           int64_t ldb, float *c, int64_t ldc) {
    int64_t i = 0;
    for (; i + 8 <= m; i += 8) dot_rows(8, add, k, a + i * lda, lda, b, ldb, c + i * ldc, ldc);
    if (m - i >= 4) {
        dot_rows(4, add, k, a + i * lda, lda, b, ldb, c + i * ldc, ldc);
        i += 4;
    }
    for (; i < m; i++) dot_rows(1, add, k, a + i * lda, lda, b, ldb, c + i * ldc, ldc);
}

static void product_dot(bool add, int64_t m, int64_t n, int64_t k, const E *a, int64_t lda,
                        const E *b, int64_t ldb, float *c, int64_t ldc) {
    for (int64_t j = 0; j < n; j += 32) {
        if (add) {
            dot_columns(true, m, k, a, lda, b + j * 2, ldb, c + j, ldc);
        } else {
            dot_columns(false, m, k, a, lda, b + j * 2, ldb, c + j, ldc);
        }
    }
}

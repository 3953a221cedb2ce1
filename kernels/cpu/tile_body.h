// SPDX-License-Identifier: Apache-2.0
// The tile product C = A B or C += A B that the blocked matmul and attention are made of: rows by
// two vectors of sums stay in registers while k runs; A's numbers are broadcast from where they
// lie, so only B must have its columns adjacent. For float and for double (simd_real.h).

// Sums and what they are made of fit the registers: 32 with AVX-512, else 16.
#undef TILE_ROWS
#define TILE_ROWS (PL_SIMD_LEVEL == 3 ? 8 : 6)

PL_INLINE void FN(tile_rows)(int rows, bool add, int64_t k, const R *a, int64_t lda, const R *b,
                             int64_t ldb, R *c, int64_t ldc) {
    VR lo[TILE_ROWS], hi[TILE_ROWS];
    PL_UNROLL
    for (int i = 0; i < rows; i++) {
        lo[i] = V(set1)(0);
        hi[i] = V(set1)(0);
        if (!add) continue;
        lo[i] = V(load)(c + i * ldc);
        hi[i] = V(load)(c + i * ldc + VN);
    }
    for (int64_t p = 0; p < k; p++) {
        VR b0 = V(load)(b + p * ldb), b1 = V(load)(b + p * ldb + VN);
        PL_UNROLL
        for (int i = 0; i < rows; i++) {
            VR x = V(set1)(a[i * lda + p]);
            lo[i] = V(fma)(x, b0, lo[i]);
            hi[i] = V(fma)(x, b1, hi[i]);
        }
    }
    PL_UNROLL
    for (int i = 0; i < rows; i++) {
        V(store)(c + i * ldc, lo[i]);
        V(store)(c + i * ldc + VN, hi[i]);
    }
}

PL_INLINE void FN(tile_columns)(bool add, int64_t m, int64_t k, const R *a, int64_t lda, const R *b,
                                int64_t ldb, R *c, int64_t ldc) {
    int64_t i = 0;
    for (; i + TILE_ROWS <= m; i += TILE_ROWS) {
        FN(tile_rows)(TILE_ROWS, add, k, a + i * lda, lda, b, ldb, c + i * ldc, ldc);
    }
    if (m - i >= 4) {
        FN(tile_rows)(4, add, k, a + i * lda, lda, b, ldb, c + i * ldc, ldc);
        i += 4;
    }
    for (; i < m; i++) FN(tile_rows)(1, add, k, a + i * lda, lda, b, ldb, c + i * ldc, ldc);
}

// A's rows are lda apart, B's ldb, C's ldc; n is a multiple of 2 * VN.
static void FN(tile)(bool add, int64_t m, int64_t n, int64_t k, const void *a, int64_t lda,
                     const void *b, int64_t ldb, void *c, int64_t ldc) {
    for (int64_t j = 0; j < n; j += 2 * VN) {
        const R *bj = (const R *)b + j;
        R *cj = (R *)c + j;
        if (add) {
            FN(tile_columns)(true, m, k, a, lda, bj, ldb, cj, ldc);
        } else {
            FN(tile_columns)(false, m, k, a, lda, bj, ldb, cj, ldc);
        }
    }
}

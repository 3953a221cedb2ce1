// SPDX-License-Identifier: Apache-2.0
// Forms A and B of attention's operands (Note [attention in tiles]) where products are of R: both
// are plain rows, so that what is kept in form A can be read in form B. For float and for double.
#undef E
#undef FORM_COLS
#undef FORMS_SHARED
#undef FORM_DEPTH
#undef FORM_ROUGH
#define E R                // an element of an operand
#define FORM_COLS 1        // elements from one column of form B to the next
#define FORMS_SHARED 1     // form A is form B
#define FORM_ROUGH false   // whether probabilities are rounded to bf16 anyway
#define FORM_DEPTH(k) (k)  // of a product, as the forms hold it

// dst (rows, ld): the rows of src, zeros beyond cols. ld is a multiple of VN.
PL_INLINE void FN(pack_rows)(pl_dtype dt, R *dst, int64_t ld, const void *src, int64_t step,
                             int64_t rows, int64_t cols) {
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < ld; c += VN) {
            V(store)(dst + r * ld + c, FN(get_part)(dt, src, r * step + c, cols - c));
        }
    }
}

// dst (cols, 64): at most 64 rows of src as columns, zeros beyond; writes up to VN - 1 rows more.
PL_INLINE void FN(pack_cols)(pl_dtype dt, R *dst, const void *src, int64_t step, int64_t rows,
                             int64_t cols) {
    for (int64_t r = 0; r < 64; r += VN) {
        for (int64_t c = 0; c < cols; c += VN) {
            VR block[VN];
            for (int i = 0; i < VN; i++) {
                block[i] =
                    r + i < rows ? FN(get_part)(dt, src, (r + i) * step + c, cols - c) : V(set1)(0);
            }
            V(transpose)(block);
            for (int i = 0; i < VN; i++) V(store)(dst + (c + i) * 64 + r, block[i]);
        }
    }
}

static void FN(form_a)(pl_dtype dtype, E *dst, int64_t ld, const void *src, int64_t step,
                       int64_t rows, int64_t cols) {
    PL_EACH_DTYPE(dtype, FN(pack_rows), dst, ld, src, step, rows, cols);
}
static void FN(form_a_transposed)(pl_dtype dtype, E *dst, const void *src, int64_t step,
                                  int64_t rows, int64_t cols) {
    PL_EACH_DTYPE(dtype, FN(pack_cols), dst, src, step, rows, cols);
}
#define form_b_f32 form_a_f32
#define form_b_f64 form_a_f64
#define form_b_transposed_f32 form_a_transposed_f32
#define form_b_transposed_f64 form_a_transposed_f64

// Rows kk and kk + 1 of a tile (64, 64), at one vector of lanes.
PL_INLINE void FN(put_a)(E *a, int64_t kk, int64_t lane, VR v0, VR v1) {
    V(store)(a + kk * 64 + lane, v0);
    V(store)(a + (kk + 1) * 64 + lane, v1);
}
PL_INLINE void FN(put_b)(E *b, int64_t kk, int64_t lane, VR v0, VR v1) {
    FN(put_a)(b, kk, lane, v0, v1);
}
PL_INLINE void FN(put_both)(E *a, E *b, int64_t kk, int64_t lane, VR v0, VR v1) {
    (void)b;  // is a
    FN(put_a)(a, kk, lane, v0, v1);
}

PL_INLINE void FN(product)(bool add, int64_t m, int64_t n, int64_t k, const E *a, int64_t lda,
                           const E *b, int64_t ldb, R *c, int64_t ldc) {
    FN(tile)(add, m, n, k, a, lda, b, ldb, c, ldc);
}

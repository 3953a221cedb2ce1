// SPDX-License-Identifier: Apache-2.0
// The loops of tall.h for AVX-512. A file that includes this defines TFN(name), E (an element of a
// and b), TALL_DEPTH (rows of a and b that one step takes), unit(p, step, rows, n): 16 units of one
// step, from the first n (<= 16) columns of `rows` (<= TALL_DEPTH) rows, zeros beyond; fold(sum, a,
// b): sum plus the product of two vectors of units; and add(sum, u): sum plus each unit's numbers.

// dst: panels of TALL_COLS columns, each (steps, TALL_COLS) units; zeros where src (k rows, cols)
// has no more columns.
PL_INLINE void TFN(pack_b)(float *dst, const E *src, int64_t step, int64_t k, int64_t cols) {
    int64_t padded = (cols + TALL_COLS - 1) / TALL_COLS * TALL_COLS;
    for (int64_t row = 0, s = 0; row < k; row += TALL_DEPTH, s++) {
        int64_t rows = k - row < TALL_DEPTH ? k - row : TALL_DEPTH;
        for (int64_t c = 0; c < padded; c += 16) {
            int64_t left = cols - c < 16 ? cols - c : 16;
            float *to = dst + c / TALL_COLS * TALL_PANEL_B + s * TALL_COLS + c % TALL_COLS;
            vf u = vf_set1(0);
            if (left > 0) u = TFN(unit)(src + row * step + c, step, rows, left);
            vf_store(to, u);
        }
    }
}

// The same in panels of TALL_ROWS columns, two of them at a time. sums (TALL_HIGH), or NULL: += the
// sum of each column.
PL_INLINE void TFN(pack_a)(float *dst, const E *src, int64_t step, int64_t k, int64_t cols,
                           float *sums) {
    for (int64_t row = 0, s = 0; row < k; row += TALL_DEPTH, s++) {
        int64_t rows = k - row < TALL_DEPTH ? k - row : TALL_DEPTH;
        float *to = dst + s * TALL_ROWS;
        for (int64_t c = 0; c < cols; c += 16, to += 2 * TALL_PANEL_A) {
            int64_t left = cols - c < 16 ? cols - c : 16;
            vf u = TFN(unit)(src + row * step + c, step, rows, left);
            _mm256_storeu_ps(to, _mm512_castps512_ps256(u));
            _mm256_storeu_ps(to + TALL_PANEL_A, _mm512_extractf32x8_ps(u, 1));
            if (sums) vf_store(sums + c, TFN(add)(vf_load(sums + c), u));
        }
    }
}

// c (8, 48) = or += the sums over `steps` of a panel of A and one of B.
PL_INLINE void TFN(micro)(int64_t steps, const float *a, const float *b, float *c, int64_t ldc,
                          bool add) {
    vf sum[TALL_ROWS][3];
    PL_UNROLL
    for (int i = 0; i < TALL_ROWS; i++) {
        PL_UNROLL
        for (int j = 0; j < 3; j++) {
            sum[i][j] = vf_set1(0);
            __builtin_prefetch(c + i * ldc + j * 16, 1);
        }
    }
    for (int64_t s = 0; s < steps; s++) {
        vf b0 = vf_load(b), b1 = vf_load(b + 16), b2 = vf_load(b + 32);
        PL_UNROLL
        for (int i = 0; i < TALL_ROWS; i++) {
            vf x = vf_set1(a[i]);
            sum[i][0] = TFN(fold)(sum[i][0], x, b0);
            sum[i][1] = TFN(fold)(sum[i][1], x, b1);
            sum[i][2] = TFN(fold)(sum[i][2], x, b2);
        }
        a += TALL_ROWS;
        b += TALL_COLS;
    }
    PL_UNROLL
    for (int i = 0; i < TALL_ROWS; i++) {
        PL_UNROLL
        for (int j = 0; j < 3; j++) {
            float *to = c + i * ldc + j * 16;
            vf_store(to, add ? vf_load(to) + sum[i][j] : sum[i][j]);
        }
    }
}

// The same where out has fewer rows or columns than a tile.
static void TFN(edge)(int64_t steps, const float *a, const float *b, float *c, int64_t ldc,
                      const int64_t size[2], bool add) {
    float tile[TALL_ROWS * TALL_COLS];
    TFN(micro)(steps, a, b, tile, TALL_COLS, false);
    for (int64_t i = 0; i < size[0]; i++) {
        for (int64_t j = 0; j < size[1]; j++) {
            float v = tile[i * TALL_COLS + j];
            c[i * ldc + j] = add ? c[i * ldc + j] + v : v;
        }
    }
}

// One packed block of out, rows x cols at c.
static void TFN(block)(int64_t steps, const float *a, const float *b, float *c, int64_t ldc,
                       const int64_t size[2], bool add) {
    for (int64_t j = 0; j < size[1]; j += TALL_COLS) {
        const float *bj = b + j / TALL_COLS * TALL_PANEL_B;
        for (int64_t i = 0; i < size[0]; i += TALL_ROWS) {
            const float *ai = a + i / TALL_ROWS * TALL_PANEL_A;
            float *at = c + i * ldc + j;
            if (size[0] - i >= TALL_ROWS && size[1] - j >= TALL_COLS) {
                if (add) {
                    TFN(micro)(steps, ai, bj, at, ldc, true);
                } else {
                    TFN(micro)(steps, ai, bj, at, ldc, false);
                }
                continue;
            }
            int64_t part[2] = {size[0] - i < TALL_ROWS ? size[0] - i : TALL_ROWS,
                               size[1] - j < TALL_COLS ? size[1] - j : TALL_COLS};
            TFN(edge)(steps, ai, bj, at, ldc, part, add);
        }
    }
}

PL_INLINE int64_t TFN(least)(int64_t a, int64_t b) { return a < b ? a : b; }

// Packs rows [k0, k0 + k) of A's columns [r, r + cols), and adds up the columns where that is
// wanted and `first`, the first time that they pass. A run of k is added up for itself, then to the
// others.
static void TFN(take_a)(const pl_tall_job *job, float *packed, int64_t k0, int64_t k, int64_t r,
                        int64_t cols, bool first) {
    const E *src = (const E *)job->a + k0 * job->a_step + r;
    float sums[TALL_HIGH] = {0};
    if (!job->row_sums || !first) {
        TFN(pack_a)(packed, src, job->a_step, k, cols, NULL);
        return;
    }
    TFN(pack_a)(packed, src, job->a_step, k, cols, sums);
    bool add = job->add_row_sums || k0 > 0;
    for (int64_t i = 0; i < cols; i++) {
        job->row_sums[r + i] = add ? job->row_sums[r + i] + sums[i] : sums[i];
    }
}

// Rows [r0, r1) and columns [c0, c1) of out.
static void TFN(part)(const pl_tall_job *job, int64_t r0, int64_t r1, int64_t c0, int64_t c1,
                      float *packed_b) {
    enum { K = TALL_STEPS * TALL_DEPTH };
    float *packed_a = packed_b + TALL_WIDE / TALL_COLS * TALL_PANEL_B;
    for (int64_t c = c0; c < c1; c += TALL_WIDE) {
        for (int64_t k0 = 0; k0 < job->k; k0 += K) {
            int64_t k = TFN(least)(job->k - k0, K), wide = TFN(least)(c1 - c, TALL_WIDE);
            int64_t steps = (k + TALL_DEPTH - 1) / TALL_DEPTH;
            TFN(pack_b)(packed_b, (const E *)job->b + k0 * job->b_step + c, job->b_step, k, wide);
            for (int64_t r = r0; r < r1; r += TALL_HIGH) {
                int64_t size[2] = {TFN(least)(r1 - r, TALL_HIGH), wide};
                TFN(take_a)(job, packed_a, k0, k, r, size[0], c == 0);
                TFN(block)(steps, packed_a, packed_b, job->out + r * job->out_step + c,
                           job->out_step, size, job->accumulate || k0 > 0);
            }
        }
    }
}

// Where part i of `parts` of a dimension begins: at a panel.
PL_INLINE int64_t TFN(begin)(int64_t size, int64_t panel, int64_t parts, int64_t i) {
    int64_t panels = (size + panel - 1) / panel;
    return TFN(least)(panels * i / parts * panel, size);
}

static void TFN(tall)(int64_t begin, int64_t end, void *ctx) {
    pl_tall_job *job = ctx;
    // Relaxed: only the number itself matters; pl_parallel_for orders everything else.
    int piece = atomic_fetch_add_explicit(&job->next_scratch, 1, memory_order_relaxed);
    float *scratch = (float *)(void *)(job->scratch + (size_t)piece * job->scratch_nbytes);
    for (int64_t i = begin; i < end; i++) {
        int64_t r = i / job->col_parts, c = i % job->col_parts;
        TFN(part)(job, TFN(begin)(job->m, TALL_ROWS, job->row_parts, r),
                  TFN(begin)(job->m, TALL_ROWS, job->row_parts, r + 1),
                  TFN(begin)(job->n, TALL_COLS, job->col_parts, c),
                  TFN(begin)(job->n, TALL_COLS, job->col_parts, c + 1), scratch);
    }
}

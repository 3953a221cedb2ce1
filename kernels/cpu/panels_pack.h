// SPDX-License-Identifier: Apache-2.0
// How panels_body.h brings A and B into panels, and fetches what comes next. Included by it only.

// One operand's numbers of a block: `cols` (rows of A, columns of B) from col on, of `k` numbers
// from k0 on. wide: fp32, to be rounded; else E.
typedef struct TFN(source) {
    const void *data;
    int64_t col_step, k_step;  // one of them is 1
    int64_t col, cols, k0, k;
    bool wide;
    int64_t panel;  // units from one panel to the next
} TFN(source);

PL_INLINE const void *TFN(from)(const TFN(source) * s, int64_t col, int64_t k) {
    int64_t i = (s->col + col) * s->col_step + (s->k0 + k) * s->k_step;
    return s->wide ? (const void *)((const float *)s->data + i) : (const E *)s->data + i;
}

// A group of 16 columns' units of one step: two panels of A, a third of a panel of B.
PL_INLINE void TFN(place_units)(bool a, float *dst, int64_t panel, int64_t group, int64_t step,
                                vf u) {
    if (a) {
        float *to = dst + 2 * group * panel + step * PANEL_ROWS;
        _mm256_storeu_ps(to, _mm512_castps512_ps256((__m512)u));
        _mm256_storeu_ps(to + panel, _mm512_extractf32x8_ps((__m512)u, 1));
        return;
    }
    vf_store(dst + group / 3 * panel + step * PANEL_COLS + group % 3 * 16, u);
}

// A group's units of one step from p on, of `left` columns and `rows` k.
PL_INLINE vf TFN(take_pair)(bool wide, const char *p, int64_t k_step, int64_t rows, int64_t left) {
    if (left <= 0) return vf_set1(0);
    return wide ? TFN(wide_pair)(p, k_step, rows, left) : TFN(pair)(p, k_step, rows, left);
}

// Columns side by side in memory. sums: NULL, or += each column's numbers.
PL_INLINE void TFN(pack_rows)(bool a, bool wide, float *dst, const TFN(source) * s, float *sums) {
    enum { TOGETHER = 16, EARLY = 8 };  // groups that are read side by side; steps to fetch ahead
    int64_t groups = (s->cols + 15) / 16, padded = a ? groups : (groups + 2) / 3 * 3;
    int64_t size = wide ? (int64_t)sizeof(float) : (int64_t)sizeof(E), k_step = s->k_step;
    for (int64_t g0 = 0; g0 < padded; g0 += TOGETHER) {
        int64_t g1 = g0 + TOGETHER < padded ? g0 + TOGETHER : padded;
        const char *row = TFN(from)(s, 0, 0);
        for (int64_t k = 0, step = 0; k < s->k; k += PANEL_DEPTH, step++) {
            bool whole = s->k - k >= PANEL_DEPTH;
            for (int64_t g = g0; g < g1; g++) {
                int64_t left = s->cols - g * 16;
                const char *p = row + g * 16 * size;
                vf u;
                if (PL_LIKELY(whole && left >= 16)) {
                    u = TFN(take_pair)(wide, p, k_step, PANEL_DEPTH, 16);
                } else {
                    u = TFN(take_pair)(wide, p, k_step, whole ? PANEL_DEPTH : 1,
                                       left < 16 ? left : 16);
                }
                for (int d = 0; a && d < PANEL_DEPTH; d++) {
                    __builtin_prefetch(p + (EARLY * PANEL_DEPTH + d) * k_step * size);
                }
                TFN(place_units)(a, dst, s->panel, g, step, u);
                if (sums) vf_store(sums + g * 16, TFN(add)(vf_load(sums + g * 16), u));
            }
            row += PANEL_DEPTH * k_step * size;
        }
    }
}

// r[i]: 16 units of column i's run from p on, zeros beyond `left` columns and n numbers.
PL_INLINE void TFN(take_runs)(bool wide, const char *p, int64_t step, int64_t left, int64_t n,
                              vf r[16]) {
    PL_UNROLL
    for (int i = 0; i < 16; i++) {
        r[i] = vf_set1(0);
        if (i < left) r[i] = wide ? TFN(wide_run)(p, n) : TFN(run)(p, n);
        p += step;
    }
}

// Each column's numbers side by side in memory: 16 columns by 16 steps are turned at a time.
PL_INLINE void TFN(pack_columns)(bool a, bool wide, float *dst, const TFN(source) * s) {
    enum { RUN = 16 * PANEL_DEPTH };
    int64_t groups = (s->cols + 15) / 16, padded = a ? groups : (groups + 2) / 3 * 3;
    int64_t size = wide ? (int64_t)sizeof(float) : (int64_t)sizeof(E), step = s->col_step * size;
    for (int64_t g = 0; g < padded; g++) {
        const char *p = TFN(from)(s, g * 16, 0);
        int64_t left = s->cols - g * 16, k = 0;
        vf r[16];
        for (; left >= 16 && k + RUN <= s->k; k += RUN, p += RUN * size) {
            TFN(take_runs)(wide, p, step, 16, RUN, r);
            vf_transpose(r);
            PL_UNROLL
            for (int i = 0; i < 16; i++)
                TFN(place_units)(a, dst, s->panel, g, k / PANEL_DEPTH + i, r[i]);
        }
        for (; k < s->k; k += RUN, p += RUN * size) {
            int64_t n = s->k - k < RUN ? s->k - k : RUN,
                    steps = (n + PANEL_DEPTH - 1) / PANEL_DEPTH;
            TFN(take_runs)(wide, p, step, left, n, r);
            vf_transpose(r);
            for (int i = 0; i < steps; i++)
                TFN(place_units)(a, dst, s->panel, g, k / PANEL_DEPTH + i, r[i]);
        }
    }
}

static void TFN(pack)(bool a, float *dst, const TFN(source) * s, float *sums) {
    bool side_by_side = s->col_step == 1;
    if (a && side_by_side && sums) {
        TFN(pack_rows)(true, false, dst, s, sums);
    } else if (a && side_by_side) {
        TFN(pack_rows)(true, false, dst, s, NULL);
    } else if (a) {
        TFN(pack_columns)(true, false, dst, s);
    } else if (s->wide && side_by_side) {
        TFN(pack_rows)(false, true, dst, s, NULL);
    } else if (s->wide) {
        TFN(pack_columns)(false, true, dst, s);
    } else if (side_by_side) {
        TFN(pack_rows)(false, false, dst, s, NULL);
    } else {
        TFN(pack_columns)(false, false, dst, s);
    }
}

// Lines of memory that will be wanted: `rows` stretches of `lines`.
typedef struct TFN(ahead) {
    const char *at;
    int64_t step, rows, lines, row, line;
} TFN(ahead);

// What `s` will read; nothing where it is what has just been read.
static TFN(ahead) TFN(look_ahead)(const TFN(source) * now, const TFN(source) * s) {
    if (now->col == s->col && now->k0 == s->k0) return (TFN(ahead)){0};
    int64_t size = s->wide ? (int64_t)sizeof(float) : (int64_t)sizeof(E);
    bool side_by_side = s->col_step == 1;
    int64_t length = (side_by_side ? s->cols : s->k) * size;
    return (TFN(ahead)){.at = TFN(from)(s, 0, 0),
                        .step = (side_by_side ? s->k_step : s->col_step) * size,
                        .rows = side_by_side ? s->k : s->cols,
                        .lines = (length + 63) / 64};
}

// Into the second-level cache.
PL_INLINE void TFN(fetch)(TFN(ahead) * f, int64_t count) {
    for (; count > 0 && f->row < f->rows; count--) {
        __builtin_prefetch(f->at + f->line * 64, 0, 2);
        if (++f->line < f->lines) continue;
        f->line = 0;
        f->row++;
        f->at += f->step;
    }
}

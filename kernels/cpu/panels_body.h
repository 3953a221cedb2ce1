// SPDX-License-Identifier: Apache-2.0
// The loops of panels.h for AVX-512. A file that includes this defines TFN(name), E (an element of
// A), PANEL_DEPTH (how many k one step takes), pair(p, step, rows, n): 16 units of one step, from
// the first n (<= 16) columns of `rows` (<= PANEL_DEPTH) rows, zeros beyond; run(p, n): 16 units of
// 16 steps, from n (<= 16 * PANEL_DEPTH) neighbouring numbers; wide_pair and wide_run, the same
// from fp32; fold(sum, a, b): sum plus the product of two vectors of units; add(sum, u): sum plus
// each unit's numbers.
#include "panels_pack.h"

// c (8, 48) = or += the sums over `steps` of a panel of A and one of B.
PL_INLINE void TFN(micro)(int64_t steps, const float *a, const float *b, float *c, int64_t ldc,
                          bool add) {
    vf sum[PANEL_ROWS][3];
    PL_UNROLL
    for (int i = 0; i < PANEL_ROWS; i++) {
        PL_UNROLL
        for (int j = 0; j < 3; j++) {
            sum[i][j] = vf_set1(0);
            __builtin_prefetch(c + i * ldc + j * 16, 1);
        }
    }
    for (int64_t s = 0; s < steps; s++) {
        vf b0 = vf_load(b), b1 = vf_load(b + 16), b2 = vf_load(b + 32);
        PL_UNROLL
        for (int i = 0; i < PANEL_ROWS; i++) {
            vf x = vf_set1(a[i]);
            sum[i][0] = TFN(fold)(sum[i][0], x, b0);
            sum[i][1] = TFN(fold)(sum[i][1], x, b1);
            sum[i][2] = TFN(fold)(sum[i][2], x, b2);
        }
        a += PANEL_ROWS;
        b += PANEL_COLS;
    }
    PL_UNROLL
    for (int i = 0; i < PANEL_ROWS; i++) {
        PL_UNROLL
        for (int j = 0; j < 3; j++) {
            float *to = c + i * ldc + j * 16;
            vf_store(to, add ? vf_load(to) + sum[i][j] : sum[i][j]);
        }
    }
}

// Where a tile's sums go: to `sums`, and from there, when `last`, with the epilogue to out.
typedef struct TFN(place) {
    float *sums;  // of the tile's first element; out itself where that is fp32
    int64_t step;
    bool add, last;
    int64_t row, col, rows, cols;  // of the tile in out
} TFN(place);

PL_INLINE vf TFN(get)(const void *p, int64_t i, int64_t n, pl_dtype dt) {
    return n == 16 ? vf_get(p, i, dt) : vf_get_n(p, i, n, dt, 0);
}

PL_INLINE void TFN(put)(void *p, int64_t i, int64_t n, pl_dtype dt, vf v) {
    if (n == 16) {
        vf_put(p, i, dt, v);
    } else {
        vf_put_n(p, i, n, dt, v);
    }
}

// One vector of a tile to its place.
PL_INLINE void TFN(finish)(const pl_panel_job *job, const TFN(place) * at, int64_t i, int64_t j,
                           vf v) {
    int64_t n = at->cols - j < 16 ? at->cols - j : 16;
    const pl_epilogue *e = &job->e;
    if (at->add) v = TFN(get)(at->sums, i * at->step + j, n, PL_F32) + v;
    if (!at->last) {
        TFN(put)(at->sums, i * at->step + j, n, PL_F32, v);
        return;
    }
    if (e->bias) {
        v = v + (e->bias_dtype == PL_F32 ? TFN(get)(e->bias, at->col + j, n, PL_F32)
                                         : TFN(get)(e->bias, at->col + j, n, PL_BF16));
    }
    int64_t out = (at->row + i) * job->p.out_row + at->col + j;
    if (job->p.out == PL_F32) {
        TFN(put)(job->out, out, n, PL_F32, v);
        return;
    }
    if (e->accumulate) v = v + TFN(get)(job->out, out, n, PL_BF16);
    TFN(put)(job->out, out, n, PL_BF16, v);
}

static void TFN(tile)(const pl_panel_job *job, int64_t steps, const float *a, const float *b,
                      const TFN(place) * at) {
    bool whole = at->rows == PANEL_ROWS && at->cols == PANEL_COLS;
    if (whole && !(at->last && (job->e.bias || job->p.out != PL_F32))) {
        if (at->add) {
            TFN(micro)(steps, a, b, at->sums, at->step, true);
        } else {
            TFN(micro)(steps, a, b, at->sums, at->step, false);
        }
        return;
    }
    _Alignas(64) float tile[PANEL_ROWS * PANEL_COLS];
    TFN(micro)(steps, a, b, tile, PANEL_COLS, false);
    for (int64_t i = 0; i < at->rows; i++) {
        for (int64_t j = 0; j < at->cols; j += 16) {
            TFN(finish)(job, at, i, j, vf_load(tile + i * PANEL_COLS + j));
        }
    }
}

// What one thread does at a time: rows [r, r + rows) of out, columns [c, c + cols), the run of k
// from k0 on.
typedef struct TFN(work) {
    const pl_panel_job *job;
    int64_t r, rows, c, cols, k0, k;
    float *packed_a, *packed_b, *sums;
    int64_t sums_row, sums_col;  // of out, at the buffer's first
} TFN(work);

PL_INLINE int64_t TFN(least)(int64_t a, int64_t b) { return a < b ? a : b; }

// Multiplies what is packed, fetching what `next` points to on the way.
static void TFN(block)(const TFN(work) * w, TFN(ahead) * next) {
    const pl_panel_job *job = w->job;
    bool wide = job->p.out == PL_F32;
    TFN(place)
    at = {.step = wide ? job->p.out_row : PANEL_SUMS,
          .add = w->k0 > 0 || (wide && job->e.accumulate),
          .last = w->k0 + w->k == job->p.k};
    int64_t steps = (w->k + PANEL_DEPTH - 1) / PANEL_DEPTH;
    int64_t high = (w->rows + PANEL_ROWS - 1) / PANEL_ROWS;
    int64_t tiles = high * ((w->cols + PANEL_COLS - 1) / PANEL_COLS);
    int64_t each = (next->rows * next->lines + tiles - 1) / tiles;
    for (int64_t j = 0; j < w->cols; j += PANEL_COLS) {
        const float *b = w->packed_b + j / PANEL_COLS * job->panel_b;
        at.col = w->c + j;
        at.cols = TFN(least)(w->cols - j, PANEL_COLS);
        for (int64_t i = 0; i < w->rows; i += PANEL_ROWS) {
            at.row = w->r + i;
            at.rows = TFN(least)(w->rows - i, PANEL_ROWS);
            at.sums = wide ? (float *)job->out + at.row * at.step + at.col
                           : w->sums + (at.row - w->sums_row) * at.step + at.col - w->sums_col;
            TFN(fetch)(next, each);
            TFN(tile)(job, steps, w->packed_a + i / PANEL_ROWS * job->panel_a, b, &at);
        }
    }
}

// Packs A's part, and adds up its rows where that is wanted: a run for itself, then to the others.
static void TFN(take_a)(const TFN(work) * w, const TFN(source) * src) {
    const pl_panel_job *job = w->job;
    float sums[PANEL_HIGH + 16];
    if (!job->e.row_sums || w->c != 0) {
        TFN(pack)(true, w->packed_a, src, NULL);
        return;
    }
    memset(sums, 0, (size_t)(w->rows + 16) * sizeof *sums);
    TFN(pack)(true, w->packed_a, src, sums);
    bool add = job->e.add_row_sums || w->k0 > 0;
    for (int64_t i = 0; i < w->rows; i++) {
        float *to = job->e.row_sums + w->r + i;
        *to = add ? *to + sums[i] : sums[i];
    }
}

// At most `most` rows of A from r on, not beyond r1, and the run from k0 on; and so columns of B.
static TFN(source) TFN(of_a)(const pl_panel_job *job, int64_t r, int64_t r1, int64_t k0) {
    const pl_product *p = &job->p;
    int64_t rows = TFN(least)(r1 - r, job->high), k = TFN(least)(p->k - k0, job->run);
    return (TFN(source)){job->a, p->a_row, p->a_col, r, rows, k0, k, false, job->panel_a};
}

static TFN(source) TFN(of_b)(const pl_panel_job *job, int64_t c, int64_t c1, int64_t k0) {
    const pl_product *p = &job->p;
    int64_t cols = TFN(least)(c1 - c, job->wide), k = TFN(least)(p->k - k0, job->run);
    return (TFN(source)){job->b, p->b_col, p->b_row, c, cols, k0, k, p->b_wide, job->panel_b};
}

// The rows in w stay packed, columns [c0, c1) pass by.
static void TFN(keep_a)(TFN(work) * w, int64_t c0, int64_t c1) {
    const pl_panel_job *job = w->job;
    for (w->k0 = 0; w->k0 < job->p.k; w->k0 += job->run) {
        TFN(source) a = TFN(of_a)(job, w->r, w->r + w->rows, w->k0);
        w->k = a.k;
        w->c = c0;
        TFN(take_a)(w, &a);
        for (int64_t c = c0; c < c1; c += job->wide) {
            TFN(source) now = TFN(of_b)(job, c, c1, w->k0), then = now;
            if (c + job->wide < c1) {
                then = TFN(of_b)(job, c + job->wide, c1, w->k0);
            } else if (w->k0 + job->run < job->p.k) {
                then = TFN(of_b)(job, c0, c1, w->k0 + job->run);
            }
            TFN(ahead) next = TFN(look_ahead)(&now, &then);
            TFN(pack)(false, w->packed_b, &now, NULL);
            w->c = c;
            w->cols = now.cols;
            TFN(block)(w, &next);
        }
    }
}

// The columns in w stay packed, rows [r0, r1) pass by.
static void TFN(keep_b)(TFN(work) * w, int64_t r0, int64_t r1) {
    const pl_panel_job *job = w->job;
    for (w->k0 = 0; w->k0 < job->p.k; w->k0 += job->run) {
        TFN(source) b = TFN(of_b)(job, w->c, w->c + w->cols, w->k0);
        w->k = b.k;
        TFN(pack)(false, w->packed_b, &b, NULL);
        for (int64_t r = r0; r < r1; r += job->high) {
            TFN(source) now = TFN(of_a)(job, r, r1, w->k0), then = now;
            if (r + job->high < r1) {
                then = TFN(of_a)(job, r + job->high, r1, w->k0);
            } else if (w->k0 + job->run < job->p.k) {
                then = TFN(of_a)(job, r0, r1, w->k0 + job->run);
            }
            TFN(ahead) next = TFN(look_ahead)(&now, &then);
            w->r = r;
            w->rows = now.cols;
            TFN(take_a)(w, &now);
            TFN(block)(w, &next);
        }
    }
}

// Rows [r0, r1) and columns [c0, c1) of out.
static void TFN(part)(const pl_panel_job *job, int64_t r0, int64_t r1, int64_t c0, int64_t c1,
                      float *scratch) {
    TFN(work) w = {.job = job, .packed_a = scratch};
    w.packed_b = scratch + job->units_a;
    w.sums = w.packed_b + job->units_b;
    int64_t high = job->keep_b ? job->summing ? PANEL_SUM_ROWS : r1 - r0 : job->high;
    int64_t wide = job->keep_b ? job->wide : job->summing ? PANEL_SUMS : c1 - c0;
    for (int64_t r = r0; r < r1; r += high) {
        int64_t rows = TFN(least)(r1 - r, high);
        for (int64_t c = c0; c < c1; c += wide) {
            w.sums_row = w.r = r;
            w.sums_col = w.c = c;
            w.rows = rows;
            w.cols = TFN(least)(c1 - c, wide);
            if (job->keep_b) {
                TFN(keep_b)(&w, r, r + rows);
            } else {
                TFN(keep_a)(&w, c, c + w.cols);
            }
        }
    }
}

// Where part i of `parts` of a dimension begins: at a panel.
PL_INLINE int64_t TFN(begin)(int64_t size, int64_t panel, int64_t parts, int64_t i) {
    int64_t panels = (size + panel - 1) / panel;
    return TFN(least)(panels * i / parts * panel, size);
}

static void TFN(panels)(int64_t begin, int64_t end, void *ctx) {
    pl_panel_job *job = ctx;
    // Relaxed: only the number itself matters; pl_parallel_for orders everything else.
    int piece = atomic_fetch_add_explicit(&job->next_scratch, 1, memory_order_relaxed);
    float *scratch = (float *)(void *)(job->scratch + (size_t)piece * job->scratch_nbytes);
    for (int64_t i = begin; i < end; i++) {
        int64_t r = i / job->col_parts, c = i % job->col_parts;
        TFN(part)(job, TFN(begin)(job->p.m, PANEL_ROWS, job->row_parts, r),
                  TFN(begin)(job->p.m, PANEL_ROWS, job->row_parts, r + 1),
                  TFN(begin)(job->p.n, PANEL_COLS, job->col_parts, c),
                  TFN(begin)(job->p.n, PANEL_COLS, job->col_parts, c + 1), scratch);
    }
}

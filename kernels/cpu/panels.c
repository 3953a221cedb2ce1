// SPDX-License-Identifier: Apache-2.0
// panels: which products are done by panels, and their pieces of work; Note [products by panels],
// panels.h.
#include "panels.h"

pl_range_fn pl__panels_loop(pl_dtype ab) {
    const pl_cpu_features *cpu = pl_cpu();
    if (cpu->amx_bf16) return NULL;  // not measured there yet: oneDNN's
    if (ab == PL_F32) return cpu->avx512 ? pl__panels_f32() : NULL;
    return ab == PL_BF16 && cpu->avx512_bf16 ? pl__panels_dot() : NULL;
}

// Whether oneDNN is ahead: it is not in what it cannot do.
static bool dnnl_is_ahead(const pl_product *p) {
    enum { SHORTEST_F32 = 512, SHORTEST_BF16 = 256 };
    if (p->b_wide) return false;
    bool tall = p->out == PL_F32 && p->a_row == 1 && p->b_col == 1;
    return !tall || p->k < (p->ab == PL_F32 ? SHORTEST_F32 : SHORTEST_BF16);
}

bool pl__product_by_panels(const pl_product *p) {
    enum { SHORTEST = 64, SMALLEST = 64 };
    if (dnnl_is_ahead(p)) return false;
    return p->nbatch == 0 && (p->out == PL_F32 || p->out == p->ab) && p->k >= SHORTEST &&
           p->m >= SMALLEST && p->n >= SMALLEST && (p->a_row == 1 || p->a_col == 1) &&
           (p->b_row == 1 || p->b_col == 1) && pl__panels_loop(p->ab) != NULL;
}

// Every piece packs what it needs of A and of B for itself, so the cut is the one with the least of
// both: parts that are about square. False where there are not so many panels.
static bool cut(pl_panel_job *job, int64_t pieces) {
    int64_t rows = (job->p.m + PANEL_ROWS - 1) / PANEL_ROWS, least = INT64_MAX;
    int64_t cols = (job->p.n + PANEL_COLS - 1) / PANEL_COLS;
    for (int64_t r = 1; r <= pieces && r <= rows; r++) {
        int64_t packed = job->p.m / r + job->p.n / (pieces / r);
        if (pieces % r != 0 || pieces / r > cols || packed >= least) continue;
        least = packed;
        job->row_parts = r;
        job->col_parts = pieces / r;
    }
    return least < INT64_MAX;
}

// Which operand stays packed: the choice by which less is packed, in rows and columns.
static bool keeps_b(const pl_product *p) {
    int64_t kept_a = p->m + p->n * ((p->m + PANEL_HIGH_A - 1) / PANEL_HIGH_A);
    int64_t kept_b = p->n + p->m * ((p->n + PANEL_WIDE_B - 1) / PANEL_WIDE_B);
    return kept_b < kept_a;
}

// Runs of about the same length, whole steps each; panels with a line more than they hold, so that
// lines written together do not meet in one set of the cache.
static void cut_runs(pl_panel_job *job) {
    job->keep_b = keeps_b(&job->p);
    int64_t most = job->keep_b ? PANEL_STEPS_B : PANEL_STEPS_A;
    int64_t depth = job->p.ab == PL_BF16 ? 2 : 1, steps = (job->p.k + depth - 1) / depth;
    int64_t runs = (steps + most - 1) / most, run = (steps + runs - 1) / runs;
    job->run = run * depth;
    job->summing = job->p.out != PL_F32 && runs > 1;
    job->panel_a = (run * PANEL_ROWS + 15) / 16 * 16 + 16;
    job->panel_b = run * PANEL_COLS + 16;
}

// The memory of a piece: panels of A, panels of B, sums.
static void make_room(pl_panel_job *job) {
    int64_t panels = (job->p.m + PANEL_ROWS - 1) / PANEL_ROWS;
    int64_t rows = (panels + job->row_parts - 1) / job->row_parts * PANEL_ROWS;  // most of a piece
    int64_t high = job->keep_b ? PANEL_HIGH_B : PANEL_HIGH_A;
    job->wide = job->keep_b ? PANEL_WIDE_B : PANEL_WIDE_A;
    job->high = rows < high ? (rows + 15) / 16 * 16 : high;
    job->units_a = job->high / PANEL_ROWS * job->panel_a;
    job->units_b = job->wide / PANEL_COLS * job->panel_b;
    int64_t sums = job->keep_b && rows < PANEL_SUM_ROWS ? rows : PANEL_SUM_ROWS;
    if (!job->keep_b) sums = job->high;
    int64_t units = job->units_a + job->units_b + (job->summing ? sums * PANEL_SUMS : 0);
    job->scratch_nbytes = (size_t)units * sizeof(float);
}

pl_status pl__product_panels(const pl_product *p, const pl_epilogue *e, const void *a,
                             const void *b, void *out) {
    pl_panel_job job = {.p = *p, .e = *e, .a = a, .b = b, .out = out};
    int64_t pieces = pl_num_threads();
    while (!cut(&job, pieces)) pieces--;  // one is always possible
    cut_runs(&job);
    make_room(&job);
    PL_TRY(pl_alloc((size_t)pieces * job.scratch_nbytes, (void **)&job.scratch));
    pl_parallel_for(pieces, 1, pl__panels_loop(p->ab), &job);
    pl_free(job.scratch);
    if (e->row_sums) *e->summed = true;
    return PL_OK;
}

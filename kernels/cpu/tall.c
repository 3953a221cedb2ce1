// SPDX-License-Identifier: Apache-2.0
// tall: which products are tall, and their pieces of work; Note [tall products], tall.h.
#include "tall.h"

pl_range_fn pl__tall_loop(pl_dtype ab) {
    const pl_cpu_features *cpu = pl_cpu();
    if (cpu->amx_bf16) return NULL;  // not measured there yet: oneDNN's
    if (ab == PL_F32) return cpu->avx512 ? pl__tall_f32() : NULL;
    return ab == PL_BF16 && cpu->avx512_bf16 ? pl__tall_dot() : NULL;
}

bool pl__product_is_tall(const pl_product *p) {
    // Below, packing costs as much as it brings. Zen 5, one thread, GFLOP/s against oneDNN's: k
    // 2048 222-234 / 208-219 in fp32 and 422-447 / 378-391 in bf16, k 512 230 / 208 and 455 / 433,
    // k 256 217-230 / 233-242 and 466-481 / 455-465.
    enum { SHORTEST_F32 = 512, SHORTEST_BF16 = 256, SMALLEST = 64 };
    int64_t shortest = p->ab == PL_F32 ? SHORTEST_F32 : SHORTEST_BF16;
    return p->nbatch == 0 && p->out == PL_F32 && p->a_row == 1 && p->b_col == 1 &&
           p->k >= shortest && p->m >= SMALLEST && p->n >= SMALLEST && pl__tall_loop(p->ab) != NULL;
}

// Every piece packs what it needs of A and of B for itself, so the cut is the one with the least of
// both: parts that are about square. False where there are not so many panels.
static bool cut(pl_tall_job *job, int64_t pieces) {
    int64_t rows = (job->m + TALL_ROWS - 1) / TALL_ROWS, least = INT64_MAX;
    int64_t cols = (job->n + TALL_COLS - 1) / TALL_COLS;
    for (int64_t r = 1; r <= pieces && r <= rows; r++) {
        int64_t packed = job->m / r + job->n / (pieces / r);
        if (pieces % r != 0 || pieces / r > cols || packed >= least) continue;
        least = packed;
        job->row_parts = r;
        job->col_parts = pieces / r;
    }
    return least < INT64_MAX;
}

pl_status pl__product_tall(const pl_product *p, const pl_epilogue *e, const void *a, const void *b,
                           void *out) {
    pl_tall_job job = {.a = a,
                       .b = b,
                       .out = out,
                       .m = p->m,
                       .n = p->n,
                       .k = p->k,
                       .a_step = p->a_col,
                       .b_step = p->b_row,
                       .out_step = p->out_row,
                       .accumulate = e->accumulate,
                       .row_sums = e->row_sums,
                       .add_row_sums = e->add_row_sums};
    int64_t pieces = pl_num_threads();
    while (!cut(&job, pieces)) pieces--;  // one is always possible
    size_t units = TALL_WIDE / TALL_COLS * TALL_PANEL_B + TALL_HIGH / TALL_ROWS * TALL_PANEL_A;
    job.scratch_nbytes = units * sizeof(float);
    PL_TRY(pl_alloc((size_t)pieces * job.scratch_nbytes, (void **)&job.scratch));
    pl_parallel_for(pieces, 1, pl__tall_loop(p->ab), &job);
    pl_free(job.scratch);
    if (e->row_sums) *e->summed = true;
    return PL_OK;
}

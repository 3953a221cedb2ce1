// SPDX-License-Identifier: Apache-2.0
// matmul_blocked: this project's own matrix product, for f64 and for builds without oneDNN. One
// task computes one block of out, MC x NC: for each run of KC along k it packs a block of a and of
// b into fp32 (f64) rows, converting on the way, and adds their product to the block's sums with
// the tile product (tile_body.h); at the end bias or what out held is added and each number is
// rounded once. Tasks share nothing, and k runs in one order: the thread count changes no bit.
#include <stdatomic.h>
#include <string.h>

#include "product.h"
#include "rows.h"

enum { MC = 64, NC = 256, KC = 256 };

typedef struct blocked_job {
    const pl_product *p;
    const pl_epilogue *e;
    const char *a, *b;
    char *out;
    int64_t row_blocks, col_blocks;
    const pl_rows *rows;
    char *scratch;          // one piece per thread
    size_t scratch_nbytes;  // of a piece
    atomic_int next_scratch;
    bool wide;  // R is double
} blocked_job;

static double get_number(const char *base, int64_t i, pl_dtype dt) {
    switch (dt) {
        case PL_F16:
            return (double)pl_f16_to_f32(((const pl_f16 *)base)[i]);
        case PL_BF16:
            return (double)pl_bf16_to_f32(((const pl_bf16 *)base)[i]);
        case PL_F32:
            return (double)((const float *)base)[i];
        default:
            return ((const double *)base)[i];
    }
}

static void put_number(char *base, int64_t i, pl_dtype dt, double v) {
    switch (dt) {
        case PL_F16:
            ((pl_f16 *)base)[i] = pl_f32_to_f16((float)v);
            break;
        case PL_BF16:
            ((pl_bf16 *)base)[i] = pl_f32_to_bf16((float)v);
            break;
        case PL_F32:
            ((float *)base)[i] = (float)v;
            break;
        default:
            ((double *)base)[i] = v;
            break;
    }
}

// dst (rows, ld) = the block of src, zeros from `cols` to ld. The inner loop runs along the
// dimension that is adjacent in src.
#define DEFINE_PACK(name, R, S, CONVERT)                                                        \
    static void name(R *dst, int64_t ld, const S *src, int64_t rows, int64_t cols, int64_t row, \
                     int64_t col) {                                                             \
        for (int64_t i = 0; i < rows && cols < ld; i++) {                                       \
            memset(dst + i * ld + cols, 0, (size_t)(ld - cols) * sizeof(R));                    \
        }                                                                                       \
        if (col == 1) {                                                                         \
            for (int64_t i = 0; i < rows; i++) {                                                \
                for (int64_t j = 0; j < cols; j++) dst[i * ld + j] = CONVERT(src[i * row + j]); \
            }                                                                                   \
            return;                                                                             \
        }                                                                                       \
        for (int64_t j = 0; j < cols; j++) {                                                    \
            for (int64_t i = 0; i < rows; i++) {                                                \
                dst[i * ld + j] = CONVERT(src[i * row + j * col]);                              \
            }                                                                                   \
        }                                                                                       \
    }
#define SAME(x) (x)
DEFINE_PACK(pack_f64, double, double, SAME)
DEFINE_PACK(pack_f32, float, float, SAME)
DEFINE_PACK(pack_bf16, float, pl_bf16, pl_bf16_to_f32)
DEFINE_PACK(pack_f16, float, pl_f16, pl_f16_to_f32)

static void pack(pl_dtype dt, void *dst, int64_t ld, const char *src, int64_t rows, int64_t cols,
                 int64_t row, int64_t col) {
    switch (dt) {
        case PL_F64:
            pack_f64(dst, ld, (const void *)src, rows, cols, row, col);
            break;
        case PL_F32:
            pack_f32(dst, ld, (const void *)src, rows, cols, row, col);
            break;
        case PL_BF16:
            pack_bf16(dst, ld, (const void *)src, rows, cols, row, col);
            break;
        default:
            pack_f16(dst, ld, (const void *)src, rows, cols, row, col);
            break;
    }
}

static void store_block(const blocked_job *job, char *out, const char *sums, int64_t i0, int64_t j0,
                        int64_t rows, int64_t cols) {
    const pl_product *p = job->p;
    const pl_epilogue *e = job->e;
    pl_dtype dr = job->wide ? PL_F64 : PL_F32;
    bool as_is = p->out == dr && !e->bias && !e->accumulate;
    size_t size = pl_dtype_size(dr);
    for (int64_t i = 0; i < rows; i++) {
        if (as_is) {
            memcpy(out + (size_t)((i0 + i) * p->out_row + j0) * size,
                   sums + (size_t)(i * NC) * size, (size_t)cols * size);
            continue;
        }
        for (int64_t j = 0; j < cols; j++) {
            int64_t o = (i0 + i) * p->out_row + j0 + j;
            double v = get_number(sums, i * NC + j, dr);
            if (e->bias) v += get_number(e->bias, j0 + j, e->bias_dtype);
            if (e->accumulate) v += get_number(out, o, p->out);
            put_number(out, o, p->out, v);
        }
    }
}

// Where one index of the batch begins in a, b and out, in elements.
static void batch_offsets(const pl_product *p, int64_t index, int64_t off[3]) {
    off[0] = off[1] = off[2] = 0;
    for (int d = p->nbatch - 1; d >= 0; d--) {
        int64_t at = index % p->batch[d];
        index /= p->batch[d];
        off[0] += at * p->a_batch[d];
        off[1] += at * p->b_batch[d];
        off[2] += at * p->out_batch[d];
    }
}

static void run_block(const blocked_job *job, int64_t task, char *scratch) {
    const pl_product *p = job->p;
    int64_t col_block = task % job->col_blocks, rest = task / job->col_blocks, off[3];
    batch_offsets(p, rest / job->row_blocks, off);
    int64_t i0 = rest % job->row_blocks * MC, j0 = col_block * NC;
    int64_t rows = p->m - i0 < MC ? p->m - i0 : MC, cols = p->n - j0 < NC ? p->n - j0 : NC;
    size_t real = job->wide ? 8 : 4, size = pl_dtype_size(p->ab);
    char *sums = scratch, *pa = sums + MC * NC * real, *pb = pa + MC * KC * real;
    const char *a = job->a + (size_t)off[0] * size, *b = job->b + (size_t)off[1] * size;
    int step = job->rows->tile_cols[job->wide];
    int64_t padded = (cols + step - 1) / step * step;
    memset(sums, 0, MC * NC * real);
    for (int64_t k0 = 0; k0 < p->k; k0 += KC) {
        int64_t k = p->k - k0 < KC ? p->k - k0 : KC;
        pack(p->ab, pa, KC, a + (size_t)(i0 * p->a_row + k0 * p->a_col) * size, rows, k, p->a_row,
             p->a_col);
        for (int64_t j = 0; j < padded; j += step) {  // panels of `step` columns, each adjacent
            int64_t width = cols - j < step ? cols - j : step;
            pack(p->ab, pb + (size_t)(j * KC) * real, step,
                 b + (size_t)(k0 * p->b_row + (j0 + j) * p->b_col) * size, k, width, p->b_row,
                 p->b_col);
            job->rows->tile[job->wide](true, rows, step, k, pa, KC, pb + (size_t)(j * KC) * real,
                                       step, sums + (size_t)j * real, NC);
        }
    }
    store_block(job, job->out + (size_t)off[2] * pl_dtype_size(p->out), sums, i0, j0, rows, cols);
}

static void run_blocks(int64_t begin, int64_t end, void *ctx) {
    blocked_job *job = ctx;
    // Relaxed: only the number itself matters; pl_parallel_for orders everything else.
    int piece = atomic_fetch_add_explicit(&job->next_scratch, 1, memory_order_relaxed);
    char *scratch = job->scratch + (size_t)piece * job->scratch_nbytes;
    for (int64_t task = begin; task < end; task++) run_block(job, task, scratch);
}

pl_status pl__product_blocked(const pl_product *p, const pl_epilogue *e, const void *a,
                              const void *b, void *out) {
    blocked_job job = {
        .p = p, .e = e, .a = a, .b = b, .out = out, .rows = pl__rows(), .wide = p->ab == PL_F64};
    job.row_blocks = (p->m + MC - 1) / MC;
    job.col_blocks = (p->n + NC - 1) / NC;
    int64_t tasks = job.row_blocks * job.col_blocks;
    for (int d = 0; d < p->nbatch; d++) tasks *= p->batch[d];
    job.scratch_nbytes = (size_t)(MC * NC + MC * KC + NC * KC) * (job.wide ? 8 : 4);
    int threads = pl_num_threads();
    int pieces = tasks < threads ? (int)tasks : threads;
    PL_TRY(pl_alloc((size_t)pieces * job.scratch_nbytes, (void **)&job.scratch));
    int64_t work = 2 * MC * NC * (p->k + 1);  // of a full block; small products stay on one thread
    pl_parallel_for(tasks, work >= 1 << 20 ? 1 : (1 << 20) / work, run_blocks, &job);
    pl_free(job.scratch);
    return PL_OK;
}

// SPDX-License-Identifier: Apache-2.0
// Along one dimension: the place of the extreme, running sums; and the sum of squares of a buffer.
// Every line is done by one thread, from its start to its end.

#include <math.h>

#include "cpu/cpu.h"
#include "cpu/reduce.h"
#include "cpu/walk.h"

typedef struct line_job {
    pl_walk lines;  // operand 0: out, 1: x, without the dimension
    int64_t n, step, out_step;
    pl_dtype dtype;
    pl_compute c;
    bool max;
} line_job;

static pl_tensor without(const pl_tensor *t, int dim) {
    pl_tensor r = {.dtype = t->dtype, .data = t->data, .numel = 1};
    for (int d = 0; d < t->ndim; d++) {
        if (d == dim) continue;
        r.shape[r.ndim] = t->shape[d];
        r.strides[r.ndim++] = t->strides[d];
        r.numel *= t->shape[d];
    }
    return r;
}

static void init_lines(line_job *j, const pl_tensor *x, int dim, const pl_tensor *out) {
    pl_tensor to = without(out, dim), from = without(x, dim);
    pl__cpu_walk_init(&j->lines, 2, (const pl_tensor *const[]){&to, &from});
    j->n = x->ndim == 0 ? 1 : x->shape[dim];
    j->step = x->ndim == 0 ? 1 : x->strides[dim];
    j->out_step = out->ndim == 0 ? 1 : out->strides[dim];
    j->dtype = x->dtype;
    j->c = pl__cpu_compute(x->dtype);
}

static void run_lines(line_job *j, pl_range_fn fn) {
    int64_t total = j->lines.numel * j->n, each = j->n > 0 ? j->n : 1;
    int64_t grain = total < PL_SERIAL ? j->lines.numel : (8 * PL_CHUNK + each - 1) / each;
    pl_parallel_for(j->lines.numel, grain, fn, j);
}

static char *line_start(const line_job *j, int k, const pl_cursor *c) {
    const pl_operand *op = &j->lines.op[k];
    int64_t offset = 0;
    for (int d = 0; d < j->lines.ndim; d++) offset += c->at[d] * op->strides[d];
    return op->data + offset * (int64_t)op->size;
}

// Whether v is ahead of the best so far; a NaN is ahead of all numbers.
static bool ahead_float(bool max, double v, double best) {
    if (isnan(best)) return false;
    return isnan(v) || (max ? v > best : v < best);
}

// The first place in a chunk that holds v.
static int64_t find(pl_compute c, const void *x, pl_accumulator v) {
    int64_t i = 0;
    if (c == PL_C_I64) {
        while (((const int64_t *)x)[i] != v.i) i++;
    } else if (c == PL_C_F64) {
        const double *d = x;
        while (isnan(v.f) ? !isnan(d[i]) : d[i] != v.f) i++;
    } else {
        const float *f = x;
        while (isnan(v.f) ? !isnan(f[i]) : f[i] != (float)v.f) i++;
    }
    return i;
}

static int64_t extreme_place(const line_job *j, const char *x) {
    _Alignas(64) char buf[PL_CHUNK * 8];
    pl_reduce op = j->max ? PL_REDUCE_MAX : PL_REDUCE_MIN;
    pl_load_fn load = pl__cpu_convert()->load[j->dtype];
    pl_fold_row_fn fold = pl__cpu_reduce_loops()->row[j->c][op];
    bool direct = j->step == 1 && j->dtype == pl__cpu_compute_dtype(j->c);
    pl_accumulator best = {0.0, 0};
    int64_t place = 0;
    for (int64_t i = 0; i < j->n; i += PL_CHUNK) {
        int64_t n = j->n - i < PL_CHUNK ? j->n - i : PL_CHUNK;
        const char *at = x + i * j->step * (int64_t)pl_dtype_size(j->dtype);
        if (!direct) load(n, at, j->step, buf);
        const void *chunk = direct ? (const void *)at : buf;
        pl_accumulator here = pl__cpu_identity(op);
        fold(n, chunk, &here);
        bool ahead = i == 0 || (j->c == PL_C_I64 ? (j->max ? here.i > best.i : here.i < best.i)
                                                 : ahead_float(j->max, here.f, best.f));
        if (!ahead) continue;
        best = here;
        place = i + find(j->c, chunk, here);
    }
    return place;
}

static void arg_range(int64_t begin, int64_t end, void *ctx) {
    const line_job *j = ctx;
    pl_cursor c;
    pl__cpu_cursor_set(&j->lines, begin, &c);
    while (c.index < end) {
        *(int64_t *)(void *)line_start(j, 0, &c) = extreme_place(j, line_start(j, 1, &c));
        pl__cpu_cursor_advance(&j->lines, 1, &c);
    }
}

pl_status pl_cpu_argreduce(bool max, const pl_tensor *x, int dim, pl_tensor *out) {
    if (out->numel == 0) return PL_OK;
    line_job j = {.max = max};
    init_lines(&j, x, dim, out);
    run_lines(&j, arg_range);
    return PL_OK;
}

// Running sums, in f64 or wrapping int64.
static void cumsum_line(const line_job *j, pl_dtype out_dtype, const char *x, char *out) {
    const pl_convert *cv = pl__cpu_convert();
    _Alignas(64) char in[PL_CHUNK * 8];
    double sums[PL_CHUNK], f = 0.0;
    int64_t ints[PL_CHUNK];
    uint64_t u = 0;
    for (int64_t i = 0; i < j->n; i += PL_CHUNK) {
        int64_t n = j->n - i < PL_CHUNK ? j->n - i : PL_CHUNK;
        char *to = out + i * j->out_step * (int64_t)pl_dtype_size(out_dtype);
        cv->load[j->dtype](n, x + i * j->step * (int64_t)pl_dtype_size(j->dtype), j->step, in);
        for (int64_t k = 0; k < n; k++) {
            if (j->c == PL_C_I64) {
                u += (uint64_t)((const int64_t *)(const void *)in)[k];
                ints[k] = (int64_t)u;
            } else {
                f += j->c == PL_C_F64 ? ((const double *)(const void *)in)[k]
                                      : (double)((const float *)(const void *)in)[k];
                sums[k] = f;
            }
        }
        bool integer = j->c == PL_C_I64;
        cv->store[integer ? PL_C_I64 : PL_C_F64][out_dtype](
            n, integer ? (const void *)ints : (const void *)sums, to, j->out_step);
    }
}

typedef struct cumsum_job {
    line_job base;  // first, so that run_lines serves
    pl_dtype out_dtype;
} cumsum_job;

static void cumsum_range(int64_t begin, int64_t end, void *ctx) {
    const cumsum_job *j = ctx;
    pl_cursor c;
    pl__cpu_cursor_set(&j->base.lines, begin, &c);
    while (c.index < end) {
        cumsum_line(&j->base, j->out_dtype, line_start(&j->base, 1, &c),
                    line_start(&j->base, 0, &c));
        pl__cpu_cursor_advance(&j->base.lines, 1, &c);
    }
}

pl_status pl_cpu_cumsum(const pl_tensor *x, int dim, pl_tensor *out) {
    if (out->numel == 0) return PL_OK;
    cumsum_job j = {.out_dtype = out->dtype};
    init_lines(&j.base, x, dim, out);
    run_lines(&j.base, cumsum_range);
    return PL_OK;
}

// ---- sum of squares

typedef struct squares_job {
    const pl_tensor *x;
    double *partial;  // one per block
} squares_job;

static double block_squares(const pl_tensor *x, int64_t first, int64_t n) {
    const pl_reduce_loops *loops = pl__cpu_reduce_loops();
    const char *data = (const char *)x->data + first * (int64_t)pl_dtype_size(x->dtype);
    if (x->dtype == PL_F32) return loops->squares_f32(n, (const float *)(const void *)data);
    if (x->dtype == PL_F64) return loops->squares_f64(n, (const double *)(const void *)data);
    float buf[PL_CHUNK];
    double sum = 0.0;
    for (int64_t i = 0; i < n; i += PL_CHUNK) {
        int64_t m = n - i < PL_CHUNK ? n - i : PL_CHUNK;
        pl__cpu_convert()->load[x->dtype](m, data + i * (int64_t)pl_dtype_size(x->dtype), 1, buf);
        sum += loops->squares_f32(m, buf);
    }
    return sum;
}

static void squares_range(int64_t begin, int64_t end, void *ctx) {
    const squares_job *j = ctx;
    for (int64_t b = begin; b < end; b++) {
        int64_t left = j->x->numel - b * PL_SQUARES_BLOCK;
        j->partial[b] = block_squares(j->x, b * PL_SQUARES_BLOCK,
                                      left < PL_SQUARES_BLOCK ? left : PL_SQUARES_BLOCK);
    }
}

pl_status pl_cpu_sum_squares(const pl_tensor *x, double *out) {
    *out = 0.0;
    if (x->numel == 0) return PL_OK;
    if (!pl_dtype_is_float(x->dtype)) {
        return pl_fail(PL_ETYPE, "[sum_squares] dtype: got %s, expected a floating one",
                       pl_dtype_name(x->dtype));
    }
    int64_t blocks = (x->numel + PL_SQUARES_BLOCK - 1) / PL_SQUARES_BLOCK;
    void *partial;
    PL_TRY(pl_alloc((size_t)blocks * sizeof(double), &partial));
    squares_job j = {x, partial};
    pl_parallel_for(blocks, 2, squares_range, &j);
    *out = pl_sum_pairwise(partial, blocks);
    pl_free(partial);
    return PL_OK;
}

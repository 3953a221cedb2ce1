// SPDX-License-Identifier: Apache-2.0
// Reductions over any set of dimensions of any strides. Order: what is reduced into one element is
// numbered in memory order and cut into segments of a fixed size; a segment is folded by the loops
// of reduce_loops.h and segments are joined in order, in f64 where they are sums. Neither the
// thread count nor how the work is split takes part.
//   rows     the reduced dimensions are innermost: an output at a time, or a segment at a time
//            where there are few outputs
//   columns  a kept dimension is innermost: COL_ROWS rows at a time are added onto one of partial
//            results, then these onto one another

#include "cpu/reduce.h"

#include <string.h>

#include "cpu/cpu.h"
#include "cpu/walk.h"

#define SEGMENT 16384
#define COL_ROWS 128

typedef struct job {
    pl_reduce op;
    pl_compute c;
    pl_walk keep;     // operand 0: out, 1: x, over the kept dimensions
    pl_walk reduced;  // operand 0: x over the reduced ones, from the kept ones' offset
    int64_t outs, count;
    pl_load_fn load, widen;  // widen: then f32 to f64 (products)
    pl_dtype out_dtype;
    size_t size;  // of the compute type
    bool direct;  // x is stored as it is computed
    int64_t segments;
    pl_accumulator *partial;  // (outs, segments)
    // columns
    int64_t width, tiles, blocks;  // of the innermost kept dimension; blocks of COL_ROWS rows
    char *partial_rows;            // (outs / width, blocks, width) of the compute type
} job;

static void store_value(const job *j, pl_accumulator acc, int64_t o) {
    const pl_convert *cv = pl__cpu_convert();
    char *to = (char *)j->keep.op[0].data + o * (int64_t)j->keep.op[0].size;
    if (j->c == PL_C_I64) {
        cv->store[PL_C_I64][j->out_dtype](1, &acc.i, to, 1);
        return;
    }
    if (j->op == PL_REDUCE_MEAN) acc.f /= (double)j->count;
    cv->store[PL_C_F64][j->out_dtype](1, &acc.f, to, 1);
}

// ---- rows

// A dense run of n reduced elements at the cursor, in the compute type.
static const void *fetch(const job *j, const pl_walk *w, const pl_cursor *c, int64_t n, void *buf,
                         float *narrow) {
    if (j->direct) {
        const void *there = pl__cpu_walk_dense(w, 0, c, n);
        if (there != NULL) return there;
    }
    if (j->widen == NULL) {
        pl__cpu_walk_load(w, 0, c, n, j->load, j->size, buf);
    } else {
        pl__cpu_walk_load(w, 0, c, n, j->load, sizeof(float), narrow);
        for (int64_t i = 0; i < n; i++) ((double *)buf)[i] = (double)narrow[i];
    }
    return buf;
}

// Folds segment s of what w walks over onto acc.
static void fold_segment(const job *j, const pl_walk *w, int64_t s, pl_accumulator *acc) {
    _Alignas(64) char buf[PL_CHUNK * 8];
    _Alignas(64) float narrow[PL_CHUNK];
    pl_fold_row_fn fold = pl__cpu_reduce_loops()->row[j->c][j->op];
    int64_t end = (s + 1) * SEGMENT < j->count ? (s + 1) * SEGMENT : j->count;
    pl_cursor c;
    pl__cpu_cursor_set(w, s * SEGMENT, &c);
    while (c.index < end) {
        int64_t n = end - c.index < PL_CHUNK ? end - c.index : PL_CHUNK;
        fold(n, fetch(j, w, &c, n, buf, narrow), acc);
        pl__cpu_cursor_advance(w, n, &c);
    }
}

static pl_accumulator join(pl_reduce op, pl_compute c, pl_accumulator a, pl_accumulator b) {
    // One element of the compute type, folded like any other.
    if (c == PL_C_I64) {
        pl__cpu_reduce_loops()->row[PL_C_I64][op](1, &b.i, &a);
    } else {
        pl__cpu_reduce_loops()->row[PL_C_F64][op](1, &b.f, &a);
    }
    return a;
}

// w: a copy of j->reduced that this thread may point at an output's elements.
static void aim(const job *j, pl_walk *w, const pl_cursor *o) {
    int64_t offset = 0;
    for (int d = 0; d < j->keep.ndim; d++) offset += o->at[d] * j->keep.op[1].strides[d];
    w->op[0].data = j->keep.op[1].data + offset * (int64_t)j->keep.op[1].size;
}

static void row_range(int64_t begin, int64_t end, void *ctx) {
    const job *j = ctx;
    pl_walk w = j->reduced;
    pl_cursor o;
    pl__cpu_cursor_set(&j->keep, begin, &o);
    while (o.index < end) {
        aim(j, &w, &o);
        pl_accumulator total = pl__cpu_identity(j->op);
        for (int64_t s = 0; s < j->segments; s++) {
            pl_accumulator acc = pl__cpu_identity(j->op);
            fold_segment(j, &w, s, &acc);
            total = s == 0 ? acc : join(j->op, j->c, total, acc);
        }
        store_value(j, total, o.index);
        pl__cpu_cursor_advance(&j->keep, 1, &o);
    }
}

// The same with a segment as the unit of work.
static void segment_range(int64_t begin, int64_t end, void *ctx) {
    const job *j = ctx;
    pl_walk w = j->reduced;
    for (int64_t i = begin; i < end; i++) {
        pl_cursor o;
        pl__cpu_cursor_set(&j->keep, i / j->segments, &o);
        aim(j, &w, &o);
        j->partial[i] = pl__cpu_identity(j->op);
        fold_segment(j, &w, i % j->segments, &j->partial[i]);
    }
}

static pl_status reduce_segments(job *j) {
    void *partial;
    PL_TRY(pl_alloc((size_t)(j->outs * j->segments) * sizeof(pl_accumulator), &partial));
    j->partial = partial;
    pl_parallel_for(j->outs * j->segments, 1, segment_range, j);
    for (int64_t o = 0; o < j->outs; o++) {
        pl_accumulator total = j->partial[o * j->segments];
        for (int64_t s = 1; s < j->segments; s++) {
            total = join(j->op, j->c, total, j->partial[o * j->segments + s]);
        }
        store_value(j, total, o);
    }
    pl_free(partial);
    return PL_OK;
}

static pl_status reduce_rows(job *j) {
    j->segments = (j->count + SEGMENT - 1) / SEGMENT;
    if (j->segments > 1 && j->outs < 64) return reduce_segments(j);
    int64_t total = j->outs * j->count, each = j->count > 0 ? j->count : 1;
    int64_t grain = total < PL_SERIAL ? j->outs : (8 * PL_CHUNK + each - 1) / each;
    pl_parallel_for(j->outs, grain, row_range, j);
    return PL_OK;
}

// ---- columns

// n results of the compute type, or doubles where `wide`, to the output from element o on.
static void store_results(const job *j, bool wide, int64_t n, void *acc, int64_t o) {
    const pl_convert *cv = pl__cpu_convert();
    char *to = (char *)j->keep.op[0].data + o * (int64_t)j->keep.op[0].size;
    double mean[PL_CHUNK];
    pl_compute c = wide ? PL_C_F64 : j->c;
    if (j->op == PL_REDUCE_MEAN) {
        for (int64_t i = 0; i < n; i++) {
            double sum = c == PL_C_F32 ? (double)((float *)acc)[i] : ((double *)acc)[i];
            mean[i] = sum / (double)j->count;
        }
        acc = mean;
        c = PL_C_F64;
    }
    cv->store[c][j->out_dtype](n, acc, to, 1);
}

static void set_identity(const job *j, int64_t n, void *acc) {
    pl_accumulator start = pl__cpu_identity(j->op);
    for (int64_t i = 0; i < n; i++) {
        if (j->c == PL_C_F32) {
            ((float *)acc)[i] = (float)start.f;
        } else if (j->c == PL_C_F64) {
            ((double *)acc)[i] = start.f;
        } else {
            ((int64_t *)acc)[i] = start.i;
        }
    }
}

// One row's piece of n columns from `at`: where it lies, or loaded into buf.
static const void *row_piece(const job *j, const char *at, int64_t n, void *buf, float *narrow) {
    int64_t step = j->keep.op[1].strides[j->keep.ndim - 1];
    if (j->direct && step == 1) return at;
    if (j->widen == NULL) {
        j->load(n, at, step, buf);
    } else {
        j->load(n, at, step, narrow);
        for (int64_t i = 0; i < n; i++) ((double *)buf)[i] = (double)narrow[i];
    }
    return buf;
}

// Folds rows [first, last) of n columns from `base` onto acc.
static void fold_rows(const job *j, const char *base, int64_t first, int64_t last, int64_t n,
                      void *acc) {
    _Alignas(64) char buf[4][PL_CHUNK * 8];
    _Alignas(64) float narrow[PL_CHUNK];
    const pl_reduce_loops *loops = pl__cpu_reduce_loops();
    pl_fold_col_fn fold = loops->col[j->c][j->op];
    bool by_four = j->c == PL_C_F32 && (j->op == PL_REDUCE_SUM || j->op == PL_REDUCE_MEAN);
    const pl_operand *x = &j->reduced.op[0];
    pl_cursor c;
    pl__cpu_cursor_set(&j->reduced, first, &c);
    const void *rows[4];
    int held = 0;
    while (c.index < last) {
        int64_t offset = 0;
        for (int d = 0; d < j->reduced.ndim; d++) offset += c.at[d] * x->strides[d];
        rows[held] = row_piece(j, base + offset * (int64_t)x->size, n, buf[held], narrow);
        pl__cpu_cursor_advance(&j->reduced, 1, &c);
        if (by_four && ++held < 4 && c.index < last) continue;
        if (held == 4) {
            loops->add4(n, (const float *const[]){rows[0], rows[1], rows[2], rows[3]}, acc);
        } else {
            for (int i = 0; i < (by_four ? held : 1); i++) fold(n, rows[i], acc);
        }
        held = 0;
    }
}

// Item i: block of rows, tile of columns, and which of the outer kept elements.
static void column_range(int64_t begin, int64_t end, void *ctx) {
    const job *j = ctx;
    _Alignas(64) char acc[PL_CHUNK * 8];
    for (int64_t i = begin; i < end; i++) {
        int64_t col = i % j->tiles * PL_CHUNK, block = i / j->tiles % j->blocks;
        int64_t outer = i / j->tiles / j->blocks, o = outer * j->width + col;
        int64_t n = j->width - col < PL_CHUNK ? j->width - col : PL_CHUNK;
        int64_t first = block * COL_ROWS;
        int64_t last = first + COL_ROWS < j->count ? first + COL_ROWS : j->count;
        pl_cursor at;
        pl_walk w;
        pl__cpu_cursor_set(&j->keep, o, &at);
        aim(j, &w, &at);
        set_identity(j, n, acc);
        fold_rows(j, w.op[0].data, first, last, n, acc);
        if (j->partial_rows == NULL) {
            store_results(j, false, n, acc, o);
        } else {
            int64_t to = (outer * j->blocks + block) * j->width + col;
            memcpy(j->partial_rows + (size_t)to * j->size, acc, (size_t)n * j->size);
        }
    }
}

// Joins the blocks' partial results of one tile of columns, in order.
static void join_range(int64_t begin, int64_t end, void *ctx) {
    const job *j = ctx;
    const pl_reduce_loops *loops = pl__cpu_reduce_loops();
    bool wide = j->c == PL_C_F32 && (j->op == PL_REDUCE_SUM || j->op == PL_REDUCE_MEAN);
    for (int64_t i = begin; i < end; i++) {
        _Alignas(64) double acc[PL_CHUNK];
        int64_t col = i % j->tiles * PL_CHUNK, outer = i / j->tiles;
        int64_t n = j->width - col < PL_CHUNK ? j->width - col : PL_CHUNK;
        if (wide) {
            for (int64_t k = 0; k < n; k++) acc[k] = 0.0;
        } else {
            set_identity(j, n, acc);
        }
        for (int64_t b = 0; b < j->blocks; b++) {
            const char *from =
                j->partial_rows + (size_t)((outer * j->blocks + b) * j->width + col) * j->size;
            if (wide) {
                loops->add_wide(n, (const float *)(const void *)from, acc);
            } else {
                loops->col[j->c][j->op](n, from, acc);
            }
        }
        store_results(j, wide, n, acc, outer * j->width + col);
    }
}

static pl_status reduce_columns(job *j) {
    j->width = j->keep.shape[j->keep.ndim - 1];
    j->tiles = (j->width + PL_CHUNK - 1) / PL_CHUNK;
    j->blocks = (j->count + COL_ROWS - 1) / COL_ROWS;
    int64_t outer = j->outs / j->width, items = outer * j->blocks * j->tiles;
    void *partial = NULL;
    if (j->blocks > 1) {
        PL_TRY(pl_alloc((size_t)(j->outs * j->blocks) * j->size, &partial));
        j->partial_rows = partial;
    }
    int64_t each = PL_CHUNK * (j->count < COL_ROWS ? j->count : COL_ROWS);
    int64_t grain = j->outs * j->count < PL_SERIAL ? items : (8 * PL_CHUNK + each - 1) / each;
    pl_parallel_for(items, grain, column_range, j);
    if (j->blocks > 1) pl_parallel_for(outer * j->tiles, 8, join_range, j);
    pl_free(partial);
    return PL_OK;
}

// ---- both

// x over its kept or its reduced dimensions.
static pl_tensor part_of(const pl_tensor *x, uint32_t dims, bool reduced) {
    pl_tensor t = {.dtype = x->dtype, .data = x->data, .numel = 1};
    for (int d = 0; d < x->ndim; d++) {
        if ((bool)(dims >> d & 1) != reduced) continue;
        t.shape[t.ndim] = x->shape[d];
        t.strides[t.ndim++] = x->strides[d];
        t.numel *= x->shape[d];
    }
    return t;
}

// One element into each output (a batch of one, over which a gradient is summed) is a single row.
static bool column_wise(const job *j) {
    int last = j->keep.ndim - 1, inner = j->reduced.ndim - 1;
    int64_t step = j->keep.op[1].strides[last];
    if (j->count == 0 || j->keep.shape[last] < 8 || step <= 0) return false;
    return j->count == 1 || step < j->reduced.op[0].strides[inner];
}

pl_status pl_cpu_reduce(pl_reduce op, const pl_tensor *x, uint32_t dims, pl_tensor *out) {
    if (out->numel == 0) return PL_OK;
    const pl_convert *cv = pl__cpu_convert();
    bool product = op == PL_REDUCE_PROD && pl__cpu_compute(x->dtype) == PL_C_F32;
    job j = {.op = op,
             .c = product ? PL_C_F64 : pl__cpu_compute(x->dtype),
             .outs = out->numel,
             .load = cv->load[x->dtype],
             .widen = product ? cv->load[x->dtype] : NULL,
             .out_dtype = out->dtype};
    j.direct = x->dtype == pl__cpu_compute_dtype(j.c);
    j.size = pl_dtype_size(pl__cpu_compute_dtype(j.c));
    pl_tensor kept = part_of(x, dims, false), reduced = part_of(x, dims, true);
    pl_tensor to = part_of(out, dims, false);
    j.count = reduced.numel;
    pl__cpu_walk_init(&j.keep, 2, (const pl_tensor *const[]){&to, &kept});
    pl__cpu_walk_init(&j.reduced, 1, (const pl_tensor *const[]){&reduced});
    return column_wise(&j) ? reduce_columns(&j) : reduce_rows(&j);
}

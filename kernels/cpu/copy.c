// SPDX-License-Identifier: Apache-2.0
// Copies with conversion, fills and ranges. A copy whose source is dense along another dimension
// than its destination (a transpose) goes by square tiles, so that both sides touch whole cache
// lines; every other one goes by chunks (walk.h).

#include <stddef.h>
#include <string.h>

#include "cpu/cpu.h"
#include "cpu/transpose.h"
#include "cpu/walk.h"

typedef struct job {
    pl_walk walk;  // operand 0: destination, 1: source
    pl_load_fn load;
    pl_store_fn store;
    size_t between;     // bytes of an element between load and store
    bool direct_load;   // what load gives is what the destination holds
    bool direct_store;  // what store takes is what the source holds
    int across;         // the tiles' other dimension
    int64_t tiles_across, tiles_along;
} job;

static void copy_range(int64_t begin, int64_t end, void *ctx) {
    const job *j = ctx;
    _Alignas(64) char buf[PL_CHUNK * 8];
    pl_cursor c;
    pl__cpu_cursor_set(&j->walk, begin, &c);
    while (c.index < end) {
        int64_t n = end - c.index < PL_CHUNK ? end - c.index : PL_CHUNK;
        const void *from = j->direct_store ? pl__cpu_walk_dense(&j->walk, 1, &c, n) : NULL;
        void *to = j->direct_load ? pl__cpu_walk_dense(&j->walk, 0, &c, n) : NULL;
        if (from != NULL) {
            pl__cpu_walk_store(&j->walk, &c, n, j->store, j->between, from);
        } else if (to != NULL) {
            pl__cpu_walk_load(&j->walk, 1, &c, n, j->load, j->between, to);
        } else {
            pl__cpu_walk_load(&j->walk, 1, &c, n, j->load, j->between, buf);
            pl__cpu_walk_store(&j->walk, &c, n, j->store, j->between, buf);
        }
        pl__cpu_cursor_advance(&j->walk, n, &c);
    }
}

// The dimension along which the source is dense while the destination is dense along the last; -1
// where that is the same one or a tile would not pay.
static int transposed_dim(const pl_walk *w) {
    int last = w->ndim - 1;
    const int64_t *to = w->op[0].strides, *from = w->op[1].strides;
    if (to[last] != 1 || from[last] <= 1 || w->shape[last] < 8) return -1;
    for (int d = 0; d < last; d++) {
        if (from[d] == 1 && w->shape[d] >= 8) return d;
    }
    return -1;
}

static char *place(const pl_operand *op, int64_t offset) {
    return op->data + offset * (int64_t)op->size;
}

// One tile: rows of the source, transposed, to rows of the destination.
static void copy_tile(const job *j, int64_t to, int64_t from, int64_t n_across, int64_t n_along,
                      char *tile) {
    const pl_walk *w = &j->walk;
    const pl_operand *dst = &w->op[0], *src = &w->op[1];
    char *turned = tile + TILE * TILE * j->between;
    int last = w->ndim - 1;
    for (int64_t i = 0; i < n_along; i++) {
        j->load(n_across, place(src, from + i * src->strides[last]), 1,
                tile + (size_t)(i * TILE) * j->between);
    }
    transpose_tile(j->between, tile, turned, n_along, n_across);
    for (int64_t i = 0; i < n_across; i++) {
        j->store(n_along, turned + (size_t)(i * TILE) * j->between,
                 place(dst, to + i * dst->strides[j->across]), 1);
    }
}

static void tile_range(int64_t begin, int64_t end, void *ctx) {
    const job *j = ctx;
    const pl_walk *w = &j->walk;
    int last = w->ndim - 1;
    _Alignas(64) char tile[2 * TILE * TILE * 8];
    for (int64_t t = begin; t < end; t++) {
        int64_t along = t % j->tiles_along * TILE, rest = t / j->tiles_along;
        int64_t across = rest % j->tiles_across * TILE;
        rest /= j->tiles_across;
        int64_t offset[2];
        for (int k = 0; k < 2; k++) {
            offset[k] = along * w->op[k].strides[last] + across * w->op[k].strides[j->across];
        }
        for (int d = last - 1; d >= 0; d--) {
            if (d == j->across) continue;
            for (int k = 0; k < 2; k++) offset[k] += rest % w->shape[d] * w->op[k].strides[d];
            rest /= w->shape[d];
        }
        int64_t n_along = w->shape[last] - along, n_across = w->shape[j->across] - across;
        copy_tile(j, offset[0], offset[1], n_across < TILE ? n_across : TILE,
                  n_along < TILE ? n_along : TILE, tile);
    }
}

static void run_tiles(job *j) {
    const pl_walk *w = &j->walk;
    int64_t along = w->shape[w->ndim - 1], across = w->shape[j->across];
    j->tiles_along = (along + TILE - 1) / TILE;
    j->tiles_across = (across + TILE - 1) / TILE;
    int64_t tiles = j->tiles_along * j->tiles_across * (w->numel / (along * across));
    pl_parallel_for(tiles, w->numel < PL_SERIAL ? tiles : 1, tile_range, j);
}

// Both dense along the last dimension, in rows of a few hundred bytes (the heads of attention): the
// chunks' bookkeeping takes as long as the copy.
static bool by_rows(const job *j) {
    const pl_walk *w = &j->walk;
    int last = w->ndim - 1;
    return last > 0 && j->direct_load && j->direct_store && w->op[0].strides[last] == 1 &&
           w->op[1].strides[last] == 1 && w->shape[last] * (int64_t)w->op[0].size >= 64;
}

// Lines by their constant size: for so few bytes a call would cost as much again.
static void copy_row(char *to, const char *from, size_t nbytes) {
    for (; nbytes >= 64; nbytes -= 64, to += 64, from += 64) memcpy(to, from, 64);
    if (nbytes > 0) memcpy(to, from, nbytes);
}

static void row_range(int64_t begin, int64_t end, void *ctx) {
    const job *j = ctx;
    const pl_walk *w = &j->walk;
    const pl_operand *dst = &w->op[0], *src = &w->op[1];
    int last = w->ndim - 1;
    size_t nbytes = (size_t)w->shape[last] * dst->size;
    pl_cursor c;
    pl__cpu_cursor_set(w, begin * w->shape[last], &c);
    int64_t to = 0, from = 0;
    for (int d = 0; d < last; d++) {
        to += c.at[d] * dst->strides[d];
        from += c.at[d] * src->strides[d];
    }
    for (int64_t row = begin; row < end; row++) {
        copy_row(place(dst, to), place(src, from), nbytes);
        for (int d = last - 1; d >= 0; d--) {
            to += dst->strides[d];
            from += src->strides[d];
            if (++c.at[d] < w->shape[d]) break;
            c.at[d] = 0;
            to -= w->shape[d] * dst->strides[d];
            from -= w->shape[d] * src->strides[d];
        }
    }
}

static void run_rows(job *j) {
    int64_t numel = j->walk.numel, each = j->walk.shape[j->walk.ndim - 1];
    pl_parallel_for(numel / each, (pl__cpu_grain(numel) + each - 1) / each, row_range, j);
}

pl_status pl_cpu_copy(const pl_tensor *src, pl_tensor *dst) {
    if (dst->numel == 0) return PL_OK;
    const pl_convert *cv = pl__cpu_convert();
    pl_compute c = pl__cpu_compute(src->dtype);
    pl_dtype between = src->dtype == dst->dtype ? src->dtype : pl__cpu_compute_dtype(c);
    size_t size = pl_dtype_size(between);
    int log2 = pl__cpu_size_log2(size);
    bool same = src->dtype == dst->dtype;
    job j = {.load = same ? cv->pick[log2] : cv->load[src->dtype],
             .store = same ? cv->put[log2] : cv->store[c][dst->dtype],
             .between = size,
             .direct_load = between == dst->dtype,
             .direct_store = between == src->dtype};
    pl__cpu_walk_init(&j.walk, 2, (const pl_tensor *const[]){dst, src});
    j.across = transposed_dim(&j.walk);
    if (j.across >= 0) {
        run_tiles(&j);
    } else if (by_rows(&j)) {
        run_rows(&j);
    } else {
        pl_parallel_for(j.walk.numel, pl__cpu_grain(j.walk.numel), copy_range, &j);
    }
    return PL_OK;
}

// ---- fills

typedef struct fill_job {
    pl_walk walk;
    pl_store_fn put;
    _Alignas(64) char pattern[PL_CHUNK * 8];
} fill_job;

static void fill_range(int64_t begin, int64_t end, void *ctx) {
    const fill_job *j = ctx;
    pl_cursor c;
    pl__cpu_cursor_set(&j->walk, begin, &c);
    while (c.index < end) {
        int64_t n = end - c.index < PL_CHUNK ? end - c.index : PL_CHUNK;
        pl__cpu_walk_store(&j->walk, &c, n, j->put, j->walk.op[0].size, j->pattern);
        pl__cpu_cursor_advance(&j->walk, n, &c);
    }
}

// Fills dst with one element of the compute type c.
static pl_status fill_with(pl_tensor *dst, pl_compute c, const void *value) {
    if (dst->numel == 0) return PL_OK;
    const pl_convert *cv = pl__cpu_convert();
    if (dst->numel == 1) {  // a number that becomes an operand
        cv->store[c][dst->dtype](1, value, dst->data, 1);
        return PL_OK;
    }
    int log2 = pl__cpu_size_log2(pl_dtype_size(dst->dtype));
    fill_job j;  // not cleared: it is 8 KiB
    j.put = cv->put[log2];
    char one[8];
    cv->store[c][dst->dtype](1, value, one, 1);
    int64_t n = dst->numel < PL_CHUNK ? dst->numel : PL_CHUNK;
    cv->pick[log2](n, one, 0, j.pattern);
    pl__cpu_walk_init(&j.walk, 1, (const pl_tensor *const[]){dst});
    pl_parallel_for(dst->numel, pl__cpu_grain(dst->numel), fill_range, &j);
    return PL_OK;
}

pl_status pl_cpu_fill(pl_tensor *dst, double value) { return fill_with(dst, PL_C_F64, &value); }

pl_status pl_cpu_fill_int(pl_tensor *dst, int64_t value) {
    return fill_with(dst, PL_C_I64, &value);
}

typedef struct arange_job {
    pl_tensor *out;
    double start, step;
} arange_job;

static void arange_range(int64_t begin, int64_t end, void *ctx) {
    const arange_job *j = ctx;
    pl_store_fn store = pl__cpu_convert()->store[PL_C_F64][j->out->dtype];
    double buf[PL_CHUNK];
    for (int64_t i = begin; i < end; i += PL_CHUNK) {
        int64_t n = end - i < PL_CHUNK ? end - i : PL_CHUNK;
        for (int64_t k = 0; k < n; k++) buf[k] = j->start + (double)(i + k) * j->step;
        store(n, buf, (char *)j->out->data + i * (int64_t)pl_dtype_size(j->out->dtype), 1);
    }
}

pl_status pl_cpu_arange(pl_tensor *out, double start, double step) {
    arange_job j = {out, start, step};
    pl_parallel_for(out->numel, pl__cpu_grain(out->numel), arange_range, &j);
    return PL_OK;
}

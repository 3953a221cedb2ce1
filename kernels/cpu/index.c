// SPDX-License-Identifier: Apache-2.0
// Indexing: rows of a table and their gradient, gather and scatter along a dimension, places of
// nonzeros. Indices are checked before anything is written. Where several rows add to one, a thread
// owns columns (or lines) rather than rows, so that the order of adding is that of the rows.

#include <string.h>

#include "cpu/cpu.h"
#include "cpu/elementwise.h"
#include "cpu/walk.h"

static pl_status check_index(const char *op, const int64_t *index, int64_t count, int64_t n) {
    bool bad = false;
    for (int64_t i = 0; i < count; i++) bad |= (index[i] < -n) | (index[i] >= n);
    if (!bad) return PL_OK;
    int64_t i = 0;
    while (index[i] >= -n && index[i] < n) i++;
    return pl_fail(PL_EINDEX, "[%s] index out of range: got %lld, expected [-%lld, %lld)", op,
                   (long long)index[i], (long long)n, (long long)n);
}

// ---- rows of a table

typedef struct take_job {
    const char *x;
    char *out;
    const int64_t *index;
    int64_t rows, row_step;
    size_t row_bytes;
} take_job;

static void take_range(int64_t begin, int64_t end, void *ctx) {
    const take_job *j = ctx;
    for (int64_t i = begin; i < end; i++) {
        int64_t at = j->index[i] < 0 ? j->index[i] + j->rows : j->index[i];
        memcpy(j->out + (size_t)i * j->row_bytes, j->x + at * j->row_step, j->row_bytes);
    }
}

// Rows per piece of work, so that a piece has a few thousand elements.
static int64_t row_grain(int64_t rows, int64_t width) {
    if (rows * width < PL_SERIAL) return rows;
    return width >= 8 * PL_CHUNK ? 1 : 8 * PL_CHUNK / (width > 0 ? width : 1);
}

pl_status pl_cpu_take(const pl_tensor *x, const pl_tensor *index, pl_tensor *out) {
    PL_TRY(check_index("take", index->data, index->numel, x->shape[0]));
    if (out->numel == 0) return PL_OK;
    int64_t size = (int64_t)pl_dtype_size(x->dtype);
    take_job j = {x->data,
                  out->data,
                  index->data,
                  x->shape[0],
                  x->strides[0] * size,
                  (size_t)(x->shape[1] * size)};
    pl_parallel_for(index->numel, row_grain(index->numel, x->shape[1]), take_range, &j);
    return PL_OK;
}

typedef struct take_grad_job {
    const pl_tensor *g, *index;
    pl_tensor *dx;
    int64_t skip;
} take_grad_job;

// dst[0..n) += src[0..n) in dst's dtype; src has that dtype too.
static void add_run(pl_dtype dt, int64_t n, const char *src, char *dst) {
    const pl_convert *cv = pl__cpu_convert();
    pl_compute c = pl__cpu_compute(dt);
    int64_t size = (int64_t)pl_dtype_size(dt);
    _Alignas(64) char a[PL_CHUNK * 8], b[PL_CHUNK * 8], sum[PL_CHUNK * 8];
    for (int64_t i = 0; i < n; i += PL_CHUNK) {
        int64_t m = n - i < PL_CHUNK ? n - i : PL_CHUNK;
        cv->load[dt](m, dst + i * size, 1, a);
        cv->load[dt](m, src + i * size, 1, b);
        pl__cpu_elementwise()->binary[c][PL_BINARY_ADD](m, a, b, sum);
        cv->store[c][dt](m, sum, dst + i * size, 1);
    }
}

// Columns [begin, end) of every row.
static void take_grad_range(int64_t begin, int64_t end, void *ctx) {
    const take_grad_job *j = ctx;
    const int64_t *index = j->index->data;
    pl_dtype dt = j->dx->dtype;
    int64_t size = (int64_t)pl_dtype_size(dt), rows = j->dx->shape[0], width = j->dx->shape[1];
    for (int64_t i = 0; i < j->index->numel; i++) {
        int64_t at = index[i] < 0 ? index[i] + rows : index[i];
        if (at == j->skip) continue;
        const char *src = (const char *)j->g->data + (i * j->g->strides[0] + begin) * size;
        char *dst = (char *)j->dx->data + (at * width + begin) * size;
        if (dt == PL_F32) {
            float *d = (float *)(void *)dst;
            const float *s = (const float *)(const void *)src;
            for (int64_t k = 0; k < end - begin; k++) d[k] += s[k];
        } else {
            add_run(dt, end - begin, src, dst);
        }
    }
}

pl_status pl_cpu_take_grad(const pl_tensor *g, const pl_tensor *index, int64_t skip,
                           bool accumulate, pl_tensor *dx) {
    PL_TRY(check_index("take_grad", index->data, index->numel, dx->shape[0]));
    PL_ASSERT(g->dtype == dx->dtype);
    if (!accumulate)
        PL_TRY(pl_dtype_is_float(dx->dtype) ? pl_cpu_fill(dx, 0.0) : pl_cpu_fill_int(dx, 0));
    if (g->numel == 0) return PL_OK;
    take_grad_job j = {g, index, dx, skip};
    int64_t width = dx->shape[1];
    // Pieces of whole cache lines, so that no two threads write to one.
    pl_parallel_for(width, g->numel < PL_SERIAL ? width : 64, take_grad_range, &j);
    return PL_OK;
}

// ---- along a dimension

// All dimensions but `dim` are lines; index, x (or dx) and out (or g) along one.
typedef struct line_job {
    const pl_tensor *index, *x;
    pl_tensor *out;
    int dim;
    int64_t n, steps[3];  // along the line: index, x, out
    int64_t lines[PL_MAX_DIMS];
    bool add;
} line_job;

static void init_lines(line_job *j, const pl_tensor *index, const pl_tensor *x, int dim,
                       pl_tensor *out) {
    j->index = index;
    j->x = x;
    j->out = out;
    j->dim = dim;
    bool scalar = index->ndim == 0;
    j->n = scalar ? 1 : index->shape[dim];
    const pl_tensor *all[3] = {index, x, out};
    for (int k = 0; k < 3; k++) j->steps[k] = scalar ? 0 : all[k]->strides[dim];
    for (int d = 0; d < index->ndim; d++) j->lines[d] = d == dim ? 1 : index->shape[d];
}

static pl_status check_places(const char *op, const pl_tensor *index, int64_t n) {
    pl_walk w;
    pl_cursor c;
    int64_t buf[PL_CHUNK];
    pl__cpu_walk_init(&w, 1, (const pl_tensor *const[]){index});
    pl__cpu_cursor_set(&w, 0, &c);
    while (c.index < w.numel) {
        int64_t m = w.numel - c.index < PL_CHUNK ? w.numel - c.index : PL_CHUNK;
        pl__cpu_walk_load(&w, 0, &c, m, pl__cpu_convert()->pick[3], 8, buf);
        for (int64_t i = 0; i < m; i++) {
            if (buf[i] < 0 || buf[i] >= n) {
                return pl_fail(PL_EINDEX, "[%s] index out of range: got %lld, expected [0, %lld)",
                               op, (long long)buf[i], (long long)n);
            }
        }
        pl__cpu_cursor_advance(&w, m, &c);
    }
    return PL_OK;
}

// One element copied, or added where the dtype is its own compute type or goes through it.
static void move_element(const line_job *j, const char *from, char *to, size_t size) {
    if (j->add) {
        add_run(j->out->dtype, 1, from, to);
    } else {
        memcpy(to, from, size);
    }
}

static void line_range(int64_t begin, int64_t end, void *ctx) {
    const line_job *j = ctx;
    size_t size = pl_dtype_size(j->out->dtype);
    for (int64_t line = begin; line < end; line++) {
        int64_t rest = line, io = 0, xo = 0, oo = 0;
        for (int d = j->index->ndim - 1; d >= 0; d--) {
            int64_t at = rest % j->lines[d];
            rest /= j->lines[d];
            io += at * j->index->strides[d];
            xo += at * j->x->strides[d];
            oo += at * j->out->strides[d];
        }
        const int64_t *index = (const int64_t *)j->index->data + io;
        for (int64_t i = 0; i < j->n; i++) {
            int64_t pick = index[i * j->steps[0]];
            // gather: out[i] = x[pick]; scatter: out[pick] += x[i]
            int64_t from = xo + (j->add ? i : pick) * j->steps[1];
            int64_t to = oo + (j->add ? pick : i) * j->steps[2];
            move_element(j, (const char *)j->x->data + from * (int64_t)size,
                         (char *)j->out->data + to * (int64_t)size, size);
        }
    }
}

static pl_status run_lines(const char *op, line_job *j, const pl_tensor *picked) {
    if (j->index->numel == 0) return PL_OK;
    PL_TRY(check_places(op, j->index, picked->ndim == 0 ? 1 : picked->shape[j->dim]));
    int64_t lines = j->index->numel / j->n;
    pl_parallel_for(lines, row_grain(lines, j->n), line_range, j);
    return PL_OK;
}

pl_status pl_cpu_gather(const pl_tensor *x, int dim, const pl_tensor *index, pl_tensor *out) {
    line_job j = {.add = false};
    init_lines(&j, index, x, dim, out);
    return run_lines("gather", &j, x);
}

pl_status pl_cpu_scatter_add(const pl_tensor *g, int dim, const pl_tensor *index, pl_tensor *dx) {
    PL_ASSERT(g->dtype == dx->dtype);
    line_job j = {.add = true};
    init_lines(&j, index, g, dim, dx);
    return run_lines("scatter_add", &j, dx);
}

// ---- places of nonzeros

// Calls for chunks of x in row-major order: yes[i] is whether element i of the chunk is nonzero.
typedef struct nonzero_scan {
    const pl_tensor *x;
    int64_t at[PL_MAX_DIMS];
} nonzero_scan;

// The truth of a run of n along the last dimension, from where the scan stands.
static void scan_run(const nonzero_scan *s, int64_t n, uint8_t *yes) {
    const pl_tensor *x = s->x;
    _Alignas(64) char buf[PL_CHUNK * 8];
    int64_t offset = 0;
    for (int d = 0; d < x->ndim; d++) offset += s->at[d] * x->strides[d];
    const char *from = (const char *)x->data + offset * (int64_t)pl_dtype_size(x->dtype);
    pl_compute c = pl__cpu_compute(x->dtype);
    const pl_convert *cv = pl__cpu_convert();
    cv->load[x->dtype](n, from, x->ndim > 0 ? x->strides[x->ndim - 1] : 1, buf);
    cv->store[c][PL_BOOL](n, buf, yes, 1);
}

// Moves the scan behind n elements of the last dimension; false at the end.
static bool scan_advance(nonzero_scan *s, int64_t n) {
    int d = s->x->ndim - 1;
    if (d < 0) return false;
    s->at[d] += n;
    while (s->at[d] >= s->x->shape[d]) {
        s->at[d] = 0;
        if (--d < 0) return false;
        s->at[d]++;
    }
    return true;
}

static int64_t scan_left(const nonzero_scan *s) {
    int d = s->x->ndim - 1;
    int64_t left = d < 0 ? 1 : s->x->shape[d] - s->at[d];
    return left < PL_CHUNK ? left : PL_CHUNK;
}

pl_status pl_cpu_count_nonzero(const pl_tensor *x, int64_t *out) {
    *out = 0;
    if (x->numel == 0) return PL_OK;
    nonzero_scan s = {.x = x};
    uint8_t yes[PL_CHUNK];
    int64_t n;
    do {
        n = scan_left(&s);
        scan_run(&s, n, yes);
        for (int64_t i = 0; i < n; i++) *out += yes[i];
    } while (scan_advance(&s, n));
    return PL_OK;
}

pl_status pl_cpu_nonzero(const pl_tensor *x, pl_tensor *out) {
    if (x->numel == 0) return PL_OK;
    nonzero_scan s = {.x = x};
    uint8_t yes[PL_CHUNK];
    int64_t n, *place = out->data, last = x->ndim - 1;
    do {
        n = scan_left(&s);
        scan_run(&s, n, yes);
        for (int64_t i = 0; i < n && last >= 0; i++) {
            if (!yes[i]) continue;
            for (int64_t d = 0; d < last; d++) *place++ = s.at[d];
            *place++ = s.at[last] + i;
        }
    } while (scan_advance(&s, n));
    return PL_OK;
}

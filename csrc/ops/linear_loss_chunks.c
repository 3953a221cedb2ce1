// SPDX-License-Identifier: Apache-2.0
// The walk over chunks of rows: Note [chunks of rows], linear_loss.h.
#include "ops/linear_loss.h"

// On the CPU a chunk's logits should stay in the caches next to the processor's; on a GPU they
// only must not crowd out the rest of the model.
enum { CPU_BUDGET_MB = 16, CPU_LEAST_ROWS = 256, GPU_BUDGET_MB = 512, GPU_LEAST_ROWS = 2048 };
enum { ROWS_STEP = 64, ALIGN = 64 };  // elements: rows on a GPU start where wide accesses may

static int64_t up_to(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

int64_t pl__loss_chunk(const pl_tensor *x, int64_t classes, pl_dtype dt, int64_t wanted) {
    int64_t k = x->ndim ? x->shape[x->ndim - 1] : 1, rows = k ? x->numel / k : x->shape[0];
    bool cpu = pl_tensor_is_cpu(x);
    int64_t budget = (int64_t)(cpu ? CPU_BUDGET_MB : GPU_BUDGET_MB) << 20;
    int64_t least = cpu ? CPU_LEAST_ROWS : GPU_LEAST_ROWS;
    int64_t most = budget / ((classes > 0 ? classes : 1) * (int64_t)pl_dtype_size(dt));
    if (most < least) most = least;
    if (wanted > 0) return wanted < rows ? wanted : rows;
    int64_t chunks = (rows + most - 1) / most;
    if (chunks <= 1) return rows;
    int64_t even = up_to((rows + chunks - 1) / chunks, ROWS_STEP);
    return even < rows ? even : rows;
}

// Logits of rows [from, from + m) of x.
static pl_status make_logits(const pl_loss_sweep *s, pl_tensor *xs, pl_tensor *logits) {
    pl_tensor *wt = NULL, *rows = NULL;
    pl_status st = pl_tensor_transpose(s->w, 0, 1, &wt);
    if (st == PL_OK && s->bias) st = pl_tensor_expand(s->bias, 2, logits->shape, &rows);
    // The bias rides on the product, so that the sum is rounded once.
    if (st == PL_OK && s->bias) st = pl_k(xs)->copy(rows, logits);
    if (st == PL_OK) st = pl_k(xs)->matmul(xs, wt, s->bias != NULL, logits);
    pl_tensor_release(rows);
    pl_tensor_release(wt);
    return st;
}

// From the slopes of a chunk; later: an earlier chunk has written dw and db.
static pl_status add_weight_grads(const pl_loss_sweep *s, pl_tensor *xs, pl_tensor *slopes,
                                  bool later) {
    pl_tensor *st_view = NULL, *none = NULL, *no_dw = NULL;
    bool add_w = s->add_w || later, add_b = s->add_b || later;
    if (s->dw && s->db) return pl_k(xs)->linear_grad(slopes, xs, s->dw, add_w, s->db, add_b);
    if (s->dw) {
        PL_TRY(pl_tensor_transpose(slopes, 0, 1, &st_view));
        pl_status st = pl_k(xs)->matmul(st_view, xs, add_w, s->dw);
        pl_tensor_release(st_view);
        return st;
    }
    if (!s->db) return PL_OK;
    // The bias' alone: with a weight of no columns.
    int64_t shape[2] = {s->w->shape[0], 0};
    pl_status st = pl_tensor_slice(xs, 1, 0, 0, 1, &none);
    if (st == PL_OK) st = pl_tensor_empty_beside(xs, s->db->dtype, 2, shape, &no_dw);
    if (st == PL_OK) st = pl_k(xs)->linear_grad(slopes, none, no_dw, false, s->db, add_b);
    pl_tensor_release(none);
    pl_tensor_release(no_dw);
    return st;
}

// Views of a chunk; NULL where there is nothing to view.
typedef struct chunk {
    pl_tensor *x, *logits, *target, *losses, *lse, *g, *dx;
} chunk;

static void chunk_release(chunk *c) {
    pl_tensor *all[] = {c->x, c->logits, c->target, c->losses, c->lse, c->g, c->dx};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) pl_tensor_release(all[i]);
}

static pl_status slice(pl_tensor *t, int64_t from, int64_t m, pl_tensor **out) {
    if (!t) return PL_OK;
    if (t->ndim == 0) {  // one number for all rows
        *out = pl_tensor_retain(t);
        return PL_OK;
    }
    return pl_tensor_slice(t, 0, from, from + m, 1, out);
}

static pl_status chunk_views(const pl_loss_sweep *s, pl_tensor *memory, int64_t from, int64_t m,
                             chunk *c) {
    int64_t shape[2] = {m, s->w->shape[0]}, strides[2] = {memory->shape[1], 1};
    *c = (chunk){0};
    PL_TRY(pl_tensor_as_strided(memory, 2, shape, strides, 0, &c->logits));
    PL_TRY(slice(s->x, from, m, &c->x));
    PL_TRY(slice(s->target, from, m, &c->target));
    PL_TRY(slice(s->losses, from, m, &c->losses));
    PL_TRY(slice(s->lse, from, m, &c->lse));
    PL_TRY(slice(s->g, from, m, &c->g));
    return slice(s->dx, from, m, &c->dx);
}

static pl_status run_chunk(const pl_loss_sweep *s, const chunk *c, bool later) {
    const pl_kernels *k = pl_k(s->x);
    PL_TRY(make_logits(s, c->x, c->logits));
    if (s->lse) {
        return k->cross_entropy(c->logits, c->target, s->weight, s->ignore, s->smoothing, c->losses,
                                c->lse);
    }
    PL_TRY(k->cross_entropy_fused(c->g, c->logits, c->target, s->weight, s->ignore, s->smoothing,
                                  c->losses));
    if (c->dx) PL_TRY(k->matmul(c->logits, s->w, s->add_x, c->dx));
    return add_weight_grads(s, c->x, c->logits, later);
}

static pl_status zero(pl_tensor *t, bool keep) {
    return t && !keep ? pl_k(t)->fill(t, 0.0) : PL_OK;
}

pl_status pl__loss_sweep(const pl_loss_sweep *s) {
    int64_t m = s->x->shape[0], classes = s->w->shape[0];
    int64_t ld = pl_tensor_is_cpu(s->x) ? classes : up_to(classes, ALIGN);
    if (m == 0) {
        PL_TRY(zero(s->dw, s->add_w));
        return zero(s->db, s->add_b);
    }
    pl_tensor *memory = NULL;
    int64_t shape[2] = {s->rows < m ? s->rows : m, ld};
    PL_TRY(pl_tensor_empty_beside(s->x, s->x->dtype, 2, shape, &memory));
    pl_status st = PL_OK;
    for (int64_t from = 0; from < m && st == PL_OK; from += s->rows) {
        chunk c;
        st = pl_check_interrupt();
        if (st != PL_OK) break;
        st = chunk_views(s, memory, from, m - from < s->rows ? m - from : s->rows, &c);
        if (st == PL_OK) st = run_chunk(s, &c, from > 0);
        chunk_release(&c);
    }
    pl_tensor_release(memory);
    return st;
}

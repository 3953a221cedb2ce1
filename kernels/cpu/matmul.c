// SPDX-License-Identifier: Apache-2.0
// matmul: brings strided, batched operands into the form of product.h and has
// it computed. Knows neither oneDNN's types (dnnl.c) nor the loops
// (matmul_blocked.c).
#include <string.h>

#include "cpu.h"
#include "dnnl.h"
#include "product.h"
#include "panels.h"

// ---------------------------------------------------------------------------------------------
// From tensors to a product.

// True when a matrix of rows x cols with these strides can be read as rows or
// as columns.
static bool readable(int64_t rows, int64_t cols, int64_t row, int64_t col) {
    if (rows == 1 || cols == 1) return rows == 1 ? cols == 1 || col == 1 : row == 1 || row >= cols;
    return (col == 1 && row >= cols) || (row == 1 && col >= rows);
}

static bool operand_readable(const pl_tensor *t) {
    int n = t->ndim;
    int64_t rows = t->shape[n - 2], cols = t->shape[n - 1];
    int64_t row = t->strides[n - 2], col = t->strides[n - 1];
    if (rows == 1 && cols > 1 && col >= 1) return true;  // a column read with another step
    if (cols == 1 && rows > 1 && row >= 1) return true;
    return readable(rows, cols, row, col);
}

// *out is t itself, retained by nobody, or a contiguous copy in *owned.
static pl_status make_readable(const pl_tensor *t, pl_tensor **owned, const pl_tensor **out) {
    *owned = NULL;
    *out = t;
    if (operand_readable(t)) return PL_OK;
    PL_TRY(pl_tensor_empty(t->dtype, t->ndim, t->shape, owned));
    *out = *owned;
    return pl_cpu_copy(t, *owned);
}

// A dimension of size 1 may carry any stride; these are the ones that oneDNN
// understands.
static void tidy_strides(int64_t rows, int64_t cols, int64_t *row, int64_t *col) {
    if (rows == 1 && cols == 1) {
        *row = *col = 1;
    } else if (rows == 1) {
        if (*col == 1) *row = cols;
        else *row = 1;
    } else if (cols == 1) {
        if (*row == 1) *col = rows;
        else *col = 1;
    }
}

static void add_batch(pl_product *p, int64_t size, int64_t a, int64_t b, int64_t out) {
    int last = p->nbatch - 1;
    if (size == 1) return;
    if (last >= 0 && p->a_batch[last] == a * size && p->b_batch[last] == b * size &&
        p->out_batch[last] == out * size) {
        p->batch[last] *= size;
    } else {
        last = p->nbatch++;
        p->batch[last] = size;
    }
    p->a_batch[last] = a;
    p->b_batch[last] = b;
    p->out_batch[last] = out;
}

// A batch of (m, k) against one (k, n) is one taller product where its rows
// follow one another.
static void fold_batch(pl_product *p) {
    int last = p->nbatch - 1;
    if (last < 0 || p->b_batch[last] != 0) return;
    int64_t size = p->batch[last];
    if (p->m == 1) {
        if (p->a_col != 1 && p->k != 1) return;
        if (p->a_batch[last] < p->k || p->out_batch[last] < p->n) return;
        p->a_row = p->a_batch[last];
        p->a_col = 1;
        p->out_row = p->out_batch[last];
    } else if (p->a_batch[last] != p->m * p->a_row || p->out_batch[last] != p->m * p->out_row ||
               p->a_col != 1) {
        return;
    }
    p->m *= size;
    p->nbatch--;
}

static void make_product(const pl_tensor *a, const pl_tensor *b, const pl_tensor *out,
                         pl_product *p) {
    int nd = out->ndim;
    memset(p, 0, sizeof *p);
    p->ab = a->dtype;
    p->b_wide = b->dtype != a->dtype;
    p->out = out->dtype;
    p->m = out->shape[nd - 2];
    p->n = out->shape[nd - 1];
    p->k = a->shape[nd - 1];
    p->a_row = a->strides[nd - 2];
    p->a_col = a->strides[nd - 1];
    p->b_row = b->strides[nd - 2];
    p->b_col = b->strides[nd - 1];
    p->out_row = p->m == 1 || out->strides[nd - 2] < p->n ? p->n : out->strides[nd - 2];
    tidy_strides(p->m, p->k, &p->a_row, &p->a_col);
    tidy_strides(p->k, p->n, &p->b_row, &p->b_col);
    for (int d = 0; d < nd - 2; d++) {
        add_batch(p, out->shape[d], a->strides[d], b->strides[d], out->strides[d]);
    }
    fold_batch(p);
}

static pl_status rounded(pl_dtype dt, const pl_tensor *t, pl_tensor **out) {
    PL_TRY(pl_tensor_empty(dt, t->ndim, t->shape, out));
    return pl_cpu_copy(t, *out);
}

pl_status pl__product_tensors(const pl_tensor *a, const pl_tensor *b, const pl_epilogue *e,
                              pl_tensor *out) {
    if (out->numel == 0) return PL_OK;
    pl_tensor *own_a = NULL, *own_b = NULL, *low_b = NULL;
    const pl_tensor *use_a = NULL, *use_b = NULL;
    pl_product p;
    pl_status st;
    PL_TRY_GOTO(st, make_readable(a, &own_a, &use_a), done);
    PL_TRY_GOTO(st, make_readable(b, &own_b, &use_b), done);
    make_product(use_a, use_b, out, &p);
    if (p.b_wide && !pl__product_by_panels(&p)) {
        PL_TRY_GOTO(st, rounded(a->dtype, use_b, &low_b), done);
        make_product(use_a, low_b, out, &p);
        use_b = low_b;
    }
    st = p.k == 0 ? pl__product_blocked(&p, e, use_a->data, use_b->data, out->data)
                  : pl__product_run(&p, e, use_a->data, use_b->data, out->data);
done:
    pl_tensor_release(low_b);
    pl_tensor_release(own_b);
    pl_tensor_release(own_a);
    return st;
}

pl_status pl_cpu_matmul(const pl_tensor *a, const pl_tensor *b, bool accumulate, pl_tensor *out) {
    pl_epilogue e = {.accumulate = accumulate, .bias_dtype = PL_DTYPE_COUNT};
    return pl__product_tensors(a, b, &e, out);
}

// ---------------------------------------------------------------------------------------------
// Running a product.

static const void *at(const void *base, int64_t elements, pl_dtype dt) {
    return (const char *)base + elements * (int64_t)pl_dtype_size(dt);
}

// The key of a product whose batch has at most PL_DNNL_DIMS - 2 dimensions.
static void dnnl_key(const pl_product *p, const pl_epilogue *e, pl_dnnl_product *key) {
    memset(key, 0,
           sizeof *key);  // padding and unused dimensions are part of the key
    int nb = p->nbatch;
    key->ndim = nb + 2;
    key->threads = pl_num_threads();
    key->ab = (uint8_t)p->ab;
    key->out = (uint8_t)p->out;
    key->bias = (uint8_t)(e->bias ? e->bias_dtype : PL_DTYPE_COUNT);
    key->accumulate = e->accumulate;
    key->m = p->m;
    key->n = p->n;
    key->k = p->k;
    for (int d = 0; d < nb; d++) {
        key->batch_out[d] = p->batch[d];
        key->strides_out[d] = p->out_batch[d];
        key->batch_a[d] = p->a_batch[d] ? p->batch[d] : 1;
        key->strides_a[d] = p->a_batch[d] ? p->a_batch[d] : p->m * p->k;
        key->batch_b[d] = p->b_batch[d] ? p->batch[d] : 1;
        key->strides_b[d] = p->b_batch[d] ? p->b_batch[d] : p->k * p->n;
    }
    key->strides_a[nb] = p->a_row;
    key->strides_a[nb + 1] = p->a_col;
    key->strides_b[nb] = p->b_row;
    key->strides_b[nb + 1] = p->b_col;
    key->strides_out[nb] = p->out_row;
    key->strides_out[nb + 1] = 1;
}

// Whether a matrix of rows x cols lies in one piece, by row or by column.
static bool dense(int64_t rows, int64_t cols, int64_t row, int64_t col) {
    return (col == 1 && row == cols) || (row == 1 && col == rows);
}

static bool is_dense(const pl_product *p) {
    return dense(p->m, p->k, p->a_row, p->a_col) && dense(p->k, p->n, p->b_row, p->b_col) &&
           p->out_row == p->n;
}

// A copy in dtype dt, in one piece, of one operand over the batch (m x k or k x
// n each), keeping a batch stride of 0; `batch` and `strides` become those of
// the copy. Nothing is done (*out NULL) where the operand is so already.
static pl_status tidy_operand(const pl_product *p, const void **data, pl_dtype dt, int64_t rows,
                              int64_t cols, int64_t strides[2], int64_t *batch, pl_tensor **out) {
    if (dt == p->ab && dense(rows, cols, strides[0], strides[1])) return PL_OK;
    pl_tensor src = {.dtype = p->ab,
                     .ndim = p->nbatch + 2,
                     .numel = rows * cols,
                     .data = (void *)(uintptr_t)*data};
    int nb = p->nbatch;
    for (int d = 0; d < nb; d++) {
        src.shape[d] = batch[d] ? p->batch[d] : 1;
        src.strides[d] = batch[d];
        src.numel *= src.shape[d];
    }
    src.shape[nb] = rows;
    src.shape[nb + 1] = cols;
    src.strides[nb] = strides[0];
    src.strides[nb + 1] = strides[1];
    PL_TRY(pl_tensor_empty(dt, src.ndim, src.shape, out));
    for (int d = 0; d < nb; d++) batch[d] = batch[d] ? (*out)->strides[d] : 0;
    strides[0] = cols;
    strides[1] = 1;
    *data = (*out)->data;
    return pl_cpu_copy(&src, *out);
}

static void describe_out(const pl_product *p, void *data, pl_tensor *t) {
    *t = (pl_tensor){.dtype = p->out, .ndim = p->nbatch + 2, .data = data, .numel = p->m * p->n};
    for (int d = 0; d < p->nbatch; d++) {
        t->shape[d] = p->batch[d];
        t->strides[d] = p->out_batch[d];
        t->numel *= p->batch[d];
    }
    t->shape[p->nbatch] = p->m;
    t->shape[p->nbatch + 1] = p->n;
    t->strides[p->nbatch] = p->out_row;
    t->strides[p->nbatch + 1] = 1;
}

static pl_status tidy_bias(int64_t n, pl_dtype dt, pl_epilogue *e, pl_tensor **out) {
    if (!e->bias || dt != PL_F32 || e->bias_dtype == PL_F32) return PL_OK;
    pl_tensor src = {.dtype = e->bias_dtype,
                     .ndim = 1,
                     .shape = {n},
                     .strides = {1},
                     .numel = n,
                     .data = (void *)(uintptr_t)e->bias};
    PL_TRY(pl_tensor_empty(PL_F32, 1, src.shape, out));
    e->bias = (*out)->data;
    e->bias_dtype = PL_F32;
    return pl_cpu_copy(&src, *out);
}

// For what oneDNN has no fast code: the product of copies, in one piece each,
// in dtype dt. With dt fp32 (fp16 without AVX512-FP16, bf16 without AVX-512) it
// is rounded once, at the end.
static pl_status run_tidy(const pl_product *p, const pl_epilogue *e, pl_dtype dt, const void *a,
                          const void *b, void *out) {
    pl_product q = *p;
    pl_epilogue eq = *e;
    pl_tensor *ta = NULL, *tb = NULL, *tbias = NULL, *sums = NULL, dst;
    int64_t sa[2] = {p->a_row, p->a_col}, sb[2] = {p->b_row, p->b_col};
    pl_dtype out_dt = dt == p->ab ? p->out : PL_F32;
    pl_status st;
    PL_TRY_GOTO(st, tidy_operand(p, &a, dt, p->m, p->k, sa, q.a_batch, &ta), done);
    PL_TRY_GOTO(st, tidy_operand(p, &b, dt, p->k, p->n, sb, q.b_batch, &tb), done);
    PL_TRY_GOTO(st, tidy_bias(p->n, dt, &eq, &tbias), done);
    q.ab = dt;
    q.out = out_dt;
    q.a_row = sa[0], q.a_col = sa[1], q.b_row = sb[0], q.b_col = sb[1];
    if (p->out == out_dt && p->out_row == p->n) {
        st = pl__product_run(&q, &eq, a, b, out);
        goto done;
    }
    describe_out(p, out, &dst);
    PL_TRY_GOTO(st, pl_tensor_empty(out_dt, dst.ndim, dst.shape, &sums), done);
    for (int d = 0; d < p->nbatch; d++) q.out_batch[d] = sums->strides[d];
    q.out_row = p->n;
    if (e->accumulate) PL_TRY_GOTO(st, pl_cpu_copy(&dst, sums), done);
    PL_TRY_GOTO(st, pl__product_run(&q, &eq, a, b, sums->data), done);
    st = pl_cpu_copy(sums, &dst);
done:
    pl_tensor_release(sums);
    pl_tensor_release(tbias);
    pl_tensor_release(tb);
    pl_tensor_release(ta);
    return st;
}

static void swap(int64_t *a, int64_t *b) {
    int64_t t = *a;
    *a = *b;
    *b = t;
}

// What oneDNN is not given: more batch dimensions than it is made for here, or
// one over which out changes but neither a nor b does. Such a dimension is
// moved to the front; true: run_each must unroll it.
static bool unroll_first(pl_product *p) {
    for (int d = 0; d < p->nbatch; d++) {
        if (p->a_batch[d] != 0 || p->b_batch[d] != 0) continue;
        swap(&p->batch[0], &p->batch[d]);
        swap(&p->a_batch[0], &p->a_batch[d]);
        swap(&p->b_batch[0], &p->b_batch[d]);
        swap(&p->out_batch[0], &p->out_batch[d]);
        return true;
    }
    return p->nbatch > PL_DNNL_DIMS - 2;
}

// One call for each index of the first batch dimension.
static pl_status run_each(const pl_product *p, const pl_epilogue *e, const void *a, const void *b,
                          void *out) {
    pl_product inner = *p;
    size_t tail = (size_t)(PL_MAX_DIMS - 1) * sizeof(int64_t);
    inner.nbatch--;
    memmove(inner.batch, inner.batch + 1, tail);
    memmove(inner.a_batch, inner.a_batch + 1, tail);
    memmove(inner.b_batch, inner.b_batch + 1, tail);
    memmove(inner.out_batch, inner.out_batch + 1, tail);
    for (int64_t i = 0; i < p->batch[0]; i++) {
        PL_TRY(pl__product_run(&inner, e, at(a, i * p->a_batch[0], p->ab),
                               at(b, i * p->b_batch[0], p->ab),
                               (char *)out + i * p->out_batch[0] * (int64_t)pl_dtype_size(p->out)));
    }
    return PL_OK;
}

// Note [sums are not split between threads]
// oneDNN's brgemm splits the sum over k between threads in one case only: where a is transposed and
// k long (the gradient of a weight) and m and n alone do not keep them busy. Then a result would
// depend on how many there are. Measured with 3.2 over shapes, layouts, dtypes and 2 to 128
// threads: from k = 2048 up, never below. Such a product is done as a few shorter ones here, each
// added to the last in fp32; the test the_thread_count_changes_no_bit watches over it. (A
// transposed copy of a, which also avoids it, was no faster: 0.4 ms per million numbers, from a
// cache just emptied.) gemm:jit, which oneDNN takes where it has no brgemm (AVX2 alone, a column),
// does so nearly always: not used.
//
// In bf16 shorter ones are also faster, by up to a fifth where m is large, since oneDNN then copies
// pieces of a that stay in the second-level cache; in fp32 the length makes no difference.
enum { LONGEST_SUM = 1024, CHUNK_BF16 = 256 };

static bool may_split_sum(const pl_product *p) {
    return p->nbatch == 0 && p->a_col != 1 && p->k > LONGEST_SUM;
}

static pl_status add_chunks(const pl_product *p, const pl_epilogue *e, const void *a, const void *b,
                            void *out) {
    int64_t longest = p->ab == PL_BF16 ? CHUNK_BF16 : LONGEST_SUM;
    int64_t chunks = (p->k + longest - 1) / longest;
    int64_t each = ((p->k + chunks - 1) / chunks + 63) / 64 * 64;
    pl_epilogue step = {.accumulate = e->accumulate, .bias_dtype = PL_DTYPE_COUNT};
    for (int64_t k = 0; k < p->k; k += each) {
        pl_product q = *p;
        q.k = p->k - k < each ? p->k - k : each;
        if (k + each >= p->k) {  // the last one ends as the whole would have
            step.bias = e->bias;
            step.bias_dtype = e->bias_dtype;
        }
        PL_TRY(pl__product_run(&q, &step, at(a, k * p->a_col, p->ab), at(b, k * p->b_row, p->ab),
                               out));
        step.accumulate = true;
    }
    return PL_OK;
}

// In bf16 and fp16 the chunks are added in an fp32 buffer, so that there is one
// rounding still.
static pl_status run_chunks(const pl_product *p, const pl_epilogue *e, const void *a, const void *b,
                            void *out) {
    if (p->out == PL_F32) return add_chunks(p, e, a, b, out);
    pl_tensor dst, *sums;
    pl_product q = *p;
    describe_out(p, out, &dst);
    PL_TRY(pl_tensor_empty(PL_F32, dst.ndim, dst.shape, &sums));
    q.out = PL_F32;
    q.out_row = p->n;
    pl_status st = e->accumulate ? pl_cpu_copy(&dst, sums) : PL_OK;
    if (st == PL_OK) st = add_chunks(&q, e, a, b, sums->data);
    if (st == PL_OK) st = pl_cpu_copy(sums, &dst);
    pl_tensor_release(sums);
    return st;
}

pl_status pl__product_run(const pl_product *p, const pl_epilogue *e, const void *a, const void *b,
                          void *out) {
    if (pl__product_is_small(p) && (!e->bias || e->bias_dtype == PL_F32)) {
        pl__product_small(p, e, a, b, out);
        return PL_OK;
    }
    if (p->ab == PL_F64 || !pl__dnnl_built()) return pl__product_blocked(p, e, a, b, out);
    pl_product q = *p;
    if (PL_UNLIKELY(unroll_first(&q))) return run_each(&q, e, a, b, out);
    if (pl__product_by_panels(&q)) return pl__product_panels(&q, e, a, b, out);
    if (may_split_sum(&q)) return run_chunks(&q, e, a, b, out);
    pl_dnnl_product key;
    dnnl_key(&q, e, &key);
    bool done = false;
    PL_TRY(pl__dnnl_matmul(&key, a, b, e->bias, out, &done));
    if (done) return PL_OK;
    if (!is_dense(&q)) return run_tidy(&q, e, q.ab, a, b, out);
    return q.ab == PL_F32 ? pl__product_blocked(&q, e, a, b, out)
                          : run_tidy(&q, e, PL_F32, a, b, out);
}

// SPDX-License-Identifier: Apache-2.0
// cuda_on_host: the kernels of kernels/cuda, run by the host stand-in (simt/), as a table of the
// CPU's shape, so that every test of kernels/cpu tests them too. Each call runs three times: the
// threads of a block forward, backward, in random order; outputs are filled with 0xFF (NaN) before
// each; results must have the same bits. A test file defines `pl_kernels_cpu` as
// `pl_kernels_on_host` by including this first, then includes the CPU's test.
#ifndef PL_CUDA_ON_HOST_H
#define PL_CUDA_ON_HOST_H

#include "cuda/cuda.h"
#include "kernels.h"
#include "ref/ref.h"
#include "simt/simt_control.h"
#include "test.h"

// AddressSanitizer looks for wrong accesses, and is slow: one order is enough for it.
#ifdef __SANITIZE_ADDRESS__
enum { HOST_OUTS = 5, HOST_RUNS = 1 };
#else
enum { HOST_OUTS = 5, HOST_RUNS = SIMT_SCHEDULES };
#endif

// Something that a call writes.
typedef struct host_out {
    pl_tensor *t;  // NULL: raw bytes
    char *data;    // all of the storage, so that writes beside the elements are seen
    size_t nbytes;
    bool keep;  // read too (accumulated, in place): not filled before a run
    char *before, *first;
} host_out;

typedef struct host_run {
    host_out out[HOST_OUTS];
    int outs, schedule;
    pl_cuda_queue q;
    pl_cuda_fault fault;
    void *scratch;
    pl_status st;
} host_run;

static char *host_keep(const char *data, size_t nbytes) {
    char *copy = malloc(nbytes + 1);
    if (copy == NULL) TEST_FAIL("no memory");
    memcpy(copy, data, nbytes);
    return copy;
}

static void host_add(host_run *r, pl_tensor *t, char *data, size_t nbytes, bool keep) {
    if (data == NULL || nbytes == 0) return;
    host_out *o = &r->out[r->outs++];
    *o = (host_out){.t = t, .data = data, .nbytes = nbytes, .keep = keep};
    o->before = host_keep(data, nbytes);
}

// t may be NULL. Not filled where an input lies in the same memory.
static void host_writes(host_run *r, pl_tensor *t, bool keep, const pl_tensor *input) {
    if (t == NULL) return;
    keep = keep || (input != NULL && input->storage == t->storage);
    host_add(r, t, t->storage->data, t->storage->nbytes, keep);
}

static pl_status host_scratch(void *owner, size_t nbytes, void **out) {
    host_run *r = owner;
    pl_free(r->scratch);
    r->scratch = NULL;
    PL_TRY(pl_alloc(nbytes, &r->scratch));
    memset(r->scratch, 0xFF, nbytes);
    *out = r->scratch;
    return PL_OK;
}

static void host_fill(const host_out *o) {
    if (o->keep) return;
    if (o->t == NULL) {
        memset(o->data, 0xFF, o->nbytes);
        return;
    }
    if (o->t->numel == 0) return;
    size_t size = pl_dtype_size(o->t->dtype);
    int64_t at[PL_MAX_DIMS] = {0};
    do {
        memset((char *)o->t->data + (size_t)ref_offset(o->t, at) * size, 0xFF, size);
    } while (ref_next(o->t->ndim, o->t->shape, at));
}

static bool host_more(host_run *r) {
    if (r->schedule == HOST_RUNS || r->st != PL_OK) return false;
    for (int i = 0; i < r->outs; i++) {
        memcpy(r->out[i].data, r->out[i].before, r->out[i].nbytes);
        host_fill(&r->out[i]);
    }
    simt_set_schedule((simt_schedule)r->schedule, (uint64_t)(simt_launches() + 1));
    r->fault = (pl_cuda_fault){0};
    r->q = (pl_cuda_queue){.fault = &r->fault, .scratch = host_scratch, .owner = r};
    return true;
}

static void host_done(host_run *r, pl_status st, const char *what) {
    r->st = st;
    if (st == PL_OK) r->st = pl_cuda_fault_status(&r->fault);
    for (int i = 0; i < r->outs && r->st == PL_OK; i++) {
        host_out *o = &r->out[i];
        if (r->schedule == 0) {
            o->first = host_keep(o->data, o->nbytes);
        } else if (memcmp(o->first, o->data, o->nbytes) != 0) {
            TEST_FAIL("%s: output %d has other bits under schedule %d", what, i, r->schedule);
        }
    }
    r->schedule++;
}

static pl_status host_end(host_run *r) {
    for (int i = 0; i < r->outs; i++) {
        free(r->out[i].before);
        free(r->out[i].first);
    }
    pl_free(r->scratch);
    return r->st;
}

#define ON_HOST(r, call)                                   \
    while (host_more(&r)) host_done(&r, (call), __func__); \
    return host_end(&r)

static pl_status host_unary(pl_unary op, const pl_tensor *x, pl_tensor *out) {
    host_run r = {0};
    host_writes(&r, out, false, x);
    ON_HOST(r, pl_cuda_unary(op, x, out, &r.q));
}

static pl_status host_binary(pl_binary op, const pl_tensor *a, const pl_tensor *b, pl_tensor *out) {
    host_run r = {0};
    host_writes(&r, out, b->storage == out->storage, a);
    ON_HOST(r, pl_cuda_binary(op, a, b, out, &r.q));
}

static pl_status host_where(const pl_tensor *cond, const pl_tensor *a, const pl_tensor *b,
                            pl_tensor *out) {
    host_run r = {0};
    host_writes(&r, out, false, NULL);
    ON_HOST(r, pl_cuda_where(cond, a, b, out, &r.q));
}

static pl_status host_copy(const pl_tensor *src, pl_tensor *dst) {
    host_run r = {0};
    host_writes(&r, dst, false, NULL);
    ON_HOST(r, pl_cuda_copy(src, dst, &r.q));
}

static pl_status host_scale(const pl_tensor *x, const pl_tensor *factor, bool accumulate,
                            pl_tensor *out) {
    host_run r = {0};
    host_writes(&r, out, accumulate, x);
    ON_HOST(r, pl_cuda_scale(x, factor, accumulate, out, &r.q));
}

static pl_status host_fill_value(pl_tensor *dst, double value) {
    host_run r = {0};
    host_writes(&r, dst, false, NULL);
    ON_HOST(r, pl_cuda_fill(dst, value, &r.q));
}

static pl_status host_fill_int(pl_tensor *dst, int64_t value) {
    host_run r = {0};
    host_writes(&r, dst, false, NULL);
    ON_HOST(r, pl_cuda_fill_int(dst, value, &r.q));
}

static pl_status host_arange(pl_tensor *out, double start, double step) {
    host_run r = {0};
    host_writes(&r, out, false, NULL);
    ON_HOST(r, pl_cuda_arange(out, start, step, &r.q));
}

static pl_status host_row_norm(const pl_row_norm_args *args) {
    host_run r = {0};
    host_writes(&r, args->sum, false, NULL);
    host_writes(&r, args->out, false, NULL);
    host_writes(&r, args->mean, false, NULL);
    host_writes(&r, args->rstd, false, NULL);
    ON_HOST(r, pl_cuda_norm(args, &r.q));
}

static pl_status host_row_norm_grad(const pl_row_norm_grad_args *args) {
    host_run r = {0};
    host_writes(&r, args->dx, args->accumulate_x, NULL);
    host_writes(&r, args->dw, args->accumulate_w, NULL);
    host_writes(&r, args->db, args->accumulate_b, NULL);
    ON_HOST(r, pl_cuda_norm_grad(args, &r.q));
}

static pl_status host_softmax(bool log_form, const pl_tensor *x, pl_tensor *out) {
    host_run r = {0};
    host_writes(&r, out, false, x);
    ON_HOST(r, pl_cuda_softmax(log_form, x, out, &r.q));
}

static pl_status host_softmax_grad(bool log_form, const pl_tensor *g, const pl_tensor *y,
                                   pl_tensor *dx) {
    host_run r = {0};
    host_writes(&r, dx, false, NULL);
    ON_HOST(r, pl_cuda_softmax_grad(log_form, g, y, dx, &r.q));
}

static pl_status host_dropout(const pl_tensor *x, double p, uint64_t seed, uint64_t offset,
                              pl_tensor *out) {
    host_run r = {0};
    host_writes(&r, out, false, x);
    ON_HOST(r, pl_cuda_dropout(x, p, seed, offset, out, &r.q));
}

static pl_status host_uniform(pl_tensor *out, double lo, double hi, uint64_t seed,
                              uint64_t offset) {
    host_run r = {0};
    host_writes(&r, out, false, NULL);
    ON_HOST(r, pl_cuda_uniform(out, lo, hi, seed, offset, &r.q));
}

static pl_status host_normal(pl_tensor *out, double mean, double std, uint64_t seed,
                             uint64_t offset) {
    host_run r = {0};
    host_writes(&r, out, false, NULL);
    ON_HOST(r, pl_cuda_normal(out, mean, std, seed, offset, &r.q));
}

static pl_status host_randint(pl_tensor *out, int64_t lo, int64_t hi, uint64_t seed,
                              uint64_t offset) {
    host_run r = {0};
    host_writes(&r, out, false, NULL);
    ON_HOST(r, pl_cuda_randint(out, lo, hi, seed, offset, &r.q));
}

static pl_status host_cross_entropy(const pl_tensor *logits, const pl_tensor *target,
                                    const pl_tensor *weight, int64_t ignore_index, double smoothing,
                                    pl_tensor *losses, pl_tensor *lse) {
    host_run r = {0};
    pl_cuda_loss loss = {target, weight, ignore_index, smoothing, losses, lse};
    host_writes(&r, losses, false, NULL);
    host_writes(&r, lse, false, NULL);
    ON_HOST(r, pl_cuda_cross_entropy(&loss, logits, &r.q));
}

static pl_status host_cross_entropy_grad(const pl_tensor *g, const pl_tensor *logits,
                                         const pl_tensor *target, const pl_tensor *weight,
                                         const pl_tensor *lse, int64_t ignore_index,
                                         double smoothing, pl_tensor *dlogits) {
    host_run r = {0};
    pl_tensor kept = *lse;
    pl_cuda_loss loss = {target, weight, ignore_index, smoothing, NULL, &kept};
    host_writes(&r, dlogits, false, logits);
    ON_HOST(r, pl_cuda_cross_entropy_grad(&loss, g, logits, dlogits, &r.q));
}

static pl_status host_cross_entropy_fused(const pl_tensor *g, pl_tensor *logits,
                                          const pl_tensor *target, const pl_tensor *weight,
                                          int64_t ignore_index, double smoothing,
                                          pl_tensor *losses) {
    host_run r = {0};
    pl_cuda_loss loss = {target, weight, ignore_index, smoothing, losses, NULL};
    host_writes(&r, losses, false, NULL);
    host_writes(&r, logits, true, NULL);
    ON_HOST(r, pl_cuda_cross_entropy_fused(&loss, g, logits, &r.q));
}

static void host_writes_run(host_run *r, pl_dtype dt, int64_t n, void *p) {
    host_add(r, NULL, p, (size_t)n * pl_dtype_size(dt), true);
}

static pl_status host_adam(const pl_adam_args *args, pl_dtype dt, int64_t n, void *p, const void *g,
                           void *m, void *v) {
    host_run r = {0};
    host_writes_run(&r, dt, n, p);
    host_writes_run(&r, dt, n, m);
    host_writes_run(&r, dt, n, v);
    host_writes_run(&r, PL_I32, 1, args->nonfinite);
    pl_run run = {.dtype = dt, .n = n, .at = {p, (void *)(uintptr_t)g, m, v}};
    ON_HOST(r, pl_cuda_list_adam(args, 1, &run, &r.q));
}

static pl_status host_sgd(const pl_sgd_args *args, pl_dtype dt, int64_t n, void *p, const void *g,
                          void *momentum) {
    host_run r = {0};
    host_writes_run(&r, dt, n, p);
    host_writes_run(&r, dt, n, momentum);
    host_writes_run(&r, PL_I32, 1, args->nonfinite);
    pl_run run = {.dtype = dt, .n = n, .at = {p, (void *)(uintptr_t)g, momentum}};
    ON_HOST(r, pl_cuda_list_sgd(args, 1, &run, &r.q));
}

static pl_status host_unscale(pl_dtype dt, int64_t n, void *g, double factor, int *nonfinite) {
    host_run r = {0};
    host_writes_run(&r, dt, n, g);
    host_writes_run(&r, PL_I32, 1, nonfinite);
    pl_run run = {.dtype = dt, .n = n, .at = {g}};
    pl_unscale_args args = {.factor = factor, .nonfinite = nonfinite};
    ON_HOST(r, pl_cuda_list_unscale(&args, 1, &run, &r.q));
}

static pl_status host_reduce(pl_reduce op, const pl_tensor *x, uint32_t dims, pl_tensor *out) {
    host_run r = {0};
    host_writes(&r, out, false, NULL);
    ON_HOST(r, pl_cuda_reduce(op, x, dims, out, &r.q));
}

static pl_status host_sum_squares(const pl_tensor *x, double *out) {
    host_run r = {0};
    host_add(&r, NULL, (char *)out, sizeof *out, false);
    pl_run run = {.dtype = x->dtype, .n = x->numel, .at = {x->data}};
    pl_norm_args args = {.due = 1.0, .each = out};
    ON_HOST(r, pl_cuda_list_norm(&args, 1, &run, &r.q));
}

static pl_status host_argreduce(bool max, const pl_tensor *x, int dim, pl_tensor *out) {
    host_run r = {0};
    host_writes(&r, out, false, NULL);
    ON_HOST(r, pl_cuda_argreduce(max, x, dim, out, &r.q));
}

static pl_status host_cumsum(const pl_tensor *x, int dim, pl_tensor *out) {
    host_run r = {0};
    host_writes(&r, out, false, NULL);
    ON_HOST(r, pl_cuda_cumsum(x, dim, out, &r.q));
}

static pl_status host_take(const pl_tensor *x, const pl_tensor *index, pl_tensor *out) {
    host_run r = {0};
    host_writes(&r, out, false, NULL);
    ON_HOST(r, pl_cuda_take(x, index, out, &r.q));
}

static pl_status host_take_grad(const pl_tensor *g, const pl_tensor *index, int64_t skip,
                                bool accumulate, pl_tensor *dx) {
    host_run r = {0};
    host_writes(&r, dx, accumulate, NULL);
    ON_HOST(r, pl_cuda_take_grad(g, index, skip, accumulate, dx, &r.q));
}

static pl_status host_gather(const pl_tensor *x, int dim, const pl_tensor *index, pl_tensor *out) {
    host_run r = {0};
    host_writes(&r, out, false, NULL);
    ON_HOST(r, pl_cuda_gather(x, dim, index, out, &r.q));
}

static pl_status host_scatter_add(const pl_tensor *g, int dim, const pl_tensor *index,
                                  pl_tensor *dx) {
    host_run r = {0};
    host_writes(&r, dx, true, NULL);
    ON_HOST(r, pl_cuda_scatter_add(g, dim, index, dx, &r.q));
}

static pl_status host_count_nonzero(const pl_tensor *x, int64_t *out) {
    host_run r = {0};
    host_add(&r, NULL, (char *)out, sizeof *out, false);
    ON_HOST(r, pl_cuda_count_nonzero(x, out, &r.q));
}

static pl_status host_nonzero(const pl_tensor *x, pl_tensor *out) {
    host_run r = {0};
    host_writes(&r, out, false, NULL);
    ON_HOST(r, pl_cuda_nonzero(x, out, &r.q));
}

static pl_status host_sort(const pl_tensor *x, bool descending, pl_tensor *values,
                           pl_tensor *indices) {
    host_run r = {0};
    host_writes(&r, values, false, NULL);
    host_writes(&r, indices, false, NULL);
    ON_HOST(r, pl_cuda_sort(x, descending, values, indices, &r.q));
}

static pl_status host_swiglu(const pl_tensor *x, pl_tensor *out) {
    host_run r = {0};
    host_writes(&r, out, false, NULL);
    ON_HOST(r, pl_cuda_swiglu(x, out, &r.q));
}

static pl_status host_swiglu_grad(const pl_tensor *g, const pl_tensor *x, pl_tensor *dx) {
    host_run r = {0};
    host_writes(&r, dx, false, x);
    ON_HOST(r, pl_cuda_swiglu_grad(g, x, dx, &r.q));
}

static pl_status host_rotary(const pl_tensor *x, const pl_tensor *cosine, const pl_tensor *sine,
                             int64_t first, bool back, pl_tensor *out) {
    host_run r = {0};
    host_writes(&r, out, false, x);
    ON_HOST(r, pl_cuda_rotary(x, cosine, sine, first, back, out, &r.q));
}

static pl_status host_attention(const pl_tensor *q, const pl_tensor *k, const pl_tensor *v,
                                const pl_attention_args *args, pl_tensor *out, pl_tensor *lse) {
    host_run r = {0};
    host_writes(&r, out, false, NULL);
    host_writes(&r, lse, false, NULL);
    ON_HOST(r, pl_cuda_attention(q, k, v, args, out, lse, &r.q));
}

static pl_status host_attention_grad(const pl_tensor *g, const pl_tensor *q, const pl_tensor *k,
                                     const pl_tensor *v, const pl_tensor *out, const pl_tensor *lse,
                                     const pl_attention_args *args, pl_tensor *dq, pl_tensor *dk,
                                     pl_tensor *dv) {
    host_run r = {0};
    host_writes(&r, dq, false, NULL);
    host_writes(&r, dk, false, NULL);
    host_writes(&r, dv, false, NULL);
    ON_HOST(r, pl_cuda_attention_grad(g, q, k, v, out, lse, args, dq, dk, dv, &r.q));
}

static __attribute__((unused)) const pl_kernels *pl_kernels_on_host(void) {
    static const pl_kernels table = {
        .name = "cuda on the host",
        .unary = host_unary,
        .binary = host_binary,
        .where = host_where,
        .copy = host_copy,
        .scale = host_scale,
        .fill = host_fill_value,
        .fill_int = host_fill_int,
        .arange = host_arange,
        .norm = host_row_norm,
        .norm_grad = host_row_norm_grad,
        .softmax = host_softmax,
        .softmax_grad = host_softmax_grad,
        .dropout = host_dropout,
        .uniform = host_uniform,
        .normal = host_normal,
        .randint = host_randint,
        .cross_entropy = host_cross_entropy,
        .cross_entropy_grad = host_cross_entropy_grad,
        .cross_entropy_fused = host_cross_entropy_fused,
        .adam = host_adam,
        .sgd = host_sgd,
        .unscale = host_unscale,
        .reduce = host_reduce,
        .sum_squares = host_sum_squares,
        .argreduce = host_argreduce,
        .cumsum = host_cumsum,
        .sort = host_sort,
        .take = host_take,
        .take_grad = host_take_grad,
        .gather = host_gather,
        .scatter_add = host_scatter_add,
        .count_nonzero = host_count_nonzero,
        .nonzero = host_nonzero,
        .swiglu = host_swiglu,
        .swiglu_grad = host_swiglu_grad,
        .rotary = host_rotary,
        .attention = host_attention,
        .attention_grad = host_attention_grad,
    };
    return &table;
}
#define pl_kernels_cpu pl_kernels_on_host

#endif

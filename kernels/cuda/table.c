// SPDX-License-Identifier: Apache-2.0
// The table of kernels for tensors on the GPU: each member puts its work on the thread's stream, in
// the order of calls, and comes back (Note [two locks], state.h). Products are cuBLASLt's,
// attention may be cuDNN's.
#include "cuda/state.h"

// `call` returns a status; q and blas are what it runs on.
#define RUN(call)                                                 \
    do {                                                          \
        pl_cuda_lane *lane = pl__cuda_lane();                     \
        pl_cuda_queue *q = &lane->queue;                          \
        const pl_cuda_backend *b = pl__cuda.backend;              \
        pl_cuda_blas *blas = pl__cuda.blas;                       \
        (void)q, (void)b, (void)blas;                             \
        pthread_mutex_lock(&pl__cuda.queue_lock);                 \
        pl_cuda_blas_on(blas, lane->stream, q, &lane->workspace); \
        pl_status st = (call);                                    \
        pthread_mutex_unlock(&pl__cuda.queue_lock);               \
        return st;                                                \
    } while (0)

#define KERNEL(name, ...) static pl_status name(__VA_ARGS__)

typedef const pl_tensor in;
typedef pl_tensor out;

KERNEL(unary, pl_unary op, in *x, out *y) { RUN(b->unary(op, x, y, q)); }
KERNEL(binary, pl_binary op, in *x, in *y, out *z) { RUN(b->binary(op, x, y, z, q)); }
KERNEL(where, in *cond, in *x, in *y, out *z) { RUN(b->where(cond, x, y, z, q)); }
KERNEL(copy, in *src, out *dst) { RUN(b->copy(src, dst, q)); }
KERNEL(scale, in *x, in *factor, bool accumulate, out *y) {
    RUN(b->scale(x, factor, accumulate, y, q));
}
KERNEL(fill, out *dst, double value) { RUN(b->fill(dst, value, q)); }
KERNEL(fill_int, out *dst, int64_t value) { RUN(b->fill_int(dst, value, q)); }
KERNEL(arange, out *y, double start, double step) { RUN(b->arange(y, start, step, q)); }
KERNEL(reduce, pl_reduce op, in *x, uint32_t dims, out *y) { RUN(b->reduce(op, x, dims, y, q)); }
KERNEL(argreduce, bool max, in *x, int dim, out *y) { RUN(b->argreduce(max, x, dim, y, q)); }
KERNEL(cumsum, in *x, int dim, out *y) { RUN(b->cumsum(x, dim, y, q)); }
KERNEL(sort, in *x, bool descending, out *values, out *indices) {
    RUN(b->sort(x, descending, values, indices, q));
}
KERNEL(sum_squares, in *x, double *y) {
    pl_run run = {.dtype = x->dtype, .n = x->numel, .at = {x->data}};
    pl_norm_args args = {.due = 1.0, .each = y};
    RUN(b->list_norm(&args, 1, &run, q));
}

KERNEL(matmul, in *x, in *y, bool accumulate, out *z) {
    RUN(pl_cuda_blas_matmul(x, y, accumulate, z, blas));
}
KERNEL(linear, in *x, in *w, in *bias, pl_activation act, out *preact, out *y) {
    RUN(pl_cuda_blas_linear(x, w, bias, act, preact, y, blas));
}
KERNEL(linear_grad, in *g, in *x, out *dw, bool accumulate_w, out *db, bool accumulate_b) {
    RUN(pl_cuda_blas_linear_grad(g, x, dw, accumulate_w, db, accumulate_b, blas));
}
KERNEL(linear_grad_gelu, in *g, in *w, in *x, out *dx) {
    RUN(pl_cuda_blas_linear_grad_gelu(g, w, x, dx, blas));
}

KERNEL(norm, const pl_row_norm_args *args) { RUN(b->norm(args, q)); }
KERNEL(norm_grad, const pl_row_norm_grad_args *args) { RUN(b->norm_grad(args, q)); }
KERNEL(softmax, bool log, in *x, out *y) { RUN(b->softmax(log, x, y, q)); }
KERNEL(softmax_grad, bool log, in *g, in *y, out *dx) { RUN(b->softmax_grad(log, g, y, dx, q)); }

KERNEL(cross_entropy, in *logits, in *target, in *weight, int64_t ignore, double smoothing,
       out *losses, out *lse) {
    pl_cuda_loss loss = {target, weight, ignore, smoothing, losses, lse};
    RUN(b->cross_entropy(&loss, logits, q));
}
KERNEL(cross_entropy_grad, in *g, in *logits, in *target, in *weight, in *lse, int64_t ignore,
       double smoothing, out *dlogits) {
    // Read only here; the struct serves both directions.
    pl_cuda_loss loss = {target, weight, ignore, smoothing, NULL, (pl_tensor *)(uintptr_t)lse};
    RUN(b->cross_entropy_grad(&loss, g, logits, dlogits, q));
}
KERNEL(cross_entropy_fused, in *g, out *logits, in *target, in *weight, int64_t ignore,
       double smoothing, out *losses) {
    pl_cuda_loss loss = {target, weight, ignore, smoothing, losses, NULL};
    RUN(b->cross_entropy_fused(&loss, g, logits, q));
}

KERNEL(take, in *x, in *index, out *y) { RUN(b->take(x, index, y, q)); }
KERNEL(take_grad, in *g, in *index, int64_t skip, bool accumulate, out *dx) {
    RUN(b->take_grad(g, index, skip, accumulate, dx, q));
}
KERNEL(gather, in *x, int dim, in *index, out *y) { RUN(b->gather(x, dim, index, y, q)); }
KERNEL(scatter_add, in *g, int dim, in *index, out *dx) {
    RUN(b->scatter_add(g, dim, index, dx, q));
}
KERNEL(count_nonzero, in *x, int64_t *y) { RUN(b->count_nonzero(x, y, q)); }
KERNEL(nonzero, in *x, out *y) { RUN(b->nonzero(x, y, q)); }

KERNEL(uniform, out *y, double lo, double hi, uint64_t seed, uint64_t offset) {
    RUN(b->uniform(y, lo, hi, seed, offset, q));
}
KERNEL(normal, out *y, double mean, double std, uint64_t seed, uint64_t offset) {
    RUN(b->normal(y, mean, std, seed, offset, q));
}
KERNEL(randint, out *y, int64_t lo, int64_t hi, uint64_t seed, uint64_t offset) {
    RUN(b->randint(y, lo, hi, seed, offset, q));
}
KERNEL(dropout, in *x, double p, uint64_t seed, uint64_t offset, out *y) {
    RUN(b->dropout(x, p, seed, offset, y, q));
}

KERNEL(swiglu, in *x, out *y) { RUN(b->swiglu(x, y, q)); }
KERNEL(swiglu_grad, in *g, in *x, out *dx) { RUN(b->swiglu_grad(g, x, dx, q)); }
KERNEL(rotary, in *x, in *cosine, in *sine, int64_t first, bool back, out *y) {
    RUN(b->rotary(x, cosine, sine, first, back, y, q));
}
KERNEL(attention, in *query, in *k, in *v, const pl_attention_args *args, out *y, out *lse) {
    RUN(pl_cuda_dnn_attention(query, k, v, args, y, lse, pl__cuda.dnn));
}
KERNEL(attention_grad, in *g, in *query, in *k, in *v, in *y, in *lse,
       const pl_attention_args *args, out *dq, out *dk, out *dv) {
    RUN(pl_cuda_dnn_attention_grad(g, query, k, v, y, lse, args, dq, dk, dv, pl__cuda.dnn));
}

KERNEL(adam, const pl_adam_args *args, pl_dtype dt, int64_t n, void *p, const void *g, void *m,
       void *v) {
    pl_run run = {.dtype = dt, .n = n, .at = {p, (void *)(uintptr_t)g, m, v}};
    RUN(b->list_adam(args, 1, &run, q));
}
KERNEL(sgd, const pl_sgd_args *args, pl_dtype dt, int64_t n, void *p, const void *g,
       void *momentum) {
    pl_run run = {.dtype = dt, .n = n, .at = {p, (void *)(uintptr_t)g, momentum}};
    RUN(b->list_sgd(args, 1, &run, q));
}
KERNEL(unscale, pl_dtype dt, int64_t n, void *g, double factor, int *nonfinite) {
    pl_run run = {.dtype = dt, .n = n, .at = {g}};
    pl_unscale_args args = {.factor = factor, .nonfinite = nonfinite};
    RUN(b->list_unscale(&args, 1, &run, q));
}

KERNEL(list_adam, const pl_adam_args *args, int count, const pl_run *runs) {
    RUN(b->list_adam(args, count, runs, q));
}
KERNEL(list_sgd, const pl_sgd_args *args, int count, const pl_run *runs) {
    RUN(b->list_sgd(args, count, runs, q));
}
KERNEL(list_unscale, const pl_unscale_args *args, int count, const pl_run *runs) {
    RUN(b->list_unscale(args, count, runs, q));
}
KERNEL(list_norm, const pl_norm_args *args, int count, const pl_run *runs) {
    RUN(b->list_norm(args, count, runs, q));
}
static const pl_list_kernels lists = {list_adam, list_sgd, list_unscale, list_norm};

// clang-format off
const pl_kernels pl__cuda_kernels = {
    .name = "cuda",
    .unary = unary, .binary = binary, .where = where, .copy = copy, .scale = scale,
    .fill = fill, .fill_int = fill_int, .arange = arange, .reduce = reduce, .argreduce = argreduce,
    .cumsum = cumsum, .sort = sort, .sum_squares = sum_squares, .matmul = matmul,
    .linear = linear, .linear_grad = linear_grad, .linear_grad_gelu = linear_grad_gelu,
    .norm = norm, .norm_grad = norm_grad, .softmax = softmax, .softmax_grad = softmax_grad,
    .cross_entropy = cross_entropy, .cross_entropy_grad = cross_entropy_grad,
    .cross_entropy_fused = cross_entropy_fused, .take = take, .take_grad = take_grad,
    .gather = gather, .scatter_add = scatter_add,
    .count_nonzero = count_nonzero, .nonzero = nonzero, .uniform = uniform, .normal = normal,
    .randint = randint, .dropout = dropout, .swiglu = swiglu,
    .swiglu_grad = swiglu_grad, .rotary = rotary, .attention = attention,
    .attention_grad = attention_grad, .adam = adam, .sgd = sgd, .unscale = unscale,
    .lists = &lists,
};
// clang-format on

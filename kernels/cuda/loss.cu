// SPDX-License-Identifier: Apache-2.0
// loss: cross-entropy of rows of logits. A block per row: one pass finds the log of the sum of
// exponentials (each thread keeps a maximum and a sum relative to it, then the threads' are put
// together), a second one writes the gradient, in place if the caller wants; fused, both in one
// kernel, so that the second pass finds most of the row in the L2 cache. Not measured on a GPU yet.
#include "cuda/math.cuh"
#include "cuda/rows.cuh"

namespace {

enum { WARPS = PL_ROW_WARPS };

template <typename T>
struct loss_args {
    const T *logits;  // (rows, n)
    const int64_t *target;
    const pl_acc<T> *weight;  // or NULL
    int64_t weight_stride, rows, n, ignore;
    pl_acc<T> smoothing;
    pl_cuda_fault *fault;
    pl_acc<T> *losses, *lse;
    // The gradient: dlogits (may be logits) times g[i * g_stride], or times scale where g is NULL.
    const pl_acc<T> *g;
    int64_t g_stride;
    pl_acc<T> scale;
    T *dlogits;
};

template <typename T>
PL_DEVICE pl_acc<T> weight_of(const loss_args<T> &args, int64_t c) {
    return args.weight == nullptr ? (pl_acc<T>)1 : args.weight[c * args.weight_stride];
}

// Whether row i counts: its target is neither ignored nor, which is reported, out of range.
template <typename T>
PL_DEVICE bool counts(const loss_args<T> &args, int64_t t) {
    if (t == args.ignore) return false;
    if (t >= 0 && t < args.n) return true;
    pl_report(args.fault, PL_CUDA_FAULT_TARGET, t, args.n);
    return false;
}

template <typename T, int P>
PL_DEVICE pl_acc<T> row_lse(const T *x, int64_t n) {
    typedef pl_acc<T> A;
    A top = -(A)INFINITY, sum = 0;
    pl_each_pack<WARPS, P>(x, n, [&](int64_t, const A *v) {
        PL_UNROLL
        for (int k = 0; k < P; k++) {
            if (v[k] > top) {
                sum = sum * pl_exp(top - v[k]) + (A)1;
                top = v[k];
            } else if (v[k] != -(A)INFINITY) {
                sum += pl_exp(v[k] - top);
            }
        }
    });
    A all = pl_block_max<WARPS>(top);
    // A thread that saw nothing finite has sum 0, or NaN which must travel.
    sum = pl_block_sum<WARPS>(top == -(A)INFINITY ? sum : sum * pl_exp(top - all));
    if (all == (A)INFINITY) return all;
    return all == -(A)INFINITY ? all + sum : all + pl_log(sum);
}

// Every thread gets the row's loss; t is a class, xt its logit.
template <typename T, int P>
PL_DEVICE pl_acc<T> row_loss(const loss_args<T> &args, const T *x, int64_t t, pl_acc<T> xt,
                             pl_acc<T> lse) {
    typedef pl_acc<T> A;
    A loss = ((A)1 - args.smoothing) * weight_of(args, t) * (lse - xt), rest = 0;
    if (args.smoothing == 0) return loss;
    pl_each_pack<WARPS, P>(x, args.n, [&](int64_t j, const A *v) {
        PL_UNROLL
        for (int k = 0; k < P; k++) rest += weight_of(args, j + k) * (lse - v[k]);
    });
    return loss + args.smoothing / (A)args.n * pl_block_sum<WARPS>(rest);
}

template <typename T>
PL_DEVICE pl_acc<T> weight_total(const loss_args<T> &args) {
    typedef pl_acc<T> A;
    if (args.weight == nullptr || args.smoothing == 0) return (A)args.n;
    A total = 0;
    for (int64_t c = threadIdx.x; c < args.n; c += PL_ROW_BLOCK) total += weight_of(args, c);
    return pl_block_sum<WARPS>(total);
}

template <typename T, int P>
PL_DEVICE void row_grad(const loss_args<T> &args, int64_t i, int64_t t, bool used, pl_acc<T> lse,
                        pl_acc<T> total) {
    typedef pl_acc<T> A;
    A g = args.g != nullptr ? args.g[i * args.g_stride] : args.scale;
    A smooth = args.smoothing / (A)args.n;
    A weight = used ? ((A)1 - args.smoothing) * weight_of(args, t) : (A)0;
    pl_each_pack<WARPS, P>(args.logits + i * args.n, args.n, [&](int64_t j, A *v) {
        PL_UNROLL
        for (int k = 0; k < P; k++) {
            A p = pl_exp(v[k] - lse), d = weight * (p - (A)(j + k == t));
            if (args.smoothing != 0) d += smooth * (total * p - weight_of(args, j + k));
            v[k] = used ? g * d : (A)0;
        }
        pl_store_pack<P>(args.dlogits + i * args.n + j, v);
    });
}

template <typename T, int P, bool GRAD>
__global__ void forward_kernel(loss_args<T> args) {
    typedef pl_acc<T> A;
    A total = GRAD ? weight_total(args) : (A)0;
    for (int64_t i = blockIdx.x; i < args.rows; i += gridDim.x) {
        const T *x = args.logits + i * args.n;
        int64_t t = args.target[i];
        bool used = counts(args, t);
        A xt = used ? pl_get(x[t]) : (A)0;  // before anyone overwrites it: the fold is a barrier
        A lse = row_lse<T, P>(x, args.n);
        A loss = used ? row_loss<T, P>(args, x, t, xt, lse) : (A)0;
        if (threadIdx.x == 0) {
            args.losses[i] = loss;
            args.lse[i] = lse;
        }
        if (GRAD) row_grad<T, P>(args, i, t, used, lse, total);
    }
}

template <typename T, int P>
__global__ void grad_kernel(loss_args<T> args) {
    pl_acc<T> total = weight_total(args);
    for (int64_t i = blockIdx.x; i < args.rows; i += gridDim.x) {
        int64_t t = args.target[i];
        row_grad<T, P>(args, i, t, counts(args, t), args.lse[i], total);
    }
}

template <typename T>
loss_args<T> args_of(const pl_cuda_loss *a, const pl_tensor *logits, pl_cuda_queue *q) {
    typedef pl_acc<T> A;
    loss_args<T> args = {};
    args.logits = (const T *)logits->data;
    args.target = (const int64_t *)a->target->data;
    args.weight = a->weight != NULL ? (const A *)a->weight->data : NULL;
    args.weight_stride = a->weight != NULL ? a->weight->strides[0] : 0;
    args.n = pl_last_dim(logits);
    args.rows = a->target->numel;
    args.ignore = a->ignore_index;
    args.smoothing = (A)a->label_smoothing;
    args.fault = q->fault;
    args.losses = a->losses != NULL ? (A *)a->losses->data : NULL;
    args.lse = (A *)a->lse->data;
    args.scale = 1;
    return args;
}

template <typename T>
pl_status forward(const pl_cuda_loss *a, const pl_tensor *logits, pl_cuda_queue *q) {
    enum { P = 16 / sizeof(T) };
    loss_args<T> args = args_of<T>(a, logits, q);
    unsigned blocks = pl_blocks(args.rows, 1);
    if (pl_rows_packed(args.n, sizeof(T), args.logits, NULL, NULL)) {
        PL_LAUNCH((forward_kernel<T, P, false>), blocks, PL_ROW_BLOCK, 0, q, args);
    } else {
        PL_LAUNCH((forward_kernel<T, 1, false>), blocks, PL_ROW_BLOCK, 0, q, args);
    }
    return pl_launched("cross_entropy");
}

template <typename T>
pl_status fused(const pl_cuda_loss *a, pl_tensor *logits, double scale, pl_cuda_queue *q) {
    enum { P = 16 / sizeof(T) };
    loss_args<T> args = args_of<T>(a, logits, q);
    args.scale = (pl_acc<T>)scale;
    args.dlogits = (T *)logits->data;
    unsigned blocks = pl_blocks(args.rows, 1);
    if (pl_rows_packed(args.n, sizeof(T), args.logits, NULL, NULL)) {
        PL_LAUNCH((forward_kernel<T, P, true>), blocks, PL_ROW_BLOCK, 0, q, args);
    } else {
        PL_LAUNCH((forward_kernel<T, 1, true>), blocks, PL_ROW_BLOCK, 0, q, args);
    }
    return pl_launched("cross_entropy");
}

template <typename T>
pl_status grad(const pl_cuda_loss *a, const pl_tensor *g, const pl_tensor *logits,
               pl_tensor *dlogits, pl_cuda_queue *q) {
    enum { P = 16 / sizeof(T) };
    loss_args<T> args = args_of<T>(a, logits, q);
    args.g = (const pl_acc<T> *)g->data;
    args.g_stride = g->ndim == 0 ? 0 : g->strides[0];
    args.dlogits = (T *)dlogits->data;
    unsigned blocks = pl_blocks(args.rows, 1);
    if (pl_rows_packed(args.n, sizeof(T), args.logits, args.dlogits, NULL)) {
        PL_LAUNCH((grad_kernel<T, P>), blocks, PL_ROW_BLOCK, 0, q, args);
    } else {
        PL_LAUNCH((grad_kernel<T, 1>), blocks, PL_ROW_BLOCK, 0, q, args);
    }
    return pl_launched("cross_entropy");
}

}  // namespace

pl_status pl_cuda_cross_entropy(const pl_cuda_loss *loss, const pl_tensor *logits,
                                pl_cuda_queue *q) {
    if (loss->target->numel == 0) return PL_OK;
#define CALL(T) return forward<T>(loss, logits, q)
    PL_CUDA_FLOATS(logits->dtype, CALL);
#undef CALL
}

pl_status pl_cuda_cross_entropy_grad(const pl_cuda_loss *loss, const pl_tensor *g,
                                     const pl_tensor *logits, pl_tensor *dlogits,
                                     pl_cuda_queue *q) {
    if (logits->numel == 0) return PL_OK;
#define CALL(T) return grad<T>(loss, g, logits, dlogits, q)
    PL_CUDA_FLOATS(logits->dtype, CALL);
#undef CALL
}

pl_status pl_cuda_cross_entropy_fused(const pl_cuda_loss *loss, pl_tensor *logits, double scale,
                                      pl_cuda_queue *q) {
    if (logits->numel == 0) return PL_OK;
#define CALL(T) return fused<T>(loss, logits, scale, q)
    PL_CUDA_FLOATS(logits->dtype, CALL);
#undef CALL
}

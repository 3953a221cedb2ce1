// SPDX-License-Identifier: Apache-2.0
// loss: cross-entropy of rows of logits. One pass finds the log of the sum of exponentials (each
// thread keeps a maximum and a sum relative to it, then the threads' are put together), a second
// one writes the gradient, in place if the caller wants; fused, both in one kernel.
//
// A warp, eight or 16 warps take a row. A row of a vocabulary is 100 KB: with 16 warps, three
// blocks to a processor, the rows under way are 40 MB on 132 processors, so that the second pass
// finds them in the L2 cache (60 MB) and memory is read once and written once. Exponentials are of
// base 2, an instruction each. Not measured on a GPU yet.
#include "cuda/math.cuh"
#include "cuda/rows.cuh"

namespace {

enum { LONG_WARPS = 16, LONG_ROW = 16384 };  // elements

template <typename T>
struct loss_args {
    const T *logits;  // (rows, n), ld apart
    const int64_t *target;
    const pl_acc<T> *weight;  // or NULL
    int64_t weight_stride, rows, ld, ignore;
    int n;
    pl_acc<T> smoothing;
    pl_cuda_fault *fault;
    pl_acc<T> *losses, *lse;  // either may be NULL
    // The gradient times g[i * g_stride], or times 1 where g is NULL. dlogits may be logits.
    const pl_acc<T> *g;
    int64_t g_stride;
    T *dlogits;  // rows ld apart, and as far from a multiple of 16 bytes as logits
};

template <typename T>
PL_DEVICE pl_acc<T> weight_of(const loss_args<T> &args, int64_t c) {
    return args.weight == nullptr ? (pl_acc<T>)1 : args.weight[c * args.weight_stride];
}

// Whether a row counts: its target is neither ignored nor, which is reported, out of range.
template <typename T>
PL_DEVICE bool counts(const loss_args<T> &args, int64_t t) {
    if (t == args.ignore) return false;
    if (t >= 0 && t < args.n) return true;
    pl_report(args.fault, PL_CUDA_FAULT_TARGET, t, args.n);
    return false;
}

template <typename A>
PL_DEVICE A log2e(void) {
    return (A)1.44269504088896340736;
}

// e^(x - shift), given shift * log2(e).
template <typename A>
PL_DEVICE A shifted_exp(A x, A shift2) {
    return pl_exp2(pl_fma(x, log2e<A>(), -shift2));
}

// The sum of e^(x - top) of one thread's share, in base 2: m is top * log2(e) rounded, which loses
// nothing as long as all exponents are relative to m itself.
template <typename A>
struct running {
    A top, m, sum;

    template <int K>
    PL_DEVICE void add(const A (&v)[K]) {
        A high = v[0];
        PL_UNROLL
        for (int k = 1; k < K; k++) high = pl_larger()(high, v[k]);
        if (high > top) {
            A next = high * log2e<A>();
            sum *= pl_exp2(m - next);
            top = high;
            m = next;
        }
        PL_UNROLL
        for (int k = 0; k < K; k++) {
            // Before the first finite one only a NaN counts.
            if (top != -(A)INFINITY) {
                sum += shifted_exp(v[k], m);
            } else if (pl_nan(v[k])) {
                sum += v[k];
            }
        }
    }
};

template <typename T, int WARPS>
PL_DEVICE pl_acc<T> row_lse(const T *x, int n) {
    typedef pl_acc<T> A;
    running<A> r = {-(A)INFINITY, -(A)INFINITY, 0};
    pl_each_span<WARPS>(x, n, [&](int, const auto &v) { r.add(v); });
    A all = pl_block_max<WARPS>(r.top), m = all * log2e<A>();
    // A thread that saw nothing finite has sum 0, or NaN which must travel.
    A sum = pl_block_sum<WARPS>(r.top == -(A)INFINITY ? r.sum : r.sum * pl_exp2(r.m - m));
    if (all == (A)INFINITY) return all;
    if (all == -(A)INFINITY) return all + sum;
    A rounded = pl_fma(all, log2e<A>(), -m);  // what m lost
    return all + (pl_log(sum) - rounded * (A)0.69314718055994530942);
}

// Every thread gets the row's loss; t is a class, xt its logit.
template <typename T, int WARPS>
PL_DEVICE pl_acc<T> row_loss(const loss_args<T> &args, const T *x, int t, pl_acc<T> xt,
                             pl_acc<T> lse) {
    typedef pl_acc<T> A;
    A loss = ((A)1 - args.smoothing) * weight_of(args, t) * (lse - xt), rest = 0;
    if (args.smoothing == 0) return loss;
    pl_each_span<WARPS>(x, args.n, [&](int j, const auto &v) {
        int c = j;
        for (A each : v) rest += weight_of(args, c++) * (lse - each);
    });
    return loss + args.smoothing / (A)args.n * pl_block_sum<WARPS>(rest);
}

// The sum of all classes' weights, where smoothing wants it.
template <typename T, int WARPS>
PL_DEVICE pl_acc<T> weight_total(const loss_args<T> &args) {
    typedef pl_acc<T> A;
    if (args.weight == nullptr || args.smoothing == 0) return (A)args.n;
    A total = 0;
    for (int c = pl_row_thread<WARPS>(); c < args.n; c += WARPS * PL_LANES) {
        total += weight_of(args, c);
    }
    return pl_block_sum<WARPS>(total);
}

// v, the probabilities of classes j ..., becomes the slope of the target's own term.
template <typename A, int K>
PL_DEVICE void slope_of(A (&v)[K], int j, int t, A weight) {
    if (t >= j && t < j + K) {
        PL_UNROLL
        for (int k = 0; k < K; k++) v[k] -= (A)(j + k == t);
    }
    PL_UNROLL
    for (int k = 0; k < K; k++) v[k] *= weight;
}

// Loops of their own, so that each stores its packs whole.
template <typename T, int WARPS>
PL_DEVICE void row_grad(const loss_args<T> &args, int64_t i, int64_t target, bool used,
                        pl_acc<T> lse, pl_acc<T> total) {
    typedef pl_acc<T> A;
    const T *x = args.logits + i * args.ld;
    T *dx = args.dlogits + i * args.ld;
    if (!used) {
        pl_each_span<WARPS>(x, args.n, [&](int j, auto &v) {
            for (A &each : v) each = 0;
            pl_store_pack<sizeof(v) / sizeof(A)>(dx + j, v);
        });
        return;
    }
    int t = (int)target;
    A g = args.g != nullptr ? args.g[i * args.g_stride] : (A)1, lse2 = lse * log2e<A>();
    A weight = g * ((A)1 - args.smoothing) * weight_of(args, t);
    if (args.smoothing == 0) {
        pl_each_span<WARPS>(x, args.n, [&](int j, auto &v) {
            for (A &each : v) each = shifted_exp(each, lse2);
            slope_of(v, j, t, weight);
            pl_store_pack<sizeof(v) / sizeof(A)>(dx + j, v);
        });
        return;
    }
    A smooth = g * args.smoothing / (A)args.n;
    pl_each_span<WARPS>(x, args.n, [&](int j, auto &v) {
        constexpr int K = sizeof(v) / sizeof(A);
        A spread[K];
        PL_UNROLL
        for (int k = 0; k < K; k++) {
            v[k] = shifted_exp(v[k], lse2);
            spread[k] = smooth * (total * v[k] - weight_of(args, j + k));
        }
        slope_of(v, j, t, weight);
        PL_UNROLL
        for (int k = 0; k < K; k++) v[k] += spread[k];
        pl_store_pack<K>(dx + j, v);
    });
}

template <int WARPS>
constexpr int threads_of(void) {
    return WARPS == 1 ? (int)PL_ROW_BLOCK : WARPS * PL_LANES;
}
// Blocks on a processor, which bound the registers of a thread.
template <typename T, int WARPS>
constexpr int blocks_of(void) {
    return sizeof(T) > 2 ? 2 : WARPS == LONG_WARPS ? 3 : 4;
}

template <typename T, int WARPS, bool GRAD>
__global__ void __launch_bounds__(threads_of<WARPS>(), blocks_of<T, WARPS>())
    forward_kernel(loss_args<T> args) {
    typedef pl_acc<T> A;
    A total = GRAD ? weight_total<T, WARPS>(args) : (A)0;
    for (int64_t i = pl_first_row<WARPS>(); i < args.rows; i += pl_row_step<WARPS>()) {
        const T *x = args.logits + i * args.ld;
        int64_t t = args.target[i];
        bool used = counts(args, t);
        A xt = used ? pl_get(x[t]) : (A)0;  // before anyone overwrites it: the fold is a barrier
        A lse = row_lse<T, WARPS>(x, args.n);
        A loss = used ? row_loss<T, WARPS>(args, x, (int)t, xt, lse) : (A)0;
        if (pl_row_thread<WARPS>() == 0) {
            if (args.losses != nullptr) args.losses[i] = loss;
            if (args.lse != nullptr) args.lse[i] = lse;
        }
        if (GRAD) row_grad<T, WARPS>(args, i, t, used, lse, total);
    }
}

template <typename T, int WARPS>
__global__ void __launch_bounds__(threads_of<WARPS>(), blocks_of<T, WARPS>())
    grad_kernel(loss_args<T> args) {
    pl_acc<T> total = weight_total<T, WARPS>(args);
    for (int64_t i = pl_first_row<WARPS>(); i < args.rows; i += pl_row_step<WARPS>()) {
        int64_t t = args.target[i];
        row_grad<T, WARPS>(args, i, t, counts(args, t), args.lse[i], total);
    }
}

template <typename T>
loss_args<T> args_of(const pl_cuda_loss *a, const pl_tensor *logits, pl_cuda_queue *q) {
    typedef pl_acc<T> A;
    loss_args<T> args = {};
    args.logits = (const T *)logits->data;
    args.target = (const int64_t *)a->target->data;
    args.weight = pl_data<const A>(a->weight);
    args.weight_stride = a->weight != NULL ? a->weight->strides[0] : 0;
    args.n = (int)pl_last_dim(logits);
    args.rows = a->target->numel;
    args.ld = logits->strides[0];
    args.ignore = a->ignore_index;
    args.smoothing = (A)a->label_smoothing;
    args.fault = q->fault;
    args.losses = pl_data<A>(a->losses);
    args.lse = pl_data<A>(a->lse);
    return args;
}

template <typename T>
void set_gradient(loss_args<T> *args, const pl_tensor *g, pl_tensor *dlogits) {
    args->g = pl_data<const pl_acc<T>>(g);
    args->g_stride = g == NULL || g->ndim == 0 ? 0 : g->strides[0];
    args->dlogits = (T *)dlogits->data;
}

// Classes are counted in 32 bits.
pl_status check_width(const pl_tensor *logits) {
    if (pl_last_dim(logits) <= 0x40000000) return PL_OK;
    return pl_fail(PL_ENOSUP, "[cross_entropy] too many classes: got %lld, expected up to 2^30",
                   (long long)pl_last_dim(logits));
}

// Launches kernel<T, WARPS...> for the width of the rows.
#define LAUNCH(kernel, T, ...)                                                                    \
    do {                                                                                          \
        constexpr int most = sizeof(T) == 8 ? (int)PL_ROW_WARPS : (int)LONG_WARPS;                \
        if (args.n <= PL_WARP_COLUMNS) {                                                          \
            PL_LAUNCH((kernel<T, 1 __VA_ARGS__>), pl_blocks(args.rows, PL_ROW_WARPS),             \
                      threads_of<1>(), 0, q, args);                                               \
        } else if (args.n < LONG_ROW) {                                                           \
            PL_LAUNCH((kernel<T, PL_ROW_WARPS __VA_ARGS__>), pl_blocks(args.rows, 1),             \
                      threads_of<PL_ROW_WARPS>(), 0, q, args);                                    \
        } else {                                                                                  \
            PL_LAUNCH((kernel<T, most __VA_ARGS__>), pl_blocks(args.rows, 1), threads_of<most>(), \
                      0, q, args);                                                                \
        }                                                                                         \
    } while (0)
#define COMMA ,

template <typename T>
pl_status forward(const pl_cuda_loss *a, const pl_tensor *logits, pl_cuda_queue *q) {
    loss_args<T> args = args_of<T>(a, logits, q);
    LAUNCH(forward_kernel, T, COMMA false);
    return pl_launched("cross_entropy");
}

template <typename T>
pl_status fused(const pl_cuda_loss *a, const pl_tensor *g, pl_tensor *logits, pl_cuda_queue *q) {
    loss_args<T> args = args_of<T>(a, logits, q);
    set_gradient(&args, g, logits);
    LAUNCH(forward_kernel, T, COMMA true);
    return pl_launched("cross_entropy");
}

template <typename T>
pl_status grad(const pl_cuda_loss *a, const pl_tensor *g, const pl_tensor *logits,
               pl_tensor *dlogits, pl_cuda_queue *q) {
    // Rows move in packs that start at one place in both.
    bool together = ((uintptr_t)logits->data - (uintptr_t)dlogits->data) % 16 == 0;
    if (!together) PL_TRY(pl_cuda_copy(logits, dlogits, q));
    loss_args<T> args = args_of<T>(a, together ? logits : dlogits, q);
    set_gradient(&args, g, dlogits);
    LAUNCH(grad_kernel, T, );
    return pl_launched("cross_entropy");
}

}  // namespace

pl_status pl_cuda_cross_entropy(const pl_cuda_loss *loss, const pl_tensor *logits,
                                pl_cuda_queue *q) {
    if (loss->target->numel == 0) return PL_OK;
    PL_TRY(check_width(logits));
#define CALL(T) return forward<T>(loss, logits, q)
    PL_CUDA_FLOATS(logits->dtype, CALL);
#undef CALL
}

pl_status pl_cuda_cross_entropy_grad(const pl_cuda_loss *loss, const pl_tensor *g,
                                     const pl_tensor *logits, pl_tensor *dlogits,
                                     pl_cuda_queue *q) {
    if (logits->numel == 0) return PL_OK;
    PL_TRY(check_width(logits));
#define CALL(T) return grad<T>(loss, g, logits, dlogits, q)
    PL_CUDA_FLOATS(logits->dtype, CALL);
#undef CALL
}

pl_status pl_cuda_cross_entropy_fused(const pl_cuda_loss *loss, const pl_tensor *g,
                                      pl_tensor *logits, pl_cuda_queue *q) {
    if (logits->numel == 0) return PL_OK;
    PL_TRY(check_width(logits));
#define CALL(T) return fused<T>(loss, g, logits, q)
    PL_CUDA_FLOATS(logits->dtype, CALL);
#undef CALL
}

// SPDX-License-Identifier: Apache-2.0
// norm: layer norm and RMS norm over the last dimension, forward (with the sum of two inputs made
// on the way) and backward. The forward holds its row in registers, so that all loads are under way
// before the first is used and memory is read once (where that takes too many registers: three
// times, twice from the caches); mean first, then the squared distances, so that no cancellation
// happens. The gradient of the weights is a sum over rows: fixed parts of rows by one kernel, the
// parts in a fixed order by a second. The first is the one that makes dx, whose threads keep the
// sums of their 32 columns in registers; norm_weights.cuh has the one for fp64, for rows of more
// than 8,192, and where dx is not wanted. Not measured on a GPU yet.
#include "cuda/math.cuh"
#include "cuda/norm_weights.cuh"
#include "cuda/rows.cuh"

namespace {

// A weight or bias of x's dtype or f32.
template <typename T>
struct vector {
    const void *data;
    bool is_float;
};
// The P elements from column j, `otherwise` where there is no such vector.
template <int P, typename T>
PL_DEVICE void pack_of(const vector<T> &v, int64_t j, pl_acc<T> otherwise, pl_acc<T> *out) {
    enum { PART = P < 4 ? P : 4 };  // floats that one access moves
    if (v.data == nullptr) {
        PL_UNROLL
        for (int k = 0; k < P; k++) out[k] = otherwise;
    } else if (v.is_float) {
        PL_UNROLL
        for (int k = 0; k < P; k += PART) {
            pl_pack<float, PART> in = pl_load<PART>((const float *)v.data + j + k);
            PL_UNROLL
            for (int l = 0; l < PART; l++) out[k + l] = (pl_acc<T>)in.v[l];
        }
    } else {
        pl_pack<T, P> in = pl_load<P>((const T *)v.data + j);
        PL_UNROLL
        for (int k = 0; k < P; k++) out[k] = pl_get(in.v[k]);
    }
}
template <typename T>
vector<T> vector_of(const pl_tensor *t) {
    return {t != NULL ? t->data : NULL, t != NULL && t->dtype == PL_F32};
}

// X: T, or a half type where T is float.
template <typename T, typename X>
struct forward_args {
    const X *x;         // (rows, n)
    const T *residual;  // (rows, n), or NULL: then X is T
    T *sum, *out;       // sum: x + residual, written where there is a residual
    vector<T> w, b;
    pl_acc<T> *mean, *rstd;  // no mean for RMS
    pl_acc<T> eps;
    int64_t rows, n;
    bool rms;
};

// P columns of what is normed. The sum counts as it is stored, rounded.
template <int P, typename T, typename X>
PL_DEVICE void add_pack(const forward_args<T, X> &args, int64_t at, const pl_pack<X, P> &x,
                        const pl_pack<T, P> &residual, pl_acc<T> *v) {
    PL_UNROLL
    for (int k = 0; k < P; k++) v[k] = pl_get(x.v[k]);
    if (args.residual == nullptr) return;
    pl_pack<T, P> sum;
    PL_UNROLL
    for (int k = 0; k < P; k++) {
        pl_put(&sum.v[k], v[k] + pl_get(residual.v[k]));
        v[k] = pl_get(sum.v[k]);
    }
    pl_store(args.sum + at, sum);
}

// P columns of the result from those of what is normed.
template <int P, typename T, typename X>
PL_DEVICE void put_normed(const forward_args<T, X> &args, int64_t i, int64_t j, pl_acc<T> mu,
                          pl_acc<T> r, pl_acc<T> *v) {
    pl_acc<T> w[P], b[P];
    pack_of<P>(args.w, j, (pl_acc<T>)1, w);
    pack_of<P>(args.b, j, (pl_acc<T>)0, b);
    PL_UNROLL
    for (int k = 0; k < P; k++) v[k] = (v[k] - mu) * r * w[k] + b[k];
    pl_store_pack<P>(args.out + i * args.n + j, v);
}

template <int WARPS, typename T, typename X>
PL_DEVICE pl_acc<T> put_moments(const forward_args<T, X> &args, int64_t i, pl_acc<T> mu,
                                pl_acc<T> squares) {
    typedef pl_acc<T> A;
    A r = (A)1 / pl_sqrt(pl_block_sum<WARPS>(squares) / (A)args.n + args.eps);
    if (pl_row_thread<WARPS>() == 0) {
        if (!args.rms) args.mean[i] = mu;
        args.rstd[i] = r;
    }
    return r;
}

// This thread's columns of row i, 0 where it has none.
template <int WARPS, int P, int PACKS, typename T, typename X>
PL_DEVICE void hold_row(const forward_args<T, X> &args, int64_t i, pl_acc<T> (*v)[P]) {
    enum { STEP = WARPS * PL_LANES * P };
    int64_t first = (int64_t)pl_row_thread<WARPS>() * P, at = i * args.n;
    pl_pack<X, P> x[PACKS] = {};
    pl_pack<T, P> residual[PACKS] = {};
    PL_UNROLL
    for (int c = 0; c < PACKS; c++) {
        int64_t j = first + c * STEP;
        if (j >= args.n) continue;
        x[c] = pl_load<P>(args.x + at + j);
        if (args.residual != nullptr) residual[c] = pl_load<P>(args.residual + at + j);
    }
    PL_UNROLL
    for (int c = 0; c < PACKS; c++) {
        int64_t j = first + c * STEP;
        PL_UNROLL
        for (int k = 0; k < P; k++) v[c][k] = 0;
        if (j < args.n) add_pack<P>(args, at + j, x[c], residual[c], v[c]);
    }
}

// Rows of up to PL_THREAD_COLUMNS columns a thread: 1,024 a warp, 8,192 a block.
template <typename T, typename X, int WARPS, int P>
__global__ void __launch_bounds__(PL_ROW_BLOCK, 2) forward_kernel(forward_args<T, X> args) {
    typedef pl_acc<T> A;
    enum { PACKS = PL_THREAD_COLUMNS / P, STEP = WARPS * PL_LANES * P };
    int64_t first = (int64_t)pl_row_thread<WARPS>() * P;
    for (int64_t i = pl_first_row<WARPS>(); i < args.rows; i += pl_row_step<WARPS>()) {
        A v[PACKS][P], mu = 0, squares = 0;
        hold_row<WARPS, P, PACKS>(args, i, v);
        if (!args.rms) {
            PL_UNROLL
            for (int c = 0; c < PACKS; c++) {
                PL_UNROLL
                for (int k = 0; k < P; k++) mu += v[c][k];
            }
            mu = pl_block_sum<WARPS>(mu) / (A)args.n;
        }
        PL_UNROLL
        for (int c = 0; c < PACKS; c++) {
            if (first + c * STEP >= args.n) continue;
            PL_UNROLL
            for (int k = 0; k < P; k++) squares += (v[c][k] - mu) * (v[c][k] - mu);
        }
        A r = put_moments<WARPS>(args, i, mu, squares);
        PL_UNROLL
        for (int c = 0; c < PACKS; c++) {
            int64_t j = first + c * STEP;
            if (j < args.n) put_normed<P>(args, i, j, mu, r, v[c]);
        }
    }
}

// Rows of any length. A thread reads of the sum only what it wrote itself.
template <typename T, typename X, int WARPS, int P>
__global__ void forward_long_kernel(forward_args<T, X> args) {
    typedef pl_acc<T> A;
    for (int64_t i = pl_first_row<WARPS>(); i < args.rows; i += pl_row_step<WARPS>()) {
        A mu = 0, squares = 0;
        int64_t at = i * args.n;
        const T *x =
            args.residual != nullptr ? args.sum + at : (const T *)(const void *)args.x + at;
        if (args.residual != nullptr) {
            pl_each_pack<WARPS, P>(args.residual + at, args.n, [&](int64_t j, A *v) {
                pl_pack<T, P> residual = pl_load<P>(args.residual + at + j);
                add_pack<P>(args, at + j, pl_load<P>(args.x + at + j), residual, v);
            });
        }
        if (!args.rms) {
            pl_each_pack<WARPS, P>(x, args.n, [&](int64_t, const A *v) {
                PL_UNROLL
                for (int k = 0; k < P; k++) mu += v[k];
            });
            mu = pl_block_sum<WARPS>(mu) / (A)args.n;
        }
        pl_each_pack<WARPS, P>(x, args.n, [&](int64_t, const A *v) {
            PL_UNROLL
            for (int k = 0; k < P; k++) squares += (v[k] - mu) * (v[k] - mu);
        });
        A r = put_moments<WARPS>(args, i, mu, squares);
        pl_each_pack<WARPS, P>(x, args.n,
                               [&](int64_t j, A *v) { put_normed<P>(args, i, j, mu, r, v); });
    }
}

template <typename T>
struct grad_args {
    const T *g, *x;
    vector<T> w;
    const pl_acc<T> *mean, *rstd;
    T *dx;
    bool accumulate;   // dx is added to
    pl_acc<T> *parts;  // norm_weights.cuh; one part per block. NULL: not wanted
    int64_t rows, n;
    bool rms;
};

// A row's two means, of gw and of gw * xhat.
template <typename T, int WARPS, int P>
PL_DEVICE void grad_means(const grad_args<T> &args, int64_t i, pl_acc<T> mu, pl_acc<T> *sum,
                          pl_acc<T> *dot) {
    typedef pl_acc<T> A;
    A r = args.rstd[i], s = 0, d = 0;
    pl_each_pack<WARPS, P>(args.g + i * args.n, args.n, [&](int64_t j, const A *v) {
        pl_pack<T, P> in = pl_load<P>(args.x + i * args.n + j);
        A w[P];
        pack_of<P>(args.w, j, (A)1, w);
        PL_UNROLL
        for (int k = 0; k < P; k++) {
            A gw = v[k] * w[k];
            s += gw;
            d += gw * (pl_get(in.v[k]) - mu) * r;
        }
    });
    *sum = args.rms ? (A)0 : pl_block_sum<WARPS>(s) / (A)args.n;
    *dot = pl_block_sum<WARPS>(d) / (A)args.n;
}

// dx (+)= rstd * (gw - mean(gw) - xhat * mean(gw * xhat)), gw = g * w; RMS without mean(gw).
// each(j, g, xhat) sees a pack's columns on the way.
template <typename T, int WARPS, int P, typename Each>
PL_DEVICE void grad_row(const grad_args<T> &args, int64_t i, int64_t j, const pl_acc<T> means[3],
                        Each each) {
    typedef pl_acc<T> A;
    A mu = means[0], sum = means[1], dot = means[2], r = args.rstd[i], v[P], w[P];
    pl_pack<T, P> g = pl_load<P>(args.g + i * args.n + j), before;
    pl_pack<T, P> x = pl_load<P>(args.x + i * args.n + j);
    if (args.accumulate) before = pl_load<P>(args.dx + i * args.n + j);
    pack_of<P>(args.w, j, (A)1, w);
    PL_UNROLL
    for (int k = 0; k < P; k++) {
        A xhat = (pl_get(x.v[k]) - mu) * r;
        v[k] = r * (pl_get(g.v[k]) * w[k] - sum - xhat * dot);
        if (args.accumulate) v[k] += pl_get(before.v[k]);
        each(k, pl_get(g.v[k]), xhat);
    }
    pl_store_pack<P>(args.dx + i * args.n + j, v);
}

template <typename T, int WARPS, int P>
__global__ void grad_kernel(grad_args<T> args) {
    typedef pl_acc<T> A;
    for (int64_t i = pl_first_row<WARPS>(); i < args.rows; i += pl_row_step<WARPS>()) {
        A means[3] = {args.rms ? (A)0 : args.mean[i]};
        grad_means<T, WARPS, P>(args, i, means[0], &means[1], &means[2]);
        for (int64_t j = (int64_t)pl_row_thread<WARPS>() * P; j < args.n;
             j += WARPS * PL_LANES * P) {
            grad_row<T, WARPS, P>(args, i, j, means, [](int, A, A) {});
        }
    }
}

// The same, and the sums of g * xhat and of g over this block's rows, in order: of its warps' rows
// where a warp has a row, by way of shared memory.
template <typename T, int WARPS, int P>
__global__ void __launch_bounds__(PL_ROW_BLOCK, 2) grad_sums_kernel(grad_args<T> args) {
    typedef pl_acc<T> A;
    enum { PACKS = PL_THREAD_COLUMNS / P, STEP = WARPS * PL_LANES * P };
    A w[PACKS][P] = {}, b[PACKS][P] = {};
    int64_t first = (int64_t)pl_row_thread<WARPS>() * P;
    for (int64_t i = pl_first_row<WARPS>(); i < args.rows; i += pl_row_step<WARPS>()) {
        A means[3] = {args.rms ? (A)0 : args.mean[i]};
        grad_means<T, WARPS, P>(args, i, means[0], &means[1], &means[2]);
        PL_UNROLL
        for (int c = 0; c < PACKS; c++) {
            if (first + c * STEP >= args.n) continue;
            grad_row<T, WARPS, P>(args, i, first + c * STEP, means, [&](int k, A g, A xhat) {
                w[c][k] += g * xhat;
                b[c][k] += g;
            });
        }
    }
    A *parts = args.parts + (int64_t)blockIdx.x * 2 * args.n;
    PL_SHARED(A, sums, WARPS == 1 ? PL_ROW_WARPS * STEP : 1);
    PL_UNROLL
    for (int c = 0; c < PACKS; c++) {
        pl_give_sums<WARPS, P>(w[c], first + c * STEP, args.n, sums, parts);
        pl_give_sums<WARPS, P>(b[c], first + c * STEP, args.n, sums, parts + args.n);
    }
}

// Not held: fp64, whose values take twice the registers, and rows of a block without packs, whose
// 32 addresses do.
template <int WARPS, int P, typename T, typename X>
void start_forward(const forward_args<T, X> &args, pl_cuda_queue *q) {
    constexpr bool holds = sizeof(T) < sizeof(double) && (WARPS == 1 || P > 1);
    unsigned blocks = pl_blocks(args.rows, WARPS == 1 ? PL_ROW_WARPS : 1);
    bool held = holds && args.n <= WARPS * PL_LANES * PL_THREAD_COLUMNS;
    if constexpr (holds) {
        if (held) PL_LAUNCH((forward_kernel<T, X, WARPS, P>), blocks, PL_ROW_BLOCK, 0, q, args);
    }
    if constexpr (WARPS > 1 || !holds) {
        if (!held) {
            PL_LAUNCH((forward_long_kernel<T, X, WARPS, P>), blocks, PL_ROW_BLOCK, 0, q, args);
        }
    }
}

template <typename T, typename X>
pl_status forward(const pl_row_norm_args *a, int64_t rows, int64_t n, pl_cuda_queue *q) {
    typedef pl_acc<T> A;
    enum { P = 16 / sizeof(T) };
    const pl_tensor *residual = a->residual, *mean = a->rms ? NULL : a->mean;
    forward_args<T, X> args = {pl_data<X>(a->x),
                               pl_data<T>(residual),
                               residual != NULL ? pl_data<T>(a->sum) : NULL,
                               pl_data<T>(a->out),
                               vector_of<T>(a->w),
                               vector_of<T>(a->b),
                               pl_data<A>(mean),
                               pl_data<A>(a->rstd),
                               (A)a->eps,
                               rows,
                               n,
                               a->rms};
    bool packed = pl_rows_packed(n, sizeof(T), args.x, args.residual, args.sum) &&
                  pl_rows_packed(n, sizeof(T), args.out, args.w.data, args.b.data);
    if (n > PL_WARP_COLUMNS) {
        packed ? start_forward<PL_ROW_WARPS, P>(args, q) : start_forward<PL_ROW_WARPS, 1>(args, q);
    } else {
        packed ? start_forward<1, P>(args, q) : start_forward<1, 1>(args, q);
    }
    return pl_launched("norm");
}

template <typename T>
pl_norm_weights<T> weights_of(const pl_row_norm_grad_args *a, int64_t rows, int64_t n) {
    typedef pl_acc<T> A;
    pl_norm_weights<T> w = {};
    w.g = pl_data<T>(a->g);
    w.x = pl_data<T>(a->x);
    w.mean = pl_data<A>(a->mean);
    w.rstd = pl_data<A>(a->rstd);
    w.dw = {a->dw, a->accumulate_w};
    w.db = {a->db, a->accumulate_b};
    w.rows = rows;
    w.n = n;
    w.rms = a->rms;
    return w;
}

// fp64 sums would take twice the registers.
template <typename T>
struct fused_sums {
    template <typename Args>
    static pl_status launch(Args args, unsigned blocks, bool packed, pl_cuda_queue *q) {
        PL_LAUNCH_ROWS_ON(blocks, grad_sums_kernel, T, args.n, packed, q, args);
        return pl_launched("norm");
    }
};
template <>
struct fused_sums<double> {
    template <typename Args>
    static pl_status launch(Args, unsigned, bool, pl_cuda_queue *) {
        return pl_fail(PL_EBUG, "[norm] no such kernel for float64");
    }
};

template <typename T>
pl_status grad(const pl_row_norm_grad_args *a, int64_t rows, int64_t n, pl_cuda_queue *q) {
    typedef pl_acc<T> A;
    pl_norm_weights<T> weights = weights_of<T>(a, rows, n);
    bool wanted = a->dw != NULL || a->db != NULL, makes_dx = a->dx != NULL && rows > 0;
    bool fused =
        wanted && makes_dx && sizeof(T) < sizeof(double) && n <= PL_THREAD_COLUMNS * PL_ROW_BLOCK;
    if (fused) PL_TRY(pl_norm_parts(&weights, pl_sum_blocks(rows, n), q));
    if (makes_dx) {
        grad_args<T> args = {pl_data<T>(a->g),
                             pl_data<T>(a->x),
                             vector_of<T>(a->w),
                             pl_data<A>(a->mean),
                             pl_data<A>(a->rstd),
                             pl_data<T>(a->dx),
                             a->accumulate_x,
                             weights.parts,
                             rows,
                             n,
                             a->rms};
        bool packed =
            pl_rows_packed(n, sizeof(T), args.g, args.x, args.dx) && pl_is_aligned(args.w.data, 16);
        if (fused) {
            PL_TRY(fused_sums<T>::launch(args, (unsigned)weights.count, packed, q));
        } else {
            PL_LAUNCH_ROWS(grad_kernel, T, rows, n, packed, q, args);
            PL_TRY(pl_launched("norm"));
        }
    }
    if (!wanted) return PL_OK;
    if (!fused) PL_TRY(pl_norm_sum_rows(&weights, q));
    return pl_norm_sum_parts(&weights, q);
}

}  // namespace

pl_status pl_cuda_norm(const pl_row_norm_args *args, pl_cuda_queue *q) {
    if (args->x->numel == 0) return PL_OK;
    int64_t n = pl_last_dim(args->x), rows = args->x->numel / n;
    if (args->out->dtype == PL_F32 && args->x->dtype == PL_BF16) {
        return forward<float, bf16>(args, rows, n, q);
    }
    if (args->out->dtype == PL_F32 && args->x->dtype == PL_F16) {
        return forward<float, f16>(args, rows, n, q);
    }
#define CALL(T) return forward<T, T>(args, rows, n, q)
    PL_CUDA_FLOATS(args->x->dtype, CALL);
#undef CALL
}

pl_status pl_cuda_norm_grad(const pl_row_norm_grad_args *args, pl_cuda_queue *q) {
    int64_t n = pl_last_dim(args->x), rows = n == 0 ? 0 : args->x->numel / n;
    if (n == 0) return PL_OK;
#define CALL(T) return grad<T>(args, rows, n, q)
    PL_CUDA_FLOATS(args->x->dtype, CALL);
#undef CALL
}

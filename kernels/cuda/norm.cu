// SPDX-License-Identifier: Apache-2.0
// norm: layer norm and RMS norm over the last dimension, forward (with the sum of two inputs made
// on the way) and backward. The forward reads its row three times, twice from the caches; mean
// first, then the squared distances, so that no cancellation happens. The gradient of the weights
// is a sum over rows: fixed parts of rows by one kernel, the parts in a fixed order by a second.
// The first is the one that makes dx, whose threads keep the sums of their 32 columns in registers;
// norm_weights.cuh has the one for fp64, for rows of more than 8,192, and where dx is not wanted.
// Not measured on a GPU yet.
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
template <typename T>
PL_DEVICE pl_acc<T> at(const vector<T> &v, int64_t j, pl_acc<T> otherwise) {
    if (v.data == nullptr) return otherwise;
    return v.is_float ? (pl_acc<T>)((const float *)v.data)[j] : pl_get(((const T *)v.data)[j]);
}
template <typename T>
vector<T> vector_of(const pl_tensor *t) {
    return {t != NULL ? t->data : NULL, t != NULL && t->dtype == PL_F32};
}

template <typename T>
struct forward_args {
    const T *x, *residual;  // (rows, n); residual may be NULL
    T *sum, *out;           // sum: x + residual, written where there is a residual
    vector<T> w, b;
    pl_acc<T> *mean, *rstd;  // mean may be NULL for RMS
    pl_acc<T> eps;
    int64_t rows, n;
    bool rms;
};

template <typename T, int WARPS, int P>
__global__ void forward_kernel(forward_args<T> args) {
    typedef pl_acc<T> A;
    for (int64_t i = pl_first_row<WARPS>(); i < args.rows; i += pl_row_step<WARPS>()) {
        const T *x = args.x + i * args.n;
        if (args.residual != nullptr) {  // the sum as it is stored, rounded, is what is normed
            T *sum = args.sum + i * args.n;
            pl_each_pack<WARPS, P>(x, args.n, [&](int64_t j, A *v) {
                pl_pack<T, P> r = pl_load<P>(args.residual + i * args.n + j);
                PL_UNROLL
                for (int k = 0; k < P; k++) v[k] += pl_get(r.v[k]);
                pl_store_pack<P>(sum + j, v);
            });
            x = sum;  // a thread reads only what it wrote itself
        }
        A total = 0, squares = 0;
        if (!args.rms) {
            pl_each_pack<WARPS, P>(x, args.n, [&](int64_t, const A *v) {
                PL_UNROLL
                for (int k = 0; k < P; k++) total += v[k];
            });
            total = pl_block_sum<WARPS>(total) / (A)args.n;
        }
        pl_each_pack<WARPS, P>(x, args.n, [&](int64_t, const A *v) {
            PL_UNROLL
            for (int k = 0; k < P; k++) squares += (v[k] - total) * (v[k] - total);
        });
        A r = (A)1 / pl_sqrt(pl_block_sum<WARPS>(squares) / (A)args.n + args.eps);
        if (pl_row_thread<WARPS>() == 0) {
            if (args.mean != nullptr) args.mean[i] = total;
            args.rstd[i] = r;
        }
        pl_each_pack<WARPS, P>(x, args.n, [&](int64_t j, A *v) {
            PL_UNROLL
            for (int k = 0; k < P; k++) {
                v[k] = (v[k] - total) * r * at(args.w, j + k, (A)1) + at(args.b, j + k, (A)0);
            }
            pl_store_pack<P>(args.out + i * args.n + j, v);
        });
    }
}

template <typename T>
struct grad_args {
    const T *g, *x, *through;  // through: NULL, or what is added to dx (the residual's gradient)
    vector<T> w;
    const pl_acc<T> *mean, *rstd;
    T *dx;
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
        PL_UNROLL
        for (int k = 0; k < P; k++) {
            A gw = v[k] * at(args.w, j + k, (A)1);
            s += gw;
            d += gw * (pl_get(in.v[k]) - mu) * r;
        }
    });
    *sum = args.rms ? (A)0 : pl_block_sum<WARPS>(s) / (A)args.n;
    *dot = pl_block_sum<WARPS>(d) / (A)args.n;
}

// dx = rstd * (gw - mean(gw) - xhat * mean(gw * xhat)) with gw = g * w; RMS without mean(gw).
// each(j, g, xhat) sees a pack's columns on the way.
template <typename T, int WARPS, int P, typename Each>
PL_DEVICE void grad_row(const grad_args<T> &args, int64_t i, int64_t j, const pl_acc<T> means[3],
                        Each each) {
    typedef pl_acc<T> A;
    A mu = means[0], sum = means[1], dot = means[2], r = args.rstd[i], v[P];
    pl_pack<T, P> g = pl_load<P>(args.g + i * args.n + j), t;
    pl_pack<T, P> x = pl_load<P>(args.x + i * args.n + j);
    if (args.through != nullptr) t = pl_load<P>(args.through + i * args.n + j);
    PL_UNROLL
    for (int k = 0; k < P; k++) {
        A xhat = (pl_get(x.v[k]) - mu) * r;
        v[k] = r * (pl_get(g.v[k]) * at(args.w, j + k, (A)1) - sum - xhat * dot);
        if (args.through != nullptr) v[k] += pl_get(t.v[k]);
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

template <typename T>
pl_status forward(const pl_cuda_norm_args *a, int64_t rows, int64_t n, pl_cuda_queue *q) {
    typedef pl_acc<T> A;
    forward_args<T> args = {pl_data<T>(a->x),
                            pl_data<T>(a->residual),
                            pl_data<T>(a->sum),
                            pl_data<T>(a->out),
                            vector_of<T>(a->w),
                            vector_of<T>(a->b),
                            pl_data<A>(a->mean),
                            pl_data<A>(a->rstd),
                            (A)a->eps,
                            rows,
                            n,
                            a->rms};
    bool packed = pl_rows_packed(n, sizeof(T), args.x, args.residual, args.sum) &&
                  pl_is_aligned(args.out, 16);
    PL_LAUNCH_ROWS(forward_kernel, T, rows, n, packed, q, args);
    return pl_launched("norm");
}

template <typename T>
pl_norm_weights<T> weights_of(const pl_cuda_norm_grad_args *a, int64_t rows, int64_t n) {
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
pl_status grad(const pl_cuda_norm_grad_args *a, int64_t rows, int64_t n, pl_cuda_queue *q) {
    typedef pl_acc<T> A;
    pl_norm_weights<T> weights = weights_of<T>(a, rows, n);
    bool wanted = a->dw != NULL || a->db != NULL, makes_dx = a->dx != NULL && rows > 0;
    bool fused =
        wanted && makes_dx && sizeof(T) < sizeof(double) && n <= PL_THREAD_COLUMNS * PL_ROW_BLOCK;
    if (fused) PL_TRY(pl_norm_parts(&weights, pl_sum_blocks(rows, n), q));
    if (makes_dx) {
        grad_args<T> args = {pl_data<T>(a->g),
                             pl_data<T>(a->x),
                             pl_data<T>(a->through),
                             vector_of<T>(a->w),
                             pl_data<A>(a->mean),
                             pl_data<A>(a->rstd),
                             pl_data<T>(a->dx),
                             weights.parts,
                             rows,
                             n,
                             a->rms};
        bool packed = pl_rows_packed(n, sizeof(T), args.g, args.x, args.through) &&
                      pl_is_aligned(args.dx, 16);
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

pl_status pl_cuda_norm(const pl_cuda_norm_args *args, pl_cuda_queue *q) {
    if (args->x->numel == 0) return PL_OK;
    int64_t n = pl_last_dim(args->x), rows = args->x->numel / n;
#define CALL(T) return forward<T>(args, rows, n, q)
    PL_CUDA_FLOATS(args->x->dtype, CALL);
#undef CALL
}

pl_status pl_cuda_norm_grad(const pl_cuda_norm_grad_args *args, pl_cuda_queue *q) {
    int64_t n = pl_last_dim(args->x), rows = n == 0 ? 0 : args->x->numel / n;
    if (n == 0) return PL_OK;
#define CALL(T) return grad<T>(args, rows, n, q)
    PL_CUDA_FLOATS(args->x->dtype, CALL);
#undef CALL
}

pl_status pl_cuda_layer_norm(const pl_tensor *x, const pl_tensor *w, const pl_tensor *b, double eps,
                             pl_tensor *out, pl_tensor *mean, pl_tensor *rstd, pl_cuda_queue *q) {
    pl_cuda_norm_args args = {};
    args.x = x;
    args.w = w;
    args.b = b;
    args.eps = eps;
    args.out = out;
    args.mean = mean;
    args.rstd = rstd;
    return pl_cuda_norm(&args, q);
}

pl_status pl_cuda_layer_norm_grad(const pl_tensor *g, const pl_tensor *x, const pl_tensor *w,
                                  const pl_tensor *mean, const pl_tensor *rstd, pl_tensor *dx,
                                  pl_tensor *dw, bool accumulate_w, pl_tensor *db,
                                  bool accumulate_b, pl_cuda_queue *q) {
    pl_cuda_norm_grad_args args = {};
    args.g = g;
    args.x = x;
    args.w = w;
    args.mean = mean;
    args.rstd = rstd;
    args.dx = dx;
    args.dw = dw;
    args.accumulate_w = accumulate_w;
    args.db = db;
    args.accumulate_b = accumulate_b;
    return pl_cuda_norm_grad(&args, q);
}

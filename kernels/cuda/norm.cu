// SPDX-License-Identifier: Apache-2.0
// norm: layer norm and RMS norm over the last dimension, forward (with the sum of two inputs made
// on the way) and backward. The forward reads its row three times, twice from the caches; mean
// first, then the squared distances, so that no cancellation happens. The gradient of the weights
// is a sum over rows: fixed parts of rows by one kernel, the parts in order by a second.
// Not measured on a GPU yet; the weights' gradient reads g and x a second time.
#include "cuda/math.cuh"
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
    int64_t rows, n;
    bool rms;
};

// dx = rstd * (gw - mean(gw) - xhat * mean(gw * xhat)) with gw = g * w; RMS without mean(gw).
template <typename T, int WARPS, int P>
__global__ void grad_kernel(grad_args<T> args) {
    typedef pl_acc<T> A;
    for (int64_t i = pl_first_row<WARPS>(); i < args.rows; i += pl_row_step<WARPS>()) {
        const T *g = args.g + i * args.n, *x = args.x + i * args.n;
        A mu = args.rms ? (A)0 : args.mean[i], r = args.rstd[i], sum = 0, dot = 0;
        pl_each_pack<WARPS, P>(g, args.n, [&](int64_t j, const A *v) {
            pl_pack<T, P> in = pl_load<P>(x + j);
            PL_UNROLL
            for (int k = 0; k < P; k++) {
                A gw = v[k] * at(args.w, j + k, (A)1);
                sum += gw;
                dot += gw * (pl_get(in.v[k]) - mu) * r;
            }
        });
        sum = args.rms ? (A)0 : pl_block_sum<WARPS>(sum) / (A)args.n;
        dot = pl_block_sum<WARPS>(dot) / (A)args.n;
        pl_each_pack<WARPS, P>(g, args.n, [&](int64_t j, A *v) {
            pl_pack<T, P> in = pl_load<P>(x + j), t;
            if (args.through != nullptr) t = pl_load<P>(args.through + i * args.n + j);
            PL_UNROLL
            for (int k = 0; k < P; k++) {
                A xhat = (pl_get(in.v[k]) - mu) * r;
                v[k] = r * (v[k] * at(args.w, j + k, (A)1) - sum - xhat * dot);
                if (args.through != nullptr) v[k] += pl_get(t.v[k]);
            }
            pl_store_pack<P>(args.dx + i * args.n + j, v);
        });
    }
}

// Weights: a block takes 32 columns and one part of the rows, eight rows at a time.
enum { COLUMNS = 32, LINES = 8, PART_ROWS = 64, MOST_PARTS = 128 };

template <typename T>
struct weight_args {
    const T *g, *x;
    const pl_acc<T> *mean, *rstd;
    pl_acc<T> *parts;  // (parts, 2, n): sums of g * xhat, of g
    int64_t rows, n, part_rows;
    bool rms;
};

template <typename T>
__global__ void weight_parts(weight_args<T> args) {
    typedef pl_acc<T> A;
    int column = (int)(threadIdx.x % COLUMNS), line = (int)(threadIdx.x / COLUMNS);
    int64_t j = (int64_t)blockIdx.x * COLUMNS + column;
    int64_t begin = blockIdx.y * args.part_rows, end = begin + args.part_rows;
    A w = 0, b = 0;
    for (int64_t i = begin + line; i < end && i < args.rows && j < args.n; i += LINES) {
        A g = pl_get(args.g[i * args.n + j]), mu = args.rms ? (A)0 : args.mean[i];
        w += g * (pl_get(args.x[i * args.n + j]) - mu) * args.rstd[i];
        b += g;
    }
    PL_SHARED(A, sums, 2 * LINES * COLUMNS);
    sums[line * COLUMNS + column] = w;
    sums[(LINES + line) * COLUMNS + column] = b;
    __syncthreads();
    if (line < 2 && j < args.n) {
        A total = 0;
        for (int l = 0; l < LINES; l++) total += sums[(line * LINES + l) * COLUMNS + column];
        args.parts[(blockIdx.y * 2 + line) * args.n + j] = total;
    }
}

template <typename A>
PL_DEVICE void add_out(void *out, bool is_float, bool accumulate, int64_t j, A sum, const float *) {
    float *p = (float *)out + j;
    (void)is_float;
    pl_put(p, sum + (accumulate ? (A)*p : (A)0));
}
template <typename A, typename T>
PL_DEVICE void add_out(void *out, bool is_float, bool accumulate, int64_t j, A sum, const T *) {
    if (is_float) {
        add_out(out, true, accumulate, j, sum, (const float *)nullptr);
        return;
    }
    T *p = (T *)out + j;
    pl_put(p, sum + (accumulate ? pl_get(*p) : (A)0));
}

struct weight_out {
    void *data;
    bool is_float, accumulate;
};

template <typename T>
__global__ void weight_sums(const pl_acc<T> *parts, int64_t count, int64_t n, weight_out w,
                            weight_out b) {
    PL_GRID_LOOP(j, n) {
        pl_acc<T> sum[2] = {0, 0};
        for (int64_t p = 0; p < count; p++) {
            sum[0] += parts[(p * 2) * n + j];
            sum[1] += parts[(p * 2 + 1) * n + j];
        }
        if (w.data) add_out(w.data, w.is_float, w.accumulate, j, sum[0], (const T *)nullptr);
        if (b.data) add_out(b.data, b.is_float, b.accumulate, j, sum[1], (const T *)nullptr);
    }
}

template <typename T>
pl_status forward(const pl_cuda_norm_args *a, int64_t rows, int64_t n, pl_cuda_queue *q) {
    forward_args<T> args = {(const T *)a->x->data,
                            (const T *)(a->residual != NULL ? a->residual->data : NULL),
                            (T *)(a->sum != NULL ? a->sum->data : NULL),
                            (T *)a->out->data,
                            vector_of<T>(a->w),
                            vector_of<T>(a->b),
                            (pl_acc<T> *)(a->mean != NULL ? a->mean->data : NULL),
                            (pl_acc<T> *)a->rstd->data,
                            (pl_acc<T>)a->eps,
                            rows,
                            n,
                            a->rms};
    bool packed = pl_rows_packed(n, sizeof(T), args.x, args.residual, args.sum) &&
                  pl_is_aligned(args.out, 16);
    PL_LAUNCH_ROWS(forward_kernel, T, rows, n, packed, q, args);
    return pl_launched("norm");
}

template <typename T>
pl_status grad_weights(const pl_cuda_norm_grad_args *a, int64_t rows, int64_t n, pl_cuda_queue *q) {
    typedef pl_acc<T> A;
    int64_t count = (rows + PART_ROWS - 1) / PART_ROWS;
    count = count < 1 ? 1 : count > MOST_PARTS ? (int64_t)MOST_PARTS : count;
    void *scratch;
    PL_TRY(q->scratch(q->owner, (size_t)(count * 2 * n) * sizeof(A), &scratch));
    weight_args<T> args = {(const T *)a->g->data,
                           (const T *)a->x->data,
                           (const A *)(a->mean != NULL ? a->mean->data : NULL),
                           (const A *)a->rstd->data,
                           (A *)scratch,
                           rows,
                           n,
                           (rows + count - 1) / count,
                           a->rms};
    dim3 grid((unsigned)((n + COLUMNS - 1) / COLUMNS), (unsigned)count);
    PL_LAUNCH(weight_parts<T>, grid, COLUMNS * LINES, 0, q, args);
    PL_TRY(pl_launched("norm"));
    weight_out w = {a->dw != NULL ? a->dw->data : NULL, a->dw != NULL && a->dw->dtype == PL_F32,
                    a->accumulate_w};
    weight_out b = {a->db != NULL ? a->db->data : NULL, a->db != NULL && a->db->dtype == PL_F32,
                    a->accumulate_b};
    PL_LAUNCH(weight_sums<T>, pl_blocks(n, PL_BLOCK), PL_BLOCK, 0, q, args.parts, count, n, w, b);
    return pl_launched("norm");
}

template <typename T>
pl_status grad(const pl_cuda_norm_grad_args *a, int64_t rows, int64_t n, pl_cuda_queue *q) {
    typedef pl_acc<T> A;
    if (a->dx != NULL && rows > 0) {
        grad_args<T> args = {(const T *)a->g->data,
                             (const T *)a->x->data,
                             (const T *)(a->through != NULL ? a->through->data : NULL),
                             vector_of<T>(a->w),
                             (const A *)(a->mean != NULL ? a->mean->data : NULL),
                             (const A *)a->rstd->data,
                             (T *)a->dx->data,
                             rows,
                             n,
                             a->rms};
        bool packed = pl_rows_packed(n, sizeof(T), args.g, args.x, args.through) &&
                      pl_is_aligned(args.dx, 16);
        PL_LAUNCH_ROWS(grad_kernel, T, rows, n, packed, q, args);
        PL_TRY(pl_launched("norm"));
    }
    if (a->dw == NULL && a->db == NULL) return PL_OK;
    return grad_weights<T>(a, rows, n, q);
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

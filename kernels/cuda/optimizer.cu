// SPDX-License-Identifier: Apache-2.0
// optimizer: Adam, AdamW and SGD over runs of elements, unscaling, and what keeps a training step
// on the device: the gradients' norm and the factor that clips them stay there as scalars, and the
// mixed Adam reads them, updates an fp32 master copy and writes the low-precision weights in the
// same pass (28 bytes per parameter with bf16 gradients). Not measured on a GPU yet.
#include "cuda/math.cuh"

namespace {

template <typename A>
struct adam_numbers {
    A decay, weight_decay, beta1, beta2, rest1, rest2, step, root_bias2, eps, scale;
    bool decoupled, maximize;
};

template <typename A>
adam_numbers<A> numbers_of(const pl_adam_args *a) {
    return {(A)(1.0 - a->lr * a->weight_decay),
            (A)a->weight_decay,
            (A)a->beta1,
            (A)a->beta2,
            (A)(1.0 - a->beta1),
            (A)(1.0 - a->beta2),
            (A)(a->lr / a->bias1),
            (A)sqrt(a->bias2),
            (A)a->eps,
            (A)a->grad_scale,
            a->decoupled,
            a->maximize};
}

// One element; g is already scaled.
template <typename A>
PL_DEVICE void adam_one(const adam_numbers<A> &c, A g, A *p, A *m, A *v) {
    if (c.maximize) g = -g;
    if (c.decoupled) {
        *p *= c.decay;
    } else {
        g += c.weight_decay * *p;
    }
    *m = c.beta1 * *m + c.rest1 * g;
    *v = c.beta2 * *v + c.rest2 * g * g;
    *p -= c.step * *m / (pl_sqrt(*v) / c.root_bias2 + c.eps);
}

template <typename T, int P>
PL_DEVICE void get_pack(const T *from, pl_acc<T> *v) {
    pl_pack<T, P> in = pl_load<P>(from);
    PL_UNROLL
    for (int k = 0; k < P; k++) v[k] = pl_get(in.v[k]);
}
template <typename T, int P, typename A>
PL_DEVICE void put_pack(T *to, const A *v) {
    pl_pack<T, P> out;
    PL_UNROLL
    for (int k = 0; k < P; k++) pl_put(&out.v[k], v[k]);
    pl_store(to, out);
}

template <typename T, int P>
__global__ void adam_kernel(adam_numbers<pl_acc<T>> c, int64_t n, T *p, const T *g, T *m, T *v,
                            int *nonfinite) {
    PL_GRID_LOOP(i, n / P) {
        pl_acc<T> pv[P], gv[P], mv[P], vv[P];
        get_pack<T, P>(p + i * P, pv);
        get_pack<T, P>(g + i * P, gv);
        get_pack<T, P>(m + i * P, mv);
        get_pack<T, P>(v + i * P, vv);
        PL_UNROLL
        for (int k = 0; k < P; k++) {
            if (nonfinite != nullptr && !pl_finite(gv[k])) *nonfinite = 1;  // all write the same
            adam_one(c, gv[k] * c.scale, &pv[k], &mv[k], &vv[k]);
        }
        put_pack<T, P>(p + i * P, pv);
        put_pack<T, P>(m + i * P, mv);
        put_pack<T, P>(v + i * P, vv);
    }
}

template <typename T>
bool packs(int64_t n, const void *a, const void *b, const void *c, const void *d) {
    return n % (16 / (int64_t)sizeof(T)) == 0 && pl_is_aligned(a, 16) && pl_is_aligned(b, 16) &&
           pl_is_aligned(c, 16) && pl_is_aligned(d, 16);
}

template <typename T>
void adam_launch(const pl_adam_args *args, int64_t n, T *p, const T *g, T *m, T *v,
                 pl_cuda_queue *q) {
    adam_numbers<pl_acc<T>> c = numbers_of<pl_acc<T>>(args);
    enum { P = 16 / sizeof(T) };
    if (packs<T>(n, p, g, m, v)) {
        PL_LAUNCH((adam_kernel<T, P>), pl_blocks(n / P, PL_BLOCK), PL_BLOCK, 0, q, c, n, p, g, m, v,
                  args->nonfinite);
    } else {
        PL_LAUNCH((adam_kernel<T, 1>), pl_blocks(n, PL_BLOCK), PL_BLOCK, 0, q, c, n, p, g, m, v,
                  args->nonfinite);
    }
}

// ---- The mixed step -----------------------------------------------------------------------------

template <typename G, typename W>
__global__ void mixed_kernel(adam_numbers<float> c, pl_cuda_mixed_adam a) {
    enum { P = 4 };
    if (a.skip != nullptr && *a.skip != 0) return;  // every thread alike
    float scale = c.scale * (a.scale != nullptr ? *a.scale : 1.0f);
    int64_t packs = a.n / P, threads = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < packs; i += threads) {
        float p[P], g[P], m[P], v[P];
        get_pack<float, P>(a.master + i * P, p);
        get_pack<G, P>((const G *)a.g + i * P, g);
        get_pack<float, P>(a.m + i * P, m);
        get_pack<float, P>(a.v + i * P, v);
        PL_UNROLL
        for (int k = 0; k < P; k++) adam_one(c, g[k] * scale, &p[k], &m[k], &v[k]);
        put_pack<float, P>(a.master + i * P, p);
        put_pack<float, P>(a.m + i * P, m);
        put_pack<float, P>(a.v + i * P, v);
        if (a.weights != nullptr) put_pack<W, P>((W *)a.weights + i * P, p);
    }
    int64_t rest = packs * P + (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (rest < a.n) {
        float g = pl_get(((const G *)a.g)[rest]) * scale;
        adam_one(c, g, &a.master[rest], &a.m[rest], &a.v[rest]);
        if (a.weights != nullptr) pl_put((W *)a.weights + rest, a.master[rest]);
    }
}

// ---- SGD, unscale -------------------------------------------------------------------------------

template <typename A>
struct sgd_numbers {
    A lr, momentum, rest, weight_decay, scale;
    bool has_momentum, nesterov, maximize, first;
};

template <typename T>
__global__ void sgd_kernel(sgd_numbers<pl_acc<T>> c, int64_t n, T *p, const T *g, T *momentum,
                           int *nonfinite) {
    PL_GRID_LOOP(i, n) {
        pl_acc<T> param = pl_get(p[i]), grad = pl_get(g[i]);
        if (nonfinite != nullptr && !pl_finite(grad)) *nonfinite = 1;
        grad *= c.scale;
        if (c.maximize) grad = -grad;
        grad += c.weight_decay * param;
        if (c.has_momentum) {
            pl_acc<T> buf = c.first ? grad : c.momentum * pl_get(momentum[i]) + c.rest * grad;
            pl_put(&momentum[i], buf);
            grad = c.nesterov ? grad + c.momentum * buf : buf;
        }
        pl_put(&p[i], param - c.lr * grad);
    }
}

template <typename T, int P>
__global__ void unscale_kernel(int64_t n, T *g, pl_acc<T> factor, bool write, int *nonfinite) {
    PL_GRID_LOOP(i, n / P) {
        pl_acc<T> v[P];
        get_pack<T, P>(g + i * P, v);
        PL_UNROLL
        for (int k = 0; k < P; k++) {
            if (nonfinite != nullptr && !pl_finite(v[k])) *nonfinite = 1;
            v[k] *= factor;
        }
        if (write) put_pack<T, P>(g + i * P, v);
    }
}

// total is the norm's square, in parts that are added in order.
__global__ void clip_kernel(const double *squares, int count, double max_norm, double unscale,
                            float *scale, float *norm, int *nonfinite) {
    double total = 0;
    for (int i = 0; i < count; i++) total += squares[i];
    double value = sqrt(total) * unscale;
    bool finite = value < (double)INFINITY;
    double clip = max_norm > 0 && finite ? max_norm / (value + 1e-6) : 1.0;
    *scale = (float)(unscale * (clip < 1.0 ? clip : 1.0));
    *norm = (float)value;
    *nonfinite = !finite;
}

}  // namespace

pl_status pl_cuda_adam(const pl_adam_args *args, pl_dtype dt, int64_t n, void *p, const void *g,
                       void *m, void *v, pl_cuda_queue *q) {
    if (n == 0) return PL_OK;
#define CALL(T) adam_launch<T>(args, n, (T *)p, (const T *)g, (T *)m, (T *)v, q)
    PL_CUDA_FLOATS(dt, CALL);
#undef CALL
    return pl_launched("adam");
}

pl_status pl_cuda_adam_mixed(const pl_adam_args *args, const pl_cuda_mixed_adam *run,
                             pl_cuda_queue *q) {
    if (run->n == 0) return PL_OK;
    if (!pl_is_aligned(run->master, 16) || !pl_is_aligned(run->m, 16) ||
        !pl_is_aligned(run->v, 16) || !pl_is_aligned(run->g, 16) ||
        !pl_is_aligned(run->weights, 16)) {
        return pl_fail(PL_EINVAL, "[adam] a run is not aligned: expected multiples of 16 bytes");
    }
    adam_numbers<float> c = numbers_of<float>(args);
    unsigned blocks = pl_blocks(run->n / 4 + 1, PL_BLOCK);
    if (run->g_dtype == PL_BF16 && run->w_dtype == PL_BF16) {
        PL_LAUNCH((mixed_kernel<bf16, bf16>), blocks, PL_BLOCK, 0, q, c, *run);
    } else if (run->g_dtype == PL_F32 && run->w_dtype == PL_BF16) {
        PL_LAUNCH((mixed_kernel<float, bf16>), blocks, PL_BLOCK, 0, q, c, *run);
    } else if (run->g_dtype == PL_F16 && run->w_dtype == PL_F16) {
        PL_LAUNCH((mixed_kernel<f16, f16>), blocks, PL_BLOCK, 0, q, c, *run);
    } else if (run->g_dtype == PL_F32 && run->w_dtype == PL_F16) {
        PL_LAUNCH((mixed_kernel<float, f16>), blocks, PL_BLOCK, 0, q, c, *run);
    } else {
        return pl_fail(PL_ETYPE,
                       "[adam] gradients and weights: got %s and %s, expected weights of bf16 or "
                       "f16 and gradients of the same dtype or f32",
                       pl_dtype_name(run->g_dtype), pl_dtype_name(run->w_dtype));
    }
    return pl_launched("adam");
}

pl_status pl_cuda_sgd(const pl_sgd_args *args, pl_dtype dt, int64_t n, void *p, const void *g,
                      void *momentum, pl_cuda_queue *q) {
    if (n == 0) return PL_OK;
    unsigned blocks = pl_blocks(n, PL_BLOCK);
#define CALL(T)                                                                      \
    do {                                                                             \
        typedef pl_acc<T> A;                                                         \
        sgd_numbers<A> c = {                                                         \
            (A)args->lr,           (A)args->momentum,   (A)(1.0 - args->dampening),  \
            (A)args->weight_decay, (A)args->grad_scale, args->momentum != 0.0,       \
            args->nesterov,        args->maximize,      args->first};                \
        PL_LAUNCH(sgd_kernel<T>, blocks, PL_BLOCK, 0, q, c, n, (T *)p, (const T *)g, \
                  (T *)momentum, args->nonfinite);                                   \
    } while (0)
    PL_CUDA_FLOATS(dt, CALL);
#undef CALL
    return pl_launched("sgd");
}

pl_status pl_cuda_unscale(pl_dtype dt, int64_t n, void *g, double factor, int *nonfinite,
                          pl_cuda_queue *q) {
    if (n == 0) return PL_OK;
    bool write = factor != 1.0;
#define CALL(T)                                                                                  \
    do {                                                                                         \
        enum { P = 16 / sizeof(T) };                                                             \
        if (packs<T>(n, g, NULL, NULL, NULL)) {                                                  \
            PL_LAUNCH((unscale_kernel<T, P>), pl_blocks(n / P, PL_BLOCK), PL_BLOCK, 0, q, n,     \
                      (T *)g, (pl_acc<T>)factor, write, nonfinite);                              \
        } else {                                                                                 \
            PL_LAUNCH((unscale_kernel<T, 1>), pl_blocks(n, PL_BLOCK), PL_BLOCK, 0, q, n, (T *)g, \
                      (pl_acc<T>)factor, write, nonfinite);                                      \
        }                                                                                        \
    } while (0)
    PL_CUDA_FLOATS(dt, CALL);
#undef CALL
    return pl_launched("unscale");
}

pl_status pl_cuda_clip_scale(const double *squares, int count, double max_norm, double unscale,
                             const pl_cuda_clip *out, pl_cuda_queue *q) {
    PL_LAUNCH(clip_kernel, 1, 1, 0, q, squares, count, max_norm, unscale, out->scale, out->norm,
              out->nonfinite);
    return pl_launched("clip_grad_norm");
}

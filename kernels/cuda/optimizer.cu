// SPDX-License-Identifier: Apache-2.0
// optimizer: Adam, AdamW, SGD and unscaling over lists of runs, one launch for many (lists.cuh).
// What the host need not know stays on the device: the factor that clips gradients, and which of
// them were not finite. Not measured on a GPU yet.
#include "cuda/lists.cuh"
#include "cuda/math.cuh"

namespace {

// Elements of a block's turn: four packs of fp32 for each of its threads, twice.
enum { CHUNK = 8192 };

// What may be known on the device only; see pl_adam_args.
struct from_device {
    double factor;
    const double *scale;
    int *nonfinite;
    bool f16;  // the low copies, else bf16
};

template <typename A>
PL_DEVICE A factor_of(const from_device &d) {
    return (A)(d.scale != nullptr ? d.factor * *d.scale : d.factor);
}

// For all threads that find one the same.
template <typename A>
PL_DEVICE void tell(const from_device &d, int index, A g) {
    if (d.nonfinite != nullptr && !pl_finite(g)) d.nonfinite[index] = 1;
}

template <typename A>
struct adam_numbers {
    A decay, weight_decay, beta1, beta2, rest1, rest2, step, root_bias2, eps;
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

// The low copy of fp32 parameters, rounded as a cast would.
template <typename T, int P, typename A>
PL_DEVICE void put_low(const from_device &d, void *low, int64_t i, const A *v) {
    if constexpr (sizeof(T) == sizeof(float)) {
        if (low == nullptr) return;
        if (d.f16) {
            put_pack<f16, P>((f16 *)low + i, v);
        } else {
            put_pack<bf16, P>((bf16 *)low + i, v);
        }
    }
}

// Calls `some` with a width and an offset until all of a chunk is done, by packs where that goes.
template <int P, typename Some>
PL_DEVICE void over_chunk(const pl_chunk &c, bool packed, Some some) {
    int64_t packs = packed ? (c.end - c.begin) / P : 0;
    for (int64_t i = threadIdx.x; i < packs; i += blockDim.x) {
        some.template at<P>(c.begin + i * P);
    }
    for (int64_t i = c.begin + packs * P + threadIdx.x; i < c.end; i += blockDim.x) {
        some.template at<1>(i);
    }
}

template <typename T>
struct adam_run {
    typedef pl_acc<T> A;
    const adam_numbers<A> &c;
    const from_device &d;
    A scale;
    int index;
    T *p;
    const T *g;
    T *m, *v;
    void *low;
    template <int P>
    PL_DEVICE void at(int64_t i) const {
        A pv[P], gv[P], mv[P], vv[P];
        get_pack<T, P>(p + i, pv);
        get_pack<T, P>(g + i, gv);
        get_pack<T, P>(m + i, mv);
        get_pack<T, P>(v + i, vv);
        PL_UNROLL
        for (int k = 0; k < P; k++) {
            tell(d, index, gv[k]);
            adam_one(c, gv[k] * scale, &pv[k], &mv[k], &vv[k]);
        }
        put_pack<T, P>(p + i, pv);
        put_low<T, P>(d, low, i, pv);
        put_pack<T, P>(m + i, mv);
        put_pack<T, P>(v + i, vv);
    }
};

template <typename T>
__global__ void adam_kernel(const __grid_constant__ pl_list<5> list, adam_numbers<pl_acc<T>> c,
                            from_device d) {
    pl_acc<T> scale = factor_of<pl_acc<T>>(d);
    for (int k = (int)blockIdx.x; k < list.chunks; k += (int)gridDim.x) {
        pl_chunk chunk = pl_chunk_of(list, k, CHUNK);
        void *const *at = list.at[chunk.run];
        adam_run<T> run = {c,          d,          scale,      list.index[chunk.run],
                           (T *)at[0], (T *)at[1], (T *)at[2], (T *)at[3],
                           at[4]};
        over_chunk<16 / sizeof(T)>(chunk, pl_list_packs(list, chunk.run), run);
    }
}

// ---- SGD, unscale -------------------------------------------------------------------------------

template <typename A>
struct sgd_numbers {
    A lr, momentum, rest, weight_decay;
    bool has_momentum, nesterov, maximize, first;
};

template <typename A>
sgd_numbers<A> numbers_of(const pl_sgd_args *a) {
    return {(A)a->lr,
            (A)a->momentum,
            (A)(1.0 - a->dampening),
            (A)a->weight_decay,
            a->momentum != 0.0,
            a->nesterov,
            a->maximize,
            a->first};
}

template <typename A>
PL_DEVICE void sgd_one(const sgd_numbers<A> &c, A grad, A *param, A *momentum) {
    if (c.maximize) grad = -grad;
    grad += c.weight_decay * *param;
    if (c.has_momentum) {
        *momentum = c.first ? grad : c.momentum * *momentum + c.rest * grad;
        grad = c.nesterov ? grad + c.momentum * *momentum : *momentum;
    }
    *param -= c.lr * grad;
}

template <typename T>
struct sgd_run {
    typedef pl_acc<T> A;
    const sgd_numbers<A> &c;
    const from_device &d;
    A scale;
    int index;
    T *p;
    const T *g;
    T *momentum;
    void *low;
    template <int P>
    PL_DEVICE void at(int64_t i) const {
        A pv[P], gv[P], mv[P] = {};
        get_pack<T, P>(p + i, pv);
        get_pack<T, P>(g + i, gv);
        if (c.has_momentum && !c.first) get_pack<T, P>(momentum + i, mv);
        PL_UNROLL
        for (int k = 0; k < P; k++) {
            tell(d, index, gv[k]);
            sgd_one(c, gv[k] * scale, &pv[k], &mv[k]);
        }
        put_pack<T, P>(p + i, pv);
        put_low<T, P>(d, low, i, pv);
        if (c.has_momentum) put_pack<T, P>(momentum + i, mv);
    }
};

template <typename T>
__global__ void sgd_kernel(const __grid_constant__ pl_list<5> list, sgd_numbers<pl_acc<T>> c,
                           from_device d) {
    pl_acc<T> scale = factor_of<pl_acc<T>>(d);
    for (int k = (int)blockIdx.x; k < list.chunks; k += (int)gridDim.x) {
        pl_chunk chunk = pl_chunk_of(list, k, CHUNK);
        void *const *at = list.at[chunk.run];
        sgd_run<T> run = {c,          d,          scale,      list.index[chunk.run],
                          (T *)at[0], (T *)at[1], (T *)at[2], at[4]};
        over_chunk<16 / sizeof(T)>(chunk, pl_list_packs(list, chunk.run), run);
    }
}

template <typename T>
struct unscale_run {
    typedef pl_acc<T> A;
    const from_device &d;
    A scale;
    bool write;
    int index;
    T *g;
    template <int P>
    PL_DEVICE void at(int64_t i) const {
        A v[P];
        get_pack<T, P>(g + i, v);
        PL_UNROLL
        for (int k = 0; k < P; k++) {
            tell(d, index, v[k]);
            v[k] *= scale;
        }
        if (write) put_pack<T, P>(g + i, v);
    }
};

template <typename T>
__global__ void unscale_kernel(const __grid_constant__ pl_list<1> list, from_device d) {
    double factor = factor_of<double>(d);
    bool write = factor != 1.0;
    if (!write && d.nonfinite == nullptr) return;
    for (int k = (int)blockIdx.x; k < list.chunks; k += (int)gridDim.x) {
        pl_chunk chunk = pl_chunk_of(list, k, CHUNK);
        unscale_run<T> run = {d, (pl_acc<T>)factor, write, list.index[chunk.run],
                              (T *)list.at[chunk.run][0]};
        over_chunk<16 / sizeof(T)>(chunk, pl_list_packs(list, chunk.run), run);
    }
}

}  // namespace

pl_status pl_cuda_list_adam(const pl_adam_args *args, int count, const pl_run *runs,
                            pl_cuda_queue *q) {
    from_device d = {args->grad_scale, args->scale, args->nonfinite, args->low == PL_F16};
#define TABLE(T, list)                                                           \
    PL_LAUNCH(adam_kernel<T>, pl_blocks((list).chunks, 1), PL_BLOCK, 0, q, list, \
              numbers_of<pl_acc<T>>(args), d)
    PL_LIST_LAUNCHES(5, count, runs, CHUNK, TABLE);
#undef TABLE
    return pl_launched("adam");
}

pl_status pl_cuda_list_sgd(const pl_sgd_args *args, int count, const pl_run *runs,
                           pl_cuda_queue *q) {
    from_device d = {args->grad_scale, args->scale, args->nonfinite, args->low == PL_F16};
#define TABLE(T, list)                                                          \
    PL_LAUNCH(sgd_kernel<T>, pl_blocks((list).chunks, 1), PL_BLOCK, 0, q, list, \
              numbers_of<pl_acc<T>>(args), d)
    PL_LIST_LAUNCHES(5, count, runs, CHUNK, TABLE);
#undef TABLE
    return pl_launched("sgd");
}

pl_status pl_cuda_list_unscale(const pl_unscale_args *args, int count, const pl_run *runs,
                               pl_cuda_queue *q) {
    from_device d = {args->factor, args->scale, args->nonfinite, false};
    // Nothing to write and nothing to tell.
    if (args->factor == 1.0 && args->scale == NULL && args->nonfinite == NULL) return PL_OK;
#define TABLE(T, list) \
    PL_LAUNCH(unscale_kernel<T>, pl_blocks((list).chunks, 1), PL_BLOCK, 0, q, list, d)
    PL_LIST_LAUNCHES(1, count, runs, CHUNK, TABLE);
#undef TABLE
    return pl_launched("unscale");
}

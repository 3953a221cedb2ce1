// SPDX-License-Identifier: Apache-2.0
// elementwise: unary and binary operators and where. One kernel per dtype, the operator chosen by a
// switch around a whole pack of elements: the branch is the same in every thread and is paid once
// per 16 bytes. Dense operands move in 16-byte packs, others one element at a time by a walk.
// Not measured on a GPU yet.
#include "cuda/math.cuh"
#include "cuda/walk.cuh"

namespace {

// A dense operand, or one value for all elements (every stride 0)?
bool is_scalar(const pl_walk *w, int i) { return w->ndim == 1 && w->strides[i][0] == 0; }

template <pl_unary OP, typename A>
PL_DEVICE A unary_one(A x) {
    return pl_unary_float<OP>(x);
}
template <pl_unary OP>
PL_DEVICE int64_t unary_one(int64_t x) {
    return pl_unary_int<OP>(x);
}

template <int N, typename A>
PL_DEVICE void unary_some(int op, A *v) {
    switch (op) {
#define X(name, text)                                                        \
    case PL_UNARY_##name:                                                    \
        for (int k = 0; k < N; k++) v[k] = unary_one<PL_UNARY_##name>(v[k]); \
        break;
        PL_UNARY_MAP(X)
#undef X
    }
}

template <int N, typename O, typename A>
PL_DEVICE void store_some(O *p, const A *v) {
    pl_pack<O, N> out;
    for (int k = 0; k < N; k++) pl_put(&out.v[k], v[k]);
    pl_store_global(p, out);
}

template <typename T>
struct unary_args {
    int op, truth;  // truth: out is bool
    const T *x;
    void *out;
    int64_t n;
    pl_walk walk;  // out, x
};

template <int N, typename T>
PL_DEVICE void unary_at(const unary_args<T> &args, int64_t from, int64_t to) {
    pl_acc<T> v[N];
    pl_pack<T, N> in = pl_load<N>(args.x + from);
    for (int k = 0; k < N; k++) v[k] = pl_get(in.v[k]);
    unary_some<N>(args.op, v);
    if (args.truth) {
        store_some<N>((bool *)args.out + to, v);
    } else {
        store_some<N>((T *)args.out + to, v);
    }
}

template <typename T>
__global__ void unary_packs(unary_args<T> args) {
    enum { N = 16 / sizeof(T) };
    int64_t packs = args.n / N, rest = packs * N + blockIdx.x * blockDim.x + threadIdx.x;
    PL_GRID_LOOP(i, packs) { unary_at<N>(args, i * N, i * N); }
    if (rest < args.n) unary_at<1>(args, rest, rest);
}

template <typename T>
__global__ void unary_walk(unary_args<T> args) {
    PL_GRID_LOOP(i, args.n) {
        int64_t at[2];
        pl_walk_offsets<2>(args.walk, i, at);
        unary_at<1>(args, at[1], at[0]);
    }
}

template <typename T>
void unary_launch(pl_unary op, const pl_tensor *x, pl_tensor *out, pl_cuda_queue *q) {
    const pl_tensor *both[] = {out, x};
    unary_args<T> args = {(int)op,  op >= PL_UNARY_LOGICAL_NOT, (const T *)x->data, out->data,
                          x->numel, pl_walk_over(2, both)};
    enum { N = 16 / sizeof(T) };
    bool dense = pl_walk_dense(&args.walk, 0) && pl_walk_dense(&args.walk, 1);
    if (dense && pl_is_aligned(x->data, 16) && pl_is_aligned(out->data, 16)) {
        PL_LAUNCH(unary_packs<T>, pl_blocks(args.n / N + 1, PL_BLOCK), PL_BLOCK, 0, q, args);
    } else {
        PL_LAUNCH(unary_walk<T>, pl_blocks(args.n, PL_BLOCK), PL_BLOCK, 0, q, args);
    }
}

bool unary_takes_int(pl_unary op) {
    switch (op) {
        case PL_UNARY_NEG:
        case PL_UNARY_ABS:
        case PL_UNARY_SIGN:
        case PL_UNARY_SQUARE:
        case PL_UNARY_RELU:
        case PL_UNARY_FLOOR:
        case PL_UNARY_CEIL:
        case PL_UNARY_ROUND:
            return true;
        default:
            return op >= PL_UNARY_LOGICAL_NOT;
    }
}

// ---- binary -------------------------------------------------------------------------------------

template <pl_binary OP, typename A>
PL_DEVICE A binary_one(A a, A b) {
    return pl_binary_float<OP>(a, b);
}
template <pl_binary OP>
PL_DEVICE int64_t binary_one(int64_t a, int64_t b) {
    return pl_binary_int<OP>(a, b);
}

template <int N, typename A>
PL_DEVICE void binary_some(int op, A *a, const A *b) {
    switch (op) {
#define X(name, text)                                                                \
    case PL_BINARY_##name:                                                           \
        for (int k = 0; k < N; k++) a[k] = binary_one<PL_BINARY_##name>(a[k], b[k]); \
        break;
        PL_BINARY_MAP(X)
#undef X
    }
}

// What two element types make: the wider one (bf16 and f16 with float give float).
template <typename A, typename B>
struct wider {
    typedef A type;
};
template <typename A>
struct wider<A, float> {
    typedef float type;
};

template <typename A, typename B>
struct binary_args {
    int op, truth, scalar_a, scalar_b;
    bool known_a, known_b;  // numbers of the host: their values are arguments
    pl_acc<typename wider<A, B>::type> value_a, value_b;
    const A *a;
    const B *b;
    void *out;
    int64_t n;
    pl_cuda_fault *fault;
    pl_walk walk;  // out, a, b
};

template <typename A>
PL_DEVICE void check_divisor(int op, const A *, pl_cuda_fault *) {
    (void)op;
}
PL_DEVICE void check_divisor(int op, const int64_t *b, pl_cuda_fault *fault) {
    if (pl_divides((pl_binary)op) && *b == 0) pl_report(fault, PL_CUDA_FAULT_DIVIDE, op, 0);
}

template <int N, typename A, typename B>
PL_DEVICE void binary_at(const binary_args<A, B> &args, int64_t from_a, int64_t from_b,
                         int64_t to) {
    typedef typename wider<A, B>::type O;
    pl_acc<O> a[N], b[N];
    if (args.known_a) {
        for (int k = 0; k < N; k++) a[k] = args.value_a;
    } else if (N > 1 && args.scalar_a) {
        for (int k = 0; k < N; k++) a[k] = pl_get(*args.a);
    } else {
        pl_pack<A, N> in = pl_load<N>(args.a + from_a);
        for (int k = 0; k < N; k++) a[k] = pl_get(in.v[k]);
    }
    if (args.known_b) {
        for (int k = 0; k < N; k++) b[k] = args.value_b;
    } else if (N > 1 && args.scalar_b) {
        for (int k = 0; k < N; k++) b[k] = pl_get(*args.b);
    } else {
        pl_pack<B, N> in = pl_load<N>(args.b + from_b);
        for (int k = 0; k < N; k++) b[k] = pl_get(in.v[k]);
    }
    for (int k = 0; k < N; k++) check_divisor(args.op, &b[k], args.fault);
    binary_some<N>(args.op, a, b);
    if (args.truth) {
        store_some<N>((bool *)args.out + to, a);
    } else {
        store_some<N>((O *)args.out + to, a);
    }
}

template <typename A, typename B>
struct pack_of {
    enum { N = 16 / (sizeof(A) > sizeof(B) ? sizeof(A) : sizeof(B)) };
};

template <typename A, typename B>
__global__ void binary_packs(binary_args<A, B> args) {
    enum { N = pack_of<A, B>::N };
    int64_t packs = args.n / N, rest = packs * N + blockIdx.x * blockDim.x + threadIdx.x;
    PL_GRID_LOOP(i, packs) { binary_at<N>(args, i * N, i * N, i * N); }
    if (rest < args.n) {
        binary_at<1>(args, args.scalar_a ? 0 : rest, args.scalar_b ? 0 : rest, rest);
    }
}

template <typename A, typename B>
__global__ void binary_walk(binary_args<A, B> args) {
    PL_GRID_LOOP(i, args.n) {
        int64_t at[3];
        pl_walk_offsets<3>(args.walk, i, at);
        binary_at<1>(args, at[1], at[2], at[0]);
    }
}

float widen_f16(pl_f16 h) {
    int exponent = h >> 10 & 31, digits = h & 1023;
    float x = exponent == 31  ? (digits != 0 ? NAN : INFINITY)
              : exponent == 0 ? ldexpf((float)digits, -24)
                              : ldexpf((float)(digits + 1024), exponent - 25);
    return h >> 15 ? -x : x;
}

// Whether t is a number of the host beside a result of the device, and its value.
template <typename V>
bool read_number(const pl_tensor *t, const pl_tensor *out, V *value) {
    if (t->storage == NULL || t->storage->device.type != PL_CPU) return false;
    if (out->storage->device.type == PL_CPU) return false;  // the tests' host stand-in
    switch (t->dtype) {
        case PL_BOOL:
        case PL_U8:
            *value = (V) * (const uint8_t *)t->data;
            return true;
        case PL_I32:
            *value = (V) * (const int32_t *)t->data;
            return true;
        case PL_I64:
            *value = (V) * (const int64_t *)t->data;
            return true;
        case PL_BF16:
            *value = (V)pl_bf16_to_f32(*(const pl_bf16 *)t->data);
            return true;
        case PL_F16:
            *value = (V)widen_f16(*(const pl_f16 *)t->data);
            return true;
        case PL_F32:
            *value = (V) * (const float *)t->data;
            return true;
        default:
            *value = (V) * (const double *)t->data;
            return true;
    }
}

template <typename A, typename B>
void binary_launch(pl_binary op, const pl_tensor *a, const pl_tensor *b, pl_tensor *out,
                   pl_cuda_queue *q) {
    const pl_tensor *all[] = {out, a, b};
    binary_args<A, B> args = {};
    args.op = (int)op;
    args.truth = pl_gives_truth(op);
    args.known_a = read_number(a, out, &args.value_a);
    args.known_b = read_number(b, out, &args.value_b);
    args.a = (const A *)a->data;
    args.b = (const B *)b->data;
    args.out = out->data;
    args.n = out->numel;
    args.fault = q->fault;
    args.walk = pl_walk_over(3, all);
    args.scalar_a = is_scalar(&args.walk, 1);
    args.scalar_b = is_scalar(&args.walk, 2);
    enum { N = pack_of<A, B>::N };
    bool dense = pl_walk_dense(&args.walk, 0) &&
                 (args.scalar_a || (pl_walk_dense(&args.walk, 1) && pl_is_aligned(a->data, 16))) &&
                 (args.scalar_b || (pl_walk_dense(&args.walk, 2) && pl_is_aligned(b->data, 16)));
    if (dense && pl_is_aligned(out->data, 16)) {
        PL_LAUNCH((binary_packs<A, B>), pl_blocks(args.n / N + 1, PL_BLOCK), PL_BLOCK, 0, q, args);
    } else {
        PL_LAUNCH((binary_walk<A, B>), pl_blocks(args.n, PL_BLOCK), PL_BLOCK, 0, q, args);
    }
}

// ---- where --------------------------------------------------------------------------------------

// Moves elements by size: what they mean does not matter.
template <typename T>
__global__ void where_walk(const bool *cond, const T *a, const T *b, T *out, pl_walk walk) {
    PL_GRID_LOOP(i, walk.n) {
        int64_t at[4];
        pl_walk_offsets<4>(walk, i, at);
        out[at[0]] = cond[at[1]] ? a[at[2]] : b[at[3]];
    }
}

}  // namespace

pl_status pl_cuda_unary(pl_unary op, const pl_tensor *x, pl_tensor *out, pl_cuda_queue *q) {
    if (x->numel == 0) return PL_OK;
    if (!pl_dtype_is_float(x->dtype) && !unary_takes_int(op)) {
        return pl_fail(PL_ETYPE, "[unary] operator %d is not defined for dtype: got %s", (int)op,
                       pl_dtype_name(x->dtype));
    }
#define CALL(T) unary_launch<T>(op, x, out, q)
    PL_CUDA_TYPES(x->dtype, CALL);
#undef CALL
    return pl_launched("unary");
}

pl_status pl_cuda_binary(pl_binary op, const pl_tensor *a, const pl_tensor *b, pl_tensor *out,
                         pl_cuda_queue *q) {
    if (out->numel == 0) return PL_OK;
    bool integer = !pl_dtype_is_float(a->dtype) && !pl_dtype_is_float(b->dtype);
    if (integer && op > PL_BINARY_RELU_GRAD) {
        return pl_fail(PL_ETYPE, "[binary] operator %d is not defined for dtype: got %s", (int)op,
                       pl_dtype_name(a->dtype));
    }
    if (a->dtype == b->dtype) {
#define CALL(T) binary_launch<T, T>(op, a, b, out, q)
        PL_CUDA_TYPES(a->dtype, CALL);
#undef CALL
    } else if (a->dtype == PL_BF16 && b->dtype == PL_F32) {
        binary_launch<bf16, float>(op, a, b, out, q);
    } else if (a->dtype == PL_F16 && b->dtype == PL_F32) {
        binary_launch<f16, float>(op, a, b, out, q);
    } else if (a->dtype == PL_F32 && b->dtype == PL_BF16) {
        binary_launch<float, bf16>(op, a, b, out, q);
    } else if (a->dtype == PL_F32 && b->dtype == PL_F16) {
        binary_launch<float, f16>(op, a, b, out, q);
    } else {
        return pl_fail(PL_ETYPE, "[binary] dtypes: got %s and %s, expected one dtype or one f32",
                       pl_dtype_name(a->dtype), pl_dtype_name(b->dtype));
    }
    return pl_launched("binary");
}

pl_status pl_cuda_where(const pl_tensor *cond, const pl_tensor *a, const pl_tensor *b,
                        pl_tensor *out, pl_cuda_queue *q) {
    if (out->numel == 0) return PL_OK;
    const pl_tensor *all[] = {out, cond, a, b};
    pl_walk walk = pl_walk_over(4, all);
    unsigned blocks = pl_blocks(out->numel, PL_BLOCK);
#define CALL(T)                                                                                    \
    PL_LAUNCH(where_walk<T>, blocks, PL_BLOCK, 0, q, (const bool *)cond->data, (const T *)a->data, \
              (const T *)b->data, (T *)out->data, walk)
    PL_CUDA_SIZES(pl_dtype_size(out->dtype), CALL);
#undef CALL
    return pl_launched("where");
}

// SPDX-License-Identifier: Apache-2.0
// reduce: any dimensions of any layout. The kept dimensions are walked by
// `kept`, the reduced ones by `inner`. Where neighbouring results lie side by side in memory a
// block takes 32 of them (or 32 packs) and eight lines at a time, else a thread, warp or block
// takes one result, as its length asks. A long reduction is cut into parts, whose number depends on
// the shape only, and a second kernel joins them: every sum has one order. Floats are added in
// float for at most 64 elements, the rest in double. Not measured on a GPU yet.
//
// Note [packs]: 16 bytes per access where strides and address allow it. That changes no order: of
// adjacent elements a thread takes whole packs in any case, and neighbouring results are added up
// one by one.
#include "cuda/math.cuh"
#include "cuda/walk.cuh"

namespace {

enum { WARPS = 8, BLOCK = WARPS * PL_LANES, LINES = 8, RUN = 64, WARP_LENGTH = 1024 };

template <typename A>
struct wide {
    typedef A type;
};
template <>
struct wide<float> {
    typedef double type;
};
template <typename T>
using wide_of = typename wide<pl_acc<T>>::type;

PL_DEVICE float lowest(float) { return -INFINITY; }
PL_DEVICE double lowest(double) { return -(double)INFINITY; }
PL_DEVICE int64_t lowest(int64_t) { return INT64_MIN; }
PL_DEVICE int64_t flip(int64_t x) { return ~x; }  // reverses the order of integers
template <typename A>
PL_DEVICE A flip(A x) {
    return -x;
}

// MIN is the MAX of flipped values. ROWS is a sum that may be added to what is there, and kept in
// float.
enum { ROWS = PL_REDUCE_COUNT };

template <typename A>
PL_DEVICE A neutral(int op) {
    switch (op) {
        case PL_REDUCE_PROD:
        case PL_REDUCE_ALL:
            return 1;
        case PL_REDUCE_MAX:
        case PL_REDUCE_MIN:
            return lowest((A)0);
        default:
            return 0;
    }
}

template <typename A>
PL_DEVICE A prepare(int op, A v) {
    if (op == PL_REDUCE_MIN) return flip(v);
    return op == PL_REDUCE_ANY || op == PL_REDUCE_ALL ? v != 0 : v;
}

struct join {
    int op;
    template <typename A>
    PL_DEVICE A operator()(A a, A b) const {
        switch (op) {
            case PL_REDUCE_PROD:
            case PL_REDUCE_ALL:
                return a * b;
            case PL_REDUCE_MAX:
            case PL_REDUCE_MIN:
            case PL_REDUCE_ANY:
                return b > a || b != b ? b : a;  // NaN wins, the first one
            default:
                return a + b;
        }
    }
};
// Integers wrap.
template <>
PL_DEVICE int64_t join::operator()(int64_t a, int64_t b) const {
    switch (op) {
        case PL_REDUCE_PROD:
        case PL_REDUCE_ALL:
            return (int64_t)((uint64_t)a * (uint64_t)b);
        case PL_REDUCE_MAX:
        case PL_REDUCE_MIN:
        case PL_REDUCE_ANY:
            return b > a ? b : a;
        default:
            return (int64_t)((uint64_t)a + (uint64_t)b);
    }
}

template <typename T>
struct reduce_args {
    int op;
    const T *x;
    void *out;  // T, bool (ANY, ALL), float (ROWS, if as_float)
    bool add, as_float;
    wide_of<T> *parts;  // (count, outputs); NULL: one part
    int64_t outputs, length, part_length, count;
    pl_walk kept, inner;
    bool adjacent, packed;  // the elements of one result; accesses may be packs
};

// Elements of a pack: 16 bytes, at most eight of them.
template <typename T>
struct pack_of {
    enum { N = sizeof(T) == 1 ? 8 : 16 / sizeof(T) };
};

template <typename T>
PL_DEVICE void finish(const reduce_args<T> &args, int64_t o, wide_of<T> v) {
    if (args.op == PL_REDUCE_ANY || args.op == PL_REDUCE_ALL) {
        ((bool *)args.out)[o] = v != 0;
    } else if (args.op == ROWS && args.as_float) {
        float *at = (float *)args.out + o;
        pl_put(at, args.add ? (double)*at + (double)v : (double)v);
    } else {
        if (args.op == ROWS && args.add) v = pl_sum((wide_of<T>)pl_get(((T *)args.out)[o]), v);
        if (args.op == PL_REDUCE_MIN) v = flip(v);
        if (args.op == PL_REDUCE_MEAN) v /= (wide_of<T>)args.length;
        pl_put((T *)args.out + o, v);
    }
}

PL_DEVICE int64_t offset_in(const pl_walk &walk, int64_t i) {
    if (walk.ndim == 1) return i * walk.strides[0][0];
    int64_t at[1];
    pl_walk_offsets<1>(walk, i, at);
    return at[0];
}

// Elements first, first + step, ... below end. A NaN that MAX found in a float stays one in double.
template <typename T>
PL_DEVICE wide_of<T> fold_run(const reduce_args<T> &args, int64_t base, int64_t first, int64_t end,
                              int64_t step) {
    typedef pl_acc<T> A;
    typedef wide_of<T> W;
    join op = {args.op};
    W all = neutral<W>(args.op);
    if (args.op == PL_REDUCE_PROD) {  // one by one in double
        for (int64_t j = first; j < end; j += step) {
            all = op(all, prepare<W>(args.op, pl_get(args.x[base + offset_in(args.inner, j)])));
        }
        return all;
    }
    while (first < end) {
        A run = neutral<A>(args.op);
        for (int k = 0; k < RUN && first < end; k++, first += step) {
            run = op(run, prepare<A>(args.op, pl_get(args.x[base + offset_in(args.inner, first)])));
        }
        all = op(all, (W)run);
    }
    return all;
}

template <int P, typename T>
PL_DEVICE void load_some(T *out, const T *from, int64_t count, bool packed) {
    if (packed && count >= P) {
        pl_pack<T, P> pack = pl_load<P>(from);
        PL_UNROLL
        for (int k = 0; k < P; k++) out[k] = pack.v[k];
        return;
    }
    PL_UNROLL
    for (int k = 0; k < P; k++) {
        if (k < count) out[k] = from[k];
    }
}

// Note [packs]. Adjacent elements of [begin, end), those of one of `lanes` threads.
template <typename T>
PL_DEVICE wide_of<T> fold_packs(const reduce_args<T> &args, const T *x, int64_t begin, int64_t end,
                                int lane, int lanes) {
    typedef pl_acc<T> A;
    typedef wide_of<T> W;
    enum { P = pack_of<T>::N };
    join op = {args.op};
    bool one_by_one = args.op == PL_REDUCE_PROD;  // in double
    W all = neutral<W>(args.op);
    A run = neutral<A>(args.op);
    int inside = 0;
    for (int64_t first = begin + (int64_t)lane * P; first < end; first += (int64_t)lanes * P) {
        T v[P];
        load_some<P>(v, x + first, end - first, args.packed);
        PL_UNROLL
        for (int k = 0; k < P; k++) {
            if (first + k >= end) continue;
            if (one_by_one) {
                all = op(all, prepare<W>(args.op, pl_get(v[k])));
            } else {
                run = op(run, prepare<A>(args.op, pl_get(v[k])));
            }
        }
        inside += P;
        if (inside < RUN) continue;
        all = op(all, (W)run);
        run = neutral<A>(args.op);
        inside = 0;
    }
    return op(all, (W)run);
}

template <typename T>
PL_DEVICE void give(const reduce_args<T> &args, int64_t part, int64_t o, wide_of<T> v) {
    if (args.parts != nullptr) {
        args.parts[part * args.outputs + o] = v;
    } else {
        finish(args, o, v);
    }
}

template <typename T, int GROUP>
__global__ void row_kernel(reduce_args<T> args) {
    typedef wide_of<T> W;
    int lane = (int)(GROUP == 1 ? threadIdx.x % PL_LANES : threadIdx.x);
    int64_t o = GROUP == 1 ? (int64_t)blockIdx.x * WARPS + threadIdx.x / PL_LANES : blockIdx.x;
    int64_t step = (int64_t)gridDim.x * (GROUP == 1 ? WARPS : 1), part = blockIdx.y;
    int64_t begin = part * args.part_length, end = begin + args.part_length;
    if (end > args.length) end = args.length;
    for (; o < args.outputs; o += step) {
        int64_t base = offset_in(args.kept, o);
        W v = args.adjacent ? fold_packs(args, args.x + base, begin, end, lane, GROUP * PL_LANES)
                            : fold_run(args, base, begin + lane, end, GROUP * PL_LANES);
        v = pl_block_fold<GROUP>(v, neutral<W>(args.op), join{args.op});
        if (lane == 0) give(args, part, o, v);
    }
}

template <typename T>
__global__ void column_kernel(reduce_args<T> args) {
    typedef wide_of<T> W;
    int column = (int)(threadIdx.x % PL_LANES), line = (int)(threadIdx.x / PL_LANES);
    int64_t part = blockIdx.y, begin = part * args.part_length, end = begin + args.part_length;
    if (end > args.length) end = args.length;
    PL_SHARED(W, sums, LINES * PL_LANES);
    for (int64_t first = (int64_t)blockIdx.x * PL_LANES; first < args.outputs;
         first += (int64_t)gridDim.x * PL_LANES) {
        int64_t o = first + column;
        W v = neutral<W>(args.op);
        if (o < args.outputs) {
            v = fold_run(args, offset_in(args.kept, o), begin + line, end, LINES);
        }
        sums[line * PL_LANES + column] = v;
        __syncthreads();
        if (line == 0 && o < args.outputs) {
            for (int l = 1; l < LINES; l++) v = join{args.op}(v, sums[l * PL_LANES + column]);
            give(args, part, o, v);
        }
        __syncthreads();
    }
}

// The same for results that lie side by side, P of them per thread: Note [packs].
template <typename T>
__global__ void column_packs_kernel(reduce_args<T> args) {
    typedef pl_acc<T> A;
    typedef wide_of<T> W;
    enum { P = pack_of<T>::N, WIDTH = PL_LANES * P };
    int lane = (int)(threadIdx.x % PL_LANES), line = (int)(threadIdx.x / PL_LANES);
    int64_t part = blockIdx.y, begin = part * args.part_length, end = begin + args.part_length;
    if (end > args.length) end = args.length;
    join op = {args.op};
    bool one_by_one = args.op == PL_REDUCE_PROD;
    PL_SHARED(W, sums, LINES * WIDTH);
    for (int64_t first = (int64_t)blockIdx.x * WIDTH; first < args.outputs;
         first += (int64_t)gridDim.x * WIDTH) {
        int64_t o = first + lane * P;
        W all[P];
        A run[P];
        PL_UNROLL
        for (int k = 0; k < P; k++) {
            all[k] = neutral<W>(args.op);
            run[k] = neutral<A>(args.op);
        }
        int inside = 0;
        for (int64_t j = begin + line; j < end && o < args.outputs; j += LINES) {
            pl_pack<T, P> v = pl_load<P>(args.x + offset_in(args.inner, j) + o);
            bool full = ++inside == RUN;
            if (full) inside = 0;
            PL_UNROLL
            for (int k = 0; k < P; k++) {
                if (one_by_one) {
                    all[k] = op(all[k], prepare<W>(args.op, pl_get(v.v[k])));
                    continue;
                }
                run[k] = op(run[k], prepare<A>(args.op, pl_get(v.v[k])));
                if (!full) continue;
                all[k] = op(all[k], (W)run[k]);
                run[k] = neutral<A>(args.op);
            }
        }
        PL_UNROLL
        for (int k = 0; k < P; k++) sums[line * WIDTH + lane * P + k] = op(all[k], (W)run[k]);
        __syncthreads();
        for (int c = (int)threadIdx.x; c < WIDTH && first + c < args.outputs; c += BLOCK) {
            W v = sums[c];
            for (int l = 1; l < LINES; l++) v = op(v, sums[l * WIDTH + c]);
            give(args, part, first + c, v);
        }
        __syncthreads();
    }
}

// A thread per result, for short reductions.
template <typename T>
__global__ void short_kernel(reduce_args<T> args) {
    PL_GRID_LOOP(o, args.outputs) {
        finish(args, o, fold_run(args, offset_in(args.kept, o), 0, args.length, 1));
    }
}

// A warp per result joins its parts.
template <typename T>
__global__ void join_kernel(reduce_args<T> args) {
    typedef wide_of<T> W;
    int lane = (int)(threadIdx.x % PL_LANES);
    for (int64_t o = (int64_t)blockIdx.x * WARPS + threadIdx.x / PL_LANES; o < args.outputs;
         o += (int64_t)gridDim.x * WARPS) {
        W v = neutral<W>(args.op);
        for (int64_t p = lane; p < args.count; p += PL_LANES) {
            v = join{args.op}(v, args.parts[p * args.outputs + o]);
        }
        v = pl_warp_fold(v, join{args.op});
        if (lane == 0) finish(args, o, v);
    }
}

// The dimensions of x that are reduced (or kept), as a walk of their own.
pl_walk walk_of(const pl_tensor *x, uint32_t dims) {
    pl_tensor part = {};
    part.numel = 1;
    for (int d = 0; d < x->ndim; d++) {
        if (!(dims >> d & 1)) continue;
        part.shape[part.ndim] = x->shape[d];
        part.strides[part.ndim++] = x->strides[d];
        part.numel *= x->shape[d];
    }
    const pl_tensor *one[] = {&part};
    return pl_walk_over(1, one);
}

int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

bool multiples(const pl_walk &walk, int64_t of) {
    for (int d = 0; d < walk.ndim; d++) {
        if (walk.strides[0][d] % of != 0) return false;
    }
    return true;
}

// How the work is cut: results per column of blocks, parts of a result.
template <typename T>
int64_t cut(reduce_args<T> *args, bool columns) {
    enum { P = pack_of<T>::N };
    int64_t wide = columns ? (args->packed ? PL_LANES * P : PL_LANES) : 1;
    int64_t blocks = (args->outputs + wide - 1) / wide;
    int64_t worth = args->length / (columns ? RUN : RUN * PL_LANES);
    // The same with and without packs, or the order would hang on an address.
    int64_t most = columns ? (args->outputs + PL_LANES * P - 1) / (PL_LANES * P) : blocks;
    int64_t count = at_least(1, at_most(worth, 1024 / at_least(1, most)));
    args->part_length = (args->length + count - 1) / count;
    if (args->adjacent) args->part_length = (args->part_length + P - 1) / P * P;
    args->count =
        at_least(1, (args->length + args->part_length - 1) / at_least(1, args->part_length));
    return blocks;
}

template <typename T>
pl_status launch(reduce_args<T> args, pl_cuda_queue *q) {
    enum { P = pack_of<T>::N };
    const pl_walk &kept = args.kept, &inner = args.inner;
    bool columns = args.outputs >= PL_LANES && inner.strides[0][inner.ndim - 1] != 1 &&
                   kept.strides[0][kept.ndim - 1] == 1;
    args.adjacent = !columns && inner.ndim == 1 && inner.strides[0][0] == 1;
    args.packed = pl_is_aligned(args.x, sizeof(T) * P);
    if (columns) {
        args.packed = args.packed && kept.ndim == 1 && args.outputs % P == 0 && multiples(inner, P);
    } else {
        args.packed = args.packed && multiples(kept, P);
    }
    int64_t blocks = cut(&args, columns);
    if (args.count > 1) {
        void *scratch;
        size_t nbytes = (size_t)(args.count * args.outputs) * sizeof(wide_of<T>);
        PL_TRY(q->scratch(q->owner, nbytes, &scratch));
        args.parts = (wide_of<T> *)scratch;
    }
    unsigned y = (unsigned)args.count;
    dim3 grid(pl_blocks(blocks, 1), y);
    if (args.length <= PL_LANES) {
        PL_LAUNCH(short_kernel<T>, pl_blocks(args.outputs, BLOCK), BLOCK, 0, q, args);
    } else if (columns && args.packed) {
        PL_LAUNCH(column_packs_kernel<T>, grid, BLOCK, 0, q, args);
    } else if (columns) {
        PL_LAUNCH(column_kernel<T>, grid, BLOCK, 0, q, args);
    } else if (args.part_length <= WARP_LENGTH) {
        grid.x = pl_blocks(args.outputs, WARPS);
        PL_LAUNCH((row_kernel<T, 1>), grid, BLOCK, 0, q, args);
    } else {
        PL_LAUNCH((row_kernel<T, WARPS>), grid, BLOCK, 0, q, args);
    }
    PL_TRY(pl_launched("reduce"));
    if (args.count == 1) return PL_OK;
    PL_LAUNCH(join_kernel<T>, pl_blocks(args.outputs, WARPS), BLOCK, 0, q, args);
    return pl_launched("reduce");
}

template <typename T>
pl_status reduce(reduce_args<T> args, const pl_tensor *x, uint32_t dims, void *out, int64_t outputs,
                 pl_cuda_queue *q) {
    args.x = (const T *)x->data;
    args.out = out;
    args.outputs = outputs;
    args.kept = walk_of(x, ~dims);
    args.inner = walk_of(x, dims);
    args.length = args.inner.n;
    return launch<T>(args, q);
}

template <typename T>
reduce_args<T> of(int op) {
    reduce_args<T> args = {};
    args.op = op;
    return args;
}

}  // namespace

pl_status pl_cuda_reduce(pl_reduce op, const pl_tensor *x, uint32_t dims, pl_tensor *out,
                         pl_cuda_queue *q) {
    if (out->numel == 0) return PL_OK;
#define CALL(T) return reduce<T>(of<T>(op), x, dims, out->data, out->numel, q)
    PL_CUDA_TYPES(x->dtype, CALL);
#undef CALL
}

pl_status pl_cuda_sum_rows(const pl_tensor *g, bool accumulate, pl_tensor *out, pl_cuda_queue *q) {
    if (out->numel == 0) return PL_OK;
#define CALL(T)                           \
    reduce_args<T> args = of<T>(ROWS);    \
    args.add = accumulate;                \
    args.as_float = out->dtype == PL_F32; \
    return reduce<T>(args, g, 1, out->data, out->numel, q)
    PL_CUDA_FLOATS(g->dtype, CALL);
#undef CALL
}

// SPDX-License-Identifier: Apache-2.0
// rotary: position embedding of queries or keys (Su et al., 2021), in the layout of Hugging Face:
// element i of a head turns with element i + D/2 by the angle whose cosine and sine stand in a
// table. The gradient is the turn back. In place if wanted: a thread reads both before it writes.
// A thread turns 16 bytes of pairs where the layout allows it: two loads of x in flight, and the
// tables', which the heads share and the caches serve. Not measured on a GPU yet.
#include "cuda/rows.cuh"

namespace {

struct rotary_args {
    const void *x, *cosine, *sine;  // tables (positions, half) of the type that T computes in
    void *out;
    int64_t half, first, count;  // count: heads of all positions
    // The three dimensions outside a head, in the order in which x lies in memory, and by how much
    // each moves in x, out and the tables.
    int64_t size[3], x_strides[3], out_strides[3], angle_strides[3];
    int64_t x_step, out_step;  // between elements of a head
    bool back;
};

// Where a head lies: first elements in x and out, and its position's row of the tables.
struct rotary_place {
    int64_t x, out, angle;
};
PL_DEVICE rotary_place place_of(const rotary_args &args, int64_t head, bool narrow) {
    int64_t at[3];
    int64_t rest = pl_divide(head, args.size[2], narrow, &at[2]);
    at[0] = pl_divide(rest, args.size[1], narrow, &at[1]);
    rotary_place p = {0, 0, args.first * args.half};
    PL_UNROLL
    for (int d = 0; d < 3; d++) {
        p.x += at[d] * args.x_strides[d];
        p.out += at[d] * args.out_strides[d];
        p.angle += at[d] * args.angle_strides[d];
    }
    return p;
}

// P numbers of a table, 16 bytes at a time where P allows it.
template <int P, typename A>
PL_DEVICE void load_angles(const A *table, A *to) {
    enum { N = P * sizeof(A) < 16 ? P : 16 / sizeof(A) };
    PL_UNROLL
    for (int k = 0; k < P; k += N) {
        pl_pack<A, N> pack = pl_load<N>(table + k);
        PL_UNROLL
        for (int i = 0; i < N; i++) to[k + i] = pack.v[i];
    }
}

// P pairs a thread; with P = 1 any strides.
template <typename T, int P>
__global__ void rotary_kernel(rotary_args args) {
    typedef pl_acc<T> A;
    int64_t packs = args.half / P;
    bool narrow = pl_divides_narrow(args.count * packs);
    PL_GRID_LOOP(i, args.count * packs) {
        int64_t d, head = pl_divide(i, packs, narrow, &d);
        d *= P;
        rotary_place p = place_of(args, head, narrow);
        int64_t x_step = P == 1 ? args.x_step : 1, out_step = P == 1 ? args.out_step : 1;
        const T *x = (const T *)args.x + p.x + d * x_step;
        T *out = (T *)args.out + p.out + d * out_step;
        pl_pack<T, P> low = pl_load<P>(x), high = pl_load<P>(x + args.half * x_step);
        A c[P], s[P], v[P], w[P];
        load_angles<P>((const A *)args.cosine + p.angle + d, c);
        load_angles<P>((const A *)args.sine + p.angle + d, s);
        PL_UNROLL
        for (int k = 0; k < P; k++) {
            A a = pl_get(low.v[k]), b = pl_get(high.v[k]), turn = args.back ? -s[k] : s[k];
            v[k] = a * c[k] - b * turn;
            w[k] = b * c[k] + a * turn;
        }
        pl_store_pack<P>(out, v);
        pl_store_pack<P>(out + args.half * out_step, w);
    }
}

rotary_args args_of(const pl_tensor *x, const pl_tensor *cosine, const pl_tensor *sine,
                    pl_tensor *out) {
    rotary_args args = {};
    args.x = x->data;
    args.out = out->data;
    args.cosine = cosine->data;
    args.sine = sine->data;
    args.half = x->shape[3] / 2;
    args.count = x->numel / x->shape[3];
    args.x_step = x->strides[3];
    args.out_step = out->strides[3];
    bool heads_outside = x->strides[2] > x->strides[1];
    const int order[3] = {0, heads_outside ? 2 : 1, heads_outside ? 1 : 2};
    for (int i = 0; i < 3; i++) {
        int d = order[i];
        args.size[i] = x->shape[d];
        args.x_strides[i] = x->strides[d];
        args.out_strides[i] = out->strides[d];
        args.angle_strides[i] = d == 1 ? args.half : 0;
    }
    return args;
}

// Whether every head starts at a multiple of 16 bytes and its elements lie side by side.
bool heads_packed(const pl_tensor *t) {
    int64_t pack = 16 / (int64_t)pl_dtype_size(t->dtype);
    bool fits = t->strides[3] == 1 && t->shape[3] / 2 % pack == 0 && pl_is_aligned(t->data, 16);
    for (int d = 0; d < 3; d++) fits = fits && (t->shape[d] == 1 || t->strides[d] % pack == 0);
    return fits;
}

}  // namespace

pl_status pl_cuda_rotary(const pl_tensor *x, const pl_tensor *cosine, const pl_tensor *sine,
                         int64_t first, bool back, pl_tensor *out, pl_cuda_queue *q) {
    if (x->numel == 0) return PL_OK;
    rotary_args args = args_of(x, cosine, sine, out);
    args.first = first;
    args.back = back;
    bool packed = heads_packed(x) && heads_packed(out) && pl_is_aligned(cosine->data, 16) &&
                  pl_is_aligned(sine->data, 16);
#define CALL(T)                                                                                  \
    do {                                                                                         \
        enum { P = 16 / sizeof(T) };                                                             \
        if (packed) {                                                                            \
            PL_LAUNCH((rotary_kernel<T, P>), pl_blocks(x->numel / 2 / P, PL_BLOCK), PL_BLOCK, 0, \
                      q, args);                                                                  \
        } else {                                                                                 \
            PL_LAUNCH((rotary_kernel<T, 1>), pl_blocks(x->numel / 2, PL_BLOCK), PL_BLOCK, 0, q,  \
                      args);                                                                     \
        }                                                                                        \
    } while (0)
    PL_CUDA_FLOATS(x->dtype, CALL);
#undef CALL
    return pl_launched("rotary");
}

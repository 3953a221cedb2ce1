// SPDX-License-Identifier: Apache-2.0
// rotary: position embedding of queries or keys (Su et al., 2021), in the layout of Hugging Face:
// element i of a head turns with element i + D/2 by the angle whose cosine and sine stand in a
// table. The gradient is the turn back. In place if wanted: a thread reads both before it writes.
// Not measured on a GPU yet.
#include "cuda/device.cuh"

namespace {

struct rotary_args {
    const void *x;
    void *out;
    const float *cosine, *sine;  // (positions, width / 2)
    int64_t batch, rows, heads, half, first;
    int64_t step_x[4], step_out[4];
    float sign;  // -1: back
};

template <typename T>
__global__ void rotary_kernel(rotary_args args) {
    typedef pl_acc<T> A;
    PL_GRID_LOOP(i, args.batch * args.rows * args.heads * args.half) {
        int64_t d = i % args.half, rest = i / args.half, h = rest % args.heads;
        int64_t row = rest / args.heads % args.rows, b = rest / args.heads / args.rows;
        int64_t from = b * args.step_x[0] + row * args.step_x[1] + h * args.step_x[2];
        int64_t to = b * args.step_out[0] + row * args.step_out[1] + h * args.step_out[2];
        const T *x = (const T *)args.x + from;
        T *out = (T *)args.out + to;
        int64_t angle = (args.first + row) * args.half + d;
        A c = (A)args.cosine[angle], s = (A)(args.sign * args.sine[angle]);
        A low = pl_get(x[d * args.step_x[3]]), high = pl_get(x[(d + args.half) * args.step_x[3]]);
        pl_put(&out[d * args.step_out[3]], low * c - high * s);
        pl_put(&out[(d + args.half) * args.step_out[3]], high * c + low * s);
    }
}

}  // namespace

pl_status pl_cuda_rotary(const pl_tensor *x, const pl_tensor *cosine, const pl_tensor *sine,
                         int64_t first, bool back, pl_tensor *out, pl_cuda_queue *q) {
    if (x->numel == 0) return PL_OK;
    if (x->shape[3] % 2 != 0) {
        return pl_fail(PL_EINVAL, "[rotary] width of a head: got %lld, expected an even number",
                       (long long)x->shape[3]);
    }
    if (first < 0 || first + x->shape[1] > cosine->shape[0]) {
        return pl_fail(PL_EINVAL, "[rotary] positions: got %lld to %lld, expected within [0, %lld)",
                       (long long)first, (long long)(first + x->shape[1]),
                       (long long)cosine->shape[0]);
    }
    rotary_args args = {};
    args.x = x->data;
    args.out = out->data;
    args.cosine = (const float *)cosine->data;
    args.sine = (const float *)sine->data;
    args.batch = x->shape[0];
    args.rows = x->shape[1];
    args.heads = x->shape[2];
    args.half = x->shape[3] / 2;
    args.first = first;
    args.sign = back ? -1.0f : 1.0f;
    for (int d = 0; d < 4; d++) {
        args.step_x[d] = x->strides[d];
        args.step_out[d] = out->strides[d];
    }
    unsigned blocks = pl_blocks(x->numel / 2, PL_BLOCK);
#define CALL(T) PL_LAUNCH(rotary_kernel<T>, blocks, PL_BLOCK, 0, q, args)
    PL_CUDA_FLOATS(x->dtype, CALL);
#undef CALL
    return pl_launched("rotary");
}

// SPDX-License-Identifier: Apache-2.0
// ops: one file per operator family: shape rule, forward, and the gradient rule beside it. An
// operator turns tensors into one tensor by calling the device's kernels. It knows no graph:
// autograd calls forward, keeps what was saved, and calls backward later.
// Threads: an operator keeps no state; any thread.
#ifndef PL_OPS_H
#define PL_OPS_H

#include "base/base.h"
#include "kernels.h"
#include "tensor/tensor.h"

#define PL_OP_MAX_SAVED 7

// What mixed precision does with an operator's floating-point inputs.
typedef enum pl_amp_policy {
    PL_AMP_KEEP,  // as they come
    PL_AMP_LOW,   // to the autocast dtype: matrix products, attention
    PL_AMP_F32,   // to fp32: sums, norms, softmax
} pl_amp_policy;

// The parameters of a call that are not tensors; their meaning is each operator's own.
typedef struct pl_attrs {
    int64_t i[PL_MAX_DIMS * 2];
    double f[3];
    int n;  // how many of i are used where it varies
} pl_attrs;

struct pl_op;

typedef struct pl_op_call {
    const struct pl_op *op;
    int n_in;
    pl_tensor *const *in;     // borrowed; NULL where an optional input is absent
    pl_attrs attrs;           // forward may add what backward needs
    bool track;               // a gradient may be asked for: save what it needs
    uint32_t wants;           // bit i: input i's may be (the last bit: any from there on)
    pl_tensor *const *edges;  // [n_in] what the graph connects to: a gradient has its dtype
    pl_tensor *out;           // forward's result, owned by the caller
    pl_tensor *saved[PL_OP_MAX_SAVED];  // by pl_op_save
} pl_op_call;

// Shape, dtype and device of an input as the graph sees it: a gradient has these.
typedef struct pl_in_meta {
    pl_dtype dtype;
    int ndim;
    pl_device device;
    int64_t shape[PL_MAX_DIMS];
} pl_in_meta;

typedef struct pl_op_back {
    const struct pl_op *op;
    int n_in;
    const pl_attrs *attrs;
    pl_tensor *const *saved;
    pl_tensor *grad;  // of the output: its shape, dtype and device; any strides; borrowed
    const pl_in_meta *in;
    const bool *needs;  // [n_in]
    bool last;          // nobody needs what was saved after this: its memory may be written
    // A place that wants input i's gradient added (or, when !accumulate, written): a leaf's bucket
    // or a sum under way. An operator may use it (pl_back_dest) or give a tensor of its own.
    pl_tensor *const *into;
    const bool *accumulate;
    pl_tensor **out;  // [n_in] results, owned by the caller; the `into` tensor itself where used
    // Note [through GELU]: in y = linear(h), h = gelu_tanh(x), the product that is h's gradient is
    // multiplied by gelu_tanh'(x) right after, which a library does inside the product. So where h
    // gets its gradient from this call alone and nobody asks for it, x is offered here, and out[0]
    // may be x's gradient; the call says so, and the one that made h hands it on as it came.
    pl_tensor *through;  // x, or NULL
    bool *went_through;  // set by this call
    bool came_through;   // grad is the gradient of what this call's GELU took
} pl_op_back;

typedef struct pl_op {
    const char *name;
    pl_amp_policy amp;
    int kind;  // which member of a family: a pl_unary, pl_binary or pl_reduce
    pl_status (*forward)(pl_op_call *call);
    pl_status (*backward)(const pl_op_back *b);  // NULL: no gradient
    bool is_view;                                // the result shares the first input's memory
} pl_op;

// The differentiable operators: name and how its attributes are laid out.
// clang-format off
#define PL_OP_MAP(X)                                                                              \
    /* elementwise, no attributes */                                                              \
    X(neg) X(abs) X(exp) X(log) X(sqrt) X(rsqrt) X(reciprocal) X(square) X(sin) X(cos) X(tanh)    \
    X(sigmoid) X(relu) X(gelu) X(gelu_tanh) X(silu) X(erf)                                        \
    X(add) X(sub) X(mul) X(div) X(pow) X(maximum) X(minimum) X(where)                             \
    X(clamp)    /* f[0] lo, f[1] hi (infinite: none) */                                           \
    X(to_dtype) /* i[0] dtype */                                                                  \
    X(clone)                                                                                      \
    /* views: i[0..n) sizes, dims or start, stop, step */                                         \
    X(view)    /* sizes; copies where it must when f[0] != 0 (reshape) */                         \
    X(permute) /* dims */                                                                         \
    X(expand)  /* sizes */                                                                        \
    X(slice)   /* dim, start, stop, step */                                                       \
    X(cat)     /* i[0] dim; any number of inputs */                                               \
    /* reductions: i[0] bit mask of dims, i[1] keepdim */                                         \
    X(sum) X(mean) X(prod) X(amax) X(amin)                                                        \
    X(cumsum) /* i[0] dim */                                                                      \
    X(matmul) /* (.., M, K) (.., K, N), equal batch dims */                                       \
    X(linear) /* x, w, bias; i[0] pl_activation, i[1] w is wide */                                \
    X(layer_norm)  /* x, w, b; i[0] number of trailing dims; f[0] eps */                          \
    X(rms_norm)    /* x, w; the same */                                                           \
    X(softmax) X(log_softmax) /* over the last dimension */                                       \
    X(cross_entropy) /* logits (M, C), target (M), weight; i[0] ignore_index, i[1] reduction      \
                        (0 none, 1 mean, 2 sum); f[0] label smoothing */                          \
    X(linear_cross_entropy) /* x (M, K), w (C, K), target (M), bias, weight; i[0], i[1], f[0] as    \
                               cross_entropy, i[2] rows of a chunk (0: chosen), i[3] w is wide */  \
    X(embedding)     /* weight (N, D), index; i[0] padding_idx or -1 */                           \
    X(gather)        /* x, index; i[0] dim */                                                     \
    X(dropout)       /* f[0] p; i[0] seed, i[1] offset */                                         \
    X(swiglu)           /* (.., 2N), gate then up: (.., N) */                                      \
    X(rotary_embedding) /* x (.., T, D), cosine and sine (P, D / 2); i[0] first position */       \
    X(attention)     /* q, k, v, mask; f[0] scale, f[1] dropout p; i[0] causal, i[1, 2] seed, offset,     \
                        i[3] fewer heads of k, v */
// clang-format on

#define X(name) extern const pl_op pl_op_##name;
PL_OP_MAP(X)
#undef X

// Not in the table, since it computes nothing: i[0] type, i[1] index of the device, i[2] whether
// the host need not wait. Its gradient goes back to where the input lies.
extern const pl_op pl_op_to_device;

extern const pl_op *const pl_op_table[];
extern const int pl_op_count;

// Under autocast to `low`: whether a call of op takes input i as it is, since its kernel rounds it
// as it reads; then attrs tells the call so.
bool pl_op_rounds(const pl_op *op, int i, pl_tensor *const *in, pl_dtype low, pl_attrs *attrs);

// Whether autocast leaves input i of op as it is.
bool pl_op_keeps(const pl_op *op, int i);

// Results that are cheap to compute again from what the call saved (remake.c).
bool pl_op_can_remake(const pl_op *op, const pl_attrs *attrs);
// Whether that needs what was saved in a slot.
bool pl_op_remake_needs(const pl_op *op, const pl_attrs *attrs, int slot);
// The same bits as the call's result, contiguous; its shape may be flattened to rows.
pl_status pl_op_remake(const pl_op *op, const pl_attrs *attrs, pl_tensor *const *saved,
                       pl_tensor **out) PL_MUST_USE;

// Note [through GELU]: whether a call of op can give its first input's gradient that way; and x,
// where a call of `from` gave gelu_tanh(x) on a device whose kernels can use that, else NULL.
static inline bool pl_op_goes_through(const pl_op *op) { return op == &pl_op_linear; }
pl_tensor *pl_op_through(const pl_op *from, const pl_attrs *attrs, pl_tensor *const *saved);

// A sum and the norm of it by one kernel (norm.c). Whether it can add these two:
bool pl_norm_adds(const pl_tensor *x, const pl_tensor *residual);
// Does what the calls would do one after the other: add's, of two tensors that pl_norm_adds, and
// norm's, of layer_norm or rms_norm, whose in[0] is not looked at.
pl_status pl_norm_forward_added(pl_op_call *add, pl_op_call *norm) PL_MUST_USE;
pl_status pl_norm_again(const pl_op *op, const pl_attrs *attrs, pl_tensor *const *saved,
                        pl_tensor **out) PL_MUST_USE;  // pl_op_remake's part

// Helpers for operators.
static inline const pl_kernels *pl_k(const pl_tensor *t) {  // of t's device
    return pl_tensor_is_cpu(t) ? pl_kernels_active() : pl_kernels_on(pl_tensor_device(t));
}
// Keeps t for backward. The output is kept as an alias without history, so that a graph never
// holds itself.
pl_status pl_op_save(pl_op_call *call, int slot, pl_tensor *t) PL_MUST_USE;
// Where to write input i's gradient: into[i] when it fits (contiguous, right dtype), else new.
pl_status pl_back_dest(const pl_op_back *b, int i, pl_tensor **out, bool *accumulate) PL_MUST_USE;
// t itself (retained) or a contiguous copy.
pl_status pl_contiguous(pl_tensor *t, pl_tensor **out) PL_MUST_USE;
pl_status pl_cast(pl_tensor *t, pl_dtype dt, pl_tensor **out) PL_MUST_USE;  // t itself if dt is its
// A view of that over a wider shape.
pl_status pl_cast_expand(pl_tensor *t, pl_dtype dt, int nd, const int64_t *shape,
                         pl_tensor **out) PL_MUST_USE;
pl_status pl_copy_new(const pl_tensor *t, pl_dtype dt, pl_tensor **out) PL_MUST_USE;
// Sums t over the dimensions that a broadcast from `shape` added or stretched.
pl_status pl_sum_to(pl_tensor *t, int ndim, const int64_t *shape, pl_tensor **out) PL_MUST_USE;
// 0-d, on the device of `beside`.
pl_status pl_scalar(const pl_tensor *beside, pl_dtype dt, double value,
                    pl_tensor **out) PL_MUST_USE;
pl_status pl_scalar_int(const pl_tensor *beside, pl_dtype dt, int64_t value,
                        pl_tensor **out) PL_MUST_USE;
bool pl_op_takes_numbers(const pl_op *op);
// Such a number.
pl_status pl_number(pl_dtype dt, double value, pl_tensor **out) PL_MUST_USE;
pl_status pl_unary_new(pl_unary op, pl_tensor *x, pl_tensor **out) PL_MUST_USE;
// Broadcasts and promotes (two 0-d or n-d tensors alike); comparisons give bool.
pl_status pl_binary_new(pl_binary op, const char *name, pl_tensor *a, pl_tensor *b,
                        pl_tensor **out) PL_MUST_USE;
pl_status pl_reduce_new(pl_reduce op, pl_tensor *x, uint32_t dims, bool keepdim,
                        pl_tensor **out) PL_MUST_USE;
// dst = src (of one shape, any dtypes and strides), wherever both lie. Afterwards src may change
// and dst be read; but with non_blocking a pinned src must not change before the copy is done.
pl_status pl_copy_across(const pl_tensor *src, pl_tensor *dst, bool non_blocking) PL_MUST_USE;
// t itself (retained) where it is there.
pl_status pl_to_device(pl_tensor *t, pl_device to, bool non_blocking, pl_tensor **out) PL_MUST_USE;
// A copy of a device's t in pinned memory, without waiting: undefined until its storage is
// pl_storage_pinned_done.
pl_status pl_to_host_later(pl_tensor *t, pl_tensor **out) PL_MUST_USE;
// Inputs meet on one device, or fail naming two. A 0-d tensor of the CPU may meet others of a
// device: it is made there again, in met[i] (owned); the others are NULL. in[i] may be NULL.
//
// Note [numbers]: what stands beside a tensor in x * 0.5 is a 0-d tensor of the CPU. Operators of
// two inputs take it as it is, and a device's kernel takes its value as an argument: nothing is
// filled in over there, at the price of a launch. So with `numbers` they are left where they are.
pl_status pl_meet(const char *op, bool numbers, int n, pl_tensor *const *in,
                  pl_tensor **met) PL_MUST_USE;
static inline bool pl_all_cpu(int n, pl_tensor *const *in) {  // nothing to meet
    for (int i = 0; i < n; i++) {
        if (in[i] && !pl_tensor_is_cpu(in[i])) return false;
    }
    return true;
}
pl_status pl_fill_any(pl_tensor *t, double value) PL_MUST_USE;  // any dtype
// PyTorch's promotion with the categories of 0-d tensors: a 0-d operand counts only where its kind
// is higher (a float32 vector times a 0-d float64 stays float32).
pl_dtype pl_promote_tensors(const pl_tensor *a, const pl_tensor *b);

// Operators without a gradient.
pl_status pl_argreduce(bool max, pl_tensor *x, int dim, bool all, bool keepdim,
                       pl_tensor **out) PL_MUST_USE;
pl_status pl_sort(pl_tensor *x, int dim, bool descending, pl_tensor **values,
                  pl_tensor **indices) PL_MUST_USE;
pl_status pl_nonzero(pl_tensor *x, pl_tensor **out) PL_MUST_USE;

#endif

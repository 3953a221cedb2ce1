// SPDX-License-Identifier: Apache-2.0
// Results that are cheap to make again from what their own gradient keeps anyway: an activation
// or SwiGLU from its input, a norm from its rows. Who saved such a result for a gradient may
// drop it and ask for it here; the bits are the same, because it is the same kernel on the same
// numbers.
#include "ops/ops.h"

static bool linear_with_gelu(const pl_op *op, const pl_attrs *attrs) {
    return op == &pl_op_linear && (attrs->i[0] == PL_ACT_GELU || attrs->i[0] == PL_ACT_GELU_TANH);
}

static bool is_norm(const pl_op *op) { return op == &pl_op_layer_norm || op == &pl_op_rms_norm; }

bool pl_op_can_remake(const pl_op *op, const pl_attrs *attrs) {
    return op == &pl_op_gelu || op == &pl_op_gelu_tanh || op == &pl_op_silu ||
           op == &pl_op_swiglu || is_norm(op) || linear_with_gelu(op, attrs);
}

bool pl_op_remake_needs(const pl_op *op, const pl_attrs *attrs, int slot) {
    if (!pl_op_can_remake(op, attrs)) return false;
    return linear_with_gelu(op, attrs) ? slot == 2 : true;
}

static pl_status swiglu_again(pl_tensor *x, pl_tensor **out) {
    int64_t shape[PL_MAX_DIMS];
    pl_tensor *r = NULL;
    for (int d = 0; d < x->ndim; d++) shape[d] = x->shape[d] / (d == x->ndim - 1 ? 2 : 1);
    PL_TRY(pl_tensor_empty_beside(x, x->dtype, x->ndim, shape, &r));
    pl_status st = pl_k(x)->swiglu(x, r);
    if (st != PL_OK) {
        pl_tensor_release(r);
        return st;
    }
    *out = r;
    return PL_OK;
}

pl_status pl_op_remake(const pl_op *op, const pl_attrs *attrs, pl_tensor *const *saved,
                       pl_tensor **out) {
    if (is_norm(op)) return pl_norm_again(op, attrs, saved, out);
    if (op == &pl_op_swiglu) return swiglu_again(saved[0], out);
    if (linear_with_gelu(op, attrs)) {
        bool exact = attrs->i[0] == PL_ACT_GELU;
        return pl_unary_new(exact ? PL_UNARY_GELU : PL_UNARY_GELU_TANH, saved[2], out);
    }
    return pl_unary_new((pl_unary)op->kind, saved[0], out);
}

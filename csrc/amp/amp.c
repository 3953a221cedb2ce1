// SPDX-License-Identifier: Apache-2.0
// Autocast's policy: see amp.h. fp64 is never cast: who asks for it means it.
#include "amp/amp.h"

#define MAX_CAST 5  // operators with a policy have at most this many inputs

static _Thread_local int mode = -1;

int pl_amp_get(void) { return mode; }

pl_status pl_amp_set(int dtype, int *before) {
    if (dtype != -1 && dtype != PL_BF16 && dtype != PL_F16) {
        return pl_fail(PL_ENOSUP, "[autocast] dtype: got %s, expected bfloat16 or float16",
                       dtype >= 0 && dtype < PL_DTYPE_COUNT ? pl_dtype_name((pl_dtype)dtype)
                                                            : "an unknown dtype");
    }
    *before = mode;
    mode = dtype;
    return PL_OK;
}

static bool wants_cast(pl_amp_policy policy, const pl_tensor *t, pl_dtype low) {
    if (!t || !pl_dtype_is_float(t->dtype) || t->dtype == PL_F64) return false;
    return policy == PL_AMP_LOW ? t->dtype != low : t->dtype != PL_F32;
}

pl_status pl_amp_apply(const pl_op *op, int n_in, pl_tensor *const *in, const pl_attrs *attrs,
                       pl_tensor **out) {
    pl_tensor *cast[MAX_CAST] = {NULL};
    pl_attrs own = attrs ? *attrs : (pl_attrs){0};
    bool any = false;
    if (mode < 0 || op->amp == PL_AMP_KEEP || n_in > MAX_CAST) {
        return pl_autograd_apply(op, n_in, in, NULL, attrs, out);
    }
    for (int i = 0; i < n_in; i++) {
        any |= wants_cast(op->amp, in[i], (pl_dtype)mode) && !pl_op_keeps(op, i);
    }
    if (!any) return pl_autograd_apply(op, n_in, in, NULL, attrs, out);
    pl_status st = PL_OK;
    for (int i = 0; i < n_in && st == PL_OK; i++) {
        if (!wants_cast(op->amp, in[i], (pl_dtype)mode) || pl_op_keeps(op, i) ||
            // Of leaves only: keeping them costs no memory.
            (pl_is_leaf(in[i]) && pl_op_rounds(op, i, in, (pl_dtype)mode, &own))) {
            cast[i] = in[i] ? pl_tensor_retain(in[i]) : NULL;
        } else if (op->amp == PL_AMP_LOW) {
            st = pl_autograd_low(in[i], (pl_dtype)mode, &cast[i]);
        } else {
            st = pl_cast(in[i], PL_F32, &cast[i]);
        }
    }
    if (st == PL_OK) st = pl_autograd_apply(op, n_in, cast, in, &own, out);
    for (int i = 0; i < n_in; i++) pl_tensor_release(cast[i]);
    return st;
}

// Whether one kernel gives what the two calls would.
static bool together(pl_tensor *const in[4]) {
    if (!pl_norm_adds(in[0], in[1])) return false;
    pl_device at = pl_tensor_device(in[0]);
    for (int i = 2; i < 4; i++) {
        if (in[i] && !pl_device_equal(pl_tensor_device(in[i]), at)) return false;
        if (in[i] && !pl_dtype_is_float(in[i]->dtype)) return false;
    }
    pl_dtype sum = pl_promote_tensors(in[0], in[1]);
    return mode < 0 || sum == PL_F32 || sum == PL_F64;
}

pl_status pl_amp_apply_added(const pl_op *norm, pl_tensor *const in[4], const pl_attrs *attrs,
                             pl_tensor *out[2]) {
    if (together(in)) return pl_autograd_apply_added(norm, in, attrs, out);
    pl_tensor *sum = NULL, *pair[2] = {in[1], in[0]};
    PL_TRY(pl_amp_apply(&pl_op_add, 2, pair, NULL, &sum));
    pl_tensor *of[3] = {sum, in[2], in[3]};
    pl_status st = pl_amp_apply(norm, norm == &pl_op_layer_norm ? 3 : 2, of, attrs, &out[0]);
    if (st != PL_OK) {
        pl_tensor_release(sum);
        return st;
    }
    out[1] = sum;
    return PL_OK;
}

// SPDX-License-Identifier: Apache-2.0
// The losses against class indices as functions of the module.
#include "call.h"

// (C), (N, C) or (N, C, d...) logits as rows, the target flat; the losses back in the target's
// shape where they are not reduced.
static PyObject *py_cross_entropy(ARGS) {
    COUNT("cross_entropy", 6);
    pl_tensor *x = pl_tensor_of(args[0], "cross_entropy"), *target = NULL, *w = NULL;
    pl_tensor *moved = NULL, *rows = NULL, *flat = NULL, *loss = NULL, *out = NULL;
    pl_attrs a = {.n = 2};
    if (!x || !(target = pl_tensor_of(args[1], "cross_entropy")) ||
        pl_arg_optional(args[2], "cross_entropy", &w) ||
        pl_arg_int64(args[3], "ignore_index", &a.i[0]) ||
        pl_arg_double(args[4], "label_smoothing", &a.f[0]) ||
        pl_arg_int64(args[5], "reduction", &a.i[1])) {
        return NULL;
    }
    int nd = x->ndim, cdim = nd > 1 ? 1 : 0;
    bool fits = nd >= 1 && target->ndim == nd - 1;
    for (int d = 0, k = 0; fits && d < nd; d++) {
        if (d != cdim) fits = x->shape[d] == target->shape[k++];
    }
    if (!fits) {
        char s[128], t[128];
        PyErr_Format(PyExc_ValueError,
                     "[cross_entropy] expected logits (C), (N, C) or (N, C, d1, ...) and a target "
                     "of class indices (), (N) or (N, d1, ...): got %s and %s",
                     pl_shape_text(nd, x->shape, s, sizeof s),
                     pl_shape_text(target->ndim, target->shape, t, sizeof t));
        return NULL;
    }
    pl_attrs order = {.n = nd};
    for (int d = 0, k = 0; d < nd; d++) {
        if (d != cdim) order.i[k++] = d;
    }
    order.i[nd - 1] = cdim;
    int64_t mc[2] = {target->numel, x->shape[cdim]};
    int rc = pl_call_raw(&pl_op_permute, 1, &x, &order, &moved);
    if (rc == 0) rc = pl_reshape(moved, 2, mc, &rows);
    if (rc == 0) rc = pl_reshape(target, 1, mc, &flat);
    pl_tensor *in[3] = {rows, flat, w};
    if (rc == 0) rc = pl_call_raw(&pl_op_cross_entropy, 3, in, &a, &loss);
    if (rc == 0 && a.i[1] == 0) {
        rc = pl_reshape(loss, target->ndim, target->shape, &out);
    } else if (rc == 0) {
        out = pl_tensor_retain(loss);
    }
    pl_tensor_release(moved);
    pl_tensor_release(rows);
    pl_tensor_release(flat);
    pl_tensor_release(loss);
    return rc == 0 ? pl_tensor_wrap(out) : NULL;
}

// A row (K) with its class, or rows (N, K) with theirs (N).
static int rows_of(pl_tensor *x, pl_tensor *target, pl_tensor **rows, pl_tensor **flat) {
    int64_t shape[2] = {1, x->ndim ? x->shape[0] : 0};
    if (x->ndim != 1 || target->ndim != 0) {  // what does not fit is told by the operator
        *rows = pl_tensor_retain(x);
        *flat = pl_tensor_retain(target);
        return 0;
    }
    if (pl_reshape(x, 2, shape, rows)) return -1;
    return pl_reshape(target, 1, shape, flat);
}

static PyObject *py_linear_cross_entropy(ARGS) {
    COUNT("linear_cross_entropy", 9);
    static const char op[] = "linear_cross_entropy";
    pl_tensor *x = pl_tensor_of(args[0], op), *in[5] = {NULL}, *loss = NULL, *out = NULL;
    pl_tensor *target = NULL;
    pl_attrs a = {.n = 3};
    if (!x || !(in[1] = pl_tensor_of(args[1], op)) || !(target = pl_tensor_of(args[2], op)) ||
        pl_arg_optional(args[3], op, &in[3]) || pl_arg_optional(args[4], op, &in[4]) ||
        pl_arg_int64(args[5], "ignore_index", &a.i[0]) ||
        pl_arg_double(args[6], "label_smoothing", &a.f[0]) ||
        pl_arg_int64(args[7], "reduction", &a.i[1]) ||
        pl_arg_int64(args[8], "batch_chunk_size", &a.i[2])) {
        return NULL;
    }
    int rc = rows_of(x, target, &in[0], &in[2]);
    if (rc == 0) rc = pl_call_raw(&pl_op_linear_cross_entropy, 5, in, &a, &loss);
    if (rc == 0) {
        bool each = a.i[1] == 0 && target->ndim == 0;
        rc = each ? pl_reshape(loss, 0, NULL, &out) : (out = pl_tensor_retain(loss), 0);
    }
    pl_tensor_release(in[0]);
    pl_tensor_release(in[2]);
    pl_tensor_release(loss);
    return rc == 0 ? pl_tensor_wrap(out) : NULL;
}

static PyMethodDef functions[] = {
    FAST(cross_entropy),
    FAST(linear_cross_entropy),
    {NULL, NULL, 0, NULL},
};

int pl_bind_loss(PyObject *module) { return PyModule_AddFunctions(module, functions); }

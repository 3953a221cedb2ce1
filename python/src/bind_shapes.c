// SPDX-License-Identifier: Apache-2.0
// Views, cat and stack as functions of the module.
#include "call.h"

static PyObject *sized(const pl_op *op, const char *name, double flag, PyObject *const *args,
                       Py_ssize_t n) {
    if (pl_arg_count(name, n, 2)) return NULL;
    pl_tensor *x = pl_tensor_of(args[0], name);
    pl_attrs a = {.f = {flag}};
    if (!x || pl_arg_shape(args[1], "shape", &a.n, a.i)) return NULL;
    return pl_call(op, 1, &x, &a);
}
static PyObject *py_reshape(ARGS) {
    (void)module;
    return sized(&pl_op_view, "reshape", 1, args, n);
}
static PyObject *py_view(ARGS) {
    (void)module;
    return sized(&pl_op_view, "view", 0, args, n);
}
static PyObject *py_permute(ARGS) {
    (void)module;
    return sized(&pl_op_permute, "permute", 0, args, n);
}
static PyObject *py_expand(ARGS) {
    (void)module;
    return sized(&pl_op_expand, "expand", 0, args, n);
}

// transpose as a permutation; -1 with an exception.
int pl_swap_dims(pl_tensor *x, int64_t d0, int64_t d1, pl_tensor **out) {
    int a0, a1;
    pl_attrs a = {.n = x->ndim};
    pl_status st = pl_dim_wrap("transpose", (int)d0, x->ndim, &a0);
    if (st == PL_OK) st = pl_dim_wrap("transpose", (int)d1, x->ndim, &a1);
    if (st != PL_OK) {
        pl_raise(NULL, st);
        return -1;
    }
    for (int d = 0; d < x->ndim; d++) a.i[d] = d == a0 ? a1 : d == a1 ? a0 : d;
    return pl_call_raw(&pl_op_permute, 1, &x, &a, out);
}

static PyObject *py_transpose(ARGS) {
    COUNT("transpose", 3);
    pl_tensor *x = pl_tensor_of(args[0], "transpose"), *out = NULL;
    int64_t d0, d1;
    if (!x || pl_arg_int64(args[1], "dim0", &d0) || pl_arg_int64(args[2], "dim1", &d1) ||
        pl_swap_dims(x, d0, d1, &out)) {
        return NULL;
    }
    return pl_tensor_wrap(out);
}

static PyObject *py_slice(ARGS) {
    COUNT("slice", 5);
    pl_tensor *x = pl_tensor_of(args[0], "slice");
    pl_attrs a = {.n = 4};
    if (!x) return NULL;
    for (int k = 0; k < 4; k++) {
        if (pl_arg_int64(args[k + 1], "an argument of slice", &a.i[k])) return NULL;
    }
    return pl_call(&pl_op_slice, 1, &x, &a);
}

int pl_reshape(pl_tensor *x, int ndim, const int64_t *shape, pl_tensor **out) {
    pl_attrs a = {.n = ndim, .f = {1}};
    for (int d = 0; d < ndim; d++) a.i[d] = shape[d];
    return pl_call_raw(&pl_op_view, 1, &x, &a, out);
}

static PyObject *py_select(ARGS) {
    COUNT("select", 3);
    pl_tensor *x = pl_tensor_of(args[0], "select"), *probe = NULL, *row = NULL, *out = NULL;
    int64_t dim, index;
    if (!x || pl_arg_int64(args[1], "dim", &dim) || pl_arg_int64(args[2], "index", &index)) {
        return NULL;
    }
    pl_status st = pl_tensor_select(x, (int)dim, index, &probe);  // checks, and gives the shape
    if (st != PL_OK) return pl_raise(module, st);
    if (dim < 0) dim += x->ndim;
    if (index < 0) index += x->shape[dim];
    pl_attrs a = {.i = {dim, index, index + 1, 1}, .n = 4};
    int rc = pl_call_raw(&pl_op_slice, 1, &x, &a, &row);
    if (rc == 0) rc = pl_reshape(row, probe->ndim, probe->shape, &out);
    pl_tensor_release(probe);
    pl_tensor_release(row);
    return rc == 0 ? pl_tensor_wrap(out) : NULL;
}

static PyObject *py_unsqueeze(ARGS) {
    COUNT("unsqueeze", 2);
    pl_tensor *x = pl_tensor_of(args[0], "unsqueeze"), *probe = NULL, *out = NULL;
    int64_t dim;
    if (!x || pl_arg_int64(args[1], "dim", &dim)) return NULL;
    pl_status st = pl_tensor_unsqueeze(x, (int)dim, &probe);
    if (st != PL_OK) return pl_raise(module, st);
    int rc = pl_reshape(x, probe->ndim, probe->shape, &out);
    pl_tensor_release(probe);
    return rc == 0 ? pl_tensor_wrap(out) : NULL;
}

static PyObject *py_squeeze(ARGS) {
    COUNT("squeeze", 2);
    pl_tensor *x = pl_tensor_of(args[0], "squeeze"), *out = NULL;
    int64_t dim = 0, shape[PL_MAX_DIMS];
    int only = -1, k = 0;
    if (!x || (args[1] != Py_None && pl_arg_int64(args[1], "dim", &dim))) return NULL;
    if (args[1] != Py_None) {
        pl_status st = pl_dim_wrap("squeeze", (int)dim, x->ndim, &only);
        if (st != PL_OK) return pl_raise(module, st);
    }
    for (int d = 0; d < x->ndim; d++) {
        bool drop = x->shape[d] == 1 && (only < 0 || only == d);
        if (!drop) shape[k++] = x->shape[d];
    }
    return pl_reshape(x, k, shape, &out) ? NULL : pl_tensor_wrap(out);
}

static PyObject *py_cat(ARGS) {
    COUNT("cat", 2);
    int k;
    pl_tensor **in = NULL;
    pl_attrs a = {.n = 1};
    if (pl_arg_int64(args[1], "dim", &a.i[0]) || pl_arg_tensors(args[0], "cat", false, &k, &in)) {
        return NULL;
    }
    PyObject *r = pl_call(&pl_op_cat, k, in, &a);
    pl_free(in);
    return r;
}

static PyObject *py_stack(ARGS) {
    COUNT("stack", 2);
    int k, done = 0, dim = 0;
    int64_t d;
    pl_tensor **in = NULL, *probe = NULL;
    PyObject *r = NULL;
    if (pl_arg_int64(args[1], "dim", &d) || pl_arg_tensors(args[0], "stack", false, &k, &in)) {
        return NULL;
    }
    pl_status st = k ? pl_dim_wrap("stack", (int)d, in[0]->ndim + 1, &dim)
                     : pl_fail(PL_ERUNTIME, "[stack] expected at least one tensor, got none");
    for (int i = 1; i < k && st == PL_OK; i++) {
        char x[128], y[128];
        if (pl_shape_equal(in[0]->ndim, in[0]->shape, in[i]->ndim, in[i]->shape)) continue;
        st = pl_fail(PL_ERUNTIME,
                     "[stack] expects each tensor to be equal size: got %s at entry "
                     "0 and %s at entry %d",
                     pl_shape_text(in[0]->ndim, in[0]->shape, x, sizeof x),
                     pl_shape_text(in[i]->ndim, in[i]->shape, y, sizeof y), i);
    }
    if (st == PL_OK) st = pl_tensor_unsqueeze(in[0], dim, &probe);
    if (st != PL_OK) pl_raise(module, st);
    for (; st == PL_OK && done < k; done++) {
        pl_tensor *wide = NULL;
        if (pl_reshape(in[done], probe->ndim, probe->shape, &wide)) break;
        in[done] = wide;  // owned from here on, up to `done`
    }
    pl_attrs a = {.i = {dim}, .n = 1};
    if (st == PL_OK && done == k) r = pl_call(&pl_op_cat, k, in, &a);
    for (int i = 0; i < done; i++) pl_tensor_release(in[i]);
    pl_tensor_release(probe);
    pl_free(in);
    return r;
}

static PyMethodDef functions[] = {
    FAST(reshape),   FAST(view),  FAST(permute), FAST(expand),
    FAST(transpose), FAST(slice), FAST(select),  FAST(unsqueeze),
    FAST(squeeze),   FAST(cat),   FAST(stack),   {NULL, NULL, 0, NULL},
};

int pl_bind_shapes(PyObject *module) { return PyModule_AddFunctions(module, functions); }

// SPDX-License-Identifier: Apache-2.0
// x[...] and x[...] = v. Integers, slices, None and ... are views made here; tensors, lists and
// masks go to the facade's paceline/_indexing.py, which composes them from operators.
#include "call.h"

static bool is_basic(PyObject *item) {
    if (PyBool_Check(item) || PyObject_TypeCheck(item, pl_tensor_type())) return false;
    if (item == Py_None || item == Py_Ellipsis || PySlice_Check(item)) return true;
    // NumPy's arrays have __index__ as its integers do, but are sequences.
    return PyLong_Check(item) || (PyIndex_Check(item) && !PySequence_Check(item));
}

// Whether a slice leaves dimension `dim` of t as it is. A mistake in it is reported by step().
static bool is_whole(const pl_tensor *t, PyObject *item, int dim) {
    Py_ssize_t start, stop, stride;
    if (!PySlice_Check(item) || dim >= t->ndim) return false;
    if (PySlice_Unpack(item, &start, &stop, &stride)) {
        PyErr_Clear();
        return false;
    }
    Py_ssize_t size = (Py_ssize_t)t->shape[dim];
    PySlice_AdjustIndices(size, &start, &stop, stride);
    return start == 0 && stride == 1 && stop == size;
}

// One step: t (taken over) seen through one index item at dimension *dim.
static pl_tensor *step(pl_tensor *t, PyObject *item, int *dim) {
    pl_attrs a = {.n = 0};
    pl_tensor *out = NULL;
    const pl_op *op = &pl_op_slice;
    if (item == Py_None) {
        op = &pl_op_view;
        a.n = t->ndim + 1;
        if (a.n > PL_MAX_DIMS) {
            PyErr_SetString(PyExc_IndexError, "[index] too many dimensions");
            goto done;
        }
        for (int d = 0; d < a.n; d++) {
            a.i[d] = d == *dim ? 1 : t->shape[d < *dim ? d : d - 1];
        }
        a.f[0] = 1;
        ++*dim;
    } else if (*dim >= t->ndim) {
        PyErr_Format(PyExc_IndexError, "[index] too many indices for a tensor of dimension %d",
                     t->ndim);
        goto done;
    } else if (PySlice_Check(item)) {
        Py_ssize_t start, stop, stride;
        if (PySlice_Unpack(item, &start, &stop, &stride)) goto done;
        if (stride < 1) {
            PyErr_SetString(PyExc_ValueError, "[index] a slice's step must be greater than zero");
            goto done;
        }
        PySlice_AdjustIndices((Py_ssize_t)t->shape[*dim], &start, &stop, stride);
        a.i[0] = *dim;
        a.i[1] = start;
        a.i[2] = stop;
        a.i[3] = stride;
        ++*dim;
    } else {
        int64_t i, n = t->shape[*dim];
        if (pl_arg_int64(item, "an index", &i)) goto done;
        if (i < -n || i >= n) {
            PyErr_Format(PyExc_IndexError,
                         "index %lld is out of bounds for dimension %d with size %lld",
                         (long long)i, *dim, (long long)n);
            goto done;
        }
        i = i < 0 ? i + n : i;
        a.i[0] = *dim;
        a.i[1] = i;
        a.i[2] = i + 1;
        a.i[3] = 1;
        pl_tensor *row = NULL;
        if (pl_call_raw(&pl_op_slice, 1, &t, &a, &row)) goto done;
        pl_tensor_release(t);
        t = row;
        op = &pl_op_view;
        a = (pl_attrs){.n = t->ndim - 1};
        for (int d = 0; d < a.n; d++) a.i[d] = t->shape[d < *dim ? d : d + 1];
    }
    if (pl_call_raw(op, 1, &t, &a, &out)) out = NULL;
done:
    pl_tensor_release(t);
    return out;
}

// A view through a basic index (a tuple of basic items, or one). NULL with an exception, or NULL
// and *advanced where the facade must take over.
static pl_tensor *basic_view(PyObject *self, PyObject *index, bool *advanced) {
    Py_ssize_t n = PyTuple_Check(index) ? PyTuple_Size(index) : 1, used = 0, dots = 0;
    for (Py_ssize_t k = 0; k < n; k++) {
        PyObject *item = PyTuple_Check(index) ? PyTuple_GetItem(index, k) : index;
        if (!is_basic(item)) {
            *advanced = true;
            return NULL;
        }
        used += item != Py_None && item != Py_Ellipsis;
        dots += item == Py_Ellipsis;
    }
    pl_tensor *t = pl_tensor_retain(((pl_py_tensor *)self)->t);
    if (dots > 1) {
        pl_tensor_release(t);
        PyErr_SetString(PyExc_IndexError, "[index] an index can have only one ellipsis (...)");
        return NULL;
    }
    // Slices over everything (x[:, :, i]) make no view of their own, which a backward pass would
    // have to copy through; only one that is all there is does, since x[:] is a new tensor.
    PyObject *whole = NULL;
    int dim = 0, whole_dim = 0, skip = t->ndim - (int)used;
    for (Py_ssize_t k = 0; k < n && t; k++) {
        PyObject *item = PyTuple_Check(index) ? PyTuple_GetItem(index, k) : index;
        if (item == Py_Ellipsis) {
            dim += skip > 0 ? skip : 0;
        } else if (is_whole(t, item, dim)) {
            whole = item;
            whole_dim = dim++;
        } else {
            t = step(t, item, &dim);
        }
    }
    return whole && t == ((pl_py_tensor *)self)->t ? step(t, whole, &whole_dim) : t;
}

static PyObject *facade(const char *name, PyObject *self, PyObject *index, PyObject *value) {
    PyObject *mod = PyImport_ImportModule("paceline._indexing");
    PyObject *fn = mod ? PyObject_GetAttrString(mod, name) : NULL;
    PyObject *r = fn ? PyObject_CallFunctionObjArgs(fn, self, index, value, NULL) : NULL;
    Py_XDECREF(fn);
    Py_XDECREF(mod);
    return r;
}

PyObject *pl_tensor_getitem(PyObject *self, PyObject *index) {
    bool advanced = false;
    pl_tensor *t = basic_view(self, index, &advanced);
    if (advanced) return facade("getitem", self, index, NULL);
    return t ? pl_tensor_wrap(t) : NULL;
}

int pl_tensor_setitem(PyObject *self, PyObject *index, PyObject *value) {
    bool advanced = false;
    if (!value) {
        PyErr_SetString(PyExc_TypeError, "[index] elements of a tensor cannot be deleted");
        return -1;
    }
    pl_tensor *view = basic_view(self, index, &advanced), *src = NULL;
    if (advanced) {
        PyObject *r = facade("setitem", self, index, value);
        Py_XDECREF(r);
        return r ? 0 : -1;
    }
    if (!view) return -1;
    int rc = pl_operand(value, view, &src);
    if (rc > 0) {  // a list, an array: the facade makes a tensor of it
        pl_tensor_release(view);
        PyObject *r = facade("setitem", self, index, value);
        Py_XDECREF(r);
        return r ? 0 : -1;
    }
    pl_status st = PL_OK;
    pl_tensor *wide = NULL;
    if (rc == 0) st = pl_autograd_will_write("setitem", ((pl_py_tensor *)self)->t, src);
    if (rc == 0 && st == PL_OK) st = pl_tensor_expand(src, view->ndim, view->shape, &wide);
    if (rc == 0 && st == PL_OK) st = pl_copy_across(wide, view, false);
    pl_tensor_release(wide);
    pl_tensor_release(src);
    pl_tensor_release(view);
    if (rc == 0 && st != PL_OK) pl_raise(NULL, st);
    return rc == 0 && st == PL_OK ? 0 : -1;
}

// SPDX-License-Identifier: Apache-2.0
// Making tensors: empty, full, from Python data, from buffers.
#include "call.h"

// ---- plain -----------------------------------------------------------------------------------

// shape and dtype arguments to a new tensor; NULL with an exception.
pl_tensor *pl_new_tensor(PyObject *shape, PyObject *dtype, pl_device device) {
    int nd;
    int64_t sizes[PL_MAX_DIMS];
    pl_dtype dt;
    pl_tensor *t = NULL;
    if (pl_arg_shape(shape, "shape", &nd, sizes) || pl_arg_dtype(dtype, &dt)) return NULL;
    pl_status st = pl_tensor_empty_on(device, dt, nd, sizes, &t);
    if (st == PL_OK) return t;
    pl_raise(NULL, st);
    return NULL;
}

static PyObject *py_empty(ARGS) {
    (void)module;
    pl_device device;
    if (pl_arg_device_last("empty", args, n, 2, &device)) return NULL;
    pl_tensor *t = pl_new_tensor(args[0], args[1], device);
    return t ? pl_tensor_wrap(t) : NULL;
}

static PyObject *py_full(ARGS) {
    (void)module;
    pl_device device;
    if (pl_arg_device_last("full", args, n, 3, &device)) return NULL;
    pl_tensor *t = pl_new_tensor(args[0], args[2], device);
    if (!t) return NULL;
    if (pl_fill_from(t, args[1])) {
        pl_tensor_release(t);
        return NULL;
    }
    return pl_tensor_wrap(t);
}

static PyObject *py_arange(ARGS) {
    double start, stop, step;
    pl_dtype dt;
    pl_device device;
    if (pl_arg_device_last("arange", args, n, 4, &device) ||
        pl_arg_double(args[0], "start", &start) || pl_arg_double(args[1], "stop", &stop) ||
        pl_arg_double(args[2], "step", &step) || pl_arg_dtype(args[3], &dt)) {
        return NULL;
    }
    if (step == 0 || !((stop - start) / step >= 0)) {
        PyErr_Format(PyExc_RuntimeError,
                     "[arange] step must be nonzero and lead from start to stop: got %R, %R, %R",
                     args[0], args[1], args[2]);
        return NULL;
    }
    double count = (stop - start) / step;
    int64_t size = (int64_t)count;
    if ((double)size < count) size++;
    pl_tensor *t = NULL;
    pl_status st = pl_tensor_empty_on(device, dt, 1, &size, &t);
    if (st == PL_OK) st = pl_k(t)->arange(t, start, step);
    if (st == PL_OK) return pl_tensor_wrap(t);
    pl_tensor_release(t);
    return pl_raise(module, st);
}

// ---- from Python data ------------------------------------------------------------------------

static bool is_list(PyObject *o) { return PyList_Check(o) || PyTuple_Check(o); }

// The shape of nested sequences, read along the first items.
static int probe_shape(PyObject *data, int *nd, int64_t *shape) {
    PyObject *at = Py_NewRef(data);
    *nd = 0;
    while (is_list(at)) {
        if (*nd == PL_MAX_DIMS) {
            PyErr_Format(PyExc_ValueError, "[tensor] nested deeper than %d", PL_MAX_DIMS);
            Py_DECREF(at);
            return -1;
        }
        Py_ssize_t len = PySequence_Size(at);
        shape[(*nd)++] = len;
        if (len == 0) break;
        PyObject *first = PySequence_GetItem(at, 0);
        Py_DECREF(at);
        at = first;
        if (!at) return -1;
    }
    Py_DECREF(at);
    return 0;
}

// The dtype that holds every element: bool < int64 < float32.
static int probe_dtype(PyObject *data, int *kind) {
    if (is_list(data)) {
        Py_ssize_t len = PySequence_Size(data);
        for (Py_ssize_t i = 0; i < len && *kind < 3; i++) {
            PyObject *item = PySequence_GetItem(data, i);
            int rc = item ? probe_dtype(item, kind) : -1;
            Py_XDECREF(item);
            if (rc) return -1;
        }
        return 0;
    }
    int k = PyBool_Check(data) ? 1 : PyLong_Check(data) ? 2 : 3;
    if (k == 3 && !PyFloat_Check(data)) {
        if (PyObject_TypeCheck(data, pl_tensor_type())) {
            pl_dtype dt = ((pl_py_tensor *)data)->t->dtype;
            k = dt == PL_BOOL ? 1 : pl_dtype_is_float(dt) ? 3 : 2;
        } else if (PyIndex_Check(data)) {
            k = 2;
        }
    }
    if (k > *kind) *kind = k;
    return 0;
}

static int write_element(pl_tensor *t, int64_t at, PyObject *value) {
    pl_tensor one = {.refs = 1,
                     .dtype = t->dtype,
                     .numel = 1,
                     .data = (char *)t->data + (size_t)at * pl_dtype_size(t->dtype),
                     .storage = t->storage};
    PyObject *number = NULL;
    if (PyUnicode_Check(value) || PyBytes_Check(value)) {
        PyErr_Format(PyExc_TypeError, "[tensor] expected numbers, got %R", value);
        return -1;
    }
    if (!PyFloat_Check(value) && !PyLong_Check(value)) {
        bool whole = !pl_dtype_is_float(t->dtype) && PyIndex_Check(value);
        number = whole ? PyNumber_Index(value) : PyNumber_Float(value);
        if (!number) {
            PyErr_Clear();
            PyErr_Format(PyExc_TypeError, "[tensor] expected numbers, got %R",
                         (PyObject *)Py_TYPE(value));
            return -1;
        }
        value = number;
    }
    int rc = pl_fill_from(&one, value);
    Py_XDECREF(number);
    return rc;
}

static int fill_nested(pl_tensor *t, int dim, int64_t *at, PyObject *data) {
    if (dim == t->ndim) return write_element(t, (*at)++, data);
    if (!is_list(data) || PySequence_Size(data) != t->shape[dim]) {
        PyErr_Format(PyExc_ValueError,
                     "[tensor] sequences must have one length: expected %lld items at dimension "
                     "%d, got %R",
                     (long long)t->shape[dim], dim, data);
        return -1;
    }
    for (Py_ssize_t i = 0; i < t->shape[dim]; i++) {
        PyObject *item = PySequence_GetItem(data, i);
        int rc = item ? fill_nested(t, dim + 1, at, item) : -1;
        Py_XDECREF(item);
        if (rc) return -1;
    }
    return 0;
}

static PyObject *py_from_data(ARGS) {
    int nd;
    int64_t shape[PL_MAX_DIMS], code, at = 0;
    pl_tensor *t = NULL;
    if (pl_arg_count("tensor", n, 2) || pl_arg_int64(args[1], "dtype", &code) ||
        probe_shape(args[0], &nd, shape)) {
        return NULL;
    }
    if (code < 0) {
        static const pl_dtype by_kind[] = {PL_F32, PL_BOOL, PL_I64, PL_F32};
        int kind = 0;
        if (probe_dtype(args[0], &kind)) return NULL;
        code = by_kind[kind];
    }
    if (code >= PL_DTYPE_COUNT) {
        PyErr_SetString(PyExc_ValueError, "[tensor] unknown dtype code");
        return NULL;
    }
    pl_status st = pl_tensor_empty((pl_dtype)code, nd, shape, &t);
    if (st != PL_OK) return pl_raise(module, st);
    if (t->numel > 0 && fill_nested(t, 0, &at, args[0])) {
        pl_tensor_release(t);
        return NULL;
    }
    return pl_tensor_wrap(t);
}

// ---- from buffers ----------------------------------------------------------------------------

static void release_view(void *owner, void *data) {
    (void)data;
    // A tensor may die on a thread without the GIL, or after the interpreter.
    if (!Py_IsInitialized()) return;
    PyGILState_STATE gil = PyGILState_Ensure();
    PyBuffer_Release(owner);
    PyGILState_Release(gil);
    pl_free(owner);
}

static int view_dtype(const Py_buffer *v, int64_t code, pl_dtype *out) {
    const char *f = v->format ? v->format : "B";
    static const struct {
        char format;
        pl_dtype dt;
    } known[] = {{'?', PL_BOOL}, {'B', PL_U8},  {'i', PL_I32}, {'l', PL_I64},
                 {'q', PL_I64},  {'e', PL_F16}, {'f', PL_F32}, {'d', PL_F64}};
    if (*f == '@' || *f == '=' || *f == '<') f++;
    if (code == PL_BF16 && v->itemsize == 2) {
        *out = PL_BF16;
        return 0;
    }
    for (size_t k = 0; k < sizeof known / sizeof *known; k++) {
        if (f[0] == known[k].format && !f[1]) {
            *out = known[k].dt;
            if (*out == PL_I64 && v->itemsize == 4) *out = PL_I32;
            if (pl_dtype_size(*out) != (size_t)v->itemsize) break;
            if (code >= 0 && code != (int64_t)*out) break;
            return 0;
        }
    }
    PyErr_Format(PyExc_TypeError,
                 "[from_buffer] element format '%s' is not supported: convert to bool, uint8, "
                 "int32, int64, float16, float32 or float64 first",
                 v->format ? v->format : "B");
    return -1;
}

static int view_layout(const Py_buffer *v, int64_t *shape, int64_t *strides) {
    if (v->ndim > PL_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "[from_buffer] %d dimensions: at most %d", v->ndim,
                     PL_MAX_DIMS);
        return -1;
    }
    for (int d = 0; d < v->ndim; d++) {
        shape[d] = v->shape[d];
        if (v->strides[d] < 0 || v->strides[d] % v->itemsize) {
            PyErr_SetString(PyExc_ValueError,
                            "[from_buffer] strides must be positive multiples of the element "
                            "size: pass array.copy()");
            return -1;
        }
        strides[d] = v->strides[d] / v->itemsize;
    }
    return 0;
}

static PyObject *py_from_buffer(ARGS) {
    int64_t code, shape[PL_MAX_DIMS], strides[PL_MAX_DIMS];
    pl_dtype dt;
    Py_buffer *v = NULL;
    pl_storage *s = NULL;
    pl_tensor *t = NULL, *copy = NULL;
    if (pl_arg_count("from_buffer", n, 2) || pl_arg_int64(args[1], "dtype", &code)) return NULL;
    pl_status st = pl_calloc(sizeof *v, (void **)&v);
    if (st != PL_OK) return pl_raise(module, st);
    if (PyObject_GetBuffer(args[0], v, PyBUF_FULL_RO)) {
        pl_free(v);
        return NULL;
    }
    if (view_dtype(v, code, &dt) || view_layout(v, shape, strides)) {
        PyBuffer_Release(v);
        pl_free(v);
        return NULL;
    }
    bool read_only = v->readonly;
    int nd = v->ndim;
    st = pl_storage_wrap(v->buf, (size_t)v->len, release_view, v, &s);
    if (st != PL_OK) {
        PyBuffer_Release(v);
        pl_free(v);
        return pl_raise(module, st);
    }
    st = pl_tensor_from_storage(s, dt, nd, shape, strides, 0, &t);
    // What may not be written is copied: a tensor is always writable.
    if (st == PL_OK && read_only) st = pl_copy_new(t, dt, &copy);
    pl_storage_release(s);
    if (copy || st != PL_OK) {
        pl_tensor_release(t);
        t = copy;
    }
    return st == PL_OK ? pl_tensor_wrap(t) : pl_raise(module, st);
}

static PyMethodDef functions[] = {
    FAST(empty),     FAST(full),        FAST(arange),
    FAST(from_data), FAST(from_buffer), {NULL, NULL, 0, NULL},
};

int pl_bind_create(PyObject *module) { return PyModule_AddFunctions(module, functions); }

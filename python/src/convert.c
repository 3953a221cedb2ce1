// SPDX-License-Identifier: Apache-2.0
// Arguments in, exceptions out.
#include <string.h>

#include "bind_group.h"
#include "call.h"

static PyObject *exception_class(const char *name) {
    PyObject *errors = PyImport_ImportModule("paceline.errors");
    PyObject *cls = errors ? PyObject_GetAttrString(errors, name) : NULL;
    Py_XDECREF(errors);
    if (cls) return cls;
    PyErr_Clear();
    PyObject *builtins = PyImport_ImportModule("builtins");
    cls = builtins ? PyObject_GetAttrString(builtins, name) : NULL;
    Py_XDECREF(builtins);
    return cls;
}

PyObject *pl_raise(PyObject *module, pl_status st) {
    (void)module;
    if (PyErr_Occurred()) return NULL;  // an interrupt's own exception, or a callback's
    char where[160], text[4096];
    // Copied first: looking the class up may run code that fails and records a message of its own.
    strncpy(text, pl_error_message(), sizeof text - 1);
    text[sizeof text - 1] = 0;
    strncpy(where, pl_error_where(), sizeof where - 1);
    where[sizeof where - 1] = 0;
    PyObject *cls = exception_class(pl_status_exception(st));
    if (!cls) return NULL;
    if (st == PL_EBUG) {
        PyErr_Format(cls, "%s [%s]", text, where);
    } else {
        PyErr_SetString(cls, text);
    }
    Py_DECREF(cls);
    if (st == PL_EPEER || st == PL_EREMOTE || st == PL_EMISMATCH || st == PL_ETIME) {
        pl_describe_failure(st);
    }
    return NULL;
}

int pl_arg_count(const char *fn, Py_ssize_t n, Py_ssize_t expected) {
    if (n == expected) return 0;
    PyErr_Format(PyExc_TypeError, "[%s] takes %zd arguments, got %zd", fn, expected, n);
    return -1;
}

int pl_arg_int64(PyObject *obj, const char *what, int64_t *out) {
    PyObject *i = PyNumber_Index(obj);
    if (!i) {
        PyErr_Clear();
        PyErr_Format(PyExc_TypeError, "%s must be an integer, got %R", what, obj);
        return -1;
    }
    long long v = PyLong_AsLongLong(i);
    Py_DECREF(i);
    if (v == -1 && PyErr_Occurred()) return -1;
    *out = v;
    return 0;
}

int pl_arg_double(PyObject *obj, const char *what, double *out) {
    double v = PyFloat_AsDouble(obj);
    if (v == -1.0 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_TypeError)) {
            PyErr_Clear();
            PyErr_Format(PyExc_TypeError, "%s must be a number, got %R", what, obj);
        }
        return -1;
    }
    *out = v;
    return 0;
}

int pl_arg_shape(PyObject *seq, const char *what, int *ndim, int64_t *shape) {
    Py_ssize_t n = PySequence_Check(seq) ? PySequence_Size(seq) : -1;
    if (n < 0) {
        PyErr_Clear();
        PyErr_Format(PyExc_TypeError, "%s must be a sequence of integers, got %R", what, seq);
        return -1;
    }
    if (n > PL_MAX_DIMS) {
        PyErr_Format(PyExc_ValueError, "%s has %zd dimensions, at most %d are supported", what, n,
                     PL_MAX_DIMS);
        return -1;
    }
    for (Py_ssize_t d = 0; d < n; d++) {
        PyObject *item = PySequence_GetItem(seq, d);
        int bad = !item || pl_arg_int64(item, what, &shape[d]);
        Py_XDECREF(item);
        if (bad) return -1;
    }
    *ndim = (int)n;
    return 0;
}

int pl_arg_dtype(PyObject *obj, pl_dtype *out) {
    int64_t code;
    if (pl_arg_int64(obj, "dtype", &code)) return -1;
    if (code < 0 || code >= PL_DTYPE_COUNT) {
        PyErr_Format(PyExc_ValueError, "dtype code %lld is unknown", (long long)code);
        return -1;
    }
    *out = (pl_dtype)code;
    return 0;
}

int pl_arg_tensors(PyObject *seq, const char *what, bool allow_none, int *n, pl_tensor ***out) {
    Py_ssize_t len = PyList_Check(seq) || PyTuple_Check(seq) ? PySequence_Size(seq) : -1;
    pl_tensor **items = NULL;
    if (len < 0) {
        PyErr_Format(PyExc_TypeError, "[%s] expected a list or tuple of tensors, got %R", what,
                     (PyObject *)Py_TYPE(seq));
        return -1;
    }
    pl_status st = pl_alloc((size_t)(len ? len : 1) * sizeof *items, (void **)&items);
    if (st != PL_OK) {
        pl_raise(NULL, st);
        return -1;
    }
    for (Py_ssize_t i = 0; i < len; i++) {
        PyObject *item = PySequence_GetItem(seq, i);
        items[i] = NULL;
        if (item && !(allow_none && item == Py_None)) items[i] = pl_tensor_of(item, what);
        Py_XDECREF(item);  // the list still holds it
        if (PyErr_Occurred()) {
            pl_free(items);
            return -1;
        }
    }
    *n = (int)len;
    *out = items;
    return 0;
}

int pl_arg_optional(PyObject *obj, const char *op, pl_tensor **out) {
    *out = NULL;
    if (obj == Py_None) return 0;
    *out = pl_tensor_of(obj, op);
    return *out ? 0 : -1;
}

int pl_arg_dims(PyObject *obj, const char *op, int ndim, uint32_t *mask) {
    int n, dim;
    int64_t dims[PL_MAX_DIMS];
    *mask = 0;
    if (obj == Py_None) {
        *mask = (1u << ndim) - 1u;
        return 0;
    }
    if (pl_arg_shape(obj, "dim", &n, dims)) return -1;
    for (int i = 0; i < n; i++) {
        pl_status st = pl_dim_wrap(op, (int)dims[i], ndim, &dim);
        if (st == PL_OK && ndim > 0 && (*mask >> dim & 1u)) {
            st = pl_fail(PL_ERUNTIME, "[%s] dimension %d is given twice", op, dim);
        }
        if (st != PL_OK) {
            pl_raise(NULL, st);
            return -1;
        }
        if (ndim > 0) *mask |= 1u << dim;
    }
    if (n == 0) *mask = (1u << ndim) - 1u;
    return 0;
}

static int format_dtype(const char *f, Py_ssize_t itemsize, pl_dtype *out) {
    if (!f) f = "B";
    if (*f == '@' || *f == '=' || *f == '<') f++;
    if (f[0] && f[1]) return -1;
    switch (*f) {
        case 'f':
            *out = PL_F32;
            return 0;
        case 'd':
            *out = PL_F64;
            return 0;
        case 'e':
            *out = PL_F16;
            return 0;
        case '?':
            *out = PL_BOOL;
            return 0;
        case 'B':
            *out = PL_U8;
            return 0;
        case 'i':
        case 'l':
        case 'q':
            *out = itemsize == 8 ? PL_I64 : PL_I32;
            return itemsize == 8 || itemsize == 4 ? 0 : -1;
        default:
            return -1;
    }
}

int pl_arg_on_host(const pl_tensor *t, const char *op) {
    if (pl_tensor_is_cpu(t)) return 0;
    PyErr_Format(PyExc_NotImplementedError,
                 "[%s] the tensor lies on cuda:%d, and the host reads it here: pass x.cpu()", op,
                 pl_tensor_device(t).index);
    return -1;
}

static int buffer_from_tensor(PyObject *obj, bool anywhere, pl_buffer *out) {
    pl_tensor *t = ((pl_py_tensor *)obj)->t;
    if (!anywhere && pl_arg_on_host(t, "buffer")) return -1;
    if (!pl_tensor_is_contiguous(t)) {
        PyErr_SetString(PyExc_ValueError,
                        "[buffer] the tensor is not contiguous: pass x.contiguous()");
        return -1;
    }
    *out =
        (pl_buffer){.data = t->data, .count = t->numel, .dtype = t->dtype, .keep = Py_NewRef(obj)};
    out->device = pl_tensor_device(t);
    return 0;
}

int pl_buffer_anywhere(PyObject *obj, bool writable, pl_buffer *out) {
    if (PyObject_TypeCheck(obj, pl_tensor_type())) return buffer_from_tensor(obj, true, out);
    return pl_buffer_from(obj, writable, out);
}

int pl_buffer_from(PyObject *obj, bool writable, pl_buffer *out) {
    if (PyObject_TypeCheck(obj, pl_tensor_type())) return buffer_from_tensor(obj, false, out);
    memset(out, 0, sizeof *out);
    int flags = PyBUF_FORMAT | PyBUF_C_CONTIGUOUS | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(obj, &out->view, flags)) {
        PyErr_Clear();
        PyErr_Format(PyExc_TypeError,
                     "[buffer] expected a tensor or a contiguous%s buffer (a NumPy array), got %R",
                     writable ? ", writable" : "", (PyObject *)Py_TYPE(obj));
        return -1;
    }
    out->has_view = true;
    if (format_dtype(out->view.format, out->view.itemsize, &out->dtype)) {
        PyErr_Format(PyExc_TypeError, "[buffer] element format '%s' is not supported",
                     out->view.format);
        PyBuffer_Release(&out->view);
        return -1;
    }
    out->data = out->view.buf;
    out->count = out->view.len / (out->view.itemsize ? out->view.itemsize : 1);
    return 0;
}

void pl_buffer_release(pl_buffer *b) {
    if (b->has_view) PyBuffer_Release(&b->view);
    b->has_view = false;
    Py_CLEAR(b->keep);
}

// ---- elements --------------------------------------------------------------------------------

PyObject *pl_element(pl_dtype dt, const void *at) {
    switch (dt) {
        case PL_BOOL:
            return PyBool_FromLong(*(const uint8_t *)at != 0);
        case PL_U8:
            return PyLong_FromLong(*(const uint8_t *)at);
        case PL_I32:
            return PyLong_FromLong(*(const int32_t *)at);
        case PL_I64:
            return PyLong_FromLongLong(*(const int64_t *)at);
        case PL_F16:
            return PyFloat_FromDouble((double)pl_f16_to_f32(*(const pl_f16 *)at));
        case PL_BF16:
            return PyFloat_FromDouble((double)pl_bf16_to_f32(*(const pl_bf16 *)at));
        case PL_F32:
            return PyFloat_FromDouble((double)*(const float *)at);
        case PL_F64:
            return PyFloat_FromDouble(*(const double *)at);
        default:
            PyErr_SetString(PyExc_SystemError, "unknown dtype");
            return NULL;
    }
}

int pl_fill_from(pl_tensor *t, PyObject *value) {
    pl_status st;
    if (pl_dtype_is_float(t->dtype)) {
        double v;
        if (pl_arg_double(value, "value", &v)) return -1;
        st = pl_k(t)->fill(t, v);
    } else if (PyFloat_Check(value)) {
        double v = PyFloat_AsDouble(value);
        if (!(v >= -9.2e18 && v <= 9.2e18)) {
            PyErr_Format(PyExc_OverflowError, "value %R does not fit in %s", value,
                         pl_dtype_name(t->dtype));
            return -1;
        }
        st = pl_k(t)->fill_int(t, t->dtype == PL_BOOL ? v != 0 : (int64_t)v);
    } else {
        int64_t v;
        if (pl_arg_int64(value, "value", &v)) return -1;
        st = pl_k(t)->fill_int(t, t->dtype == PL_BOOL ? v != 0 : v);
    }
    if (st == PL_OK) return 0;
    pl_raise(NULL, st);
    return -1;
}

// SPDX-License-Identifier: Apache-2.0
// What the host reads of a tensor's values: numbers, lists, truth, and the buffer protocol. What
// lies on a device is copied first, after all that was computed there; its memory is lent to
// nobody.
#include "call.h"

#define T(self) (((pl_py_tensor *)(self))->t)

// t (borrowed) as it is read by the host: a copy where it lies on a device, which waits. NULL with
// an exception.
static pl_tensor *on_host(pl_tensor *t) {
    pl_tensor *out = NULL;
    if (PL_LIKELY(pl_tensor_is_cpu(t))) return pl_tensor_retain(t);
    pl_status st;
    Py_BEGIN_ALLOW_THREADS
    st = pl_to_device(t, (pl_device){PL_CPU, 0}, false, &out);
    Py_END_ALLOW_THREADS
    if (st != PL_OK) pl_raise(NULL, st);
    return out;
}

// The one element of t.
static PyObject *element_of(pl_tensor *t) {
    if (PL_LIKELY(pl_tensor_is_cpu(t))) return pl_element(t->dtype, t->data);
    pl_tensor *host = on_host(t);
    PyObject *v = host ? pl_element(host->dtype, host->data) : NULL;
    pl_tensor_release(host);
    return v;
}

PyObject *pl_tensor_item(PyObject *self, PyObject *unused) {
    (void)unused;
    if (T(self)->numel == 1) return element_of(T(self));
    PyErr_Format(PyExc_RuntimeError,
                 "[item] only a tensor of one element is a number: this one has %lld; use tolist()",
                 (long long)T(self)->numel);
    return NULL;
}

static PyObject *list_of(const pl_tensor *t, int dim, const char *at) {
    if (dim == t->ndim) return pl_element(t->dtype, at);
    PyObject *list = PyList_New((Py_ssize_t)t->shape[dim]);
    ptrdiff_t step = (ptrdiff_t)t->strides[dim] * (ptrdiff_t)pl_dtype_size(t->dtype);
    for (int64_t i = 0; list && i < t->shape[dim]; i++) {
        PyObject *item = list_of(t, dim + 1, at + (ptrdiff_t)i * step);
        if (!item || PyList_SetItem(list, (Py_ssize_t)i, item)) Py_CLEAR(list);
    }
    return list;
}

PyObject *pl_tensor_tolist(PyObject *self, PyObject *unused) {
    (void)unused;
    pl_tensor *host = on_host(T(self));
    PyObject *list = host ? list_of(host, 0, host->data) : NULL;
    pl_tensor_release(host);
    return list;
}

int pl_tensor_bool(PyObject *self) {
    pl_tensor *t = T(self);
    if (t->numel != 1) {
        PyErr_Format(
            PyExc_RuntimeError,
            "the truth value of a tensor of %lld elements is ambiguous: use any() or all()",
            (long long)t->numel);
        return -1;
    }
    PyObject *v = element_of(t);
    int truth = v ? PyObject_IsTrue(v) : -1;
    Py_XDECREF(v);
    return truth;
}

PyObject *pl_tensor_float(PyObject *self) {
    PyObject *v = pl_tensor_item(self, NULL);
    PyObject *r = v ? PyNumber_Float(v) : NULL;
    Py_XDECREF(v);
    return r;
}

PyObject *pl_tensor_int(PyObject *self) {
    PyObject *v = pl_tensor_item(self, NULL);
    PyObject *r = v ? PyNumber_Long(v) : NULL;
    Py_XDECREF(v);
    return r;
}

PyObject *pl_tensor_index(PyObject *self) {
    if (!pl_dtype_is_float(T(self)->dtype)) return pl_tensor_int(self);
    PyErr_SetString(PyExc_TypeError, "only an integer tensor of one element can be an index");
    return NULL;
}

// ---- buffer protocol -------------------------------------------------------------------------

static const char *buffer_format(pl_dtype dt) {
    switch (dt) {
        case PL_BOOL:
            return "?";
        case PL_U8:
            return "B";
        case PL_I32:
            return "i";
        case PL_I64:
            return "q";
        case PL_F16:
            return "e";
        case PL_F32:
            return "f";
        case PL_F64:
            return "d";
        default:
            return NULL;
    }
}

int pl_tensor_get_buffer(PyObject *self, Py_buffer *view, int flags) {
    pl_tensor *t = T(self);
    const char *format = buffer_format(t->dtype);
    view->obj = NULL;
    bool dense = pl_tensor_is_contiguous(t);
    if (!pl_tensor_is_cpu(t)) {
        PyErr_Format(PyExc_BufferError,
                     "the tensor lies on cuda:%d, whose memory the host cannot read: use x.cpu()",
                     pl_tensor_device(t).index);
        return -1;
    }
    if (!format) {
        PyErr_SetString(PyExc_BufferError, "bfloat16 has no buffer format: use x.float()");
        return -1;
    }
    if (!dense && (flags & PyBUF_STRIDES) != PyBUF_STRIDES) {
        PyErr_SetString(PyExc_BufferError, "the tensor is not contiguous: use x.contiguous()");
        return -1;
    }
    Py_ssize_t *dims = NULL;
    pl_status st = pl_alloc(2 * PL_MAX_DIMS * sizeof *dims, (void **)&dims);
    if (st != PL_OK) {
        pl_raise(NULL, st);
        return -1;
    }
    Py_ssize_t size = (Py_ssize_t)pl_dtype_size(t->dtype);
    for (int d = 0; d < t->ndim; d++) {
        dims[d] = (Py_ssize_t)t->shape[d];
        dims[PL_MAX_DIMS + d] = (Py_ssize_t)t->strides[d] * size;
    }
    *view =
        (Py_buffer){.buf = t->data,
                    .obj = Py_NewRef(self),
                    .len = (Py_ssize_t)t->numel * size,
                    .itemsize = size,
                    .ndim = t->ndim,
                    .format = (flags & PyBUF_FORMAT) ? (char *)(uintptr_t)format : NULL,
                    .shape = (flags & PyBUF_ND) ? dims : NULL,
                    .strides = (flags & PyBUF_STRIDES) == PyBUF_STRIDES ? dims + PL_MAX_DIMS : NULL,
                    .internal = dims};
    return 0;
}

void pl_tensor_release_buffer(PyObject *self, Py_buffer *view) {
    (void)self;
    pl_free(view->internal);
}

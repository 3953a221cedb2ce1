// SPDX-License-Identifier: Apache-2.0
// See call.h.
#include "call.h"

static PyObject *native_loader;
static bool native_ready;

int pl_ensure_native(void) {
    if (native_ready) return 0;
    native_ready = true;  // once, even if it fails: the product that needs it says what is missing
    if (!native_loader) return 0;
    PyObject *r = PyObject_CallNoArgs(native_loader);
    Py_CLEAR(native_loader);
    if (!r) return -1;
    Py_DECREF(r);
    return 0;
}

PyObject *pl_py_set_native_loader(PyObject *module, PyObject *load) {
    (void)module;
    PyObject *old = native_loader;
    native_loader = Py_NewRef(load);
    native_ready = false;
    Py_XDECREF(old);
    Py_RETURN_NONE;
}

// The dtype of a Python scalar beside a tensor: the tensor's, unless the scalar's kind is higher.
static pl_dtype scalar_dtype(PyObject *obj, const pl_tensor *other) {
    bool is_float = PyFloat_Check(obj), is_bool = PyBool_Check(obj);
    if (!other) return is_float ? PL_F32 : is_bool ? PL_BOOL : PL_I64;
    if (pl_dtype_is_float(other->dtype)) return other->dtype;
    if (is_float) return PL_F32;
    if (other->dtype == PL_BOOL && !is_bool) return PL_I64;
    return other->dtype;
}

int pl_operand(PyObject *obj, const pl_tensor *other, pl_tensor **out) {
    if (PyObject_TypeCheck(obj, pl_tensor_type())) {
        *out = pl_tensor_retain(((pl_py_tensor *)obj)->t);
        return 0;
    }
    PyObject *number = NULL;
    if (PyBool_Check(obj) || PyLong_Check(obj) || PyFloat_Check(obj)) {
        number = Py_NewRef(obj);
    } else if (PyIndex_Check(obj)) {  // NumPy's integers
        number = PyNumber_Index(obj);
    } else if (PyNumber_Check(obj) && !PySequence_Check(obj)) {  // NumPy's floats
        number = PyNumber_Float(obj);
    }
    if (!number) {
        PyErr_Clear();
        return 1;
    }
    pl_tensor *t = NULL;
    pl_status st = pl_tensor_empty(scalar_dtype(number, other), 0, NULL, &t);  // Note [numbers]
    int rc = 0;
    if (st != PL_OK) {
        pl_raise(NULL, st);
        rc = -1;
    } else if (pl_fill_from(t, number)) {
        pl_tensor_release(t);
        rc = -1;
    } else {
        *out = t;
    }
    Py_DECREF(number);
    return rc;
}

int pl_call_raw(const pl_op *op, int n_in, pl_tensor *const *in, const pl_attrs *attrs,
                pl_tensor **out) {
    if (pl_ensure_native()) return -1;
    int64_t numel = 0;
    for (int i = 0; i < n_in; i++) numel += in[i] ? in[i]->numel : 0;
    pl_status st;
    if (numel < PL_GIL_NUMEL || op->is_view) {
        st = pl_amp_apply(op, n_in, in, attrs, out);
    } else {
        // The inputs are held by the caller's Python objects for the length of the call.
        Py_BEGIN_ALLOW_THREADS
        st = pl_amp_apply(op, n_in, in, attrs, out);
        Py_END_ALLOW_THREADS
    }
    if (st == PL_OK) return 0;
    pl_raise(NULL, st);
    return -1;
}

PyObject *pl_call(const pl_op *op, int n_in, pl_tensor *const *in, const pl_attrs *attrs) {
    pl_tensor *out = NULL;
    if (pl_call_raw(op, n_in, in, attrs, &out)) return NULL;
    return pl_tensor_wrap(out);
}

// Both operands of a binary call; 0, 1 (NotImplemented), -1.
static int operands(PyObject *a, PyObject *b, pl_tensor *out[2]) {
    const pl_tensor *ta = PyObject_TypeCheck(a, pl_tensor_type()) ? ((pl_py_tensor *)a)->t : NULL;
    const pl_tensor *tb = PyObject_TypeCheck(b, pl_tensor_type()) ? ((pl_py_tensor *)b)->t : NULL;
    int rc = pl_operand(a, tb, &out[0]);
    if (rc) return rc;
    rc = pl_operand(b, ta, &out[1]);
    if (rc) pl_tensor_release(out[0]);
    return rc;
}

PyObject *pl_call_binary(const pl_op *op, PyObject *a, PyObject *b) {
    pl_tensor *in[2];
    int rc = operands(a, b, in);
    if (rc > 0) Py_RETURN_NOTIMPLEMENTED;
    if (rc < 0) return NULL;
    PyObject *r = pl_call(op, 2, in, NULL);
    pl_tensor_release(in[0]);
    pl_tensor_release(in[1]);
    return r;
}

// pl_binary_new of inputs that may have to meet first.
static pl_status plain(pl_binary op, const char *name, pl_tensor *const in[2], pl_tensor **out) {
    if (PL_LIKELY(pl_all_cpu(2, in))) return pl_binary_new(op, name, in[0], in[1], out);
    pl_tensor *met[2];
    PL_TRY(pl_meet(name, true, 2, in, met));
    pl_status st = pl_binary_new(op, name, met[0] ? met[0] : in[0], met[1] ? met[1] : in[1], out);
    pl_tensor_release(met[0]);
    pl_tensor_release(met[1]);
    return st;
}

PyObject *pl_call_binary_plain(pl_binary op, const char *name, PyObject *a, PyObject *b) {
    pl_tensor *in[2], *out = NULL;
    int rc = operands(a, b, in);
    if (rc > 0) Py_RETURN_NOTIMPLEMENTED;
    if (rc < 0) return NULL;
    pl_status st = PL_OK;
    if (in[0]->numel + in[1]->numel < PL_GIL_NUMEL) {
        st = plain(op, name, in, &out);
    } else {
        Py_BEGIN_ALLOW_THREADS
        st = plain(op, name, in, &out);
        Py_END_ALLOW_THREADS
    }
    pl_tensor_release(in[0]);
    pl_tensor_release(in[1]);
    return st == PL_OK ? pl_tensor_wrap(out) : pl_raise(NULL, st);
}

PyObject *pl_call_inplace(const pl_op *op, PyObject *x, PyObject *other) {
    pl_tensor *t = pl_tensor_of(x, op->name), *in[2] = {t, NULL};
    if (!t || pl_ensure_native()) return NULL;
    int rc = pl_operand(other, t, &in[1]);
    if (rc > 0) Py_RETURN_NOTIMPLEMENTED;
    if (rc < 0) return NULL;
    pl_status st = PL_OK;
    Py_BEGIN_ALLOW_THREADS
    st = pl_autograd_apply_inplace(op, 2, in, NULL);
    Py_END_ALLOW_THREADS
    pl_tensor_release(in[1]);
    return st == PL_OK ? Py_NewRef(x) : pl_raise(NULL, st);
}

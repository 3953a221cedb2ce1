// SPDX-License-Identifier: Apache-2.0
// _C.Tensor: the object that holds a tensor. Operators are slots; everything with keywords is the
// facade's (paceline/_tensor.py), whose class is the one that operators give back.
#include <string.h>

#include "call.h"

// Process-wide, set once at import: a second interpreter in one process is not supported.
static PyTypeObject *base_type;
static PyTypeObject *result_type;  // what operators give: the facade's subclass

PyTypeObject *pl_tensor_type(void) { return base_type; }

static PyObject *object_of(PyTypeObject *type, pl_tensor *t) {
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    pl_py_tensor *o = (pl_py_tensor *)alloc(type, 0);
    if (!o) {
        pl_tensor_release(t);
        return NULL;
    }
    o->t = t;
    return (PyObject *)o;
}

PyObject *pl_tensor_wrap(pl_tensor *t) { return object_of(result_type, t); }

pl_tensor *pl_tensor_of(PyObject *obj, const char *op) {
    if (PyObject_TypeCheck(obj, base_type)) return ((pl_py_tensor *)obj)->t;
    PyErr_Format(PyExc_TypeError, "[%s] expected a Tensor, got %R", op, (PyObject *)Py_TYPE(obj));
    return NULL;
}

static void dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    pl_tensor_release(((pl_py_tensor *)self)->t);
    freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
    free_object(self);
    Py_DECREF(type);
}

static PyObject *tensor_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)args;
    (void)kwargs;
    PyErr_Format(PyExc_TypeError, "%R is not made by calling it: use paceline.tensor(data)", type);
    return NULL;
}

#define T(self) (((pl_py_tensor *)(self))->t)

// ---- attributes ------------------------------------------------------------------------------

static PyObject *int_tuple(int n, const int64_t *v) {
    PyObject *tuple = PyTuple_New(n);
    for (int i = 0; tuple && i < n; i++) {
        PyObject *item = PyLong_FromLongLong(v[i]);
        if (!item || PyTuple_SetItem(tuple, i, item)) Py_CLEAR(tuple);
    }
    return tuple;
}

static PyObject *get_shape(PyObject *self, void *unused) {
    (void)unused;
    return int_tuple(T(self)->ndim, T(self)->shape);
}
static PyObject *get_strides(PyObject *self, void *unused) {
    (void)unused;
    return int_tuple(T(self)->ndim, T(self)->strides);
}
static PyObject *get_ndim(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromLong(T(self)->ndim);
}
static PyObject *get_dtype(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromLong(T(self)->dtype);
}
static PyObject *get_is_leaf(PyObject *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(pl_is_leaf(T(self)));
}
static PyObject *get_requires_grad(PyObject *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(pl_requires_grad(T(self)));
}
static int set_requires_grad(PyObject *self, PyObject *value, void *unused) {
    (void)unused;
    int on = value ? PyObject_IsTrue(value) : 0;
    if (on < 0) return -1;
    pl_status st = pl_set_requires_grad(T(self), on);
    if (st == PL_OK) return 0;
    pl_raise(NULL, st);
    return -1;
}
static PyObject *get_grad(PyObject *self, void *unused) {
    (void)unused;
    pl_tensor *g = pl_grad_of(T(self));
    if (!g) Py_RETURN_NONE;
    pl_status st = pl_autograd_settle(T(self));
    if (st != PL_OK) return pl_raise(NULL, st);
    return pl_tensor_wrap(pl_tensor_retain(g));
}
static int set_grad(PyObject *self, PyObject *value, void *unused) {
    (void)unused;
    pl_tensor *g = NULL;
    if (value && pl_arg_optional(value, "grad", &g)) return -1;
    pl_status st = pl_set_grad(T(self), g);
    if (st == PL_OK) return 0;
    pl_raise(NULL, st);
    return -1;
}
static PyObject *get_grad_fn_name(PyObject *self, void *unused) {
    (void)unused;
    const char *name = pl_grad_fn_name(T(self));
    if (!name) Py_RETURN_NONE;
    return PyUnicode_FromString(name);
}
static PyObject *get_version(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLong(pl_storage_version(T(self)->storage));
}
static PyObject *get_data_ptr(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromVoidPtr(T(self)->data);
}

static PyObject *get_device_index(PyObject *self, void *unused) {
    (void)unused;
    pl_device d = pl_tensor_device(T(self));
    return PyLong_FromLong(d.type == PL_CPU ? -1 : d.index);
}
static PyObject *get_is_pinned(PyObject *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(pl_storage_is_pinned(T(self)->storage));
}

static PyGetSetDef getset[] = {
    {"shape", get_shape, NULL, NULL, NULL},
    {"_strides", get_strides, NULL, NULL, NULL},
    {"ndim", get_ndim, NULL, NULL, NULL},
    {"_dtype", get_dtype, NULL, NULL, NULL},
    {"is_leaf", get_is_leaf, NULL, NULL, NULL},
    {"requires_grad", get_requires_grad, set_requires_grad, NULL, NULL},
    {"grad", get_grad, set_grad, NULL, NULL},
    {"_grad_fn_name", get_grad_fn_name, NULL, NULL, NULL},
    {"_version", get_version, NULL, NULL, NULL},
    {"_data_ptr", get_data_ptr, NULL, NULL, NULL},
    {"_device_index", get_device_index, NULL, NULL, NULL},
    {"_is_pinned", get_is_pinned, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

// ---- methods ---------------------------------------------------------------------------------

static PyObject *tensor_numel(PyObject *self, PyObject *unused) {
    (void)unused;
    return PyLong_FromLongLong(T(self)->numel);
}

static PyObject *tensor_is_contiguous(PyObject *self, PyObject *unused) {
    (void)unused;
    return PyBool_FromLong(pl_tensor_is_contiguous(T(self)));
}

static PyObject *tensor_set_data(PyObject *self, PyObject *arg) {
    pl_tensor *t = T(self), *o = pl_tensor_of(arg, "data");
    if (!o) return NULL;
    bool same = t->dtype == o->dtype && pl_shape_equal(t->ndim, t->shape, o->ndim, o->shape) &&
                pl_device_equal(pl_tensor_device(t), pl_tensor_device(o));
    if (!same && (!pl_is_leaf(t) || pl_grad_of(t) || pl_autograd_has_grad_view(t))) {
        PyErr_SetString(
            PyExc_RuntimeError,
            "[data] shape, dtype or device can change only before a gradient exists and before "
            "prepare: set .grad to None first, or convert the model before prepare");
        return NULL;
    }
    t->dtype = o->dtype;
    t->ndim = o->ndim;
    t->numel = o->numel;
    memcpy(t->shape, o->shape, sizeof t->shape);
    memcpy(t->strides, o->strides, sizeof t->strides);
    ptrdiff_t bytes = (char *)o->data - (char *)o->storage->data;
    pl_tensor_rebind(t, o->storage, bytes / (ptrdiff_t)pl_dtype_size(o->dtype));
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"_numel", tensor_numel, METH_NOARGS, NULL},
    {"_is_contiguous", tensor_is_contiguous, METH_NOARGS, NULL},
    {"item", pl_tensor_item, METH_NOARGS, NULL},
    {"tolist", pl_tensor_tolist, METH_NOARGS, NULL},
    {"_set_data", tensor_set_data, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static Py_ssize_t tensor_len(PyObject *self) {
    if (T(self)->ndim > 0) return (Py_ssize_t)T(self)->shape[0];
    PyErr_SetString(PyExc_TypeError, "len() of a 0-d tensor");
    return -1;
}

// ---- operators -------------------------------------------------------------------------------

#define BINARY_SLOT(fn, op) \
    static PyObject *fn(PyObject *a, PyObject *b) { return pl_call_binary(&pl_op_##op, a, b); }
BINARY_SLOT(nb_add, add)
BINARY_SLOT(nb_sub, sub)
BINARY_SLOT(nb_mul, mul)
BINARY_SLOT(nb_div, div)

#define PLAIN_SLOT(fn, OP, name)                                 \
    static PyObject *fn(PyObject *a, PyObject *b) {              \
        return pl_call_binary_plain(PL_BINARY_##OP, name, a, b); \
    }
PLAIN_SLOT(nb_floor_div, FLOOR_DIVIDE, "floor_divide")
PLAIN_SLOT(nb_remainder, REMAINDER, "remainder")

// & | ^ are logical ones: of bool tensors only.
static PyObject *logical(pl_binary op, const char *name, PyObject *a, PyObject *b) {
    for (int i = 0; i < 2; i++) {
        PyObject *o = i ? b : a;
        bool is_bool =
            PyBool_Check(o) || (PyObject_TypeCheck(o, base_type) && T(o)->dtype == PL_BOOL);
        if (!is_bool) {
            PyErr_Format(PyExc_TypeError, "[%s] defined for bool tensors here: got %R", name,
                         (PyObject *)Py_TYPE(o));
            return NULL;
        }
    }
    return pl_call_binary_plain(op, name, a, b);
}
static PyObject *nb_and(PyObject *a, PyObject *b) {
    return logical(PL_BINARY_LOGICAL_AND, "&", a, b);
}
static PyObject *nb_or(PyObject *a, PyObject *b) {
    return logical(PL_BINARY_LOGICAL_OR, "|", a, b);
}
static PyObject *nb_xor(PyObject *a, PyObject *b) {
    return logical(PL_BINARY_LOGICAL_XOR, "^", a, b);
}

#define INPLACE_SLOT(fn, op) \
    static PyObject *fn(PyObject *a, PyObject *b) { return pl_call_inplace(&pl_op_##op, a, b); }
INPLACE_SLOT(nb_iadd, add)
INPLACE_SLOT(nb_isub, sub)
INPLACE_SLOT(nb_imul, mul)
INPLACE_SLOT(nb_idiv, div)

static PyObject *nb_pow(PyObject *a, PyObject *b, PyObject *mod) {
    if (mod != Py_None) {
        PyErr_SetString(PyExc_TypeError, "[pow] a modulus is not supported");
        return NULL;
    }
    if (PyObject_TypeCheck(a, base_type) && PyLong_Check(b) && PyLong_AsLong(b) == 2 &&
        !PyBool_Check(b)) {
        pl_tensor *t = T(a);
        if (pl_dtype_is_float(t->dtype)) return pl_call(&pl_op_square, 1, &t, NULL);
    }
    PyErr_Clear();
    return pl_call_binary(&pl_op_pow, a, b);
}

static PyObject *nb_unary(const pl_op *op, PyObject *self) {
    pl_tensor *t = T(self);
    return pl_call(op, 1, &t, NULL);
}
static PyObject *nb_negative(PyObject *self) { return nb_unary(&pl_op_neg, self); }
static PyObject *nb_absolute(PyObject *self) { return nb_unary(&pl_op_abs, self); }
static PyObject *nb_invert(PyObject *self) {
    pl_tensor *out = NULL;
    if (T(self)->dtype != PL_BOOL) {
        PyErr_SetString(PyExc_TypeError, "[~] defined for bool tensors here");
        return NULL;
    }
    pl_status st = pl_unary_new(PL_UNARY_LOGICAL_NOT, T(self), &out);
    return st == PL_OK ? pl_tensor_wrap(out) : pl_raise(NULL, st);
}

static PyObject *rich_compare(PyObject *a, PyObject *b, int op) {
    static const pl_binary ops[] = {PL_BINARY_LT, PL_BINARY_LE, PL_BINARY_EQ,
                                    PL_BINARY_NE, PL_BINARY_GT, PL_BINARY_GE};
    static const char *const names[] = {"lt", "le", "eq", "ne", "gt", "ge"};
    return pl_call_binary_plain(ops[op], names[op], a, b);
}

static Py_hash_t tensor_hash(PyObject *self) {
    return (Py_hash_t)((uintptr_t)self >> 4 & (uintptr_t)PY_SSIZE_T_MAX);  // by identity
}

#define SLOT(id, fn) {id, (void *)(uintptr_t)(fn)}
static PyType_Slot slots[] = {
    SLOT(Py_tp_new, tensor_new),
    SLOT(Py_tp_dealloc, dealloc),
    SLOT(Py_tp_hash, tensor_hash),
    SLOT(Py_tp_richcompare, rich_compare),
    {Py_tp_getset, getset},
    {Py_tp_methods, methods},
    SLOT(Py_mp_length, tensor_len),
    SLOT(Py_mp_subscript, pl_tensor_getitem),
    SLOT(Py_mp_ass_subscript, pl_tensor_setitem),
    SLOT(Py_nb_bool, pl_tensor_bool),
    SLOT(Py_nb_float, pl_tensor_float),
    SLOT(Py_nb_int, pl_tensor_int),
    SLOT(Py_nb_index, pl_tensor_index),
    SLOT(Py_nb_add, nb_add),
    SLOT(Py_nb_subtract, nb_sub),
    SLOT(Py_nb_multiply, nb_mul),
    SLOT(Py_nb_true_divide, nb_div),
    SLOT(Py_nb_floor_divide, nb_floor_div),
    SLOT(Py_nb_remainder, nb_remainder),
    SLOT(Py_nb_power, nb_pow),
    SLOT(Py_nb_matrix_multiply, pl_tensor_matmul),
    SLOT(Py_nb_and, nb_and),
    SLOT(Py_nb_or, nb_or),
    SLOT(Py_nb_xor, nb_xor),
    SLOT(Py_nb_negative, nb_negative),
    SLOT(Py_nb_absolute, nb_absolute),
    SLOT(Py_nb_invert, nb_invert),
    SLOT(Py_nb_inplace_add, nb_iadd),
    SLOT(Py_nb_inplace_subtract, nb_isub),
    SLOT(Py_nb_inplace_multiply, nb_imul),
    SLOT(Py_nb_inplace_true_divide, nb_idiv),
    SLOT(Py_bf_getbuffer, pl_tensor_get_buffer),
    SLOT(Py_bf_releasebuffer, pl_tensor_release_buffer),
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "paceline._C.Tensor",
    .basicsize = sizeof(pl_py_tensor),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = slots,
};

// ---- module functions that deal in classes ---------------------------------------------------

static PyObject *register_classes(PyObject *module, PyObject *cls) {
    (void)module;
    if (!PyType_Check(cls) || !PyType_IsSubtype((PyTypeObject *)cls, base_type)) {
        PyErr_SetString(PyExc_TypeError, "[register_classes] expected a subclass of _C.Tensor");
        return NULL;
    }
    PyTypeObject *old = result_type;
    result_type = (PyTypeObject *)Py_NewRef(cls);
    Py_XDECREF((PyObject *)old);
    Py_RETURN_NONE;
}

static int class_argument(PyObject *cls) {
    if (PyType_Check(cls) && PyType_IsSubtype((PyTypeObject *)cls, base_type)) return 0;
    PyErr_SetString(PyExc_TypeError, "[alias] expected a subclass of Tensor");
    return -1;
}

static PyObject *alias(PyObject *module, PyObject *const *args, Py_ssize_t n) {
    (void)module;
    if (pl_arg_count("alias", n, 3) || class_argument(args[0])) return NULL;
    pl_tensor *t = pl_tensor_of(args[1], "alias"), *out = NULL;
    int grad = PyObject_IsTrue(args[2]);
    if (!t || grad < 0) return NULL;
    pl_status st = pl_detach(t, &out);
    if (st == PL_OK && grad) st = pl_set_requires_grad(out, true);
    if (st != PL_OK) {
        pl_tensor_release(out);
        return pl_raise(module, st);
    }
    return object_of((PyTypeObject *)args[0], out);
}

static PyObject *as_class(PyObject *module, PyObject *const *args, Py_ssize_t n) {
    (void)module;
    if (pl_arg_count("as_class", n, 2) || class_argument(args[0])) return NULL;
    pl_tensor *t = pl_tensor_of(args[1], "as_class");
    return t ? object_of((PyTypeObject *)args[0], pl_tensor_retain(t)) : NULL;
}

static PyMethodDef functions[] = {
    {"register_classes", register_classes, METH_O, NULL},
    {"alias", (PyCFunction)(void (*)(void))alias, METH_FASTCALL, NULL},
    {"as_class", (PyCFunction)(void (*)(void))as_class, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

int pl_bind_tensor(PyObject *module) {
    if (!base_type) {
        base_type = (PyTypeObject *)PyType_FromSpec(&spec);
        if (!base_type) return -1;
        result_type = (PyTypeObject *)Py_NewRef((PyObject *)base_type);
    }
    if (PyModule_AddObjectRef(module, "Tensor", (PyObject *)base_type)) return -1;
    return PyModule_AddFunctions(module, functions);
}

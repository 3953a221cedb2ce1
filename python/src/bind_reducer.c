// SPDX-License-Identifier: Apache-2.0
// _C.Reducer: buckets over a model's parameters. The GIL is released around everything that waits.
// `ready`, which another library calls for every gradient, keeps it: it only counts and queues.
#include "bind_group.h"
#include "call.h"
#include "ddp/ddp.h"

typedef struct reducer_object {
    PyObject_HEAD pl_reducer *r;
    PyObject *group;  // the Group object, held: it must outlive the reducer
} reducer_object;

#define R(self) (((reducer_object *)(self))->r)

// A leaf without memory for a gradient that another library computes: ddp.h, Note [outside
// gradients]. spec: (shape, dtype).
static pl_tensor *outside_param(PyObject *spec) {
    int ndim;
    int64_t shape[PL_MAX_DIMS];
    pl_dtype dt;
    pl_storage *none = NULL;
    pl_tensor *t = NULL;
    if (PyTuple_Size(spec) != 2) {
        PyErr_Clear();
        PyErr_SetString(PyExc_TypeError, "[Reducer] expected tensors or pairs (shape, dtype)");
        return NULL;
    }
    if (pl_arg_shape(PyTuple_GetItem(spec, 0), "shape", &ndim, shape) ||
        pl_arg_dtype(PyTuple_GetItem(spec, 1), &dt)) {
        return NULL;
    }
    pl_status st = pl_storage_wrap(NULL, 0, NULL, NULL, &none);
    if (st == PL_OK) st = pl_tensor_from_storage(none, dt, ndim, shape, NULL, 0, &t);
    if (st == PL_OK) st = pl_set_requires_grad(t, true);
    pl_storage_release(none);
    if (st == PL_OK) return t;
    pl_tensor_release(t);
    pl_raise(NULL, st);
    return NULL;
}

static void release_all(pl_tensor **params, int n) {
    for (int i = 0; i < n; i++) pl_tensor_release(params[i]);
    pl_free(params);
}

// Tensors or pairs (shape, dtype), as new references.
static int take_params(PyObject *seq, int *n, pl_tensor ***out) {
    Py_ssize_t len = PyList_Check(seq) || PyTuple_Check(seq) ? PySequence_Size(seq) : -1;
    pl_tensor **params = NULL;
    if (len < 0 || len > INT32_MAX) {
        PyErr_SetString(PyExc_TypeError, "[Reducer] expected a list or tuple of parameters");
        return -1;
    }
    pl_status st = pl_alloc((size_t)(len ? len : 1) * sizeof *params, (void **)&params);
    if (st != PL_OK) {
        pl_raise(NULL, st);
        return -1;
    }
    for (int i = 0; i < (int)len; i++) {
        PyObject *item = PySequence_GetItem(seq, i);
        if (item && PyTuple_Check(item)) {
            params[i] = outside_param(item);
        } else {
            params[i] = item ? pl_tensor_of(item, "Reducer") : NULL;
            if (params[i]) pl_tensor_retain(params[i]);
        }
        Py_XDECREF(item);
        if (!params[i]) {
            release_all(params, i);
            return -1;
        }
    }
    *n = (int)len;
    *out = params;
    return 0;
}

// Reducer(group, params, names, first_bucket_bytes, bucket_bytes, op)
static int make(reducer_object *self, PyObject *args) {
    PyObject *item[6];
    int64_t first, cap, op;
    int n = 0;
    pl_tensor **params = NULL;
    if (PyTuple_Size(args) != 6) {
        PyErr_Format(PyExc_TypeError, "[Reducer] takes 6 arguments, got %zd", PyTuple_Size(args));
        return -1;
    }
    for (int i = 0; i < 6; i++) item[i] = PyTuple_GetItem(args, i);
    if (pl_arg_int64(item[3], "first_bucket_bytes", &first) ||
        pl_arg_int64(item[4], "bucket_bytes", &cap) || pl_arg_int64(item[5], "op", &op)) {
        return -1;
    }
    if (op != PL_RED_SUM && op != PL_RED_MEAN) {
        PyErr_Format(PyExc_ValueError, "[Reducer] op must be SUM or MEAN, got code %lld",
                     (long long)op);
        return -1;
    }
    pl_group *group = pl_group_hold(item[0], "Reducer");
    if (!group) return -1;
    self->group = Py_NewRef(item[0]);
    if (take_params(item[1], &n, &params)) return -1;
    pl_reducer_options opt = {.group = group,
                              .n = n,
                              .params = params,
                              .op = (pl_redop)op,
                              .first_bucket_bytes = first,
                              .bucket_bytes = cap};
    pl_site site = {.hash = 0x64647072u, .text = "gradients (backward)"};
    pl_status st = PL_OK;
    Py_BEGIN_ALLOW_THREADS
    st = pl_reducer_new(&opt, site, &self->r);
    Py_END_ALLOW_THREADS
    release_all(params, n);
    if (st == PL_OK) return 0;
    pl_raise(NULL, st);
    return -1;
}

static PyObject *reducer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    if (kwargs && PyDict_Size(kwargs)) {
        PyErr_SetString(PyExc_TypeError, "[Reducer] takes no keyword arguments");
        return NULL;
    }
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    reducer_object *self = (reducer_object *)alloc(type, 0);
    if (!self) return NULL;
    if (make(self, args)) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void reducer_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    pl_reducer *r = R(self);
    // Without the GIL, since freeing may wait for a bucket under way.
    Py_BEGIN_ALLOW_THREADS
    pl_reducer_free(r);
    Py_END_ALLOW_THREADS
    PyObject *group = ((reducer_object *)self)->group;
    if (group) pl_group_unhold(group);
    Py_XDECREF(group);
    freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
    free_object(self);
    Py_DECREF(type);
}

static PyObject *set_sync(PyObject *self, PyObject *arg) {
    int on = PyObject_IsTrue(arg);
    if (on < 0) return NULL;
    pl_reducer_set_sync(R(self), on);
    Py_RETURN_NONE;
}

static PyObject *expect(PyObject *self, PyObject *unused) {
    (void)unused;
    pl_reducer_expect(R(self));
    Py_RETURN_NONE;
}

static PyObject *finalize(PyObject *self, PyObject *unused) {
    (void)unused;
    pl_reducer *r = R(self);
    pl_status st = PL_OK;
    Py_BEGIN_ALLOW_THREADS
    st = pl_reducer_finalize(r);
    Py_END_ALLOW_THREADS
    if (st == PL_OK) Py_RETURN_NONE;
    return pl_raise(NULL, st);
}

// ---- what another library's backward pass calls ----------------------------------------------

// ready(i): False if the bucket was sent before this came.
static PyObject *ready(PyObject *self, PyObject *arg) {
    int64_t i;
    bool late;
    if (pl_arg_int64(arg, "parameter", &i)) return NULL;
    pl_status st = pl_reducer_ready(R(self), i < 0 || i > INT32_MAX ? -1 : (int)i, &late);
    return st == PL_OK ? PyBool_FromLong(!late) : pl_raise(NULL, st);
}

// mark(i, defined)
static PyObject *mark(PyObject *self, PyObject *const *args, Py_ssize_t n) {
    int64_t i;
    if (pl_arg_count("mark", n, 2) || pl_arg_int64(args[0], "parameter", &i)) return NULL;
    int defined = PyObject_IsTrue(args[1]);
    if (defined < 0) return NULL;
    pl_status st = pl_reducer_mark(R(self), i < 0 || i > INT32_MAX ? -1 : (int)i, defined);
    if (st == PL_OK) Py_RETURN_NONE;
    return pl_raise(NULL, st);
}

static PyObject *grad(PyObject *self, PyObject *arg) {
    int64_t i;
    pl_tensor *view = NULL;
    if (pl_arg_int64(arg, "parameter", &i)) return NULL;
    pl_status st = pl_reducer_grad(R(self), i < 0 || i > INT32_MAX ? -1 : (int)i, &view);
    return st == PL_OK ? pl_tensor_wrap(view) : pl_raise(NULL, st);
}

static PyObject *fail(PyObject *self, PyObject *unused) {
    (void)unused;
    pl_reducer_fail(R(self));
    Py_RETURN_NONE;
}

// The parameters for which `keep` says so.
static PyObject *numbers(const pl_reducer *r, bool (*keep)(const pl_reducer *, int), bool wanted) {
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < pl_reducer_n_params(r); i++) {
        if (keep(r, i) != wanted) continue;
        PyObject *v = PyLong_FromLong(i);
        if (!v || PyList_Append(list, v)) Py_CLEAR(list);
        Py_XDECREF(v);
    }
    return list;
}

static PyObject *get_missing(PyObject *self, void *unused) {
    (void)unused;
    return numbers(R(self), pl_reducer_is_ready, false);
}

static PyObject *get_marked(PyObject *self, void *unused) {
    (void)unused;
    return numbers(R(self), pl_reducer_marked, true);
}

static PyObject *get_buckets(PyObject *self, void *unused) {
    (void)unused;
    int count = pl_reducer_n_buckets(R(self));
    PyObject *list = PyList_New(count);
    for (int k = 0; list && k < count; k++) {
        int n;
        const int *members = pl_reducer_bucket(R(self), k, &n);
        PyObject *bucket = PyList_New(n);
        for (int i = 0; bucket && i < n; i++) {
            PyObject *v = PyLong_FromLong(members[i]);
            if (!v || PyList_SetItem(bucket, i, v)) Py_CLEAR(bucket);
        }
        if (!bucket || PyList_SetItem(list, k, bucket)) Py_CLEAR(list);
    }
    return list;
}

static PyObject *get_owed(PyObject *self, void *unused) {
    (void)unused;
    return PyBool_FromLong(pl_reducer_owed(R(self)));
}

static PyGetSetDef getset[] = {
    {"owed", get_owed, NULL, NULL, NULL},
    {"buckets", get_buckets, NULL, NULL, NULL},
    {"missing", get_missing, NULL, NULL, NULL},
    {"marked", get_marked, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyMethodDef methods[] = {
    {"set_sync", set_sync, METH_O, NULL},
    {"expect", expect, METH_NOARGS, NULL},
    {"finalize", finalize, METH_NOARGS, NULL},
    {"ready", ready, METH_O, NULL},
    {"mark", (PyCFunction)(void (*)(void))mark, METH_FASTCALL, NULL},
    {"grad", grad, METH_O, NULL},
    {"fail", fail, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot slots[] = {
    {Py_tp_new, (void *)(uintptr_t)reducer_new},
    {Py_tp_dealloc, (void *)(uintptr_t)reducer_dealloc},
    {Py_tp_getset, getset},
    {Py_tp_methods, methods},
    {0, NULL},
};
static PyType_Spec spec = {
    .name = "paceline._C.Reducer",
    .basicsize = sizeof(reducer_object),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};

int pl_bind_reducer(PyObject *module) {
    PyObject *type = PyType_FromSpec(&spec);
    if (!type) return -1;
    int rc = PyModule_AddObjectRef(module, "Reducer", type);
    Py_DECREF(type);
    return rc;
}

// SPDX-License-Identifier: Apache-2.0
// _C.RowGather: batches gathered from arrays, ahead of their use where asked. _C.SharedMemory: a
// segment that worker processes and their parent both map. Both need the GIL, which is released
// while bytes are copied or waited for; a RowGather is used by one thread at a time.
#include "bind.h"
#include "data/data.h"

enum { MAX_COLUMNS = 32 };

typedef struct gather_object {
    PyObject_HEAD int n;
    bool stable;  // nobody can change the arrays without a tensor's version telling
    bool busy;    // the GIL is given away in a call
    pl_prefetch *prefetch;
    pl_buffer buffers[MAX_COLUMNS];  // owned
    pl_rows rows[MAX_COLUMNS];
    int ndim[MAX_COLUMNS];
    int64_t shape[MAX_COLUMNS][PL_MAX_DIMS];  // of one batch, but for [0]
} gather_object;

typedef struct shared_object {
    PyObject_HEAD pl_shared *s;
} shared_object;

static PyTypeObject *gather_type, *shared_type;

// ---- RowGather -------------------------------------------------------------------------------

static void gather_dealloc(PyObject *obj) {
    gather_object *self = (gather_object *)obj;
    PyTypeObject *type = Py_TYPE(obj);
    Py_BEGIN_ALLOW_THREADS
    pl_prefetch_free(self->prefetch);  // before the memory that its thread reads
    Py_END_ALLOW_THREADS
    for (int c = 0; c < self->n; c++) pl_buffer_release(&self->buffers[c]);
    PyObject_Free(obj);
    Py_DECREF(type);
}

// Memory of a tensor that is the library's own, or memory that is read-only.
static bool is_stable(const pl_buffer *b) {
    if (b->has_view) return b->view.readonly;
    return PyObject_TypeCheck(b->keep, pl_tensor_type()) &&
           !((pl_py_tensor *)b->keep)->t->storage->release;
}

static int add_column(gather_object *self, PyObject *pair) {
    PyObject *data = PyTuple_GetItem(pair, 0), *shape = PyTuple_GetItem(pair, 1);
    int c = self->n;
    if (!data || !shape || pl_arg_shape(shape, "RowGather", &self->ndim[c], self->shape[c]) < 0 ||
        pl_buffer_from(data, false, &self->buffers[c]) < 0) {
        return -1;
    }
    self->n++;
    int64_t elements = 1;
    for (int d = 1; d < self->ndim[c]; d++) elements *= self->shape[c][d];
    int64_t rows = self->ndim[c] > 0 ? self->shape[c][0] : -1, count = self->buffers[c].count;
    if (rows < 0 || (elements > 0 && rows > count / elements)) {
        PyErr_SetString(PyExc_ValueError, "[RowGather] the shape is larger than the array");
        return -1;
    }
    int64_t bytes = elements * (int64_t)pl_dtype_size(self->buffers[c].dtype);
    self->rows[c] = (pl_rows){self->buffers[c].data, rows, bytes, bytes};
    self->stable = self->stable && is_stable(&self->buffers[c]);
    return 0;
}

// row_gather(columns): a list of tuples (contiguous Tensor or buffer, shape).
static PyObject *row_gather(PyObject *module, PyObject *columns) {
    (void)module;
    Py_ssize_t n = PyList_Size(columns);
    if (n < 0) return NULL;
    if (n < 1 || n > MAX_COLUMNS) {
        PyErr_Format(PyExc_ValueError, "[RowGather] arrays: got %zd, expected 1 to %d", n,
                     MAX_COLUMNS);
        return NULL;
    }
    gather_object *self = (gather_object *)PyType_GenericAlloc(gather_type, 0);
    if (!self) return NULL;
    self->stable = true;
    for (Py_ssize_t c = 0; c < n; c++) {
        if (add_column(self, PyList_GetItem(columns, c)) < 0) {
            Py_DECREF(self);
            return NULL;
        }
    }
    return (PyObject *)self;
}

static pl_tensor *arg_index(PyObject *obj) {
    pl_tensor *t = pl_tensor_of(obj, "RowGather");
    if (t && pl_arg_on_host(t, "RowGather")) return NULL;
    if (!t || (t->dtype == PL_I64 && t->ndim == 1 && pl_tensor_is_contiguous(t))) return t;
    PyErr_Format(PyExc_TypeError,
                 "[DataLoader] indices of a batch: got %d dimensions of %s, expected 1 of int64",
                 t->ndim, pl_dtype_name(t->dtype));
    return NULL;
}

static void release_all(int n, pl_tensor **outs) {
    for (int c = 0; c < n; c++) pl_tensor_release(outs[c]);
}

static int new_outs(gather_object *self, int64_t count, pl_tensor **outs) {
    for (int c = 0; c < self->n; c++) {
        self->shape[c][0] = count;
        pl_status st =
            pl_tensor_empty(self->buffers[c].dtype, self->ndim[c], self->shape[c], &outs[c]);
        if (st == PL_OK) continue;
        release_all(c, outs);
        pl_raise(NULL, st);
        return -1;
    }
    return 0;
}

static PyObject *list_of(int n, pl_tensor **outs) {
    PyObject *list = PyList_New(n);
    for (int c = 0; c < n; c++) {
        PyObject *item = list ? pl_tensor_wrap(outs[c]) : NULL;
        if (!list) pl_tensor_release(outs[c]);
        if (list && (!item || PyList_SetItem(list, c, item))) Py_CLEAR(list);
    }
    return list;
}

static int enter(gather_object *self) {
    if (!self->busy) {
        self->busy = true;
        return 0;
    }
    PyErr_SetString(PyExc_RuntimeError,
                    "[DataLoader] an iterator is used by one thread at a time: iterate anew");
    return -1;
}

// gather(index): the batch, now, on all threads.
static PyObject *gather_now(PyObject *obj, PyObject *index) {
    gather_object *self = (gather_object *)obj;
    pl_tensor *t = arg_index(index), *outs[MAX_COLUMNS];
    if (!t || enter(self)) return NULL;
    if (new_outs(self, t->numel, outs)) {
        self->busy = false;
        return NULL;
    }
    pl_status st = PL_OK;
    Py_BEGIN_ALLOW_THREADS
    for (int c = 0; c < self->n && st == PL_OK; c++) {
        st = pl_data_gather(&self->rows[c], t->data, t->numel, true, outs[c]->data);
    }
    Py_END_ALLOW_THREADS
    self->busy = false;
    if (st == PL_OK) return list_of(self->n, outs);
    release_all(self->n, outs);
    return pl_raise(NULL, st);
}

// ask(index): the batch is gathered by the thread, which is started here.
static PyObject *gather_ask(PyObject *obj, PyObject *index) {
    gather_object *self = (gather_object *)obj;
    pl_tensor *t = arg_index(index), *outs[MAX_COLUMNS];
    if (!t) return NULL;
    pl_status st = PL_OK;
    if (!self->prefetch) st = pl_prefetch_new(self->n, self->rows, &self->prefetch);
    if (st != PL_OK) return pl_raise(NULL, st);
    if (new_outs(self, t->numel, outs)) return NULL;
    st = pl_prefetch_ask(self->prefetch, t, outs);
    release_all(self->n, outs);
    if (st != PL_OK) return pl_raise(NULL, st);
    Py_RETURN_NONE;
}

// take(): the oldest batch asked for.
static PyObject *gather_take(PyObject *obj, PyObject *unused) {
    (void)unused;
    gather_object *self = (gather_object *)obj;
    pl_tensor *outs[MAX_COLUMNS];
    pl_status st;
    if (!self->prefetch) {
        PyErr_SetString(PyExc_RuntimeError, "[DataLoader] no batch to take: ask for one first");
        return NULL;
    }
    if (enter(self)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    st = pl_prefetch_take(self->prefetch, outs);
    Py_END_ALLOW_THREADS
    self->busy = false;
    return st == PL_OK ? list_of(self->n, outs) : pl_raise(NULL, st);
}

static PyObject *gather_stable(PyObject *obj, void *unused) {
    (void)unused;
    return PyBool_FromLong(((gather_object *)obj)->stable);
}

static PyObject *gather_row_bytes(PyObject *obj, void *unused) {
    (void)unused;
    gather_object *self = (gather_object *)obj;
    int64_t sum = 0;
    for (int c = 0; c < self->n; c++) sum += self->rows[c].row_bytes;
    return PyLong_FromLongLong(sum);
}

static PyMethodDef gather_methods[] = {
    {"gather", gather_now, METH_O, NULL},
    {"ask", gather_ask, METH_O, NULL},
    {"take", gather_take, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef gather_getset[] = {
    {"is_stable", gather_stable, NULL, NULL, NULL},
    {"row_bytes", gather_row_bytes, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot gather_slots[] = {
    {Py_tp_dealloc, (void *)(uintptr_t)gather_dealloc},
    {Py_tp_methods, gather_methods},
    {Py_tp_getset, gather_getset},
    {0, NULL},
};
static PyType_Spec gather_spec = {
    .name = "paceline._C.RowGather",
    .basicsize = sizeof(gather_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = gather_slots,
};

// ---- SharedMemory ----------------------------------------------------------------------------

static void shared_dealloc(PyObject *obj) {
    PyTypeObject *type = Py_TYPE(obj);
    pl_shared_release(((shared_object *)obj)->s);
    PyObject_Free(obj);
    Py_DECREF(type);
}

// map_shared(fd, nbytes)
static PyObject *map_shared(PyObject *module, PyObject *const *args, Py_ssize_t n) {
    int64_t fd, nbytes;
    if (pl_arg_count("map_shared", n, 2) || pl_arg_int64(args[0], "fd", &fd) ||
        pl_arg_int64(args[1], "nbytes", &nbytes)) {
        return NULL;
    }
    shared_object *o = (shared_object *)PyType_GenericAlloc(shared_type, 0);
    if (!o) return NULL;
    pl_status st = pl_shared_map((int)fd, nbytes > 0 ? (size_t)nbytes : 0, &o->s);
    if (st == PL_OK) return (PyObject *)o;
    Py_DECREF(o);
    return pl_raise(module, st);
}

// tensor(offset, dtype, shape)
static PyObject *shared_tensor(PyObject *obj, PyObject *const *args, Py_ssize_t n) {
    int64_t offset, shape[PL_MAX_DIMS];
    int ndim;
    pl_dtype dt;
    pl_tensor *t;
    if (pl_arg_count("tensor", n, 3) || pl_arg_int64(args[0], "offset", &offset) ||
        pl_arg_dtype(args[1], &dt) || pl_arg_shape(args[2], "tensor", &ndim, shape)) {
        return NULL;
    }
    pl_status st = pl_shared_tensor(((shared_object *)obj)->s, (size_t)offset, dt, ndim, shape, &t);
    return st == PL_OK ? pl_tensor_wrap(t) : pl_raise(NULL, st);
}

// write(offset, bytes-like)
static PyObject *shared_write(PyObject *obj, PyObject *const *args, Py_ssize_t n) {
    int64_t offset;
    Py_buffer view;
    if (pl_arg_count("write", n, 2) || pl_arg_int64(args[0], "offset", &offset) ||
        PyObject_GetBuffer(args[1], &view, PyBUF_SIMPLE)) {
        return NULL;
    }
    pl_status st;
    pl_shared *s = ((shared_object *)obj)->s;
    Py_BEGIN_ALLOW_THREADS
    st = pl_shared_write(s, (size_t)offset, view.buf, (size_t)view.len);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    if (st != PL_OK) return pl_raise(NULL, st);
    Py_RETURN_NONE;
}

static PyObject *shared_users(PyObject *obj, void *unused) {
    (void)unused;
    return PyLong_FromLong(pl_shared_users(((shared_object *)obj)->s));
}
static PyObject *shared_nbytes(PyObject *obj, void *unused) {
    (void)unused;
    return PyLong_FromSize_t(pl_shared_nbytes(((shared_object *)obj)->s));
}

static PyMethodDef shared_methods[] = {
    {"tensor", (PyCFunction)(void (*)(void))shared_tensor, METH_FASTCALL, NULL},
    {"write", (PyCFunction)(void (*)(void))shared_write, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
static PyGetSetDef shared_getset[] = {
    {"users", shared_users, NULL, NULL, NULL},
    {"nbytes", shared_nbytes, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot shared_slots[] = {
    {Py_tp_dealloc, (void *)(uintptr_t)shared_dealloc},
    {Py_tp_methods, shared_methods},
    {Py_tp_getset, shared_getset},
    {0, NULL},
};
static PyType_Spec shared_spec = {
    .name = "paceline._C.SharedMemory",
    .basicsize = sizeof(shared_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = shared_slots,
};

static PyMethodDef functions[] = {
    {"row_gather", row_gather, METH_O, NULL},
    {"map_shared", (PyCFunction)(void (*)(void))map_shared, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject *add_type(PyObject *module, PyType_Spec *spec) {
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    if (type && PyModule_AddType(module, type)) Py_CLEAR(type);
    return type;
}

int pl_bind_rows(PyObject *module) {
    gather_type = add_type(module, &gather_spec);
    shared_type = add_type(module, &shared_spec);
    return gather_type && shared_type ? PyModule_AddFunctions(module, functions) : -1;
}

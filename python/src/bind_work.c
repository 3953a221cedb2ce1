// SPDX-License-Identifier: Apache-2.0
// _C.Work: a collective that runs on the group's communication thread. Needs the GIL; released
// while it waits. A Work keeps its buffer and its group until the collective is done.
#include "bind.h"
#include "bind_group.h"
#include "comm/comm.h"

typedef struct work_object {
    PyObject_HEAD pl_work *w;
    pl_group_object *group;  // owned: the group outlives its work
    pl_buffer in, out;       // owned: the memory outlives the work
} work_object;

static PyTypeObject *work_type;

PyObject *pl_work_start(pl_group_object *group, const pl_collective *what, pl_site site,
                        pl_buffer *in, pl_buffer *out) {
    work_object *w = (work_object *)PyType_GenericAlloc(work_type, 0);
    if (!w) {
        pl_buffer_release(in);
        pl_buffer_release(out);
        return NULL;
    }
    w->group = (pl_group_object *)Py_NewRef((PyObject *)group);
    w->in = *in;
    w->out = *out;
    pl_status st = pl_group_collective(group->g, what, site, &w->w);
    if (st == PL_OK) return (PyObject *)w;
    Py_DECREF(w);
    return pl_raise(NULL, st);
}

// ---- Work -------------------------------------------------------------------------------------

static PyObject *work_wait(PyObject *obj, PyObject *unused) {
    (void)unused;
    work_object *self = (work_object *)obj;
    pl_status st;
    self->group->busy++;
    Py_BEGIN_ALLOW_THREADS
    st = pl_work_wait(self->w);
    Py_END_ALLOW_THREADS
    self->group->busy--;
    if (self->group->g) return pl_group_result(self->group, st);
    if (st != PL_OK) return pl_raise(NULL, st);
    Py_RETURN_NONE;
}

static PyObject *work_is_completed(PyObject *obj, PyObject *unused) {
    (void)unused;
    return PyBool_FromLong(pl_work_done(((work_object *)obj)->w));
}

static void work_dealloc(PyObject *obj) {
    work_object *self = (work_object *)obj;
    PyTypeObject *type = Py_TYPE(obj);
    Py_BEGIN_ALLOW_THREADS
    pl_work_free(self->w);  // waits: the buffer must not go before the work is done
    Py_END_ALLOW_THREADS
    pl_buffer_release(&self->in);
    pl_buffer_release(&self->out);
    Py_XDECREF((PyObject *)self->group);
    PyObject_Free(obj);
    Py_DECREF(type);
}

static PyMethodDef work_methods[] = {
    {"wait", work_wait, METH_NOARGS, NULL},
    {"is_completed", work_is_completed, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot work_slots[] = {
    {Py_tp_dealloc, (void *)(uintptr_t)work_dealloc},
    {Py_tp_methods, work_methods},
    {0, NULL},
};

static PyType_Spec work_spec = {
    .name = "paceline._C.Work",
    .basicsize = sizeof(work_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = work_slots,
};

int pl_bind_work(PyObject *module) {
    work_type = (PyTypeObject *)PyType_FromSpec(&work_spec);
    if (!work_type) return -1;
    return PyModule_AddObjectRef(module, "Work", (PyObject *)work_type);
}

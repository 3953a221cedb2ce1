// SPDX-License-Identifier: Apache-2.0
// _C.Group: process groups, but for the collectives, which are in bind_collectives.c.
//
// Needs the GIL; it is released around everything that waits. While it is released no Py* function
// is called and the group cannot be closed: `busy` counts the calls inside. A group takes one call
// at a time (comm.h); a second thread gets an error, not a corrupted group.
#include "bind_group.h"
#include "bind.h"
#include "comm/comm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static PyTypeObject *group_type;

// ---- errors and warnings ----------------------------------------------------------------------

static void set_attribute(PyObject *exc, const char *name, PyObject *value) {
    if (!value || PyObject_SetAttrString(exc, name, value) != 0) PyErr_Clear();
    Py_XDECREF(value);
}

static void describe_remote(PyObject *exc, const pl_group_failure *f) {
    const char *colon = strstr(f->remote, ": ");
    size_t n = colon ? (size_t)(colon - f->remote) : strlen(f->remote);
    set_attribute(exc, "rank", PyLong_FromLong(f->n_dead ? f->dead_ranks[0] : -1));
    set_attribute(exc, "remote_type", PyUnicode_DecodeUTF8(f->remote, (Py_ssize_t)n, "replace"));
    const char *rest = colon ? colon + 2 : "";
    set_attribute(exc, "remote_message",
                  PyUnicode_DecodeUTF8(rest, (Py_ssize_t)strlen(rest), "replace"));
}

void pl_describe_failure(pl_status st) {
    PyObject *type, *exc, *tb;
    PyErr_Fetch(&type, &exc, &tb);
    PyErr_NormalizeException(&type, &exc, &tb);
    pl_group_failure f;
    if (exc && pl_group_failure_last(&f) && f.status == st) {
        PyObject *dead = PyTuple_New(f.n_dead);
        for (int i = 0; dead && i < f.n_dead; i++) {
            PyTuple_SetItem(dead, i, PyLong_FromLong(f.dead_ranks[i]));
        }
        set_attribute(exc, "dead_ranks", dead);
        set_attribute(exc, "op", PyUnicode_FromString(f.op));
        set_attribute(exc, "seq", PyLong_FromUnsignedLongLong(f.seq));
        set_attribute(exc, "call_site",
                      PyUnicode_DecodeUTF8(f.site, (Py_ssize_t)strlen(f.site), "replace"));
        if (st == PL_EREMOTE) describe_remote(exc, &f);
    }
    PyErr_Restore(type, exc, tb);
}

// The end of every call: the exception, or a pending warning, or None.
PyObject *pl_group_result(pl_group_object *self, pl_status st) {
    char text[512];
    if (st != PL_OK) return pl_raise(NULL, st);
    if (pl_group_take_warning(self->g, text, sizeof text) &&
        PyErr_WarnEx(PyExc_RuntimeWarning, text, 2) != 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

// Whether a call may begin; 0, or -1 with an exception.
int pl_group_begin(pl_group_object *self, const char *op) {
    if (!self->g || self->closed) {
        PyErr_Format(PyExc_RuntimeError, "[%s] the process group is closed", op);
        return -1;
    }
    if (self->busy) {
        PyErr_Format(PyExc_RuntimeError,
                     "[%s] the process group is in use by another thread: got a second call, "
                     "expected one at a time (make another group for it)",
                     op);
        return -1;
    }
    return 0;
}

pl_group *pl_group_of(PyObject *obj, const char *op) {
    if (!PyObject_TypeCheck(obj, group_type)) {
        PyErr_Format(PyExc_TypeError, "[%s] expected a Group, got %R", op,
                     (PyObject *)Py_TYPE(obj));
        return NULL;
    }
    pl_group_object *self = (pl_group_object *)obj;
    return pl_group_begin(self, op) ? NULL : self->g;
}

pl_group *pl_group_hold(PyObject *obj, const char *op) {
    pl_group *g = pl_group_of(obj, op);
    if (g) ((pl_group_object *)Py_NewRef(obj))->held++;
    return g;
}

void pl_group_unhold(PyObject *obj) {
    ((pl_group_object *)obj)->held--;
    Py_DECREF(obj);
}

// ---- arguments --------------------------------------------------------------------------------

static int int_arg(PyObject *obj, const char *what, int *out) {
    int64_t v;
    if (pl_arg_int64(obj, what, &v)) return -1;
    if (v < INT32_MIN || v > INT32_MAX) {
        PyErr_Format(PyExc_ValueError, "%s is out of range: got %lld", what, (long long)v);
        return -1;
    }
    *out = (int)v;
    return 0;
}

// The n trailing integers of a call, the last of which is the depth of the call site.
int pl_int_args(const char *fn, PyObject *const *args, Py_ssize_t n, int *out) {
    for (Py_ssize_t i = 0; i < n; i++) {
        if (int_arg(args[i], fn, &out[i])) return -1;
    }
    return 0;
}

// A collective wrote into obj: a tensor that a backward pass has saved must notice.
void pl_group_wrote(PyObject *obj) {
    if (!PyObject_TypeCheck(obj, pl_tensor_type())) return;
    pl_tensor *t = pl_tensor_of(obj, "collective");
    if (t) pl_storage_bump(t->storage);
}

// ---- the rest of Group ------------------------------------------------------------------------

static PyObject *announce_finished(PyObject *obj, PyObject *unused) {
    (void)unused;
    pl_group_object *self = (pl_group_object *)obj;
    if (self->g) pl_group_announce_finished(self->g);
    Py_RETURN_NONE;
}

static PyObject *announce_failed(PyObject *obj, PyObject *text) {
    pl_group_object *self = (pl_group_object *)obj;
    PyObject *bytes = PyUnicode_AsEncodedString(text, "utf-8", "replace");
    if (!bytes) return NULL;
    if (self->g) pl_group_announce_failed(self->g, PyBytes_AsString(bytes));
    Py_DECREF(bytes);
    Py_RETURN_NONE;
}

static PyObject *group_check(PyObject *obj, PyObject *unused) {
    (void)unused;
    pl_group_object *self = (pl_group_object *)obj;
    if (!self->g) {
        PyErr_SetString(PyExc_RuntimeError, "[check] the process group is closed");
        return NULL;
    }
    return pl_group_result(self, pl_group_check(self->g));
}

static PyObject *group_close(PyObject *obj, PyObject *unused) {
    (void)unused;
    pl_group_object *self = (pl_group_object *)obj;
    if (!self->g) Py_RETURN_NONE;
    if (self->busy) {
        PyErr_SetString(PyExc_RuntimeError, "[close] another thread is inside the process group");
        return NULL;
    }
    if (self->held) {
        pl_group_announce_finished(self->g);  // a reducer still points at it: freed with that
        self->closed = true;
        Py_RETURN_NONE;
    }
    pl_group *g = self->g;
    self->g = NULL;
    Py_BEGIN_ALLOW_THREADS
    pl_group_free(g);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static void announce_exit(int code, void *unused) {
    (void)unused;
    pl_group_announce_exit(code);
}

// Only the C library knows the exit code, after Python has been taken apart: a SystemExit with a
// code reaches no hook of Python's. So the group lives until then.
static PyObject *leave_at_exit(PyObject *obj, PyObject *unused) {
    static bool registered;
    (void)unused;
#ifdef __GLIBC__
    if (!registered) registered = on_exit(announce_exit, NULL) == 0;
#endif
    if (!registered) return announce_finished(obj, NULL);
    Py_INCREF(obj);  // for good: the process is about to end
    Py_RETURN_NONE;
}

static PyObject *get_int(PyObject *obj, void *which) {
    pl_group_object *self = (pl_group_object *)obj;
    return PyLong_FromLong(which ? self->world : self->rank);
}

static void group_dealloc(PyObject *obj) {
    pl_group_object *self = (pl_group_object *)obj;
    PyTypeObject *type = Py_TYPE(obj);
    pl_group *g = self->g;
    self->g = NULL;
    Py_BEGIN_ALLOW_THREADS
    pl_group_free(g);  // joins its threads, which never take the GIL
    Py_END_ALLOW_THREADS
    PyObject_Free(obj);
    Py_DECREF(type);
}

#define FAST(fn) ((PyCFunction)(void (*)(void))(fn))

static PyMethodDef group_methods[] = {
    {"all_reduce", FAST(pl_py_all_reduce), METH_FASTCALL, NULL},
    {"collective", FAST(pl_py_collective), METH_FASTCALL, NULL},
    {"all_to_all", FAST(pl_py_all_to_all), METH_FASTCALL, NULL},
    {"barrier", FAST(pl_py_barrier), METH_FASTCALL, NULL},
    {"send", FAST(pl_py_send), METH_FASTCALL, NULL},
    {"recv", FAST(pl_py_recv), METH_FASTCALL, NULL},
    {"announce_finished", announce_finished, METH_NOARGS, NULL},
    {"announce_failed", announce_failed, METH_O, NULL},
    {"leave_at_exit", leave_at_exit, METH_NOARGS, NULL},
    {"check", group_check, METH_NOARGS, NULL},
    {"close", group_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef group_getset[] = {
    {"rank", get_int, NULL, NULL, NULL},
    {"world", get_int, NULL, NULL, (void *)1},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot group_slots[] = {
    {Py_tp_dealloc, (void *)(uintptr_t)group_dealloc},
    {Py_tp_methods, group_methods},
    {Py_tp_getset, group_getset},
    {0, NULL},
};

static PyType_Spec group_spec = {
    .name = "paceline._C.Group",
    .basicsize = sizeof(pl_group_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = group_slots,
};

// ---- module functions -------------------------------------------------------------------------

static PyObject *group_control_bytes(PyObject *module, PyObject *const *args, Py_ssize_t n) {
    (void)module;
    int a[2];
    if (pl_arg_count("group_control_bytes", n, 2) || pl_int_args("group_control_bytes", args, 2, a))
        return NULL;
    size_t bytes = pl_group_control_bytes(a[0], a[1]);
    if (bytes) return PyLong_FromSize_t(bytes);
    PyErr_Format(
        PyExc_ValueError,
        "[group_control_bytes] wrong world size: got %d, %d of them here, expected 1 to %d", a[0],
        a[1], PL_MAX_RANKS);
    return NULL;
}

// A sequence of exactly `world` integers.
static int int_list(PyObject *seq, const char *what, int world, int *out) {
    Py_ssize_t n = PySequence_Size(seq);
    if (n < 0) return -1;
    if (n != world) {
        PyErr_Format(PyExc_ValueError, "[group_new] %s: got %zd entries, expected %d", what, n,
                     world);
        return -1;
    }
    for (int i = 0; i < world; i++) {
        PyObject *item = PySequence_GetItem(seq, i);
        int bad = !item || int_arg(item, what, &out[i]);
        Py_XDECREF(item);
        if (bad) return -1;
    }
    return 0;
}

// On the watch thread, without the GIL: one system call, so that lines do not mix.
static void report(const char *text) {
    char line[4200];
    int n = snprintf(line, sizeof line, "paceline: %s\n", text);
    if (n >= (int)sizeof line) n = (int)sizeof line - 1;
    ssize_t unused = n > 0 ? write(STDERR_FILENO, line, (size_t)n) : 0;
    (void)unused;
}

// What group_new was given; `o` points into it.
typedef struct group_args {
    pl_group_options o;
    int fds[PL_MAX_RANKS], pidfds[PL_MAX_RANKS], pids[PL_MAX_RANKS];
    int firsts[PL_MAX_RANKS], links[PL_MAX_RANKS], inboxes[PL_MAX_RANKS];
} group_args;

static int read_patience(PyObject *from, pl_group_options *o) {
    int ms[4];
    if (int_list(from, "patience", 4, ms)) return -1;
    o->report = report;
    o->report_ms = ms[0];
    o->suspect_ms = ms[1];
    o->frozen_ms = ms[2];
    o->link_ms = ms[3];
    return 0;
}

static int read_machines(PyObject *const *args, group_args *a) {
    Py_ssize_t machines = PySequence_Size(args[9]);
    if (machines < 1 || machines > a->o.world) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "[group_new] machine_first");
        return -1;
    }
    a->o.n_machines = (int)machines;
    a->o.machine_first = a->firsts;
    a->o.link_fds = a->links;
    a->o.inbox_fds = a->inboxes;
    return int_list(args[9], "machine_first", (int)machines, a->firsts) ||
                   int_list(args[10], "link_fds", (int)machines, a->links) ||
                   int_list(args[11], "inbox_fds", a->o.world, a->inboxes)
               ? -1
               : 0;
}

// All but the name. 0, or -1 with a Python error.
static int read_group_args(PyObject *const *args, group_args *a) {
    int three[3], strict = PyObject_IsTrue(args[8]);
    int64_t timeout_ms;
    if (strict < 0 || pl_int_args("group_new", args + 1, 3, three)) return -1;
    int world = three[1];
    if (world < 1 || world > PL_MAX_RANKS) {
        PyErr_Format(PyExc_ValueError, "[group_new] wrong world size: got %d, expected 1 to %d",
                     world, PL_MAX_RANKS);
        return -1;
    }
    if (int_list(args[4], "peer_fds", world, a->fds) ||
        int_list(args[5], "pidfds", world, a->pidfds) ||
        int_list(args[6], "pids", world, a->pids) ||
        pl_arg_int64(args[7], "timeout_ms", &timeout_ms)) {
        return -1;
    }
    a->o = (pl_group_options){
        .rank = three[0],
        .world = world,
        .control_fd = three[2],
        .peer_fds = a->fds,
        .pidfds = a->pidfds,
        .pids = a->pids,
        .timeout_ms = timeout_ms,
        .strict_sites = strict != 0,
    };
    return read_machines(args, a) || read_patience(args[12], &a->o) ? -1 : 0;
}

static PyObject *group_new(PyObject *module, PyObject *const *args, Py_ssize_t n) {
    (void)module;
    group_args a;
    pl_group *g = NULL;
    if (pl_arg_count("group_new", n, 13) || read_group_args(args, &a)) return NULL;
    PyObject *name = PyUnicode_AsUTF8String(args[0]);
    if (!name) return NULL;
    pl_group_object *self = (pl_group_object *)PyType_GenericAlloc(group_type, 0);
    if (!self) {
        Py_DECREF(name);
        return NULL;
    }
    self->rank = a.o.rank;
    self->world = a.o.world;
    a.o.name = PyBytes_AsString(name);
    pl_status st;
    WITHOUT_GIL(self, st, pl_group_new(&a.o, &g));
    Py_DECREF(name);
    if (st == PL_OK) {
        self->g = g;
        return (PyObject *)self;
    }
    Py_DECREF(self);
    return pl_raise(NULL, st);
}

static PyMethodDef functions[] = {
    {"group_control_bytes", FAST(group_control_bytes), METH_FASTCALL, NULL},
    {"group_new", FAST(group_new), METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

int pl_bind_group(PyObject *module) {
    group_type = (PyTypeObject *)PyType_FromSpec(&group_spec);
    if (!group_type) return -1;
    if (PyModule_AddObjectRef(module, "Group", (PyObject *)group_type)) return -1;
    if (pl_bind_work(module)) return -1;
    return PyModule_AddFunctions(module, functions);
}

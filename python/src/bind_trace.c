// SPDX-License-Identifier: Apache-2.0
// The trace: switching it on and off, and its events as tuples.
#include <string.h>

#include "base/trace.h"
#include "call.h"

static PyObject *py_trace_start(ARGS) {
    COUNT("trace_start", 2);
    int64_t limit;
    int shapes = PyObject_IsTrue(args[0]);
    if (shapes < 0 || pl_arg_int64(args[1], "limit", &limit)) return NULL;
    pl_trace_start(shapes, limit);
    Py_RETURN_NONE;
}

static PyObject *py_trace_stop(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    pl_trace_stop();
    Py_RETURN_NONE;
}

static PyObject *py_trace_begin(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyLong_FromLongLong(pl_trace_begin());
}

static PyObject *py_trace_end(ARGS) {
    COUNT("trace_end", 3);
    int64_t since, kind;
    if (pl_arg_int64(args[0], "since", &since) || pl_arg_int64(args[1], "kind", &kind)) return NULL;
    if (kind < 0 || kind >= PL_TRACE_KIND_COUNT) {
        return PyErr_Format(PyExc_ValueError, "[trace_end] there is no kind %lld", (long long)kind);
    }
    PyObject *name = PyUnicode_AsUTF8String(args[2]);
    if (!name) return NULL;
    pl_trace_end(since, (pl_trace_kind)kind, PyBytes_AsString(name));
    Py_DECREF(name);
    Py_RETURN_NONE;
}

static PyObject *event_tuple(const pl_trace_event *e) {
    return Py_BuildValue("(sNLLLis)", pl_trace_kind_name(e->kind),
                         PyUnicode_DecodeUTF8(e->name, (Py_ssize_t)strlen(e->name), "replace"),
                         (long long)e->start_ns, (long long)e->end_ns, (long long)e->nbytes,
                         (int)e->number, e->detail);
}

static PyObject *thread_tuple(const pl_trace_log *log) {
    PyObject *list = PyList_New(0);
    for (int64_t i = 0; list && i < log->n; i++) {
        PyObject *tuple = event_tuple(&log->events[i]);
        if (!tuple || PyList_Append(list, tuple)) Py_CLEAR(list);
        Py_XDECREF(tuple);
    }
    return list ? Py_BuildValue("(LNL)", (long long)log->tid, list, (long long)log->n_lost) : NULL;
}

static PyObject *py_trace_read(PyObject *module, PyObject *unused) {
    (void)unused;
    int n;
    pl_trace_log *threads;
    pl_status st = pl_trace_read(&n, &threads);
    if (st != PL_OK) return pl_raise(module, st);
    PyObject *found = PyList_New(0);
    for (int i = 0; found && i < n; i++) {
        PyObject *entry = thread_tuple(&threads[i]);
        if (!entry || PyList_Append(found, entry)) Py_CLEAR(found);
        Py_XDECREF(entry);
    }
    pl_trace_logs_free(n, threads);
    return found;
}

static PyObject *py_trace_clear(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    pl_trace_clear();
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    FAST(trace_start),
    {"trace_stop", py_trace_stop, METH_NOARGS, NULL},
    {"trace_begin", py_trace_begin, METH_NOARGS, NULL},
    FAST(trace_end),
    {"trace_read", py_trace_read, METH_NOARGS, NULL},
    {"trace_clear", py_trace_clear, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int pl_bind_trace(PyObject *module) { return PyModule_AddFunctions(module, functions); }

// SPDX-License-Identifier: Apache-2.0
// Threads, memory, the processor, the tests' hooks, and Ctrl-C.
#include "base/library.h"
#include "call.h"
#include "kernels.h"

// Runs in whichever thread computes, without the GIL. Python runs signal handlers on the main
// thread only; elsewhere this finds nothing to do.
static pl_status check_signals(void) {
    if (!Py_IsInitialized()) return PL_OK;
    PyGILState_STATE gil = PyGILState_Ensure();
    int raised = PyErr_CheckSignals();
    PyGILState_Release(gil);
    return raised ? pl_fail(PL_EINTR, "interrupted") : PL_OK;
}

static PyObject *py_get_num_threads(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyLong_FromLong(pl_num_threads());
}

static PyObject *py_set_num_threads(PyObject *module, PyObject *arg) {
    int64_t k;
    if (pl_arg_int64(arg, "num_threads", &k)) return NULL;
    pl_status st = pl_set_num_threads(k > 4096 ? 4096 : (int)(k < 0 ? -1 : k));
    if (st != PL_OK) return pl_raise(module, st);
    Py_RETURN_NONE;
}

static int put(PyObject *dict, const char *key, PyObject *value) {
    int rc = value ? PyDict_SetItemString(dict, key, value) : -1;
    Py_XDECREF(value);
    return rc;
}

static PyObject *py_cpu_info(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    const pl_cpu_features *f = pl_cpu();
    PyObject *d = PyDict_New();
    if (d && (put(d, "name", PyUnicode_FromString(pl_cpu_name())) ||
              put(d, "count", PyLong_FromLong(pl_cpu_count())) ||
              put(d, "avx2_fma", PyBool_FromLong(f->avx2_fma)) ||
              put(d, "avx512", PyBool_FromLong(f->avx512)) ||
              put(d, "avx512_bf16", PyBool_FromLong(f->avx512_bf16)) ||
              put(d, "amx_bf16", PyBool_FromLong(f->amx_bf16)) ||
              put(d, "avx512_fp16", PyBool_FromLong(f->avx512_fp16)) ||
              put(d, "matmul", PyUnicode_FromString(pl_cpu_matmul_library())))) {
        Py_CLEAR(d);
    }
    return d;
}

static PyObject *py_live_objects(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    PyObject *d = PyDict_New();
    for (int k = 0; d && k < PL_KIND_COUNT; k++) {
        if (put(d, pl_kind_name((pl_kind)k), PyLong_FromLongLong(pl_live((pl_kind)k)))) {
            Py_CLEAR(d);
        }
    }
    return d;
}

static PyObject *py_memory_stats(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    PyObject *d = PyDict_New();
    if (d && (put(d, "in_use", PyLong_FromSize_t(pl_alloc_in_use())) ||
              put(d, "peak", PyLong_FromSize_t(pl_alloc_peak())) ||
              put(d, "cached", PyLong_FromSize_t(pl_alloc_cached())) ||
              put(d, "held", PyLong_FromSize_t(pl_alloc_held())) ||
              put(d, "limit", PyLong_FromSize_t(pl_memory_limit())))) {
        Py_CLEAR(d);
    }
    return d;
}

static PyObject *py_reset_memory_peak(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    pl_alloc_reset_peak();
    Py_RETURN_NONE;
}

static PyObject *py_alloc_trim(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    pl_alloc_trim();
    Py_RETURN_NONE;
}

static PyObject *py_fail_alloc_at(PyObject *module, PyObject *const *args, Py_ssize_t n) {
    (void)module;
    int64_t at;
    if (pl_arg_count("fail_alloc_at", n, 2) || pl_arg_int64(args[0], "n", &at)) return NULL;
    int forever = PyObject_IsTrue(args[1]);
    if (forever < 0) return NULL;
    pl_alloc_fail_at(at > 0 ? (uint64_t)at : 0, forever);
    Py_RETURN_NONE;
}

static PyObject *py_use_kernels(PyObject *module, PyObject *arg) {
    PyObject *bytes = PyUnicode_AsUTF8String(arg);
    const char *name = bytes ? PyBytes_AsString(bytes) : NULL;
    pl_status st = name ? pl_kernels_use(name) : PL_OK;
    Py_XDECREF(bytes);
    if (!name) return NULL;
    if (st != PL_OK) return pl_raise(module, st);
    Py_RETURN_NONE;
}

static PyObject *py_set_dnnl_path(PyObject *module, PyObject *arg) {
    (void)module;
    if (arg == Py_None) {
        pl_cpu_set_dnnl_path(NULL);
        Py_RETURN_NONE;
    }
    PyObject *bytes = PyUnicode_EncodeFSDefault(arg);
    if (!bytes) return NULL;
    pl_cpu_set_dnnl_path(PyBytes_AsString(bytes));
    Py_DECREF(bytes);
    Py_RETURN_NONE;
}

// Where Python found a library of CUDA's: name (as in base/library.h), path or None.
static PyObject *py_set_library_path(PyObject *module, PyObject *const *args, Py_ssize_t n) {
    static const char *const names[] = {
#define X(name, variable, file, text) #name,
        PL_LIBRARY_MAP(X)
#undef X
    };
    (void)module;
    if (pl_arg_count("set_library_path", n, 2)) return NULL;
    int which = 0;
    while (which < PL_LIBRARY_COUNT && PyUnicode_CompareWithASCIIString(args[0], names[which])) {
        which++;
    }
    if (which == PL_LIBRARY_COUNT) {
        return PyErr_Format(PyExc_ValueError, "[set_library_path] no such library: got %R",
                            args[0]);
    }
    PyObject *bytes =
        args[1] == Py_None ? PyBytes_FromString("") : PyUnicode_EncodeFSDefault(args[1]);
    if (!bytes) return NULL;
    pl_library_set_path((pl_library)which, PyBytes_AsString(bytes));
    Py_DECREF(bytes);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"get_num_threads", py_get_num_threads, METH_NOARGS, NULL},
    {"set_num_threads", py_set_num_threads, METH_O, NULL},
    {"cpu_info", py_cpu_info, METH_NOARGS, NULL},
    {"live_objects", py_live_objects, METH_NOARGS, NULL},
    {"memory_stats", py_memory_stats, METH_NOARGS, NULL},
    {"reset_memory_peak", py_reset_memory_peak, METH_NOARGS, NULL},
    {"alloc_trim", py_alloc_trim, METH_NOARGS, NULL},
    FAST(fail_alloc_at),
    {"use_kernels", py_use_kernels, METH_O, NULL},
    {"set_dnnl_path", py_set_dnnl_path, METH_O, NULL},
    FAST(set_library_path),
    {"set_native_loader", pl_py_set_native_loader, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

int pl_bind_runtime(PyObject *module) {
    pl_set_interrupt(check_signals);
    return PyModule_AddFunctions(module, functions);
}

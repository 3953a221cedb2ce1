// SPDX-License-Identifier: Apache-2.0
// Devices: opening the CUDA library, what it says of itself, and tensors moved between the CPU and
// the GPU. A device is an index here: -1 is the CPU, i stands for cuda:i.
#include "call.h"

int pl_arg_device(PyObject *obj, pl_device *out) {
    int64_t index;
    if (pl_arg_int64(obj, "device", &index)) return -1;
    if (index < -1 || index > 1023) {
        PyErr_Format(PyExc_ValueError, "device index: got %lld, expected -1 (the CPU) to 1023",
                     (long long)index);
        return -1;
    }
    *out = index < 0 ? (pl_device){PL_CPU, 0} : (pl_device){PL_CUDA, (int)index};
    return 0;
}

int pl_arg_device_last(const char *fn, PyObject *const *args, Py_ssize_t n, Py_ssize_t without,
                       pl_device *out) {
    *out = (pl_device){PL_CPU, 0};
    if (n == without + 1) return pl_arg_device(args[without], out);
    return pl_arg_count(fn, n, without);
}

static PyObject *not_built(const char *what) {
    return pl_raise(NULL,
                    pl_fail(PL_ENOSUP, "[cuda] %s is not built yet: use device=\"cpu\"", what));
}

static PyObject *py_cuda_open(ARGS) {
    (void)args;
    COUNT("cuda_open", 2);
    return not_built("opening a GPU");
}

static PyObject *py_cuda_current(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyLong_FromLong(-1);
}

static PyObject *py_cuda_device_count(PyObject *module, PyObject *library) {
    (void)module;
    (void)library;
    return not_built("counting GPUs");
}

static PyObject *py_cuda_properties(ARGS) {
    (void)args;
    COUNT("cuda_properties", 2);
    return not_built("describing a GPU");
}

static PyObject *py_cuda_memory(PyObject *module, PyObject *reset) {
    (void)module;
    (void)reset;
    return not_built("memory of a GPU");
}

static PyObject *py_cuda_trim(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return not_built("memory of a GPU");
}

static PyObject *py_cuda_synchronize(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return not_built("synchronising a GPU");
}

static PyObject *py_to_device(ARGS) {
    COUNT("to_device", 3);
    pl_device to;
    pl_tensor *x = pl_tensor_of(args[0], "to_device");
    if (!x || pl_arg_device(args[1], &to)) return NULL;
    if (pl_device_equal(pl_tensor_device(x), to)) return Py_NewRef(args[0]);
    return not_built("moving tensors between devices");
}

static PyObject *py_pin_memory(PyObject *module, PyObject *arg) {
    (void)module;
    return pl_tensor_of(arg, "pin_memory") ? not_built("pinned memory") : NULL;
}

static PyMethodDef functions[] = {
    FAST(cuda_open),
    {"cuda_current", py_cuda_current, METH_NOARGS, NULL},
    ONE(cuda_device_count),
    FAST(cuda_properties),
    ONE(cuda_memory),
    {"cuda_trim", py_cuda_trim, METH_NOARGS, NULL},
    {"cuda_synchronize", py_cuda_synchronize, METH_NOARGS, NULL},
    FAST(to_device),
    ONE(pin_memory),
    {NULL, NULL, 0, NULL},
};

int pl_bind_device(PyObject *module) { return PyModule_AddFunctions(module, functions); }

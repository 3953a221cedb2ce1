// SPDX-License-Identifier: Apache-2.0
// Devices: opening the CUDA library, what it says of itself, and tensors moved between the CPU and
// the GPU. A device is an index here: -1 is the CPU, i stands for cuda:i.
#include "base/library.h"
#include "call.h"
#include "cuda/cublaslt.h"
#include "cuda/open.h"

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

// The path of the kernels' library, told to whoever opens it first; None: it was told.
static int tell_library(PyObject *library) {
    if (library == Py_None) return 0;
    PyObject *bytes = PyUnicode_EncodeFSDefault(library);
    if (!bytes) return -1;
    pl_library_set_path(PL_LIBRARY_CUDA, PyBytes_AsString(bytes));
    Py_DECREF(bytes);
    return 0;
}

// library, index
static PyObject *py_cuda_open(ARGS) {
    COUNT("cuda_open", 2);
    int64_t index;
    pl_status st = PL_OK;
    if (pl_arg_int64(args[1], "index", &index) || tell_library(args[0])) return NULL;
    Py_BEGIN_ALLOW_THREADS
    st = pl_cuda_open(index < 0 || index > 1023 ? -1 : (int)index);
    Py_END_ALLOW_THREADS
    if (st != PL_OK) return pl_raise(NULL, st);
    Py_RETURN_NONE;
}

static PyObject *py_cuda_current(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    const pl_device_services *s = pl_device_open_one();
    return PyLong_FromLong(s ? s->runtime->device.index : -1);
}

static PyObject *py_cuda_device_count(PyObject *module, PyObject *library) {
    int count = 0;
    pl_status st = PL_OK;
    if (tell_library(library)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    st = pl_cuda_device_count(&count);
    Py_END_ALLOW_THREADS
    return st == PL_OK ? PyLong_FromLong(count) : pl_raise(module, st);
}

// library, index
static PyObject *py_cuda_properties(ARGS) {
    COUNT("cuda_properties", 2);
    int64_t index;
    pl_cuda_properties p;
    if (pl_arg_int64(args[1], "index", &index) || tell_library(args[0])) return NULL;
    pl_status st = pl_cuda_device_properties(index < 0 || index > 1023 ? -1 : (int)index, &p);
    if (st != PL_OK) return pl_raise(NULL, st);
    return Py_BuildValue("{s:s,s:i,s:i,s:i,s:K}", "name", p.name, "major", p.major, "minor",
                         p.minor, "processors", p.processors, "memory",
                         (unsigned long long)p.memory);
}

// The open GPU, or NULL with DeviceError.
static const pl_device_services *opened(const char *op) {
    const pl_device_services *s = pl_device_open_one();
    if (s) return s;
    pl_raise(NULL, pl_fail(PL_EDEVICE,
                           "[%s] no GPU is open in this process: got none, expected a tensor on "
                           "cuda first",
                           op));
    return NULL;
}

static PyObject *py_cuda_memory(PyObject *module, PyObject *reset) {
    size_t unused = 0, total = 0;
    int on = PyObject_IsTrue(reset);
    const pl_device_services *s = on < 0 ? NULL : opened("cuda_memory");
    if (!s) return NULL;
    pl_status st = s->runtime->memory(s->runtime, &unused, &total);
    if (st != PL_OK) return pl_raise(module, st);
    pl_device_memory m = s->statistics(on);
    return Py_BuildValue("{s:K,s:K,s:K,s:K,s:K,s:K,s:L,s:L,s:L,s:L,s:L,s:L}", "allocated",
                         (unsigned long long)m.allocated, "peak", (unsigned long long)m.peak,
                         "reserved", (unsigned long long)m.reserved, "reserved_peak",
                         (unsigned long long)m.reserved_peak, "free", (unsigned long long)unused,
                         "total", (unsigned long long)total, "blocks", (long long)m.blocks,
                         "segments", (long long)m.segments, "mallocs", (long long)m.mallocs,
                         "frees", (long long)m.frees, "retries", (long long)m.retries, "failures",
                         (long long)m.failures);
}

static PyObject *py_cuda_trim(PyObject *module, PyObject *unused) {
    (void)unused;
    const pl_device_services *s = opened("cuda_trim");
    pl_status st = PL_OK;
    if (!s) return NULL;
    Py_BEGIN_ALLOW_THREADS
    st = s->trim();
    if (st == PL_OK) st = pl_storage_pinned_trim();
    Py_END_ALLOW_THREADS
    if (st != PL_OK) return pl_raise(module, st);
    Py_RETURN_NONE;
}

static PyObject *py_cuda_synchronize(PyObject *module, PyObject *unused) {
    (void)unused;
    const pl_device_services *s = opened("cuda_synchronize");
    pl_status st = PL_OK;
    if (!s) return NULL;
    Py_BEGIN_ALLOW_THREADS
    st = s->synchronize();
    Py_END_ALLOW_THREADS
    if (st != PL_OK) return pl_raise(module, st);
    Py_RETURN_NONE;
}

static PyObject *py_cuda_allow_tf32(PyObject *module, PyObject *allow) {
    (void)module;
    int on = PyObject_IsTrue(allow);
    if (on < 0) return NULL;
    pl_cuda_blas_allow_tf32(on);
    Py_RETURN_NONE;
}

// t, device, non_blocking
static PyObject *py_to_device(ARGS) {
    COUNT("to_device", 3);
    pl_device to;
    pl_tensor *x = pl_tensor_of(args[0], "to_device"), *out = NULL;
    int late = PyObject_IsTrue(args[2]);
    if (!x || late < 0 || pl_arg_device(args[1], &to)) return NULL;
    if (pl_device_equal(pl_tensor_device(x), to)) return Py_NewRef(args[0]);
    pl_attrs a = {.i = {to.type, to.index, late}};
    pl_status st = PL_OK;
    Py_BEGIN_ALLOW_THREADS
    st = pl_autograd_apply(&pl_op_to_device, 1, &x, NULL, &a, &out);
    Py_END_ALLOW_THREADS
    return st == PL_OK ? pl_tensor_wrap(out) : pl_raise(NULL, st);
}

static PyObject *py_to_host_later(PyObject *module, PyObject *arg) {
    pl_tensor *x = pl_tensor_of(arg, "to_host_later"), *out = NULL;
    if (!x) return NULL;
    pl_status st = pl_to_host_later(x, &out);
    return st == PL_OK ? pl_tensor_wrap(out) : pl_raise(module, st);
}

static PyObject *py_has_arrived(PyObject *module, PyObject *arg) {
    pl_tensor *x = pl_tensor_of(arg, "has_arrived");
    bool done = true;
    if (!x) return NULL;
    pl_status st = PL_OK;
    if (pl_storage_is_pinned(x->storage)) st = pl_storage_pinned_done(x->storage, &done);
    return st == PL_OK ? PyBool_FromLong(done) : pl_raise(module, st);
}

static pl_status pinned_copy(pl_tensor *x, pl_tensor **out) {
    pl_storage *s = NULL;
    pl_tensor *t = NULL;
    if (!pl_tensor_is_cpu(x)) {
        return pl_fail(
            PL_ERUNTIME,
            "[pin_memory] only memory of the host can be pinned: got a tensor on cuda:%d",
            pl_tensor_device(x).index);
    }
    PL_TRY(pl_storage_new_pinned(pl_tensor_nbytes(x), &s));
    pl_status st = pl_tensor_from_storage(s, x->dtype, x->ndim, x->shape, NULL, 0, &t);
    pl_storage_release(s);
    if (st == PL_OK) st = pl_k(x)->copy(x, t);
    if (st != PL_OK) {
        pl_tensor_release(t);
        return st;
    }
    *out = t;
    return PL_OK;
}

static PyObject *py_pin_memory(PyObject *module, PyObject *arg) {
    pl_tensor *x = pl_tensor_of(arg, "pin_memory"), *out = NULL;
    if (!x) return NULL;
    if (pl_storage_is_pinned(x->storage)) return Py_NewRef(arg);
    pl_status st = PL_OK;
    Py_BEGIN_ALLOW_THREADS
    st = pinned_copy(x, &out);
    Py_END_ALLOW_THREADS
    return st == PL_OK ? pl_tensor_wrap(out) : pl_raise(module, st);
}

static PyMethodDef functions[] = {
    FAST(cuda_open),
    {"cuda_current", py_cuda_current, METH_NOARGS, NULL},
    ONE(cuda_device_count),
    FAST(cuda_properties),
    ONE(cuda_memory),
    {"cuda_trim", py_cuda_trim, METH_NOARGS, NULL},
    {"cuda_synchronize", py_cuda_synchronize, METH_NOARGS, NULL},
    ONE(cuda_allow_tf32),
    FAST(to_device),
    ONE(pin_memory),
    ONE(to_host_later),
    ONE(has_arrived),
    {NULL, NULL, 0, NULL},
};

int pl_bind_device(PyObject *module) { return PyModule_AddFunctions(module, functions); }

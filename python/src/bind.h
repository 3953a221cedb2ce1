// SPDX-License-Identifier: Apache-2.0
// Shared by the files of the binding. The binding turns arguments into C calls and C status into
// Python exceptions; it holds no algorithm. Everything here needs the GIL.
#ifndef PL_BIND_H
#define PL_BIND_H

#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030b0000
#endif
#include <Python.h>

#include "base/base.h"
#include "tensor/tensor.h"

// Sets the Python exception that belongs to st, with this thread's pl_error_message(). Gives NULL.
// For PL_EINTR the exception that the signal handler raised is kept. `module` may be NULL.
PyObject *pl_raise(PyObject *module, pl_status st);

// What a Tensor object holds. The object owns one reference to the tensor.
typedef struct pl_py_tensor {
    PyObject_HEAD pl_tensor *t;
} pl_py_tensor;
PyTypeObject *pl_tensor_type(void);  // _C.Tensor; borrowed
// The tensor of a Tensor object (borrowed), or NULL with TypeError "[op] ... got str".
pl_tensor *pl_tensor_of(PyObject *obj, const char *op);
// A new object of the registered tensor class; takes over the reference to t. NULL on failure.
PyObject *pl_tensor_wrap(pl_tensor *t);

// Address, count and dtype of a contiguous Tensor or buffer-protocol object, for collectives.
typedef struct pl_buffer {
    void *data;
    int64_t count;
    pl_dtype dtype;
    pl_device device;
    PyObject *keep;  // owned: what keeps the memory alive
    Py_buffer view;  // valid when has_view
    bool has_view;
} pl_buffer;
// 0, or -1 with an exception (not contiguous, read-only though writable is asked, unknown format).
int pl_buffer_from(PyObject *obj, bool writable, pl_buffer *out);
// The same, also for a tensor on a device: out->device says where data is.
int pl_buffer_anywhere(PyObject *obj, bool writable, pl_buffer *out);
void pl_buffer_release(pl_buffer *b);

// 0, or -1 with an exception that says where t lies: for calls that read its memory.
int pl_arg_on_host(const pl_tensor *t, const char *op);

// Argument helpers: 0, or -1 with an exception that names the function.
int pl_arg_count(const char *fn, Py_ssize_t n, Py_ssize_t expected);
int pl_arg_int64(PyObject *obj, const char *what, int64_t *out);
int pl_arg_double(PyObject *obj, const char *what, double *out);
int pl_arg_shape(PyObject *seq, const char *what, int *ndim,
                 int64_t *shape);  // PL_MAX_DIMS at most
int pl_arg_dtype(PyObject *obj, pl_dtype *out);
// -1 is the CPU, i cuda:i.
int pl_arg_device(PyObject *obj, pl_device *out);
// The device behind `without` other arguments, which may be left out (the CPU); checks the count.
int pl_arg_device_last(const char *fn, PyObject *const *args, Py_ssize_t n, Py_ssize_t without,
                       pl_device *out);

// Each file adds its types and functions to the module: 0, or -1 with an exception.
int pl_bind_tensor(PyObject *module);
int pl_bind_create(PyObject *module);
int pl_bind_random(PyObject *module);
int pl_bind_ops(PyObject *module);
int pl_bind_shapes(PyObject *module);
int pl_bind_nn(PyObject *module);
int pl_bind_loss(PyObject *module);
int pl_bind_autograd(PyObject *module);
int pl_bind_optim(PyObject *module);
int pl_bind_runtime(PyObject *module);
int pl_bind_trace(PyObject *module);
int pl_bind_group(PyObject *module);
int pl_bind_reducer(PyObject *module);
int pl_bind_data(PyObject *module);
int pl_bind_rows(PyObject *module);
int pl_bind_dlpack(PyObject *module);
int pl_bind_device(PyObject *module);
int pl_bind_stream(PyObject *module);

#endif

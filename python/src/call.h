// SPDX-License-Identifier: Apache-2.0
// How the binding calls operators: scalars to tensors, the GIL, results to objects.
#ifndef PL_CALL_H
#define PL_CALL_H

#include "amp/amp.h"
#include "bind.h"

// A METH_FASTCALL function's parameters, its count of arguments checked, its line in a table.
#define ARGS PyObject *module, PyObject *const *args, Py_ssize_t n
#define COUNT(name, k) \
    (void)module;      \
    if (pl_arg_count(name, n, k)) return NULL
#define FAST(name) {#name, (PyCFunction)(void (*)(void))py_##name, METH_FASTCALL, NULL}
#define ONE(name) {#name, py_##name, METH_O, NULL}

// Work on fewer elements than this is quicker than giving the GIL away and taking it back.
#define PL_GIL_NUMEL 16384

// An operand: a Tensor, or a Python scalar made a 0-d tensor that adopts the other's dtype where
// PyTorch's promotion says so. Always an owned reference. 0; 1: not an operand (no exception);
// -1: exception.
int pl_operand(PyObject *obj, const pl_tensor *other, pl_tensor **out);
// Runs op under autocast and autograd; gives a new Tensor object or NULL with an exception.
PyObject *pl_call(const pl_op *op, int n_in, pl_tensor *const *in, const pl_attrs *attrs);
// The same, with the result as a tensor: 0 or -1 with an exception.
int pl_call_raw(const pl_op *op, int n_in, pl_tensor *const *in, const pl_attrs *attrs,
                pl_tensor **out);
// x op= other, gives x (new reference).
PyObject *pl_call_inplace(const pl_op *op, PyObject *x, PyObject *other);
// a op b for the slots: gives NotImplemented where an operand is neither tensor nor scalar.
PyObject *pl_call_binary(const pl_op *op, PyObject *a, PyObject *b);
// Comparisons and the others without a gradient.
PyObject *pl_call_binary_plain(pl_binary op, const char *name, PyObject *a, PyObject *b);
// 0, or -1 with an exception: loads what native operators need, once.
int pl_ensure_native(void);
PyObject *pl_py_set_native_loader(PyObject *module, PyObject *load);
// Fills a 0-d or n-d tensor with a Python number: 0 or -1.
int pl_fill_from(pl_tensor *t, PyObject *value);
// A list or tuple of Tensors (borrowed from seq, which the caller keeps): pl_alloc'ed array.
// allow_none: None gives NULL.
int pl_arg_tensors(PyObject *seq, const char *what, bool allow_none, int *n, pl_tensor ***out);
// shape and dtype arguments to a new tensor; NULL with an exception.
pl_tensor *pl_new_tensor(PyObject *shape, PyObject *dtype, pl_device device);
// None or a Tensor.
int pl_arg_optional(PyObject *obj, const char *op, pl_tensor **out);
// None (all dimensions) or a sequence of dimensions, as a bit mask.
int pl_arg_dims(PyObject *obj, const char *op, int ndim, uint32_t *mask);
// Slots of Tensor that live in files of their own.
PyObject *pl_tensor_getitem(PyObject *self, PyObject *index);
int pl_tensor_setitem(PyObject *self, PyObject *index, PyObject *value);
PyObject *pl_tensor_matmul(PyObject *a, PyObject *b);
PyObject *pl_tensor_item(PyObject *self, PyObject *unused);
PyObject *pl_tensor_tolist(PyObject *self, PyObject *unused);
int pl_tensor_bool(PyObject *self);
PyObject *pl_tensor_float(PyObject *self);
PyObject *pl_tensor_int(PyObject *self);
PyObject *pl_tensor_index(PyObject *self);
int pl_tensor_get_buffer(PyObject *self, Py_buffer *view, int flags);
void pl_tensor_release_buffer(PyObject *self, Py_buffer *view);
// Recorded steps for calls made of several: 0, or -1 with an exception. A reshape copies where it
// must.
int pl_reshape(pl_tensor *x, int ndim, const int64_t *shape, pl_tensor **out);
int pl_swap_dims(pl_tensor *x, int64_t d0, int64_t d1, pl_tensor **out);
// The element at `at` bytes as a Python object.
PyObject *pl_element(pl_dtype dt, const void *at);

#endif

// SPDX-License-Identifier: Apache-2.0
// backward, grad, grad mode, autocast.
#include "call.h"

static PyObject *py_backward(ARGS) {
    int nt = 0, ng = 0;
    pl_tensor **roots = NULL, **grads = NULL;
    if (pl_arg_count("backward", n, 3)) return NULL;
    int retain = PyObject_IsTrue(args[2]);
    if (retain < 0 || pl_arg_tensors(args[0], "backward", false, &nt, &roots)) return NULL;
    if (pl_arg_tensors(args[1], "backward", true, &ng, &grads)) {
        pl_free(roots);
        return NULL;
    }
    pl_status st = PL_OK;
    if (ng != nt) {
        st = pl_fail(PL_EINVAL, "[backward] got %d gradients for %d tensors", ng, nt);
    } else {
        Py_BEGIN_ALLOW_THREADS
        st = pl_backward(nt, roots, grads, retain);
        Py_END_ALLOW_THREADS
    }
    pl_free(roots);
    pl_free(grads);
    if (st != PL_OK) return pl_raise(module, st);
    Py_RETURN_NONE;
}

static PyObject *grad_list(int count, pl_tensor **grads) {
    PyObject *list = PyList_New(count);
    for (int i = 0; i < count; i++) {
        PyObject *item = NULL;
        if (list && grads[i]) {
            item = pl_tensor_wrap(grads[i]);
        } else if (list) {
            item = Py_NewRef(Py_None);
        } else {
            pl_tensor_release(grads[i]);
        }
        if (list && (!item || PyList_SetItem(list, i, item))) Py_CLEAR(list);
    }
    return list;
}

static PyObject *py_grad(ARGS) {
    int nt = 0, ng = 0, ni = 0;
    pl_tensor **roots = NULL, **grads = NULL, **inputs = NULL, **out = NULL;
    PyObject *r = NULL;
    if (pl_arg_count("grad", n, 5)) return NULL;
    int retain = PyObject_IsTrue(args[3]), unused = PyObject_IsTrue(args[4]);
    if (retain < 0 || unused < 0 || pl_arg_tensors(args[0], "grad", false, &nt, &roots) ||
        pl_arg_tensors(args[1], "grad", false, &ni, &inputs) ||
        pl_arg_tensors(args[2], "grad", true, &ng, &grads)) {
        goto done;
    }
    pl_status st = pl_calloc((size_t)(ni + 1) * sizeof *out, (void **)&out);
    if (st == PL_OK && ng != nt) {
        st = pl_fail(PL_EINVAL, "[grad] got %d gradients for %d outputs", ng, nt);
    }
    if (st == PL_OK) {
        Py_BEGIN_ALLOW_THREADS
        st = pl_grad(nt, roots, grads, ni, inputs, retain, unused, out);
        Py_END_ALLOW_THREADS
    }
    r = st == PL_OK ? grad_list(ni, out) : pl_raise(module, st);
done:
    pl_free(roots);
    pl_free(grads);
    pl_free(inputs);
    pl_free(out);
    return r;
}

static PyObject *py_is_grad_enabled(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyBool_FromLong(pl_grad_enabled());
}

static PyObject *py_set_grad_enabled(PyObject *module, PyObject *arg) {
    (void)module;
    int on = PyObject_IsTrue(arg);
    if (on < 0) return NULL;
    return PyBool_FromLong(pl_grad_set_enabled(on));
}

static PyObject *py_set_autocast(PyObject *module, PyObject *arg) {
    int64_t dtype;
    int before = -1;
    if (pl_arg_int64(arg, "dtype", &dtype)) return NULL;
    pl_status st = pl_amp_set((int)dtype, &before);
    return st == PL_OK ? PyLong_FromLong(before) : pl_raise(module, st);
}

static PyObject *py_get_autocast(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyLong_FromLong(pl_amp_get());
}

static PyObject *py_op_names(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    PyObject *list = PyList_New(pl_op_count);
    for (int i = 0; list && i < pl_op_count; i++) {
        PyObject *name = PyUnicode_FromString(pl_op_table[i]->name);
        if (!name || PyList_SetItem(list, i, name)) Py_CLEAR(list);
    }
    return list;
}

static PyMethodDef functions[] = {
    {"backward", (PyCFunction)(void (*)(void))py_backward, METH_FASTCALL, NULL},
    {"grad", (PyCFunction)(void (*)(void))py_grad, METH_FASTCALL, NULL},
    {"is_grad_enabled", py_is_grad_enabled, METH_NOARGS, NULL},
    {"set_grad_enabled", py_set_grad_enabled, METH_O, NULL},
    {"set_autocast", py_set_autocast, METH_O, NULL},
    {"get_autocast", py_get_autocast, METH_NOARGS, NULL},
    {"op_names", py_op_names, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int pl_bind_autograd(PyObject *module) { return PyModule_AddFunctions(module, functions); }

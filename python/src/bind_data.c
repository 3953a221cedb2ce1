// SPDX-License-Identifier: Apache-2.0
// Binding of data: index lists of samplers as int64 tensors.
// Threads: needs the GIL, which is released while indices are written.
#include "bind.h"
#include "data/data.h"

// Values of an order argument: None (*out NULL) or a contiguous int64 tensor of n elements.
static int arg_order(PyObject *obj, const char *op, int64_t n, const int64_t **out) {
    *out = NULL;
    if (obj == Py_None) return 0;
    pl_tensor *t = pl_tensor_of(obj, op);
    if (t == NULL || pl_arg_on_host(t, op)) return -1;
    if (t->dtype != PL_I64 || t->numel != n || !pl_tensor_is_contiguous(t)) {
        PyErr_Format(PyExc_ValueError,
                     "[%s] order: got %lld elements of %s, expected %lld contiguous ones of int64",
                     op, (long long)t->numel, pl_dtype_name(t->dtype), (long long)n);
        return -1;
    }
    *out = t->data;
    return 0;
}

static int arg_flag(PyObject *obj, bool *out) {
    int truth = PyObject_IsTrue(obj);
    *out = truth > 0;
    return truth < 0 ? -1 : 0;
}

// An int argument; a value that does not fit becomes -1, which every caller refuses.
static int arg_int(PyObject *obj, const char *what, int *out) {
    int64_t wide;
    if (pl_arg_int64(obj, what, &wide) < 0) return -1;
    *out = wide < 0 || wide > INT32_MAX ? -1 : (int)wide;
    return 0;
}

static PyObject *distributed_indices(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    const char *op = "distributed_indices";
    int64_t n, count;
    int world, rank;
    bool drop_last;
    const int64_t *order;
    if (pl_arg_count(op, nargs, 5) < 0 || pl_arg_int64(args[0], "n", &n) < 0 ||
        arg_int(args[1], "world", &world) < 0 || arg_int(args[2], "rank", &rank) < 0 ||
        arg_flag(args[3], &drop_last) < 0 || arg_order(args[4], op, n, &order) < 0) {
        return NULL;
    }
    pl_tensor *out = NULL;
    pl_status st = pl_data_distributed_count(n, world, rank, drop_last, &count);
    if (st == PL_OK) st = pl_tensor_empty(PL_I64, 1, &count, &out);
    if (st != PL_OK) return pl_raise(module, st);
    Py_BEGIN_ALLOW_THREADS
    st = pl_data_distributed_fill(order, n, world, rank, drop_last, out->data);
    Py_END_ALLOW_THREADS
    if (st == PL_OK) return pl_tensor_wrap(out);
    pl_tensor_release(out);
    return pl_raise(module, st);
}

static int arg_shard(PyObject *const *args, pl_data_shard *s) {
    if (pl_arg_int64(args[0], "n", &s->n) < 0 ||
        pl_arg_int64(args[1], "batch_size", &s->batch_size) < 0 ||
        arg_int(args[2], "world", &s->world) < 0 || arg_int(args[3], "rank", &s->rank) < 0 ||
        arg_flag(args[4], &s->drop_last) < 0 || arg_flag(args[5], &s->even) < 0 ||
        arg_flag(args[6], &s->split) < 0) {
        return -1;
    }
    return 0;
}

static PyObject *shard_batches(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    const char *op = "shard_batches";
    pl_data_shard shard;
    const int64_t *order;
    int64_t n_batches, n_indices, n_offsets;
    if (pl_arg_count(op, nargs, 8) < 0 || arg_shard(args, &shard) < 0 ||
        arg_order(args[7], op, shard.n, &order) < 0) {
        return NULL;
    }
    pl_tensor *indices = NULL, *offsets = NULL;
    pl_status st = pl_data_shard_count(&shard, &n_batches, &n_indices);
    if (st != PL_OK) return pl_raise(module, st);
    n_offsets = n_batches + 1;
    PL_TRY_GOTO(st, pl_tensor_empty(PL_I64, 1, &n_indices, &indices), fail);
    PL_TRY_GOTO(st, pl_tensor_empty(PL_I64, 1, &n_offsets, &offsets), fail);
    Py_BEGIN_ALLOW_THREADS
    st = pl_data_shard_fill(&shard, order, indices->data, offsets->data);
    Py_END_ALLOW_THREADS
    if (st != PL_OK) goto fail;
    PyObject *first = pl_tensor_wrap(indices);
    PyObject *second = pl_tensor_wrap(offsets);
    PyObject *pair = first != NULL && second != NULL ? PyTuple_Pack(2, first, second) : NULL;
    Py_XDECREF(first);
    Py_XDECREF(second);
    return pair;
fail:
    pl_tensor_release(indices);
    pl_tensor_release(offsets);
    return pl_raise(module, st);
}

static PyMethodDef methods[] = {
    {"distributed_indices", (PyCFunction)(void (*)(void))distributed_indices, METH_FASTCALL,
     "Indices of one rank, rank::world."},
    {"shard_batches", (PyCFunction)(void (*)(void))shard_batches, METH_FASTCALL,
     "Batches of one rank: (indices, offsets)."},
    {NULL, NULL, 0, NULL},
};

int pl_bind_data(PyObject *module) { return PyModule_AddFunctions(module, methods); }

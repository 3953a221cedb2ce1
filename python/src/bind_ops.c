// SPDX-License-Identifier: Apache-2.0
// The operators as functions of the module: positional arguments in, a Tensor out.
#include <math.h>

#include "call.h"

// ---- elementwise -----------------------------------------------------------------------------

// clang-format off
#define UNARY_MAP(X)                                                                              \
    X(neg) X(abs) X(exp) X(log) X(sqrt) X(rsqrt) X(reciprocal) X(square) X(sin) X(cos) X(tanh)    \
    X(sigmoid) X(relu) X(gelu) X(gelu_tanh) X(silu) X(erf)
// clang-format on
#define X(name)                                                 \
    static PyObject *py_##name(PyObject *module, PyObject *x) { \
        (void)module;                                           \
        pl_tensor *t = pl_tensor_of(x, #name);                  \
        return t ? pl_call(&pl_op_##name, 1, &t, NULL) : NULL;  \
    }
UNARY_MAP(X)
#undef X

// clang-format off
#define PLAIN_UNARY_MAP(X) \
    X(sign, SIGN) X(floor, FLOOR) X(ceil, CEIL) X(round, ROUND) X(logical_not, LOGICAL_NOT) \
    X(isnan, ISNAN) X(isfinite, ISFINITE)
// clang-format on
#define X(name, OP)                                                      \
    static PyObject *py_##name(PyObject *module, PyObject *x) {          \
        pl_tensor *t = pl_tensor_of(x, #name), *out = NULL;              \
        if (!t) return NULL;                                             \
        pl_status st = pl_unary_new(PL_UNARY_##OP, t, &out);             \
        return st == PL_OK ? pl_tensor_wrap(out) : pl_raise(module, st); \
    }
PLAIN_UNARY_MAP(X)
#undef X

// A slot's NotImplemented is a TypeError when a function gives it.
static PyObject *no_not_implemented(PyObject *r, const char *name, PyObject *a, PyObject *b) {
    if (r != Py_NotImplemented) return r;
    Py_DECREF(r);
    PyErr_Format(PyExc_TypeError, "[%s] expected tensors or numbers, got %R and %R", name,
                 (PyObject *)Py_TYPE(a), (PyObject *)Py_TYPE(b));
    return NULL;
}

#define BINARY_MAP(X) X(add) X(sub) X(mul) X(div) X(pow) X(maximum) X(minimum)
#define X(name)                                                        \
    static PyObject *py_##name(ARGS) {                                 \
        COUNT(#name, 2);                                               \
        PyObject *r = pl_call_binary(&pl_op_##name, args[0], args[1]); \
        return no_not_implemented(r, #name, args[0], args[1]);         \
    }
BINARY_MAP(X)
#undef X

// clang-format off
#define PLAIN_BINARY_MAP(X)                                                                  \
    X(remainder, REMAINDER) X(floor_divide, FLOOR_DIVIDE) X(eq, EQ) X(ne, NE) X(lt, LT)      \
    X(le, LE) X(gt, GT) X(ge, GE) X(logical_and, LOGICAL_AND) X(logical_or, LOGICAL_OR)      \
    X(logical_xor, LOGICAL_XOR)
// clang-format on
#define X(name, OP)                                                                  \
    static PyObject *py_##name(ARGS) {                                               \
        COUNT(#name, 2);                                                             \
        PyObject *r = pl_call_binary_plain(PL_BINARY_##OP, #name, args[0], args[1]); \
        return no_not_implemented(r, #name, args[0], args[1]);                       \
    }
PLAIN_BINARY_MAP(X)
#undef X

#define INPLACE_MAP(X) X(mul) X(div)
#define X(name)                                                         \
    static PyObject *py_##name##_(ARGS) {                               \
        COUNT(#name "_", 2);                                            \
        PyObject *r = pl_call_inplace(&pl_op_##name, args[0], args[1]); \
        return no_not_implemented(r, #name "_", args[0], args[1]);      \
    }
INPLACE_MAP(X)
#undef X

static PyObject *py_add_(ARGS) {
    COUNT("add_", 3);
    double alpha;
    if (pl_arg_double(args[2], "alpha", &alpha)) return NULL;
    if (alpha == 1.0) {
        return no_not_implemented(pl_call_inplace(&pl_op_add, args[0], args[1]), "add_", args[0],
                                  args[1]);
    }
    PyObject *scaled = PyNumber_Multiply(args[1], args[2]);
    PyObject *r = scaled ? pl_call_inplace(&pl_op_add, args[0], scaled) : NULL;
    Py_XDECREF(scaled);
    return r ? no_not_implemented(r, "add_", args[0], args[1]) : NULL;
}

static PyObject *py_copy_(ARGS) {
    COUNT("copy_", 2);
    pl_tensor *x = pl_tensor_of(args[0], "copy_");
    pl_tensor *src = x ? pl_tensor_of(args[1], "copy_") : NULL, *wide = NULL, *same = NULL;
    if (!src) return NULL;
    pl_status st = PL_OK;
    pl_attrs to = {.n = x->ndim};
    for (int d = 0; d < x->ndim; d++) to.i[d] = x->shape[d];
    pl_attrs dtype = {.i = {x->dtype}};
    Py_BEGIN_ALLOW_THREADS
    st = pl_autograd_apply(&pl_op_expand, 1, &src, NULL, &to, &wide);
    if (st == PL_OK) st = pl_autograd_apply(&pl_op_to_dtype, 1, &wide, NULL, &dtype, &same);
    if (st == PL_OK && pl_grad_enabled() && pl_requires_grad(same)) {
        st = pl_fail(PL_ENOSUP,
                     "[copy_] from a tensor that requires grad is not tracked here: use "
                     "src.detach(), or the operator that gives a new tensor");
    }
    if (st == PL_OK) st = pl_autograd_will_write("copy_", x, NULL);
    if (st == PL_OK) st = pl_copy_across(same, x, false);
    Py_END_ALLOW_THREADS
    pl_tensor_release(wide);
    pl_tensor_release(same);
    return st == PL_OK ? Py_NewRef(args[0]) : pl_raise(module, st);
}

static PyObject *py_fill_(ARGS) {
    COUNT("fill_", 2);
    pl_tensor *x = pl_tensor_of(args[0], "fill_");
    if (!x) return NULL;
    pl_status st = pl_autograd_will_write("fill_", x, NULL);
    if (st != PL_OK) return pl_raise(module, st);
    return pl_fill_from(x, args[1]) ? NULL : Py_NewRef(args[0]);
}

static PyObject *py_where(ARGS) {
    COUNT("where", 3);
    pl_tensor *in[3] = {pl_tensor_of(args[0], "where"), NULL, NULL};
    if (!in[0]) return NULL;
    bool ta = PyObject_TypeCheck(args[1], pl_tensor_type());
    bool tb = PyObject_TypeCheck(args[2], pl_tensor_type());
    PyObject *r = NULL;
    int rc = pl_operand(args[1], tb ? ((pl_py_tensor *)args[2])->t : NULL, &in[1]);
    if (rc == 0) rc = pl_operand(args[2], ta ? ((pl_py_tensor *)args[1])->t : NULL, &in[2]);
    if (rc > 0) PyErr_SetString(PyExc_TypeError, "[where] expected tensors or numbers");
    if (rc == 0) r = pl_call(&pl_op_where, 3, in, NULL);
    pl_tensor_release(in[1]);
    pl_tensor_release(in[2]);
    return r;
}

static PyObject *py_clamp(ARGS) {
    COUNT("clamp", 3);
    pl_tensor *x = pl_tensor_of(args[0], "clamp");
    pl_attrs a = {.f = {-INFINITY, INFINITY}};
    if (!x || (args[1] != Py_None && pl_arg_double(args[1], "min", &a.f[0])) ||
        (args[2] != Py_None && pl_arg_double(args[2], "max", &a.f[1]))) {
        return NULL;
    }
    return pl_call(&pl_op_clamp, 1, &x, &a);
}

static PyObject *py_to_dtype(ARGS) {
    COUNT("to_dtype", 2);
    pl_tensor *x = pl_tensor_of(args[0], "to_dtype");
    pl_dtype dt;
    if (!x || pl_arg_dtype(args[1], &dt)) return NULL;
    if (x->dtype == dt) return Py_NewRef(args[0]);
    pl_attrs a = {.i = {dt}};
    return pl_call(&pl_op_to_dtype, 1, &x, &a);
}

static PyObject *py_clone(PyObject *module, PyObject *arg) {
    (void)module;
    pl_tensor *x = pl_tensor_of(arg, "clone");
    return x ? pl_call(&pl_op_clone, 1, &x, NULL) : NULL;
}

static PyObject *py_contiguous(PyObject *module, PyObject *arg) {
    (void)module;
    pl_tensor *x = pl_tensor_of(arg, "contiguous");
    if (!x) return NULL;
    return pl_tensor_is_contiguous(x) ? Py_NewRef(arg) : pl_call(&pl_op_clone, 1, &x, NULL);
}

static PyObject *py_detach(PyObject *module, PyObject *arg) {
    pl_tensor *x = pl_tensor_of(arg, "detach"), *out = NULL;
    if (!x) return NULL;
    pl_status st = pl_detach(x, &out);
    return st == PL_OK ? pl_tensor_wrap(out) : pl_raise(module, st);
}

// ---- reductions ------------------------------------------------------------------------------

static PyObject *reduce(const pl_op *op, PyObject *const *args, Py_ssize_t n) {
    if (pl_arg_count(op->name, n, 3)) return NULL;
    pl_tensor *x = pl_tensor_of(args[0], op->name);
    uint32_t mask;
    int keep = PyObject_IsTrue(args[2]);
    if (!x || keep < 0 || pl_arg_dims(args[1], op->name, x->ndim, &mask)) return NULL;
    pl_attrs a = {.i = {mask, keep}};
    return pl_call(op, 1, &x, &a);
}
#define REDUCE_MAP(X) X(sum) X(mean) X(prod) X(amax) X(amin)
#define X(name)                                \
    static PyObject *py_##name(ARGS) {         \
        (void)module;                          \
        return reduce(&pl_op_##name, args, n); \
    }
REDUCE_MAP(X)
#undef X

static PyObject *any_all(pl_reduce op, const char *name, PyObject *const *args, Py_ssize_t n) {
    if (pl_arg_count(name, n, 3)) return NULL;
    pl_tensor *x = pl_tensor_of(args[0], name), *out = NULL;
    uint32_t mask;
    int keep = PyObject_IsTrue(args[2]);
    if (!x || keep < 0 || pl_arg_dims(args[1], name, x->ndim, &mask)) return NULL;
    pl_status st = pl_reduce_new(op, x, mask, keep, &out);
    return st == PL_OK ? pl_tensor_wrap(out) : pl_raise(NULL, st);
}
static PyObject *py_any(ARGS) {
    (void)module;
    return any_all(PL_REDUCE_ANY, "any", args, n);
}
static PyObject *py_all(ARGS) {
    (void)module;
    return any_all(PL_REDUCE_ALL, "all", args, n);
}

static PyObject *arg_reduce(bool max, PyObject *const *args, Py_ssize_t n) {
    const char *name = max ? "argmax" : "argmin";
    if (pl_arg_count(name, n, 3)) return NULL;
    pl_tensor *x = pl_tensor_of(args[0], name), *out = NULL;
    bool whole = args[1] == Py_None;
    int64_t dim = 0;
    int keep = PyObject_IsTrue(args[2]);
    if (!x || keep < 0 || (!whole && pl_arg_int64(args[1], "dim", &dim))) return NULL;
    pl_status st = pl_argreduce(max, x, (int)dim, whole, keep, &out);
    return st == PL_OK ? pl_tensor_wrap(out) : pl_raise(NULL, st);
}
static PyObject *py_argmax(ARGS) {
    (void)module;
    return arg_reduce(true, args, n);
}
static PyObject *py_argmin(ARGS) {
    (void)module;
    return arg_reduce(false, args, n);
}

// x and one integer attribute.
static PyObject *with_int(const pl_op *op, const char *what, PyObject *const *args, Py_ssize_t n) {
    if (pl_arg_count(op->name, n, 2)) return NULL;
    pl_tensor *x = pl_tensor_of(args[0], op->name);
    pl_attrs a = {.n = 0};
    if (!x || pl_arg_int64(args[1], what, &a.i[0])) return NULL;
    return pl_call(op, 1, &x, &a);
}
static PyObject *py_cumsum(ARGS) {
    (void)module;
    return with_int(&pl_op_cumsum, "dim", args, n);
}

static PyObject *py_sort(ARGS) {
    COUNT("sort", 3);
    pl_tensor *x = pl_tensor_of(args[0], "sort"), *values = NULL, *indices = NULL;
    int64_t dim;
    int falling = PyObject_IsTrue(args[2]);
    if (!x || falling < 0 || pl_arg_int64(args[1], "dim", &dim)) return NULL;
    pl_status st = pl_sort(x, (int)dim, falling, &values, &indices);
    if (st != PL_OK) {
        pl_tensor_release(values);
        return pl_raise(module, st);
    }
    PyObject *k = pl_tensor_wrap(indices), *v = NULL;
    if (pl_grad_enabled() && pl_requires_grad(x) && x->ndim > 0) {
        // Values as a gather, which has a gradient.
        pl_tensor_release(values);
        pl_tensor *in[2] = {x, indices};
        pl_attrs a = {.i = {dim}};
        v = k ? pl_call(&pl_op_gather, 2, in, &a) : NULL;
    } else {
        v = pl_tensor_wrap(values);
    }
    PyObject *r = v && k ? PyTuple_Pack(2, v, k) : NULL;
    Py_XDECREF(v);
    Py_XDECREF(k);
    return r;
}

// ---- by index --------------------------------------------------------------------------------

// Rows along dim: the dimension goes to the front, rows are taken, it goes back.
static PyObject *py_index_select(ARGS) {
    COUNT("index_select", 3);
    pl_tensor *x = pl_tensor_of(args[0], "index_select"), *front = NULL, *rows = NULL, *out = NULL;
    pl_tensor *index = pl_tensor_of(args[2], "index_select");
    int64_t d;
    int dim;
    if (!x || !index || pl_arg_int64(args[1], "dim", &d)) return NULL;
    pl_status st = pl_dim_wrap("index_select", (int)d, x->ndim, &dim);
    if (st == PL_OK && (index->ndim != 1 || x->ndim == 0)) {
        st = pl_fail(PL_EINDEX, "[index_select] expected a 1-d index: got %d dimensions",
                     index->ndim);
    }
    if (st != PL_OK) return pl_raise(module, st);
    pl_attrs a = {.i = {-1}, .n = 1};
    int rc = pl_swap_dims(x, 0, dim, &front);
    pl_tensor *in[2] = {front, index};
    if (rc == 0) rc = pl_call_raw(&pl_op_embedding, 2, in, &a, &rows);
    if (rc == 0) rc = pl_swap_dims(rows, 0, dim, &out);
    pl_tensor_release(front);
    pl_tensor_release(rows);
    return rc == 0 ? pl_tensor_wrap(out) : NULL;
}

static PyObject *py_gather(ARGS) {
    COUNT("gather", 3);
    pl_tensor *in[2] = {pl_tensor_of(args[0], "gather"), NULL};
    pl_attrs a = {.n = 1};
    if (!in[0] || pl_arg_int64(args[1], "dim", &a.i[0]) ||
        !(in[1] = pl_tensor_of(args[2], "gather"))) {
        return NULL;
    }
    return pl_call(&pl_op_gather, 2, in, &a);
}

static PyObject *py_nonzero(PyObject *module, PyObject *arg) {
    pl_tensor *x = pl_tensor_of(arg, "nonzero"), *out = NULL;
    if (!x) return NULL;
    pl_status st = pl_nonzero(x, &out);
    return st == PL_OK ? pl_tensor_wrap(out) : pl_raise(module, st);
}

static PyObject *py_embedding(ARGS) {
    COUNT("embedding", 3);
    pl_tensor *in[2] = {pl_tensor_of(args[0], "embedding"), NULL};
    pl_attrs a = {.n = 1};
    if (!in[0] || !(in[1] = pl_tensor_of(args[1], "embedding")) ||
        pl_arg_int64(args[2], "padding_idx", &a.i[0])) {
        return NULL;
    }
    return pl_call(&pl_op_embedding, 2, in, &a);
}

// clang-format off
static PyMethodDef functions[] = {
#define X(name) ONE(name),
    UNARY_MAP(X)
#undef X
#define X(name, OP) ONE(name),
    PLAIN_UNARY_MAP(X)
#undef X
#define X(name) FAST(name),
    BINARY_MAP(X) REDUCE_MAP(X)
#undef X
#define X(name, OP) FAST(name),
    PLAIN_BINARY_MAP(X)
#undef X
    FAST(add_), FAST(mul_), FAST(div_), FAST(copy_), FAST(fill_), FAST(where), FAST(clamp),
    FAST(to_dtype), ONE(clone), ONE(contiguous), ONE(detach), FAST(any), FAST(all), FAST(argmax),
    FAST(argmin), FAST(cumsum), FAST(sort), FAST(index_select), FAST(gather), ONE(nonzero), FAST(embedding),
    {NULL, NULL, 0, NULL},
};
// clang-format on

int pl_bind_ops(PyObject *module) { return PyModule_AddFunctions(module, functions); }

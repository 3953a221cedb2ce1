// SPDX-License-Identifier: Apache-2.0
// The operators of neural networks as functions of the module, and matmul with all of
// torch.matmul's cases.
#include <math.h>
#include <string.h>

#include "call.h"
#include "rng.h"

// ---- matmul ----------------------------------------------------------------------------------

// x with its batch dimensions expanded to `batch`.
static int batched(pl_tensor *x, int nb, const int64_t *batch, pl_tensor **out) {
    pl_attrs a = {.n = nb + 2};
    memcpy(a.i, batch, (size_t)nb * sizeof *batch);
    a.i[nb] = x->shape[x->ndim - 2];
    a.i[nb + 1] = x->shape[x->ndim - 1];
    if (pl_shape_equal(x->ndim, x->shape, a.n, a.i)) {
        *out = pl_tensor_retain(x);
        return 0;
    }
    return pl_call_raw(&pl_op_expand, 1, &x, &a, out);
}

// (.., M, K) times (K, N): the leading dimensions fold into the rows, one product does it all.
static int folded(pl_tensor *a, pl_tensor *b, pl_tensor **out) {
    int64_t k = a->shape[a->ndim - 1], rows[2] = {k ? a->numel / k : 0, k};
    int64_t shape[PL_MAX_DIMS];
    pl_tensor *flat = NULL, *r = NULL;
    memcpy(shape, a->shape, sizeof shape);
    shape[a->ndim - 1] = b->shape[1];
    int rc = pl_reshape(a, 2, rows, &flat);
    pl_tensor *in[2] = {flat, b};
    if (rc == 0) rc = pl_call_raw(&pl_op_matmul, 2, in, NULL, &r);
    if (rc == 0) rc = pl_reshape(r, a->ndim, shape, out);
    pl_tensor_release(flat);
    pl_tensor_release(r);
    return rc;
}

static int product(pl_tensor *a, pl_tensor *b, pl_tensor **out) {
    if (a->ndim > 2 && b->ndim == 2 && a->shape[a->ndim - 1] == b->shape[0] && b->shape[0] > 0) {
        return folded(a, b, out);
    }
    int nb;
    int64_t batch[PL_MAX_DIMS];
    pl_tensor *in[2] = {a, b};
    if (a->ndim == 2 && b->ndim == 2) return pl_call_raw(&pl_op_matmul, 2, in, NULL, out);
    in[0] = in[1] = NULL;
    pl_status st =
        pl_shape_broadcast("matmul", a->ndim - 2, a->shape, b->ndim - 2, b->shape, &nb, batch);
    if (st != PL_OK) {
        pl_raise(NULL, st);
        return -1;
    }
    int rc = batched(a, nb, batch, &in[0]);
    if (rc == 0) rc = batched(b, nb, batch, &in[1]);
    if (rc == 0) rc = pl_call_raw(&pl_op_matmul, 2, in, NULL, out);
    pl_tensor_release(in[0]);
    pl_tensor_release(in[1]);
    return rc;
}

PyObject *pl_tensor_matmul(PyObject *left, PyObject *right) {
    pl_tensor *a = pl_tensor_of(left, "matmul"), *b = a ? pl_tensor_of(right, "matmul") : NULL;
    if (!b) return NULL;
    if (a->ndim == 0 || b->ndim == 0) {
        PyErr_SetString(PyExc_RuntimeError, "[matmul] a 0-d tensor cannot be multiplied: use *");
        return NULL;
    }
    bool va = a->ndim == 1, vb = b->ndim == 1;
    int64_t sa[2] = {1, a->shape[0]}, sb[2] = {b->shape[0], 1}, shape[PL_MAX_DIMS];
    pl_tensor *ma = NULL, *mb = NULL, *r = NULL, *out = NULL;
    int rc = va ? pl_reshape(a, 2, sa, &ma) : (ma = pl_tensor_retain(a), 0);
    if (rc == 0) rc = vb ? pl_reshape(b, 2, sb, &mb) : (mb = pl_tensor_retain(b), 0);
    if (rc == 0) rc = product(ma, mb, &r);
    if (rc == 0 && (va || vb)) {
        int k = 0;
        for (int d = 0; d < r->ndim; d++) {
            bool drop = (va && d == r->ndim - 2) || (vb && d == r->ndim - 1);
            if (!drop) shape[k++] = r->shape[d];
        }
        rc = pl_reshape(r, k, shape, &out);
    } else if (rc == 0) {
        out = pl_tensor_retain(r);
    }
    pl_tensor_release(ma);
    pl_tensor_release(mb);
    pl_tensor_release(r);
    return rc == 0 ? pl_tensor_wrap(out) : NULL;
}

static PyObject *py_matmul(ARGS) {
    COUNT("matmul", 2);
    return pl_tensor_matmul(args[0], args[1]);
}

// ---- layers ----------------------------------------------------------------------------------

static PyObject *py_linear(ARGS) {
    COUNT("linear", 4);
    pl_tensor *in[3] = {pl_tensor_of(args[0], "linear"), NULL, NULL};
    pl_attrs a = {.n = 1};
    if (!in[0] || !(in[1] = pl_tensor_of(args[1], "linear")) ||
        pl_arg_optional(args[2], "linear", &in[2]) || pl_arg_int64(args[3], "act", &a.i[0])) {
        return NULL;
    }
    if (a.i[0] < PL_ACT_NONE || a.i[0] > PL_ACT_GELU_TANH) {
        PyErr_Format(PyExc_ValueError, "[linear] unknown activation code %lld", (long long)a.i[0]);
        return NULL;
    }
    return pl_call(&pl_op_linear, 3, in, &a);
}

static PyObject *py_layer_norm(ARGS) {
    COUNT("layer_norm", 5);
    pl_tensor *in[3] = {pl_tensor_of(args[0], "layer_norm"), NULL, NULL};
    pl_attrs a = {.n = 1};
    if (!in[0] || pl_arg_optional(args[1], "layer_norm", &in[1]) ||
        pl_arg_optional(args[2], "layer_norm", &in[2]) ||
        pl_arg_int64(args[3], "n_dims", &a.i[0]) || pl_arg_double(args[4], "eps", &a.f[0])) {
        return NULL;
    }
    return pl_call(&pl_op_layer_norm, 3, in, &a);
}

static PyObject *py_rms_norm(ARGS) {
    COUNT("rms_norm", 4);
    pl_tensor *in[2] = {pl_tensor_of(args[0], "rms_norm"), NULL};
    pl_attrs a = {.n = 1};
    if (!in[0] || pl_arg_optional(args[1], "rms_norm", &in[1]) ||
        pl_arg_int64(args[2], "n_dims", &a.i[0]) || pl_arg_double(args[3], "eps", &a.f[0])) {
        return NULL;
    }
    return pl_call(&pl_op_rms_norm, 2, in, &a);
}

// x, residual, weight and, where the norm has one, bias; then n_dims and eps. Gives the norm of the
// sum and the sum.
static PyObject *added(const char *name, const pl_op *norm, PyObject *const *args, Py_ssize_t n) {
    int tensors = norm == &pl_op_layer_norm ? 4 : 3;
    if (pl_arg_count(name, n, tensors + 2)) return NULL;
    pl_tensor *in[4] = {pl_tensor_of(args[0], name), NULL, NULL, NULL}, *out[2] = {NULL, NULL};
    pl_attrs a = {.n = 1};
    if (!in[0] || !(in[1] = pl_tensor_of(args[1], name)) ||
        pl_arg_optional(args[2], name, &in[2]) ||
        (tensors == 4 && pl_arg_optional(args[3], name, &in[3])) ||
        pl_arg_int64(args[tensors], "n_dims", &a.i[0]) ||
        pl_arg_double(args[tensors + 1], "eps", &a.f[0]) || pl_ensure_native()) {
        return NULL;
    }
    pl_status st;
    if (in[0]->numel + in[1]->numel < PL_GIL_NUMEL) {
        st = pl_amp_apply_added(norm, in, &a, out);
    } else {
        Py_BEGIN_ALLOW_THREADS
        st = pl_amp_apply_added(norm, in, &a, out);
        Py_END_ALLOW_THREADS
    }
    if (st != PL_OK) return pl_raise(NULL, st);
    PyObject *normed = pl_tensor_wrap(out[0]), *sum = pl_tensor_wrap(out[1]);
    PyObject *r = normed && sum ? PyTuple_Pack(2, normed, sum) : NULL;
    Py_XDECREF(normed);
    Py_XDECREF(sum);
    return r;
}

static PyObject *py_add_layer_norm(ARGS) {
    (void)module;
    return added("add_layer_norm", &pl_op_layer_norm, args, n);
}

static PyObject *py_add_rms_norm(ARGS) {
    (void)module;
    return added("add_rms_norm", &pl_op_rms_norm, args, n);
}

// Softmax along any dimension: the kernel's is the last.
static PyObject *softmax_like(const pl_op *op, PyObject *const *args, Py_ssize_t n) {
    if (pl_arg_count(op->name, n, 2)) return NULL;
    pl_tensor *x = pl_tensor_of(args[0], op->name), *t = NULL, *r = NULL, *out = NULL;
    int64_t d;
    int dim;
    if (!x || pl_arg_int64(args[1], "dim", &d)) return NULL;
    pl_status st = pl_dim_wrap(op->name, (int)d, x->ndim, &dim);
    if (st != PL_OK) return pl_raise(NULL, st);
    if (dim >= x->ndim - 1) return pl_call(op, 1, &x, NULL);
    pl_attrs swap = {.n = x->ndim};
    for (int k = 0; k < x->ndim; k++) {
        swap.i[k] = k == dim ? x->ndim - 1 : k == x->ndim - 1 ? dim : k;
    }
    int rc = pl_call_raw(&pl_op_permute, 1, &x, &swap, &t);
    if (rc == 0) rc = pl_call_raw(op, 1, &t, NULL, &r);
    if (rc == 0) rc = pl_call_raw(&pl_op_permute, 1, &r, &swap, &out);
    pl_tensor_release(t);
    pl_tensor_release(r);
    return rc == 0 ? pl_tensor_wrap(out) : NULL;
}
static PyObject *py_softmax(ARGS) {
    (void)module;
    return softmax_like(&pl_op_softmax, args, n);
}
static PyObject *py_log_softmax(ARGS) {
    (void)module;
    return softmax_like(&pl_op_log_softmax, args, n);
}

static PyObject *py_dropout(ARGS) {
    COUNT("dropout", 3);
    pl_tensor *x = pl_tensor_of(args[0], "dropout");
    pl_attrs a = {.n = 2};
    pl_generator *gen;
    if (!x || pl_arg_double(args[1], "p", &a.f[0]) || !(gen = pl_arg_generator(args[2]))) {
        return NULL;
    }
    a.i[0] = (int64_t)gen->seed;
    a.i[1] = (int64_t)pl_generator_take(gen, pl_random_blocks(PL_F32, x->numel, false));
    return pl_call(&pl_op_dropout, 1, &x, &a);
}

static PyObject *py_swiglu(ARGS) {
    COUNT("swiglu", 1);
    pl_tensor *x = pl_tensor_of(args[0], "swiglu");
    return x ? pl_call(&pl_op_swiglu, 1, &x, NULL) : NULL;
}

static PyObject *py_rotary_embedding(ARGS) {
    COUNT("rotary_embedding", 4);
    pl_tensor *in[3];
    pl_attrs a = {.n = 1};
    for (int k = 0; k < 3; k++) {
        if (!(in[k] = pl_tensor_of(args[k], "rotary_embedding"))) return NULL;
    }
    if (pl_arg_int64(args[3], "position", &a.i[0])) return NULL;
    return pl_call(&pl_op_rotary_embedding, 3, in, &a);
}

static PyObject *py_attention(ARGS) {
    COUNT("attention", 8);
    pl_tensor *in[4] = {NULL};
    pl_attrs a = {.n = 4};
    double scale;
    for (int k = 0; k < 3; k++) {
        if (!(in[k] = pl_tensor_of(args[k], "attention"))) return NULL;
    }
    int causal = PyObject_IsTrue(args[5]), grouped = PyObject_IsTrue(args[7]);
    if (pl_arg_optional(args[3], "attention", &in[3]) ||
        pl_arg_double(args[4], "dropout_p", &a.f[1]) || causal < 0 || grouped < 0 ||
        pl_arg_double(args[6], "scale", &scale)) {
        return NULL;
    }
    int nd = in[0]->ndim;
    double d = nd ? (double)in[0]->shape[nd - 1] : 1.0;
    a.f[0] = isnan(scale) ? 1.0 / sqrt(d) : scale;
    a.i[0] = causal;
    a.i[3] = grouped;
    if (!(a.f[1] >= 0.0 && a.f[1] < 1.0)) {
        PyErr_Format(PyExc_ValueError, "[attention] dropout_p must be in [0, 1), got %R", args[4]);
        return NULL;
    }
    if (a.f[1] > 0 && nd == 4 && in[1]->ndim == 4) {
        pl_generator *gen = pl_default_generator();
        int64_t probabilities =
            in[0]->shape[0] * in[0]->shape[1] * in[0]->shape[2] * in[1]->shape[2];
        a.i[1] = (int64_t)gen->seed;
        a.i[2] = (int64_t)pl_generator_take(gen, pl_random_blocks(PL_F32, probabilities, false));
    }
    return pl_call(&pl_op_attention, 4, in, &a);
}

static PyMethodDef functions[] = {
    FAST(matmul),          FAST(linear),       FAST(layer_norm),       FAST(rms_norm),
    FAST(add_layer_norm),  FAST(add_rms_norm), FAST(softmax),          FAST(log_softmax),
    FAST(dropout),         FAST(swiglu),       FAST(rotary_embedding), FAST(attention),
    {NULL, NULL, 0, NULL},
};

int pl_bind_nn(PyObject *module) { return PyModule_AddFunctions(module, functions); }

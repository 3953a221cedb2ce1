// SPDX-License-Identifier: Apache-2.0
// Optimizer updates and gradient norms over lists of tensors.
#include <math.h>

#include "call.h"
#include "optim/optim.h"

typedef struct lists {
    int n[4];
    pl_tensor **items[4];
} lists;

static void lists_free(lists *l) {
    for (int k = 0; k < 4; k++) pl_free(l->items[k]);
}

// args[0..count) as equally long lists of tensors; None stands for no list.
static int lists_of(const char *op, PyObject *const *args, int count, lists *l) {
    for (int k = 0; k < count; k++) {
        if (args[k] == Py_None) continue;
        if (pl_arg_tensors(args[k], op, false, &l->n[k], &l->items[k])) return -1;
        if (l->n[k] != l->n[0]) {
            PyErr_Format(PyExc_ValueError, "[%s] list %d has %d tensors, the parameters %d", op, k,
                         l->n[k], l->n[0]);
            return -1;
        }
    }
    return 0;
}

static int doubles(PyObject *const *args, int count, double **out) {
    for (int k = 0; k < count; k++) {
        if (pl_arg_double(args[k], "a hyperparameter", out[k])) return -1;
    }
    return 0;
}

static int flag(PyObject *o, bool *out) {
    int v = PyObject_IsTrue(o);
    *out = v > 0;
    return v < 0 ? -1 : 0;
}

// What a step tells of its gradients: a flag that its kernels set. On a device it is a tensor
// there, a flag for each parameter, which whoever wants to know reads; on the CPU a number.
typedef struct flag_place {
    int here;
    pl_tensor *there;  // NULL: the CPU
    int *at;
} flag_place;

static int flag_open(const lists *l, flag_place *f) {
    *f = (flag_place){.at = &f->here};
    if (l->n[0] == 0 || pl_tensor_is_cpu(l->items[0][0])) return 0;
    int64_t n = l->n[0];
    pl_device d = pl_tensor_device(l->items[0][0]);
    pl_status st = pl_tensor_empty_on(d, PL_I32, 1, &n, &f->there);
    if (st == PL_OK) st = pl_bytes_zero(d, f->there->data, pl_tensor_nbytes(f->there));
    if (st == PL_OK) {
        f->at = f->there->data;
        return 0;
    }
    pl_tensor_release(f->there);
    pl_raise(NULL, st);
    return -1;
}

static PyObject *flag_close(flag_place *f, pl_status st) {
    if (st == PL_OK) return f->there ? pl_tensor_wrap(f->there) : PyBool_FromLong(!f->here);
    pl_tensor_release(f->there);
    return pl_raise(NULL, st);
}

// params, grads or None (their own), exp_avgs, exp_avg_sqs, step, lr, beta1, beta2, eps,
// weight_decay, decoupled, maximize, grad_scale; gives whether every gradient was finite, or on a
// device a tensor of numbers, 0 for each parameter whose gradient was
static PyObject *py_adam_step(ARGS) {
    (void)module;
    lists l = {0};
    flag_place f;
    pl_adam_args a = {.lr = 0};
    int64_t step;
    double *hyper[] = {&a.lr, &a.beta1, &a.beta2, &a.eps, &a.weight_decay}, *scale = &a.grad_scale;
    if (pl_arg_count("adam_step", n, 13) || pl_arg_int64(args[4], "step", &step) ||
        doubles(args + 5, 5, hyper) || flag(args[10], &a.decoupled) ||
        flag(args[11], &a.maximize) || doubles(args + 12, 1, &scale)) {
        return NULL;
    }
    if (step < 1) {
        PyErr_Format(PyExc_ValueError, "[adam_step] step counts from 1, got %lld", (long long)step);
        return NULL;
    }
    if (lists_of("adam_step", args, 4, &l) || flag_open(&l, &f)) {
        lists_free(&l);
        return NULL;
    }
    a.nonfinite = f.at;
    a.bias1 = 1.0 - pow(a.beta1, (double)step);
    a.bias2 = 1.0 - pow(a.beta2, (double)step);
    pl_status st = PL_OK;
    Py_BEGIN_ALLOW_THREADS
    st = pl_optim_adam(&a, l.n[0], l.items[0], l.items[1], l.items[2], l.items[3]);
    Py_END_ALLOW_THREADS
    lists_free(&l);
    return flag_close(&f, st);
}

// params, grads or None (their own), momenta or None, first, lr, momentum, dampening, weight_decay,
// nesterov, maximize, grad_scale; gives what adam_step gives
static PyObject *py_sgd_step(ARGS) {
    (void)module;
    lists l = {0};
    flag_place f;
    pl_sgd_args a = {.lr = 0};
    double *hyper[] = {&a.lr, &a.momentum, &a.dampening, &a.weight_decay}, *scale = &a.grad_scale;
    if (pl_arg_count("sgd_step", n, 11) || flag(args[3], &a.first) || doubles(args + 4, 4, hyper) ||
        flag(args[8], &a.nesterov) || flag(args[9], &a.maximize) || doubles(args + 10, 1, &scale)) {
        return NULL;
    }
    if (lists_of("sgd_step", args, 3, &l) || flag_open(&l, &f)) {
        lists_free(&l);
        return NULL;
    }
    a.nonfinite = f.at;
    pl_status st = PL_OK;
    Py_BEGIN_ALLOW_THREADS
    st = pl_optim_sgd(&a, l.n[0], l.items[0], l.items[1], l.items[2]);
    Py_END_ALLOW_THREADS
    lists_free(&l);
    return flag_close(&f, st);
}

static PyObject *py_grad_norm(ARGS) {
    lists l = {0};
    double type, norm = 0;
    if (pl_arg_count("grad_norm", n, 2) || pl_arg_double(args[1], "norm_type", &type)) return NULL;
    if (type != 2.0 && !isinf(type)) {
        PyErr_Format(PyExc_ValueError, "[grad_norm] norm_type must be 2.0 or inf, got %R", args[1]);
        return NULL;
    }
    if (lists_of("grad_norm", args, 1, &l)) {
        lists_free(&l);
        return NULL;
    }
    pl_status st = PL_OK;
    Py_BEGIN_ALLOW_THREADS
    st = pl_optim_norm(l.n[0], l.items[0], isinf(type), &norm);
    Py_END_ALLOW_THREADS
    lists_free(&l);
    return st == PL_OK ? PyFloat_FromDouble(norm) : pl_raise(module, st);
}

static PyObject *py_scale_(ARGS) {
    lists l = {0};
    double factor;
    if (pl_arg_count("scale_", n, 2) || pl_arg_double(args[1], "factor", &factor)) return NULL;
    if (lists_of("scale_", args, 1, &l)) {
        lists_free(&l);
        return NULL;
    }
    pl_status st = PL_OK;
    Py_BEGIN_ALLOW_THREADS
    st = pl_optim_scale(l.n[0], l.items[0], factor);
    Py_END_ALLOW_THREADS
    lists_free(&l);
    if (st != PL_OK) return pl_raise(module, st);
    Py_RETURN_NONE;
}

// grads, factor; gives whether every element was finite before
static PyObject *py_unscale_(ARGS) {
    lists l = {0};
    double factor;
    bool nonfinite = false;
    if (pl_arg_count("unscale_", n, 2) || pl_arg_double(args[1], "factor", &factor)) return NULL;
    if (lists_of("unscale_", args, 1, &l)) {
        lists_free(&l);
        return NULL;
    }
    pl_status st = PL_OK;
    Py_BEGIN_ALLOW_THREADS
    st = pl_optim_unscale(l.n[0], l.items[0], factor, &nonfinite);
    Py_END_ALLOW_THREADS
    lists_free(&l);
    return st == PL_OK ? PyBool_FromLong(!nonfinite) : pl_raise(module, st);
}

// The tensors of a list that have a gradient.
static PyObject *py_with_grad(ARGS) {
    if (pl_arg_count("with_grad", n, 1)) return NULL;
    (void)module;
    Py_ssize_t count = PySequence_Size(args[0]);
    PyObject *out = count < 0 ? NULL : PyList_New(0);
    for (Py_ssize_t i = 0; out && i < count; i++) {
        PyObject *item = PySequence_GetItem(args[0], i);
        pl_tensor *t = item ? pl_tensor_of(item, "with_grad") : NULL;
        bool bad = !t || (pl_grad_of(t) && PyList_Append(out, item) != 0);
        Py_XDECREF(item);
        if (bad) Py_CLEAR(out);
    }
    return out;
}

// leaves; gives the 2-norm of their gradients
static PyObject *py_leaf_norm(ARGS) {
    lists l = {0};
    double norm = 0;
    if (pl_arg_count("leaf_norm", n, 1)) return NULL;
    if (lists_of("leaf_norm", args, 1, &l)) {
        lists_free(&l);
        return NULL;
    }
    pl_status st = PL_OK;
    Py_BEGIN_ALLOW_THREADS
    st = pl_optim_leaf_norm(l.n[0], l.items[0], &norm);
    Py_END_ALLOW_THREADS
    lists_free(&l);
    return st == PL_OK ? PyFloat_FromDouble(norm) : pl_raise(module, st);
}

// leaves, factor, unscale: multiplies their gradients; with `unscale` gives whether every element
// was finite before, else None
static PyObject *py_leaf_scale_(ARGS) {
    lists l = {0};
    double factor;
    bool unscale, nonfinite = false;
    if (pl_arg_count("leaf_scale_", n, 3) || pl_arg_double(args[1], "factor", &factor) ||
        flag(args[2], &unscale)) {
        return NULL;
    }
    if (lists_of("leaf_scale_", args, 1, &l)) {
        lists_free(&l);
        return NULL;
    }
    pl_status st = PL_OK;
    Py_BEGIN_ALLOW_THREADS
    st = unscale ? pl_optim_leaf_unscale(l.n[0], l.items[0], factor, &nonfinite)
                 : pl_optim_leaf_scale(l.n[0], l.items[0], factor);
    Py_END_ALLOW_THREADS
    lists_free(&l);
    if (st != PL_OK) return pl_raise(module, st);
    if (!unscale) Py_RETURN_NONE;
    return PyBool_FromLong(!nonfinite);
}

// The three below enqueue and come back, where all lie on a GPU; else they give None, and the ones
// above serve.
static PyObject *tensor_or_none(PyObject *module, pl_status st, pl_tensor *t) {
    if (st != PL_OK) return pl_raise(module, st);
    if (t == NULL) Py_RETURN_NONE;
    return pl_tensor_wrap(t);
}

// tensors, inf; gives their norm
static PyObject *py_norm_there(ARGS) {
    lists l = {0};
    bool inf;
    pl_tensor *norm = NULL;
    if (pl_arg_count("norm_there", n, 2) || flag(args[1], &inf)) return NULL;
    if (lists_of("norm_there", args, 1, &l)) {
        lists_free(&l);
        return NULL;
    }
    pl_status st = PL_OK;
    Py_BEGIN_ALLOW_THREADS
    st = pl_optim_norm_there(l.n[0], l.items[0], inf, &norm);
    Py_END_ALLOW_THREADS
    lists_free(&l);
    return tensor_or_none(module, st, norm);
}

// leaves, max_norm, keep_nonfinite; clips, and gives the 2-norm before
static PyObject *py_leaf_clip_(ARGS) {
    lists l = {0};
    pl_clip clip = {0};
    pl_tensor *norm = NULL;
    if (pl_arg_count("leaf_clip_", n, 3) || pl_arg_double(args[1], "max_norm", &clip.max_norm) ||
        flag(args[2], &clip.keep_nonfinite)) {
        return NULL;
    }
    if (lists_of("leaf_clip_", args, 1, &l)) {
        lists_free(&l);
        return NULL;
    }
    pl_status st = PL_OK;
    Py_BEGIN_ALLOW_THREADS
    st = pl_optim_leaf_clip_there(&clip, l.n[0], l.items[0], &norm);
    Py_END_ALLOW_THREADS
    lists_free(&l);
    return tensor_or_none(module, st, norm);
}

// leaves, factor (f64, 0-d, where their gradients lie): multiplies the gradients
static PyObject *py_leaf_scale_by_(ARGS) {
    lists l = {0};
    pl_tensor *factor = NULL;
    if (pl_arg_count("leaf_scale_by_", n, 2)) return NULL;
    factor = pl_tensor_of(args[1], "leaf_scale_by_");
    if (!factor || lists_of("leaf_scale_by_", args, 1, &l)) {
        lists_free(&l);
        return NULL;
    }
    pl_status st = PL_OK;
    Py_BEGIN_ALLOW_THREADS
    st = pl_optim_leaf_scale_there(l.n[0], l.items[0], factor);
    Py_END_ALLOW_THREADS
    lists_free(&l);
    return tensor_or_none(module, st, NULL);
}

static PyMethodDef functions[] = {FAST(adam_step),  FAST(sgd_step),       FAST(grad_norm),
                                  FAST(scale_),     FAST(unscale_),       FAST(with_grad),
                                  FAST(leaf_norm),  FAST(leaf_scale_),    FAST(norm_there),
                                  FAST(leaf_clip_), FAST(leaf_scale_by_), {NULL, NULL, 0, NULL}};

int pl_bind_optim(PyObject *module) { return PyModule_AddFunctions(module, functions); }

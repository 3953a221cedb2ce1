// SPDX-License-Identifier: Apache-2.0
// Generator, and tensors filled from its stream. A generator is advanced with the GIL held.
#include "call.h"
#include "rng.h"

typedef struct generator_object {
    PyObject_HEAD pl_generator gen;
} generator_object;

static PyObject *generator_type;
static PyObject *default_object;

pl_generator *pl_default_generator(void) { return &((generator_object *)default_object)->gen; }

pl_generator *pl_arg_generator(PyObject *obj) {
    if (obj == Py_None) return pl_default_generator();
    if (PyObject_TypeCheck(obj, (PyTypeObject *)generator_type)) {
        return &((generator_object *)obj)->gen;
    }
    PyErr_Format(PyExc_TypeError, "expected a Generator or None, got %R", (PyObject *)Py_TYPE(obj));
    return NULL;
}

static void generator_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    freefunc free_object = (freefunc)PyType_GetSlot(type, Py_tp_free);
    free_object(self);
    Py_DECREF(type);
}

static PyObject *get_seed(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(((generator_object *)self)->gen.seed);
}
static PyObject *get_offset(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromUnsignedLongLong(((generator_object *)self)->gen.offset);
}
static int set_word(PyObject *value, uint64_t *out) {
    PyObject *i = value ? PyNumber_Index(value) : NULL;
    if (!i) {
        PyErr_SetString(PyExc_TypeError, "[Generator] expected an integer");
        return -1;
    }
    *out = PyLong_AsUnsignedLongLongMask(i);
    Py_DECREF(i);
    return PyErr_Occurred() ? -1 : 0;
}
static int set_seed(PyObject *self, PyObject *value, void *unused) {
    (void)unused;
    pl_generator *g = &((generator_object *)self)->gen;
    if (set_word(value, &g->seed)) return -1;
    g->offset = 0;
    return 0;
}
static int set_offset(PyObject *self, PyObject *value, void *unused) {
    (void)unused;
    return set_word(value, &((generator_object *)self)->gen.offset);
}

static PyGetSetDef generator_getset[] = {
    {"seed", get_seed, set_seed, NULL, NULL},
    {"offset", get_offset, set_offset, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot generator_slots[] = {
    {Py_tp_dealloc, (void *)(uintptr_t)generator_dealloc},
    {Py_tp_getset, generator_getset},
    {0, NULL},
};
static PyType_Spec generator_spec = {
    .name = "paceline._C.Generator",
    .basicsize = sizeof(generator_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = generator_slots,
};

static PyObject *py_default_generator(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return Py_NewRef(default_object);
}

// The facade's own class has more methods: its object becomes the default stream.
static PyObject *py_set_default_generator(PyObject *module, PyObject *obj) {
    (void)module;
    if (obj == Py_None || !pl_arg_generator(obj)) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "expected a Generator, got None");
        return NULL;
    }
    PyObject *before = default_object;
    default_object = Py_NewRef(obj);
    Py_DECREF(before);
    return Py_NewRef(Py_None);
}

enum { UNIFORM, NORMAL };

static pl_status draw(pl_tensor *t, int what, double a, double b, pl_generator *g) {
    uint64_t at = pl_generator_take(g, pl_random_blocks(t->dtype, t->numel, what == NORMAL));
    if (what == UNIFORM) return pl_k(t)->uniform(t, a, b, g->seed, at);
    return pl_k(t)->normal(t, a, b, g->seed, at);
}

static PyObject *random_new(int what, const char *name, PyObject *const *args, Py_ssize_t n) {
    double a, b;
    pl_generator *g;
    pl_device device;
    if (pl_arg_device_last(name, args, n, 5, &device) ||
        pl_arg_double(args[1], "an argument", &a) || pl_arg_double(args[2], "an argument", &b) ||
        !(g = pl_arg_generator(args[4]))) {
        return NULL;
    }
    pl_tensor *t = pl_new_tensor(args[0], args[3], device);
    if (!t) return NULL;
    if (!pl_dtype_is_float(t->dtype)) {
        PyErr_Format(PyExc_RuntimeError, "[%s] needs a floating dtype, got %s", name,
                     pl_dtype_name(t->dtype));
        pl_tensor_release(t);
        return NULL;
    }
    pl_status st = draw(t, what, a, b, g);
    if (st == PL_OK) return pl_tensor_wrap(t);
    pl_tensor_release(t);
    return pl_raise(NULL, st);
}
static PyObject *py_uniform(ARGS) {
    (void)module;
    return random_new(UNIFORM, "uniform", args, n);
}
static PyObject *py_normal(ARGS) {
    (void)module;
    return random_new(NORMAL, "normal", args, n);
}

static PyObject *random_fill(int what, const char *name, PyObject *const *args, Py_ssize_t n) {
    double a, b;
    pl_generator *g;
    pl_tensor *x = n == 4 ? pl_tensor_of(args[0], name) : NULL, *flat = NULL;
    if (pl_arg_count(name, n, 4) || !x || pl_arg_double(args[1], "an argument", &a) ||
        pl_arg_double(args[2], "an argument", &b) || !(g = pl_arg_generator(args[3]))) {
        return NULL;
    }
    if (!pl_dtype_is_float(x->dtype)) {
        PyErr_Format(PyExc_RuntimeError, "[%s] needs a floating dtype, got %s", name,
                     pl_dtype_name(x->dtype));
        return NULL;
    }
    pl_status st = pl_autograd_will_write(name, x, NULL);
    if (st == PL_OK && pl_tensor_is_contiguous(x)) {
        st = draw(x, what, a, b, g);
    } else if (st == PL_OK) {
        st = pl_tensor_empty_like(x, x->dtype, &flat);
        if (st == PL_OK) st = draw(flat, what, a, b, g);
        if (st == PL_OK) st = pl_k(flat)->copy(flat, x);
        pl_tensor_release(flat);
    }
    if (st != PL_OK) return pl_raise(NULL, st);
    Py_RETURN_NONE;
}
static PyObject *py_uniform_(ARGS) {
    (void)module;
    return random_fill(UNIFORM, "uniform_", args, n);
}
static PyObject *py_normal_(ARGS) {
    (void)module;
    return random_fill(NORMAL, "normal_", args, n);
}

static PyObject *py_randint(ARGS) {
    int64_t lo, hi;
    pl_generator *g;
    pl_device device;
    if (pl_arg_device_last("randint", args, n, 5, &device) || pl_arg_int64(args[1], "low", &lo) ||
        pl_arg_int64(args[2], "high", &hi) || !(g = pl_arg_generator(args[4]))) {
        return NULL;
    }
    if (lo >= hi) {
        PyErr_Format(PyExc_RuntimeError,
                     "[randint] high must be greater than low: got low=%lld, high=%lld",
                     (long long)lo, (long long)hi);
        return NULL;
    }
    pl_tensor *t = pl_new_tensor(args[0], args[3], device);
    if (!t) return NULL;
    uint64_t at = pl_generator_take(g, pl_random_blocks(t->dtype, t->numel, false));
    pl_status st = pl_k(t)->randint(t, lo, hi, g->seed, at);
    if (st == PL_OK) return pl_tensor_wrap(t);
    pl_tensor_release(t);
    return pl_raise(module, st);
}

// A permutation of 0..n-1 is the order that sorts n random numbers.
static PyObject *py_randperm(ARGS) {
    int64_t count;
    pl_generator *g;
    pl_tensor *keys = NULL, *values = NULL, *order = NULL;
    pl_device device;
    if (pl_arg_device_last("randperm", args, n, 2, &device) || pl_arg_int64(args[0], "n", &count) ||
        !(g = pl_arg_generator(args[1]))) {
        return NULL;
    }
    if (count < 0) {
        PyErr_Format(PyExc_RuntimeError, "[randperm] n must be non-negative, got %lld",
                     (long long)count);
        return NULL;
    }
    pl_status st = pl_tensor_empty_on(device, PL_F64, 1, &count, &keys);
    if (st == PL_OK) st = draw(keys, UNIFORM, 0, 1, g);
    if (st == PL_OK) {
        Py_BEGIN_ALLOW_THREADS
        st = pl_sort(keys, 0, false, &values, &order);
        Py_END_ALLOW_THREADS
    }
    pl_tensor_release(keys);
    pl_tensor_release(values);
    return st == PL_OK ? pl_tensor_wrap(order) : pl_raise(module, st);
}

static PyMethodDef functions[] = {
    FAST(uniform),
    FAST(normal),
    FAST(randint),
    FAST(randperm),
    FAST(uniform_),
    FAST(normal_),
    {"default_generator", py_default_generator, METH_NOARGS, NULL},
    {"set_default_generator", py_set_default_generator, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

int pl_bind_random(PyObject *module) {
    if (!generator_type) {
        generator_type = PyType_FromSpec(&generator_spec);
        if (!generator_type) return -1;
        default_object = PyObject_CallNoArgs(generator_type);
        if (!default_object) return -1;
        // Different in every process, as users expect of a script that sets no seed.
        pl_default_generator()->seed = (uint64_t)pl_now_ns() * 0x9E3779B97F4A7C15u;
    }
    if (PyModule_AddObjectRef(module, "Generator", generator_type)) return -1;
    return PyModule_AddFunctions(module, functions);
}

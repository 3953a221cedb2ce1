// SPDX-License-Identifier: Apache-2.0
// DLPack both ways, without copying: tensors lent to other libraries, and theirs taken in.
// Threads: everything here needs the GIL but the two kinds of deleter, which may run anywhere.
//
// Note [lent GPU memory]: DLPack orders streams where memory is handed over, not where it is given
// back. Of what is lent to the default stream the allocator knows that it is used there; of what
// was taken the default stream waits for our work before its owner hears that we are done.
#include <pthread.h>
#include <string.h>

#include "call.h"
#include "dlpack_abi.h"

#define NAME_OLD "dltensor"
#define NAME_NEW "dltensor_versioned"

// ---- lending ---------------------------------------------------------------------------------

// One lent tensor: the struct that the consumer sees, and what it points to.
typedef struct lent {
    union {
        pl_dl_managed old;
        pl_dl_versioned versioned;
    } as;
    int64_t shape[PL_MAX_DIMS], strides[PL_MAX_DIMS];
    pl_tensor *t;  // retained until the consumer is done
} lent;

static void lent_free(lent *l) {
    pl_tensor_release(l->t);
    pl_free(l);
}
static void delete_old(pl_dl_managed *m) { lent_free(m->ctx); }
static void delete_versioned(pl_dl_versioned *m) { lent_free(m->ctx); }

// A capsule that nobody took still owns its tensor; one that was taken has another name.
static void capsule_free(PyObject *capsule) {
    if (PyCapsule_IsValid(capsule, NAME_OLD)) {
        pl_dl_managed *m = PyCapsule_GetPointer(capsule, NAME_OLD);
        if (m->deleter) m->deleter(m);
    } else if (PyCapsule_IsValid(capsule, NAME_NEW)) {
        pl_dl_versioned *m = PyCapsule_GetPointer(capsule, NAME_NEW);
        if (m->deleter) m->deleter(m);
    }
}

static pl_dl_dtype dtype_of(pl_dtype dt) {
    static const uint8_t codes[] = {
        [PL_BOOL] = PL_DL_BOOL, [PL_U8] = PL_DL_UINT,   [PL_I32] = PL_DL_INT,
        [PL_I64] = PL_DL_INT,   [PL_F16] = PL_DL_FLOAT, [PL_BF16] = PL_DL_BFLOAT,
        [PL_F32] = PL_DL_FLOAT, [PL_F64] = PL_DL_FLOAT,
    };
    return (pl_dl_dtype){codes[dt], (uint8_t)(8 * pl_dtype_size(dt)), 1};
}

static void describe(lent *l, pl_dl_tensor *out) {
    const pl_tensor *t = l->t;
    memcpy(l->shape, t->shape, sizeof l->shape);
    memcpy(l->strides, t->strides, sizeof l->strides);
    pl_device d = pl_tensor_device(t);
    *out = (pl_dl_tensor){.data = t->data,
                          .device = {d.type == PL_CPU ? PL_DL_CPU : PL_DL_CUDA, d.index},
                          .ndim = t->ndim,
                          .dtype = dtype_of(t->dtype),
                          .shape = l->shape,
                          .strides = l->strides};
}

// to_dlpack(tensor, versioned)
static PyObject *py_to_dlpack(ARGS) {
    COUNT("to_dlpack", 2);
    lent *l = NULL;
    pl_tensor *t = pl_tensor_of(args[0], "to_dlpack");
    int versioned = PyObject_IsTrue(args[1]);
    if (!t || versioned < 0) return NULL;
    pl_status st = pl_calloc(sizeof *l, (void **)&l);
    if (st != PL_OK) return pl_raise(NULL, st);
    l->t = pl_tensor_retain(t);
    if (versioned) {
        l->as.versioned = (pl_dl_versioned){
            .major = PL_DL_MAJOR, .minor = PL_DL_MINOR, .ctx = l, .deleter = delete_versioned};
        describe(l, &l->as.versioned.tensor);
    } else {
        l->as.old = (pl_dl_managed){.ctx = l, .deleter = delete_old};
        describe(l, &l->as.old.tensor);
    }
    PyObject *capsule = PyCapsule_New(l, versioned ? NAME_NEW : NAME_OLD, capsule_free);
    if (!capsule) lent_free(l);
    return capsule;
}

// ---- taking ----------------------------------------------------------------------------------

static void release_old(void *owner, void *data) {
    pl_dl_managed *m = owner;
    (void)data;
    if (m->deleter) m->deleter(m);
}
static void release_versioned(void *owner, void *data) {
    pl_dl_versioned *m = owner;
    (void)data;
    if (m->deleter) m->deleter(m);
}

// Note [lent GPU memory]. It fails for a GPU that has failed, where nothing is ordered any more.
static void order_behind_ours(void) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static pl_event *e;  // guarded by lock, from record to wait
    const pl_device_services *s = pl_device_open_one();
    pl_runtime *r = s->runtime;
    pl_stream *theirs = r->adopt(r, 1), *ours = s->compute;
    pthread_mutex_lock(&lock);
    pl_status st = e ? PL_OK : r->event_new(r, &e);
    for (int i = 1; st == PL_OK && ours; i++) {
        st = r->record(r, e, ours);
        if (st == PL_OK) st = r->wait(r, theirs, e);
        ours = s->stream ? s->stream(i) : NULL;
    }
    pthread_mutex_unlock(&lock);
}
static void release_old_gpu(void *owner, void *data) {
    order_behind_ours();
    release_old(owner, data);
}
static void release_versioned_gpu(void *owner, void *data) {
    order_behind_ours();
    release_versioned(owner, data);
}

static int find_dtype(pl_dl_dtype d, pl_dtype *out) {
    for (int k = 0; k < PL_DTYPE_COUNT; k++) {
        pl_dl_dtype known = dtype_of((pl_dtype)k);
        if (known.code == d.code && known.bits == d.bits && d.lanes == 1) {
            *out = (pl_dtype)k;
            return 0;
        }
    }
    static const char *const kinds[] = {"int", "uint", "float", "?", "bfloat", "complex", "bool"};
    PyErr_Format(PyExc_BufferError,
                 "[from_dlpack] dtype: got %s%d (DLPack code %d, %d lanes), expected bool, uint8, "
                 "int32, int64, float16, bfloat16, float32 or float64: convert it first",
                 d.code < 7 ? kinds[d.code] : "?", d.bits, d.code, d.lanes);
    return -1;
}

// Strides as ours (row-major where DLPack says nothing), and the bytes from the first element to
// the end of the last.
static int find_layout(const pl_dl_tensor *d, size_t size, int64_t *strides, size_t *nbytes) {
    int64_t step = 1, last = 0, numel = 1;
    for (int k = d->ndim - 1; k >= 0; k--) {
        strides[k] = d->strides ? d->strides[k] : step;
        if (d->shape[k] < 0 || (strides[k] < 0 && d->shape[k] > 1)) {
            PyErr_Format(PyExc_BufferError,
                         "[from_dlpack] dimension %d: got size %lld and stride %lld, expected none "
                         "below 0: make a copy first",
                         k, (long long)d->shape[k], (long long)strides[k]);
            return -1;
        }
        if (strides[k] < 0) strides[k] = 0;  // of one element or none: never used
        step *= d->shape[k] > 0 ? d->shape[k] : 1;
        last += d->shape[k] > 0 ? (d->shape[k] - 1) * strides[k] : 0;
        numel *= d->shape[k];
    }
    *nbytes = numel ? ((size_t)last + 1) * size : 0;
    return 0;
}

static int check_device(pl_dl_device d) {
    const pl_device_services *s = pl_device_open_one();
    if (d.type == PL_DL_CPU) return 0;
    if (d.type != PL_DL_CUDA) {
        PyErr_Format(PyExc_BufferError,
                     "[from_dlpack] device: got DLPack device type %d, expected 1 (the CPU) or 2 "
                     "(CUDA): move the tensor to the CPU first",
                     d.type);
        return -1;
    }
    if (s && s->runtime->device.index == d.id) return 0;
    if (s) {
        PyErr_Format(PyExc_BufferError,
                     "[from_dlpack] one device per process: got memory of cuda:%d, expected "
                     "cuda:%d, which is in use already",
                     d.id, s->runtime->device.index);
    } else {
        PyErr_Format(PyExc_BufferError,
                     "[from_dlpack] no GPU is open in this process: got a capsule of cuda:%d, "
                     "expected the tensor itself, or a tensor on cuda first",
                     d.id);
    }
    return -1;
}

static int check(const pl_dl_tensor *d, pl_dtype *dt, int64_t *strides, size_t *nbytes) {
    if (check_device(d->device)) return -1;
    if (d->ndim < 0 || d->ndim > PL_MAX_DIMS) {
        PyErr_Format(PyExc_BufferError, "[from_dlpack] got %d dimensions, at most %d are supported",
                     d->ndim, PL_MAX_DIMS);
        return -1;
    }
    if (find_dtype(d->dtype, dt)) return -1;
    size_t size = pl_dtype_size(*dt);
    if (find_layout(d, size, strides, nbytes)) return -1;
    if (*nbytes && ((uintptr_t)d->data + d->byte_offset) % size != 0) {
        PyErr_Format(
            PyExc_BufferError,
            "[from_dlpack] the memory is not aligned to elements of %zu bytes: make a copy "
            "first",
            size);
        return -1;
    }
    return 0;
}

typedef struct source {
    pl_dl_tensor *tensor;
    void *managed;
    void (*release)(void *owner, void *data), (*release_gpu)(void *owner, void *data);
    bool read_only;
    const char *used;  // the name of a taken capsule
} source;

static int open_capsule(PyObject *capsule, source *s) {
    if (PyCapsule_IsValid(capsule, NAME_NEW)) {
        pl_dl_versioned *m = PyCapsule_GetPointer(capsule, NAME_NEW);
        if (m->major != PL_DL_MAJOR) {
            PyErr_Format(PyExc_BufferError,
                         "[from_dlpack] DLPack version: got %u.%u, expected %d.x", m->major,
                         m->minor, PL_DL_MAJOR);
            return -1;
        }
        *s = (source){.tensor = &m->tensor,
                      .managed = m,
                      .release = release_versioned,
                      .release_gpu = release_versioned_gpu,
                      .read_only = (m->flags & PL_DL_READ_ONLY) != 0,
                      .used = "used_" NAME_NEW};
        return 0;
    }
    if (PyCapsule_IsValid(capsule, NAME_OLD)) {
        pl_dl_managed *m = PyCapsule_GetPointer(capsule, NAME_OLD);
        *s = (source){.tensor = &m->tensor,
                      .managed = m,
                      .release = release_old,
                      .release_gpu = release_old_gpu,
                      .used = "used_" NAME_OLD};
        return 0;
    }
    PyErr_Format(PyExc_BufferError,
                 "[from_dlpack] expected a DLPack capsule that nobody has taken yet, got %R",
                 capsule);
    return -1;
}

// from_dlpack(capsule): (tensor, read_only). From the first success on, the tensor's storage owns
// what the capsule owned.
static PyObject *py_from_dlpack(PyObject *module, PyObject *capsule) {
    source s;
    pl_dtype dt;
    int64_t strides[PL_MAX_DIMS];
    size_t nbytes;
    pl_storage *storage = NULL;
    pl_tensor *t = NULL;
    if (open_capsule(capsule, &s) || check(s.tensor, &dt, strides, &nbytes)) return NULL;
    char *data = (char *)s.tensor->data + s.tensor->byte_offset;
    int ndim = s.tensor->ndim;
    int64_t shape[PL_MAX_DIMS];
    if (ndim > 0) memcpy(shape, s.tensor->shape, (size_t)ndim * sizeof *shape);
    bool on_cpu = s.tensor->device.type == PL_DL_CPU;
    pl_device device = {on_cpu ? PL_CPU : PL_CUDA, on_cpu ? 0 : s.tensor->device.id};
    pl_status st =
        pl_storage_wrap(data, nbytes, on_cpu ? s.release : s.release_gpu, s.managed, &storage);
    if (st != PL_OK) return pl_raise(module, st);
    storage->device = device;
    if (PyCapsule_SetName(capsule, s.used)) {
        storage->release = NULL;  // not ours: the capsule keeps it
        storage->data = NULL;
        pl_storage_release(storage);
        return NULL;
    }
    st = pl_tensor_from_storage(storage, dt, ndim, shape, strides, 0, &t);
    pl_storage_release(storage);
    if (st != PL_OK) return pl_raise(module, st);
    PyObject *tensor = pl_tensor_wrap(t);
    PyObject *pair = tensor ? Py_BuildValue("(NN)", tensor, PyBool_FromLong(s.read_only)) : NULL;
    return pair;
}

static PyMethodDef functions[] = {
    FAST(to_dlpack),
    ONE(from_dlpack),
    {NULL, NULL, 0, NULL},
};

int pl_bind_dlpack(PyObject *module) { return PyModule_AddFunctions(module, functions); }

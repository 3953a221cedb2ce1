// SPDX-License-Identifier: Apache-2.0
// Streams and events of the open GPU. A stream is a number here (0: the default one), an event a
// capsule, whose run time's event serves again when it is gone: CUDA keeps what a wait has seen.
#include "call.h"

#define NAME "paceline.event"

typedef struct event {
    struct event *next;  // of the spare ones
    pl_event *e;
    bool timed;
} event;

static event *spare[2];  // by `timed`; guarded by the GIL

static const pl_device_services *opened(void) {
    const pl_device_services *s = pl_device_open_one();
    if (s && s->current) return s;
    pl_raise(NULL, pl_fail(PL_EDEVICE,
                           "[cuda] no GPU is open in this process: got none, expected "
                           "a tensor on cuda first"));
    return NULL;
}

// The device and the stream of a number, or NULL with an exception.
static const pl_device_services *stream_arg(PyObject *obj, pl_stream **out) {
    int64_t number;
    const pl_device_services *s = opened();
    if (!s || pl_arg_int64(obj, "stream", &number)) return NULL;
    *out = number < 0 || number > INT32_MAX ? NULL : s->stream((int)number);
    if (*out) return s;
    PyErr_Format(PyExc_ValueError, "[cuda] stream: got number %lld, which was not made",
                 (long long)number);
    return NULL;
}

static event *event_arg(PyObject *obj) { return PyCapsule_GetPointer(obj, NAME); }

static void event_free(PyObject *capsule) {
    event *e = event_arg(capsule);
    e->next = spare[e->timed];
    spare[e->timed] = e;
}

// ---- Streams ------------------------------------------------------------------------------------

static PyObject *py_cuda_stream_new(PyObject *module, PyObject *high_priority) {
    int number = 0, high = PyObject_IsTrue(high_priority);
    const pl_device_services *s = high < 0 ? NULL : opened();
    if (!s) return NULL;
    pl_status st = s->stream_new(high, &number);
    return st == PL_OK ? PyLong_FromLong(number) : pl_raise(module, st);
}

static PyObject *py_cuda_stream_choose(PyObject *module, PyObject *number) {
    pl_stream *stream;
    const pl_device_services *s = stream_arg(number, &stream);
    (void)module;
    return s ? PyLong_FromLong(s->choose((int)PyLong_AsLong(number))) : NULL;
}

static PyObject *py_cuda_stream_current(PyObject *module, PyObject *unused) {
    const pl_device_services *s = opened();
    (void)module, (void)unused;
    return s ? PyLong_FromLong(s->choose(-1)) : NULL;
}

static PyObject *py_cuda_stream_handle(PyObject *module, PyObject *number) {
    pl_stream *stream;
    const pl_device_services *s = stream_arg(number, &stream);
    (void)module;
    return s ? PyLong_FromVoidPtr(s->runtime->native(s->runtime, stream)) : NULL;
}

static PyObject *py_cuda_stream_synchronize(PyObject *module, PyObject *number) {
    pl_stream *stream;
    pl_status st = PL_OK;
    const pl_device_services *s = stream_arg(number, &stream);
    if (!s) return NULL;
    Py_BEGIN_ALLOW_THREADS
    st = pl_device_wait_polled(s, stream);
    Py_END_ALLOW_THREADS
    return st == PL_OK ? Py_NewRef(Py_None) : pl_raise(module, st);
}

// tensor, handle: another library's stream, by DLPack's number, waits for the current one before it
// reads the tensor.
static PyObject *py_cuda_stream_lend(ARGS) {
    COUNT("cuda_stream_lend", 2);
    static pl_event *e;  // guarded by the GIL, which is kept from record to wait
    pl_tensor *t = pl_tensor_of(args[0], "cuda_stream_lend");
    const pl_device_services *s = t ? opened() : NULL;
    void *handle = s ? PyLong_AsVoidPtr(args[1]) : NULL;
    if (!s || PyErr_Occurred()) return NULL;
    pl_runtime *r = s->runtime;
    pl_stream *theirs = r->adopt(r, (uintptr_t)handle);
    pl_status st = e ? PL_OK : r->event_new(r, &e);
    if (st == PL_OK) st = r->record(r, e, s->current());
    if (st == PL_OK) st = r->wait(r, theirs, e);
    // Only that stream is there for ever: Note [lent GPU memory], bind_dlpack.c.
    if (st == PL_OK && handle == (void *)1) st = pl_storage_used_on(t->storage, theirs);
    return st == PL_OK ? Py_NewRef(Py_None) : pl_raise(NULL, st);
}

// tensor, stream
static PyObject *py_record_stream(ARGS) {
    COUNT("record_stream", 2);
    pl_stream *stream;
    pl_tensor *t = pl_tensor_of(args[0], "record_stream");
    const pl_device_services *s = t ? stream_arg(args[1], &stream) : NULL;
    if (!s) return NULL;
    pl_status st = pl_storage_used_on(t->storage, stream);
    return st == PL_OK ? Py_NewRef(Py_None) : pl_raise(NULL, st);
}

// ---- Events -------------------------------------------------------------------------------------

static pl_status event_make(const pl_device_services *s, bool timed, event **out) {
    void *room;
    pl_runtime *r = s->runtime;
    PL_TRY(pl_calloc(sizeof(event), &room));
    event *e = room;
    e->timed = timed;
    pl_status st = timed ? r->timed_event_new(r, &e->e) : r->event_new(r, &e->e);
    if (st != PL_OK) {
        pl_free(e);
        return st;
    }
    *out = e;
    return PL_OK;
}

static PyObject *py_cuda_event_new(PyObject *module, PyObject *timed) {
    int with_time = PyObject_IsTrue(timed);
    const pl_device_services *s = with_time < 0 ? NULL : opened();
    if (!s) return NULL;
    event *e = spare[with_time];
    if (e) {
        spare[with_time] = e->next;
    } else {
        pl_status st = event_make(s, with_time, &e);
        if (st != PL_OK) return pl_raise(module, st);
    }
    PyObject *capsule = PyCapsule_New(e, NAME, event_free);
    if (capsule) return capsule;
    e->next = spare[with_time];
    spare[with_time] = e;
    return NULL;
}

// event, stream
static PyObject *py_cuda_event_record(ARGS) {
    COUNT("cuda_event_record", 2);
    pl_stream *stream;
    event *e = event_arg(args[0]);
    const pl_device_services *s = e ? stream_arg(args[1], &stream) : NULL;
    if (!s) return NULL;
    pl_status st = s->runtime->record(s->runtime, e->e, stream);
    return st == PL_OK ? Py_NewRef(Py_None) : pl_raise(NULL, st);
}

// event, stream
static PyObject *py_cuda_event_wait(ARGS) {
    COUNT("cuda_event_wait", 2);
    pl_stream *stream;
    event *e = event_arg(args[0]);
    const pl_device_services *s = e ? stream_arg(args[1], &stream) : NULL;
    if (!s) return NULL;
    pl_status st = s->runtime->wait(s->runtime, stream, e->e);
    return st == PL_OK ? Py_NewRef(Py_None) : pl_raise(NULL, st);
}

static PyObject *py_cuda_event_done(PyObject *module, PyObject *arg) {
    bool done = false;
    event *e = event_arg(arg);
    const pl_device_services *s = e ? opened() : NULL;
    if (!s) return NULL;
    pl_status st = s->runtime->event_done(s->runtime, e->e, &done);
    return st == PL_OK ? PyBool_FromLong(done) : pl_raise(module, st);
}

static PyObject *py_cuda_event_synchronize(PyObject *module, PyObject *arg) {
    pl_status st = PL_OK;
    event *e = event_arg(arg);
    const pl_device_services *s = e ? opened() : NULL;
    if (!s) return NULL;
    Py_BEGIN_ALLOW_THREADS
    st = pl_device_wait_event(s, e->e);
    Py_END_ALLOW_THREADS
    return st == PL_OK ? Py_NewRef(Py_None) : pl_raise(module, st);
}

// from, to: both with the time, recorded and done
static PyObject *py_cuda_event_elapsed(ARGS) {
    COUNT("cuda_event_elapsed", 2);
    float ms = 0;
    event *from = event_arg(args[0]), *to = from ? event_arg(args[1]) : NULL;
    const pl_device_services *s = to ? opened() : NULL;
    if (!s) return NULL;
    pl_status st = s->runtime->elapsed(s->runtime, from->e, to->e, &ms);
    return st == PL_OK ? PyFloat_FromDouble((double)ms) : pl_raise(NULL, st);
}

static PyMethodDef functions[] = {
    ONE(cuda_stream_new),
    ONE(cuda_stream_choose),
    {"cuda_stream_current", py_cuda_stream_current, METH_NOARGS, NULL},
    ONE(cuda_stream_handle),
    ONE(cuda_stream_synchronize),
    FAST(cuda_stream_lend),
    FAST(record_stream),
    ONE(cuda_event_new),
    FAST(cuda_event_record),
    FAST(cuda_event_wait),
    ONE(cuda_event_done),
    ONE(cuda_event_synchronize),
    FAST(cuda_event_elapsed),
    {NULL, NULL, 0, NULL},
};

int pl_bind_stream(PyObject *module) { return PyModule_AddFunctions(module, functions); }

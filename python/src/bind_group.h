// SPDX-License-Identifier: Apache-2.0
// _C.Group, as bind_group.c, bind_work.c and the bindings that need a group see it. Needs the GIL.
#ifndef PL_BIND_GROUP_H
#define PL_BIND_GROUP_H

#include "bind.h"
#include "comm/comm.h"

typedef struct pl_group_object {
    PyObject_HEAD pl_group *g;  // NULL: closed and freed
    int rank, world;
    int busy;     // calls inside; guarded by the GIL
    int held;     // others that point at g, pl_group_hold; guarded by the GIL
    bool closed;  // by the user; freed when nothing holds it
} pl_group_object;

// The group of a Group object, borrowed for one call; NULL with an exception if obj is no Group, is
// closed, or has another thread's call inside.
pl_group *pl_group_of(PyObject *obj, const char *op);
// The same for an object that keeps the pointer: holds a reference to obj, and close() then frees
// the group only with that. Given back by pl_group_unhold.
pl_group *pl_group_hold(PyObject *obj, const char *op);
void pl_group_unhold(PyObject *obj);
// Gives the exception that is set, for a status that came from a group, perhaps through a backward
// pass, its attributes: .dead_ranks, .op, .seq, .call_site and so on. pl_raise calls it.
void pl_describe_failure(pl_status st);

// EXPR, a pl_status, without the GIL; the group cannot be closed meanwhile.
#define WITHOUT_GIL(self, st, expr) \
    do {                            \
        (self)->busy++;             \
        Py_BEGIN_ALLOW_THREADS(st)  \
        = (expr);                   \
        Py_END_ALLOW_THREADS(self)  \
        ->busy--;                   \
    } while (0)

// Whether a call may begin; 0, or -1 with an exception.
int pl_group_begin(pl_group_object *self, const char *op);
// The end of a call: NULL with the exception of st, or a pending warning, or None.
PyObject *pl_group_result(pl_group_object *self, pl_status st);
// A collective wrote into obj: a backward pass that has saved the tensor must notice.
void pl_group_wrote(PyObject *obj);
// The n trailing integers of a call, the last of which is the depth of the call site.
int pl_int_args(const char *fn, PyObject *const *args, Py_ssize_t n, int *out);

// bind_collectives.c: methods of Group
PyObject *pl_py_all_reduce(PyObject *obj, PyObject *const *args, Py_ssize_t n);
PyObject *pl_py_collective(PyObject *obj, PyObject *const *args, Py_ssize_t n);
PyObject *pl_py_all_to_all(PyObject *obj, PyObject *const *args, Py_ssize_t n);
PyObject *pl_py_barrier(PyObject *obj, PyObject *const *args, Py_ssize_t n);
PyObject *pl_py_send(PyObject *obj, PyObject *const *args, Py_ssize_t n);
PyObject *pl_py_recv(PyObject *obj, PyObject *const *args, Py_ssize_t n);

// bind_work.c
int pl_bind_work(PyObject *module);
// Queues `what` and gives its Work, which takes over both buffers; NULL with an exception, and then
// they are released.
PyObject *pl_work_start(pl_group_object *group, const pl_collective *what, pl_site site,
                        pl_buffer *in, pl_buffer *out);

#endif

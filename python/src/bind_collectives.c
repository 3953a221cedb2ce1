// SPDX-License-Identifier: Apache-2.0
// The collectives of _C.Group. Buffers are Tensors or contiguous buffer-protocol objects.
//
// Needs the GIL; released around everything that waits. Every method ends with the depth of the
// call site: how many Python frames stand between this call and the user's line.
#include "bind.h"
#include "bind_group.h"
#include "bind_site.h"
#include "comm/comm.h"

// What a kind of collective does with memory. `rows`: the buffer that holds one block per rank.
typedef struct kind_info {
    const char *name;
    enum { ONE, IN_ROWS, OUT_ROWS } rows;
    bool rows_on_root;  // only the root has that buffer
} kind_info;

static const kind_info kinds[PL_COLL_ALL_TO_ALL] = {
    [PL_COLL_ALL_REDUCE] = {"all_reduce", ONE, false},
    [PL_COLL_REDUCE] = {"reduce", ONE, false},
    [PL_COLL_REDUCE_SCATTER] = {"reduce_scatter", IN_ROWS, false},
    [PL_COLL_ALL_GATHER] = {"all_gather", OUT_ROWS, false},
    [PL_COLL_BROADCAST] = {"broadcast", ONE, false},
    [PL_COLL_GATHER] = {"gather", OUT_ROWS, true},
    [PL_COLL_SCATTER] = {"scatter", IN_ROWS, true},
};

static int misfit(const char *op, const pl_buffer *in, const pl_buffer *out, const char *large,
                  int world) {
    PyErr_Format(PyExc_ValueError,
                 "[%s] buffers do not fit: got %lld %s in, %lld %s out, expected one dtype and "
                 "%s to hold %d times the elements of the other",
                 op, (long long)in->count, pl_dtype_name(in->dtype), (long long)out->count,
                 pl_dtype_name(out->dtype), large, world);
    return -1;
}

static int two_places(const char *op, pl_buffer *in, pl_buffer *out) {
    if (pl_device_equal(in->device, out->device)) return 0;
    PyErr_Format(PyExc_RuntimeError,
                 "[%s] in and out lie on two devices: expected one; move one of them with "
                 ".to(device)",
                 op);
    pl_buffer_release(in);
    pl_buffer_release(out);
    return -1;
}

// Opens the buffers that this rank has part in; on failure what was opened is released.
static int open_buffers(const pl_group_object *self, const kind_info *k, PyObject *const *objs,
                        bool is_root, pl_buffer *in, pl_buffer *out) {
    bool has_rows = is_root || !k->rows_on_root, writes = k->rows != ONE || !is_root;
    *in = *out = (pl_buffer){0};
    if ((k->rows == OUT_ROWS || (k->rows == IN_ROWS && has_rows)) &&
        pl_buffer_anywhere(objs[0], false, in)) {
        return -1;
    }
    if ((k->rows != OUT_ROWS || has_rows) && pl_buffer_anywhere(objs[1], writes, out)) {
        pl_buffer_release(in);
        return -1;
    }
    if (k->rows == ONE || !has_rows) return 0;
    int64_t large = k->rows == IN_ROWS ? in->count : out->count;
    int64_t small = k->rows == IN_ROWS ? out->count : in->count;
    if (two_places(k->name, in, out)) return -1;
    if (in->dtype == out->dtype && large == small * self->world) return 0;
    misfit(k->name, in, out, k->rows == IN_ROWS ? "in" : "out", self->world);
    pl_buffer_release(in);
    pl_buffer_release(out);
    return -1;
}

// collective(kind, in, out, op, root, is_async, depth): Work, or None when it is done. One-buffer
// kinds take it as `out`; a buffer that only the root has is None elsewhere.
PyObject *pl_py_collective(PyObject *obj, PyObject *const *args, Py_ssize_t n) {
    pl_group_object *self = (pl_group_object *)obj;
    int kind, a[4];
    pl_buffer in, out;
    if (pl_arg_count("collective", n, 7) || pl_int_args("kind", args, 1, &kind)) return NULL;
    if ((unsigned)kind >= PL_COLL_ALL_TO_ALL) {
        return PyErr_Format(PyExc_ValueError, "[collective] unknown kind: got %d", kind);
    }
    const kind_info *k = &kinds[kind];
    if (pl_int_args(k->name, args + 3, 4, a) || pl_group_begin(self, k->name)) return NULL;
    // Whose memory is only read, or who has the rows; and who gets a result.
    bool is_target = a[1] == self->rank;
    bool is_root = (kind == PL_COLL_BROADCAST || k->rows_on_root) && is_target;
    if (open_buffers(self, k, args + 1, is_root, &in, &out)) return NULL;
    const pl_buffer *block = k->rows == OUT_ROWS ? &in : &out;  // of one rank
    pl_collective c = {.kind = (pl_coll)kind,
                       .in = k->rows == ONE ? out.data : in.data,
                       .out = out.data,
                       .count = block->count,
                       .dtype = block->dtype,
                       .op = (pl_redop)a[0],
                       .root = a[1],
                       .device = block->device};
    pl_site site = pl_call_site_of(a[3], block);
    bool unchanged = kind == PL_COLL_BROADCAST ? is_root : kind == PL_COLL_REDUCE && !is_target;
    if (out.data && !unchanged) pl_group_wrote(args[2]);
    if (a[2]) return pl_work_start(self, &c, site, &in, &out);
    pl_status st;
    WITHOUT_GIL(self, st, pl_group_collective(self->g, &c, site, NULL));
    pl_buffer_release(&in);
    pl_buffer_release(&out);
    return pl_group_result(self, st);
}

// all_reduce(buf, op, depth): the most frequent one, without the detours.
PyObject *pl_py_all_reduce(PyObject *obj, PyObject *const *args, Py_ssize_t n) {
    pl_group_object *self = (pl_group_object *)obj;
    int a[2];
    pl_buffer b;
    if (pl_arg_count("all_reduce", n, 3) || pl_int_args("all_reduce", args + 1, 2, a)) return NULL;
    if (pl_group_begin(self, "all_reduce") || pl_buffer_anywhere(args[0], true, &b)) return NULL;
    pl_site site = pl_call_site_of(a[1], &b);
    pl_status st;
    if (b.device.type == PL_CPU) {
        WITHOUT_GIL(self, st,
                    pl_group_all_reduce(self->g, b.data, b.count, b.dtype, (pl_redop)a[0], site));
    } else {
        pl_collective c = {.kind = PL_COLL_ALL_REDUCE, .in = b.data, .out = b.data};
        c.count = b.count;
        c.dtype = b.dtype;
        c.op = (pl_redop)a[0];
        c.device = b.device;
        WITHOUT_GIL(self, st, pl_group_collective(self->g, &c, site, NULL));
    }
    pl_group_wrote(args[0]);
    pl_buffer_release(&b);
    return pl_group_result(self, st);
}

// 2 * world integers whose halves sum to the rows of in and out; the elements of a row, or -1.
static int64_t splits_of(const pl_group_object *self, PyObject *seq, const pl_buffer *in,
                         const pl_buffer *out, int64_t *splits) {
    int64_t sums[2] = {0, 0}, row = 0;
    if (PySequence_Size(seq) != 2 * self->world + 1) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "[all_to_all] wrong splits");
        return -1;
    }
    for (int i = 0; i <= 2 * self->world; i++) {
        int64_t *to = i == 2 * self->world ? &row : &splits[i];
        PyObject *item = PySequence_GetItem(seq, i);
        int bad = !item || pl_arg_int64(item, "splits", to);
        Py_XDECREF(item);
        if (bad) return -1;
        if (*to < 0) {
            PyErr_Format(PyExc_ValueError,
                         "[all_to_all] split sizes must not be negative: got %lld", (long long)*to);
            return -1;
        }
        if (i < 2 * self->world) sums[i / self->world] += *to;
    }
    if (in->dtype == out->dtype && sums[0] * row == in->count && sums[1] * row == out->count) {
        return row;
    }
    PyErr_Format(PyExc_ValueError,
                 "[all_to_all] split sizes do not fit: got %lld %s in, %lld %s out, expected one "
                 "dtype, %lld and %lld rows of %lld elements",
                 (long long)in->count, pl_dtype_name(in->dtype), (long long)out->count,
                 pl_dtype_name(out->dtype), (long long)sums[0], (long long)sums[1], (long long)row);
    return -1;
}

// all_to_all(in, out, splits, depth). splits: rows to each rank, from each rank, elements of a row.
PyObject *pl_py_all_to_all(PyObject *obj, PyObject *const *args, Py_ssize_t n) {
    pl_group_object *self = (pl_group_object *)obj;
    int depth;
    int64_t splits[2 * PL_MAX_RANKS];
    pl_buffer in, out;
    if (pl_arg_count("all_to_all", n, 4) || pl_int_args("all_to_all", args + 3, 1, &depth)) {
        return NULL;
    }
    if (pl_group_begin(self, "all_to_all") || pl_buffer_anywhere(args[0], false, &in)) return NULL;
    if (pl_buffer_anywhere(args[1], true, &out)) {
        pl_buffer_release(&in);
        return NULL;
    }
    if (two_places("all_to_all", &in, &out)) return NULL;
    int64_t row = splits_of(self, args[2], &in, &out, splits);
    pl_collective c = {.kind = PL_COLL_ALL_TO_ALL, .in = in.data, .out = out.data};
    c.count = row;
    c.dtype = in.dtype;
    c.splits = splits;
    c.device = in.device;
    pl_status st = PL_OK;
    if (row >= 0) {
        pl_site site = pl_call_site(depth);
        WITHOUT_GIL(self, st, pl_group_collective(self->g, &c, site, NULL));
        pl_group_wrote(args[1]);
    }
    pl_buffer_release(&in);
    pl_buffer_release(&out);
    return row < 0 ? NULL : pl_group_result(self, st);
}

PyObject *pl_py_barrier(PyObject *obj, PyObject *const *args, Py_ssize_t n) {
    pl_group_object *self = (pl_group_object *)obj;
    int depth;
    if (pl_arg_count("barrier", n, 1) || pl_int_args("barrier", args, 1, &depth)) return NULL;
    if (pl_group_begin(self, "barrier")) return NULL;
    pl_site site = pl_call_site(depth);
    pl_status st;
    WITHOUT_GIL(self, st, pl_group_barrier(self->g, site));
    return pl_group_result(self, st);
}

static PyObject *message(pl_group_object *self, PyObject *const *args, Py_ssize_t n, bool sends) {
    const char *op = sends ? "send" : "recv";
    int a[3];
    pl_buffer b;
    if (pl_arg_count(op, n, 4) || pl_int_args(op, args + 1, 3, a)) return NULL;
    if (pl_group_begin(self, op) || pl_buffer_anywhere(args[0], !sends, &b)) return NULL;
    pl_site site = pl_call_site_of(a[2], &b);
    pl_message m = {.sends = sends, .buf = b.data, .count = b.count, .dtype = b.dtype};
    m.peer = a[0];
    m.tag = a[1];
    m.device = b.device;
    pl_status st;
    WITHOUT_GIL(self, st, pl_group_message(self->g, &m, site));
    if (!sends) pl_group_wrote(args[0]);
    pl_buffer_release(&b);
    return pl_group_result(self, st);
}

PyObject *pl_py_send(PyObject *obj, PyObject *const *args, Py_ssize_t n) {
    return message((pl_group_object *)obj, args, n, true);
}

PyObject *pl_py_recv(PyObject *obj, PyObject *const *args, Py_ssize_t n) {
    return message((pl_group_object *)obj, args, n, false);
}

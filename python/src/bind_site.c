// SPDX-License-Identifier: Apache-2.0
// Where a collective was called: a hash that is the same in every process for the same place in
// the same source, and the text "train.py:31 in main". Needs the GIL; process-wide cache.
//
// The hash comes from the file's name (without its folder, which differs between a notebook's
// kernels), the function and the line, never from an address or Python's salted string hash. It is
// looked up by code object and instruction, so that a call in a loop costs two attribute reads.
// The cache holds the code objects, and texts are never freed: the group prints them later.
#include "bind_site.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CACHE_SLOTS 4096  // a power of two
#define CACHE_FULL (CACHE_SLOTS / 2)

typedef struct entry {
    PyObject *code;  // owned; NULL: free slot
    long lasti;
    pl_site site;
} entry;

static entry cache[CACHE_SLOTS];
static int cached;

static PyObject *frame_above(int depth) {
    PyObject *frame = (PyObject *)PyEval_GetFrame();  // borrowed
    Py_XINCREF(frame);
    for (int i = 0; i < depth && frame; i++) {
        PyObject *back = PyObject_GetAttrString(frame, "f_back");
        if (!back || Py_IsNone(back)) {
            Py_XDECREF(back);
            PyErr_Clear();
            break;  // the outermost one there is
        }
        Py_DECREF(frame);
        frame = back;
    }
    return frame;
}

static uint64_t mix(uint64_t h, const void *data, size_t n) {
    const unsigned char *p = data;
    for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * UINT64_C(1099511628211);  // FNV-1a
    return h;
}

// An attribute of `code` as UTF-8 into buf; "?" where there is none.
static void attribute(PyObject *code, const char *name, char *buf, size_t cap) {
    PyObject *value = PyObject_GetAttrString(code, name);
    PyObject *bytes = value ? PyUnicode_AsEncodedString(value, "utf-8", "replace") : NULL;
    const char *text = bytes ? PyBytes_AsString(bytes) : NULL;
    snprintf(buf, cap, "%s", text ? text : "?");
    Py_XDECREF(bytes);
    Py_XDECREF(value);
    PyErr_Clear();
}

static pl_site describe(PyObject *frame, PyObject *code) {
    char file[512], function[256], text[800];
    attribute(code, "co_filename", file, sizeof file);
    attribute(code, "co_name", function, sizeof function);
    int32_t line = PyFrame_GetLineNumber((PyFrameObject *)frame);
    const char *slash = strrchr(file, '/');
    const char *base = slash ? slash + 1 : file;
    uint64_t h = UINT64_C(14695981039346656037);
    h = mix(h, base, strlen(base) + 1);
    h = mix(h, function, strlen(function) + 1);
    h = mix(h, &line, sizeof line);
    int n = snprintf(text, sizeof text, "%s:%d in %s", base, (int)line, function);
    char *copy = malloc((size_t)n + 1);  // kept for the life of the process
    if (copy) memcpy(copy, text, (size_t)n + 1);
    return (pl_site){.hash = h ? h : 1, .text = copy};
}

static entry *find(PyObject *code, long lasti) {
    uint64_t h = (uint64_t)(uintptr_t)code >> 4;
    h = (h ^ (uint64_t)lasti * UINT64_C(0x9e3779b97f4a7c15)) * UINT64_C(0x9e3779b97f4a7c15);
    for (size_t i = h >> 40;; i++) {
        entry *e = &cache[i % CACHE_SLOTS];
        if (!e->code || (e->code == code && e->lasti == lasti)) return e;
    }
}

pl_site pl_call_site(int depth) {
    pl_site site = {.text = NULL};
    PyObject *frame = frame_above(depth);
    if (!frame) return site;
    PyObject *code = (PyObject *)PyFrame_GetCode((PyFrameObject *)frame);
    PyObject *lasti = PyObject_GetAttrString(frame, "f_lasti");
    long at = lasti ? PyLong_AsLong(lasti) : -1;
    Py_XDECREF(lasti);
    PyErr_Clear();
    entry *e = find(code, at);
    if (e->code) {
        site = e->site;
    } else if (cached < CACHE_FULL) {
        *e = (entry){Py_NewRef(code), at, describe(frame, code)};
        site = e->site;
        cached++;
    } else {
        site = (pl_site){.hash = 1,
                         .text = "a call site too many"};  // code made at run time, over and over
    }
    Py_DECREF(code);
    Py_DECREF(frame);
    return site;
}

pl_site pl_call_site_of(int depth, const pl_buffer *b) {
    pl_site site = pl_call_site(depth);
    if (b->has_view) {
        int64_t dims[64];  // the buffer protocol's own limit
        for (int i = 0; i < b->view.ndim; i++) dims[i] = b->view.shape[i];
        site.shape = pl_site_shape(b->view.ndim, dims);
    } else {
        const pl_tensor *t = pl_tensor_of(b->keep, "collective");
        site.shape = t ? pl_site_shape(t->ndim, t->shape) : 0;
    }
    return site;
}

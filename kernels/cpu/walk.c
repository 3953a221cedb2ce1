// SPDX-License-Identifier: Apache-2.0
// Merging of dimensions, and the runs of memory that a chunk of a walk is made of.

#include "cpu/walk.h"

#include <string.h>

// Whether dimension d of t comes before (outside) e in memory.
static bool outside(const pl_tensor *t, int d, int e) { return t->strides[d] > t->strides[e]; }

// The dimensions of size other than 1, outermost in the output's memory first (stable).
static int order_dims(const pl_tensor *out, int *dims) {
    int n = 0;
    for (int d = 0; d < out->ndim; d++) {
        if (out->shape[d] == 1) continue;
        int at = n++;
        for (; at > 0 && outside(out, d, dims[at - 1]); at--) dims[at] = dims[at - 1];
        dims[at] = d;
    }
    return n;
}

// Whether dimension `outer` (the walk's last so far) and tensor dimension d are one for everyone.
static bool mergeable(const pl_walk *w, const pl_tensor *const *tensors, int d) {
    for (int k = 0; k < w->count; k++) {
        int64_t inner = tensors[k]->strides[d] * tensors[k]->shape[d];
        if (w->op[k].strides[w->ndim - 1] != inner) return false;
    }
    return true;
}

static pl_access access_of(const pl_walk *w, const pl_operand *op) {
    int64_t dense = 1;
    bool is_dense = true, is_single = true;
    for (int d = w->ndim - 1; d >= 0; d--) {
        is_dense = is_dense && op->strides[d] == dense;
        is_single = is_single && op->strides[d] == 0;
        dense *= w->shape[d];
    }
    return is_dense ? PL_DENSE : is_single ? PL_SINGLE : PL_PIECES;
}

void pl__cpu_walk_init(pl_walk *w, int count, const pl_tensor *const *tensors) {
    int dims[PL_MAX_DIMS], n = order_dims(tensors[0], dims);
    w->count = count;
    w->ndim = 0;
    w->numel = tensors[0]->numel;
    for (int i = 0; i < n; i++) {
        int d = dims[i];
        bool merge = w->ndim > 0 && mergeable(w, tensors, d);
        if (!merge) w->ndim++;
        int at = w->ndim - 1;
        w->shape[at] = merge ? w->shape[at] * tensors[0]->shape[d] : tensors[0]->shape[d];
        for (int k = 0; k < count; k++) w->op[k].strides[at] = tensors[k]->strides[d];
    }
    if (w->ndim == 0) {  // one element: a dense run of one for everyone
        w->ndim = 1;
        w->shape[0] = 1;
        for (int k = 0; k < count; k++) w->op[k].strides[0] = 1;
    }
    for (int k = 0; k < count; k++) {
        w->op[k].data = tensors[k]->data;
        w->op[k].size = pl_dtype_size(tensors[k]->dtype);
        w->op[k].access = access_of(w, &w->op[k]);
    }
}

void pl__cpu_cursor_set(const pl_walk *w, int64_t index, pl_cursor *c) {
    c->index = index;
    for (int d = w->ndim - 1; d > 0; d--) {
        c->at[d] = index % w->shape[d];
        index /= w->shape[d];
    }
    c->at[0] = index;
}

void pl__cpu_cursor_advance(const pl_walk *w, int64_t n, pl_cursor *c) {
    c->index += n;
    int d = w->ndim - 1;
    c->at[d] += n;
    for (; d > 0 && c->at[d] >= w->shape[d]; d--) {
        c->at[d - 1] += c->at[d] / w->shape[d];
        c->at[d] %= w->shape[d];
    }
}

static char *address(const pl_walk *w, const pl_operand *op, const int64_t *at) {
    int64_t offset = 0;
    for (int d = 0; d < w->ndim; d++) offset += at[d] * op->strides[d];
    return op->data + offset * (int64_t)op->size;
}

void *pl__cpu_walk_dense(const pl_walk *w, int k, const pl_cursor *c, int64_t n) {
    const pl_operand *op = &w->op[k];
    if (op->access == PL_DENSE) return op->data + c->index * (int64_t)op->size;
    int last = w->ndim - 1;
    if (op->strides[last] != 1 || c->at[last] + n > w->shape[last]) return NULL;
    return address(w, op, c->at);
}

// The next run along the innermost dimension: its length, with *c moved behind it.
static int64_t next_run(const pl_walk *w, int64_t left, pl_cursor *c) {
    int last = w->ndim - 1;
    int64_t run = w->shape[last] - c->at[last];
    if (run > left) run = left;
    pl__cpu_cursor_advance(w, run, c);
    return run;
}

void pl__cpu_walk_load(const pl_walk *w, int k, const pl_cursor *c, int64_t n, pl_load_fn load,
                       size_t loaded_size, void *buf) {
    const pl_operand *op = &w->op[k];
    if (op->access == PL_DENSE) {
        load(n, op->data + c->index * (int64_t)op->size, 1, buf);
        return;
    }
    if (op->access == PL_SINGLE) {
        load(n, op->data, 0, buf);
        return;
    }
    pl_cursor at = *c;
    char *to = buf;
    for (int64_t left = n; left > 0;) {
        const char *from = address(w, op, at.at);
        int64_t run = next_run(w, left, &at);
        load(run, from, op->strides[w->ndim - 1], to);
        to += (size_t)run * loaded_size;
        left -= run;
    }
}

void pl__cpu_walk_store(const pl_walk *w, const pl_cursor *c, int64_t n, pl_store_fn store,
                        size_t stored_size, const void *buf) {
    const pl_operand *op = &w->op[0];
    if (op->access == PL_DENSE) {
        store(n, buf, op->data + c->index * (int64_t)op->size, 1);
        return;
    }
    pl_cursor at = *c;
    const char *from = buf;
    for (int64_t left = n; left > 0;) {
        char *to = address(w, op, at.at);
        int64_t run = next_run(w, left, &at);
        store(run, from, to, op->strides[w->ndim - 1]);
        from += (size_t)run * stored_size;
        left -= run;
    }
}

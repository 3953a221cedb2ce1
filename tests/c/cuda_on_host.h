// SPDX-License-Identifier: Apache-2.0
// cuda_on_host: the kernels of kernels/cuda, run by the host stand-in (simt/), as a table of the
// CPU's shape, so that every test of kernels/cpu tests them too. Each call runs three times: the
// threads of a block forward, backward, in random order; outputs are filled with 0xFF (NaN) before
// each; results must have the same bits. A test file defines `pl_kernels_cpu` as
// `pl_kernels_on_host` by including this first, then includes the CPU's test.
#ifndef PL_CUDA_ON_HOST_H
#define PL_CUDA_ON_HOST_H

#include "cuda/cuda.h"
#include "kernels.h"
#include "ref/ref.h"
#include "simt/simt_control.h"
#include "test.h"

enum { HOST_OUTS = 5 };

// Something that a call writes.
typedef struct host_out {
    pl_tensor *t;  // NULL: raw bytes
    char *data;    // all of the storage, so that writes beside the elements are seen
    size_t nbytes;
    bool keep;  // read too (accumulated, in place): not filled before a run
    char *before, *first;
} host_out;

typedef struct host_run {
    host_out out[HOST_OUTS];
    int outs, schedule;
    pl_cuda_queue q;
    pl_cuda_fault fault;
    void *scratch;
    pl_status st;
} host_run;

static char *host_keep(const char *data, size_t nbytes) {
    char *copy = malloc(nbytes + 1);
    if (copy == NULL) TEST_FAIL("no memory");
    memcpy(copy, data, nbytes);
    return copy;
}

static void host_add(host_run *r, pl_tensor *t, char *data, size_t nbytes, bool keep) {
    if (data == NULL || nbytes == 0) return;
    host_out *o = &r->out[r->outs++];
    *o = (host_out){.t = t, .data = data, .nbytes = nbytes, .keep = keep};
    o->before = host_keep(data, nbytes);
}

// t may be NULL. Not filled where an input lies in the same memory.
static void host_writes(host_run *r, pl_tensor *t, bool keep, const pl_tensor *input) {
    if (t == NULL) return;
    keep = keep || (input != NULL && input->storage == t->storage);
    host_add(r, t, t->storage->data, t->storage->nbytes, keep);
}

static pl_status host_scratch(void *owner, size_t nbytes, void **out) {
    host_run *r = owner;
    pl_free(r->scratch);
    r->scratch = NULL;
    PL_TRY(pl_alloc(nbytes, &r->scratch));
    memset(r->scratch, 0xFF, nbytes);
    *out = r->scratch;
    return PL_OK;
}

static void host_fill(const host_out *o) {
    if (o->keep) return;
    if (o->t == NULL) {
        memset(o->data, 0xFF, o->nbytes);
        return;
    }
    if (o->t->numel == 0) return;
    size_t size = pl_dtype_size(o->t->dtype);
    int64_t at[PL_MAX_DIMS] = {0};
    do {
        memset((char *)o->t->data + (size_t)ref_offset(o->t, at) * size, 0xFF, size);
    } while (ref_next(o->t->ndim, o->t->shape, at));
}

static bool host_more(host_run *r) {
    if (r->schedule == SIMT_SCHEDULES || r->st != PL_OK) return false;
    for (int i = 0; i < r->outs; i++) {
        memcpy(r->out[i].data, r->out[i].before, r->out[i].nbytes);
        host_fill(&r->out[i]);
    }
    simt_set_schedule((simt_schedule)r->schedule, (uint64_t)(simt_launches() + 1));
    r->fault = (pl_cuda_fault){0};
    r->q = (pl_cuda_queue){.fault = &r->fault, .scratch = host_scratch, .owner = r};
    return true;
}

static void host_done(host_run *r, pl_status st, const char *what) {
    r->st = st;
    if (st == PL_OK) r->st = pl_cuda_fault_status(&r->fault);
    for (int i = 0; i < r->outs && r->st == PL_OK; i++) {
        host_out *o = &r->out[i];
        if (r->schedule == 0) {
            o->first = host_keep(o->data, o->nbytes);
        } else if (memcmp(o->first, o->data, o->nbytes) != 0) {
            TEST_FAIL("%s: output %d has other bits under schedule %d", what, i, r->schedule);
        }
    }
    r->schedule++;
}

static pl_status host_end(host_run *r) {
    for (int i = 0; i < r->outs; i++) {
        free(r->out[i].before);
        free(r->out[i].first);
    }
    pl_free(r->scratch);
    return r->st;
}

#define ON_HOST(r, call)                                   \
    while (host_more(&r)) host_done(&r, (call), __func__); \
    return host_end(&r)

static pl_status host_unary(pl_unary op, const pl_tensor *x, pl_tensor *out) {
    host_run r = {0};
    host_writes(&r, out, false, x);
    ON_HOST(r, pl_cuda_unary(op, x, out, &r.q));
}

static pl_status host_binary(pl_binary op, const pl_tensor *a, const pl_tensor *b, pl_tensor *out) {
    host_run r = {0};
    host_writes(&r, out, b->storage == out->storage, a);
    ON_HOST(r, pl_cuda_binary(op, a, b, out, &r.q));
}

static pl_status host_where(const pl_tensor *cond, const pl_tensor *a, const pl_tensor *b,
                            pl_tensor *out) {
    host_run r = {0};
    host_writes(&r, out, false, NULL);
    ON_HOST(r, pl_cuda_where(cond, a, b, out, &r.q));
}

static pl_status host_copy(const pl_tensor *src, pl_tensor *dst) {
    host_run r = {0};
    host_writes(&r, dst, false, NULL);
    ON_HOST(r, pl_cuda_copy(src, dst, &r.q));
}

static pl_status host_fill_value(pl_tensor *dst, double value) {
    host_run r = {0};
    host_writes(&r, dst, false, NULL);
    ON_HOST(r, pl_cuda_fill(dst, value, &r.q));
}

static pl_status host_fill_int(pl_tensor *dst, int64_t value) {
    host_run r = {0};
    host_writes(&r, dst, false, NULL);
    ON_HOST(r, pl_cuda_fill_int(dst, value, &r.q));
}

static pl_status host_arange(pl_tensor *out, double start, double step) {
    host_run r = {0};
    host_writes(&r, out, false, NULL);
    ON_HOST(r, pl_cuda_arange(out, start, step, &r.q));
}

static __attribute__((unused)) const pl_kernels *pl_kernels_on_host(void) {
    static const pl_kernels table = {
        .name = "cuda on the host",
        .unary = host_unary,
        .binary = host_binary,
        .where = host_where,
        .copy = host_copy,
        .fill = host_fill_value,
        .fill_int = host_fill_int,
        .arange = host_arange,
    };
    return &table;
}
#define pl_kernels_cpu pl_kernels_on_host

#endif

// SPDX-License-Identifier: Apache-2.0
// blas_on_host: the products of kernels/cuda/cublaslt.h as members of pl_kernels, on the stand-ins:
// cuBLASLt's is vcuda/cublaslt.c (its path: TEST_CUBLASLT), kernels are those of cuda_on_host.h.
// Each call runs under three schedules with outputs filled with NaN, as there.
#ifndef PL_BLAS_ON_HOST_H
#define PL_BLAS_ON_HOST_H

#include "cuda/cublaslt.h"
#include "cuda_on_host.h"

static int blas_allocations;  // alive

// As the device's: 256-byte aligned, filled with NaN.
static pl_status blas_alloc(size_t nbytes, const char *tag, void **out) {
    (void)tag;
    *out = NULL;
    if (nbytes == 0) return PL_OK;
    if (posix_memalign(out, 256, nbytes) != 0) return pl_fail(PL_ENOMEM, "no memory");
    if (nbytes < (size_t)1 << 22) memset(*out, 0xFF, nbytes);
    blas_allocations++;
    return PL_OK;
}

static void blas_release(void *p) {
    if (p) blas_allocations--;
    free(p);
}

static pl_status blas_memory(pl_runtime *r, size_t *free_bytes, size_t *total_bytes) {
    (void)r;
    *free_bytes = *total_bytes = 0;
    return PL_OK;
}

static int blas_syncs;
static pl_status blas_sync(pl_runtime *r, pl_stream *s) {
    (void)r;
    (void)s;
    blas_syncs++;
    return PL_OK;
}

// Work runs when it is enqueued: a record notes the time.
static pl_status blas_timed_event_new(pl_runtime *r, pl_event **out) {
    static int64_t times[2];
    static int made;
    (void)r;
    *out = (pl_event *)(void *)&times[made++ % 2];
    return PL_OK;
}

static pl_status blas_record(pl_runtime *r, pl_event *e, pl_stream *s) {
    (void)r;
    (void)s;
    *(int64_t *)(void *)e = pl_now_ns();
    return PL_OK;
}

static pl_status blas_elapsed(pl_runtime *r, pl_event *from, pl_event *to, float *ms) {
    (void)r;
    *ms = (float)(*(int64_t *)(void *)to - *(int64_t *)(void *)from) * 1e-6f;
    return PL_OK;
}

static pl_status blas_copy(pl_runtime *r, pl_stream *s, pl_copy_kind kind, void *dst,
                           const void *src, size_t nbytes) {
    (void)r, (void)s, (void)kind;
    memcpy(dst, src, nbytes);
    return PL_OK;
}

static pl_cuda_blas *blas_new(pl_cuda_queue *q) {
    static pl_runtime runtime = {.memory = blas_memory,
                                 .sync_stream = blas_sync,
                                 .timed_event_new = blas_timed_event_new,
                                 .record = blas_record,
                                 .elapsed = blas_elapsed,
                                 .copy = blas_copy};
    static const pl_cuda_backend backend = {
        .version = PL_CUDA_BACKEND_VERSION,
#define PL_CUDA_KERNEL(name) .name = pl_cuda_##name,
#include "cuda/kernels.inc.h"
#undef PL_CUDA_KERNEL
    };
    const pl_cuda_blas_args args = {.runtime = &runtime,
                                    .backend = &backend,
                                    .device_name = "Stand-in GPU",
                                    .queue = q,
                                    .alloc = blas_alloc,
                                    .release = blas_release};
    pl_cuda_blas *blas;
    setenv("PACELINE_CUBLASLT", TEST_CUBLASLT, 0);
    setenv("PACELINE_BLAS_MEASURE", "0", 0);
    CHECK_OK(pl_cuda_blas_new(&args, &blas));
    return blas;
}

static pl_status blas_end(host_run *r, pl_cuda_blas *blas) {
    pl_cuda_blas_free(blas);
    CHECK_EQ(blas_allocations, 0);
    return host_end(r);
}

static pl_status blas_matmul(const pl_tensor *a, const pl_tensor *b, bool accumulate,
                             pl_tensor *out) {
    host_run r = {0};
    host_writes(&r, out, accumulate, NULL);
    pl_cuda_blas *blas = blas_new(&r.q);
    while (host_more(&r)) {
        host_done(&r, pl_cuda_blas_matmul(a, b, accumulate, out, blas), "matmul");
    }
    return blas_end(&r, blas);
}

static pl_status blas_linear(const pl_tensor *x, const pl_tensor *w, const pl_tensor *bias,
                             pl_activation act, pl_tensor *preact, pl_tensor *out) {
    host_run r = {0};
    host_writes(&r, preact, false, NULL);
    host_writes(&r, out, false, NULL);
    pl_cuda_blas *blas = blas_new(&r.q);
    while (host_more(&r)) {
        host_done(&r, pl_cuda_blas_linear(x, w, bias, act, preact, out, blas), "linear");
    }
    return blas_end(&r, blas);
}

static pl_status blas_linear_grad(const pl_tensor *g, const pl_tensor *x, pl_tensor *dw, bool add_w,
                                  pl_tensor *db, bool add_b) {
    host_run r = {0};
    host_writes(&r, dw, add_w, NULL);
    host_writes(&r, db, add_b, NULL);
    pl_cuda_blas *blas = blas_new(&r.q);
    while (host_more(&r)) {
        host_done(&r, pl_cuda_blas_linear_grad(g, x, dw, add_w, db, add_b, blas), "linear_grad");
    }
    return blas_end(&r, blas);
}

static pl_status blas_linear_grad_gelu(const pl_tensor *g, const pl_tensor *w, const pl_tensor *x,
                                       pl_tensor *dx) {
    host_run r = {0};
    host_writes(&r, dx, false, NULL);
    pl_cuda_blas *blas = blas_new(&r.q);
    while (host_more(&r)) {
        host_done(&r, pl_cuda_blas_linear_grad_gelu(g, w, x, dx, blas), "linear_grad_gelu");
    }
    return blas_end(&r, blas);
}

static __attribute__((unused)) const pl_kernels *pl_kernels_blas(void) {
    static pl_kernels table;
    table = *pl_kernels_on_host();
    table.matmul = blas_matmul;
    table.linear = blas_linear;
    table.linear_grad = blas_linear_grad;
    table.linear_grad_gelu = blas_linear_grad_gelu;
    return &table;
}
#undef pl_kernels_cpu
#define pl_kernels_cpu pl_kernels_blas

#endif

// SPDX-License-Identifier: Apache-2.0
// cublaslt: see cublaslt.h. The products themselves are not built yet and say so.
#include "cuda/cublaslt.h"

#include <pthread.h>
#include <stdio.h>

struct pl_cuda_blas {
    pl_cuda_blas_args args;
    bool tf32, measure;
};

static pthread_mutex_t path_lock = PTHREAD_MUTEX_INITIALIZER;  // guards wanted_path
static char wanted_path[4096];

void pl_cuda_set_cublaslt_path(const char *path) {
    (void)pthread_mutex_lock(&path_lock);
    (void)snprintf(wanted_path, sizeof wanted_path, "%s", path ? path : "");
    (void)pthread_mutex_unlock(&path_lock);
}

const char *pl_cuda_blas_library(void) { return "not loaded"; }

pl_status pl_cuda_blas_new(const pl_cuda_blas_args *args, pl_cuda_blas **out) {
    void *p;
    PL_TRY(pl_calloc(sizeof(pl_cuda_blas), &p));
    pl_cuda_blas *blas = p;
    blas->args = *args;
    blas->measure = true;
    *out = blas;
    return PL_OK;
}

void pl_cuda_blas_free(pl_cuda_blas *blas) { pl_free(blas); }

void pl_cuda_blas_allow_tf32(pl_cuda_blas *blas, bool allow) { blas->tf32 = allow; }

void pl_cuda_blas_measure(pl_cuda_blas *blas, bool allow) { blas->measure = allow; }

static pl_status not_built(const char *op) {
    return pl_fail(PL_ENOSUP,
                   "[%s] products on a GPU are not built yet: move the tensors to the CPU", op);
}

pl_status pl_cuda_blas_matmul(const pl_tensor *a, const pl_tensor *b, bool accumulate,
                              pl_tensor *out, pl_cuda_blas *blas) {
    (void)a;
    (void)b;
    (void)accumulate;
    (void)out;
    (void)blas;
    return not_built("matmul");
}

pl_status pl_cuda_blas_linear(const pl_tensor *x, const pl_tensor *w, const pl_tensor *bias,
                              pl_activation act, pl_tensor *preact, pl_tensor *out,
                              pl_cuda_blas *blas) {
    (void)x;
    (void)w;
    (void)bias;
    (void)act;
    (void)preact;
    (void)out;
    (void)blas;
    return not_built("linear");
}

pl_status pl_cuda_blas_linear_grad(const pl_tensor *g, const pl_tensor *x, pl_tensor *dw,
                                   bool accumulate_w, pl_tensor *db, bool accumulate_b,
                                   pl_cuda_blas *blas) {
    (void)g;
    (void)x;
    (void)dw;
    (void)accumulate_w;
    (void)db;
    (void)accumulate_b;
    (void)blas;
    return not_built("linear_grad");
}

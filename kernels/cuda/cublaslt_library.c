// SPDX-License-Identifier: Apache-2.0
// cublaslt_library: opens cuBLASLt once per process and says what is wrong where it cannot. One
// that the process holds already is taken before one from disk, so that PyTorch and this project do
// not hold two of 400 MB.
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "cuda/cublaslt_internal.h"

#define SONAME "libcublasLt.so.13"

// Guards `wanted_path` and the opening; once `opened` is set, `lib` and `text` never change.
static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;
static char wanted_path[4096];
static atomic_bool opened;  // set last, with release
static pl_lt_library lib;
static char text[4200];  // "cuBLASLt 13.1.0 (/path)"

void pl_cuda_set_cublaslt_path(const char *path) {
    (void)pthread_mutex_lock(&open_lock);
    (void)snprintf(wanted_path, sizeof wanted_path, "%s", path ? path : "");
    (void)pthread_mutex_unlock(&open_lock);
}

const char *pl_cuda_blas_library(void) {
    return atomic_load_explicit(&opened, memory_order_acquire) ? text : "not loaded";
}

static pl_status missing(const char *path, const char *reason) {
    return pl_fail(PL_EDEVICE,
                   "[cuBLASLt] cannot open the library for matrix products: got \"%s\" for %s, "
                   "expected version %d: pip install paceline[cuda13], or set PACELINE_CUBLASLT to "
                   "the path of a " SONAME,
                   reason, path, PL_LT_MAJOR);
}

static pl_status find_functions(void *handle, const char *path) {
#define X(member, name, result, parameters)        \
    *(void **)(&lib.member) = dlsym(handle, name); \
    if (!lib.member) return missing(path, "no " name " in it");
    PL_LT_FUNCTIONS(X)
#undef X
    return PL_OK;
}

static pl_status open_locked(void) {
    const char *path = getenv("PACELINE_CUBLASLT");
    void *handle = NULL;
    if (!path || !path[0]) {
        path = wanted_path[0] ? wanted_path : SONAME;
        handle = dlopen(SONAME, RTLD_NOW | RTLD_NOLOAD);
    }
    if (!handle) handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) return missing(path, dlerror());
    pl_status st = find_functions(handle, path);
    size_t v = st == PL_OK ? lib.version() : 0;
    if (st == PL_OK && v / 10000 != PL_LT_MAJOR) {
        char reason[64];
        (void)snprintf(reason, sizeof reason, "version %zu.%zu", v / 10000, v / 100 % 100);
        st = missing(path, reason);
    }
    if (st != PL_OK) {
        (void)dlclose(handle);
        return st;
    }
    Dl_info where;
    bool known = dladdr((void *)(uintptr_t)lib.matmul, &where) != 0 && where.dli_fname;
    (void)snprintf(text, sizeof text, "cuBLASLt %zu.%zu.%zu (%s)", v / 10000, v / 100 % 100,
                   v % 100, known ? where.dli_fname : path);
    atomic_store_explicit(&opened, true, memory_order_release);
    return PL_OK;
}

pl_status pl__blas_library(const pl_lt_library **out) {
    if (!atomic_load_explicit(&opened, memory_order_acquire)) {
        (void)pthread_mutex_lock(&open_lock);
        bool done = atomic_load_explicit(&opened, memory_order_relaxed);
        pl_status st = done ? PL_OK : open_locked();
        (void)pthread_mutex_unlock(&open_lock);
        PL_TRY(st);
    }
    *out = &lib;
    return PL_OK;
}

pl_status pl__blas_failed(const char *doing, int status) {
    return pl_fail(PL_EDEVICE, "[cuBLASLt] %s failed: got %s", doing, lib.status_name(status));
}

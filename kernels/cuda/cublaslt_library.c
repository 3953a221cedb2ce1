// SPDX-License-Identifier: Apache-2.0
// cublaslt_library: cuBLASLt's functions, found once per process, and what is wrong where they or
// the version are not what they must be. Where the library is: base/library.h.
#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

#include "base/library.h"
#include "cuda/cublaslt_internal.h"

// Guards the finding; once `found` is set, `lib` and `text` never change.
static pthread_mutex_t find_lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_bool found;  // set last, with release
static pl_lt_library lib;
static char text[4200];  // "cuBLASLt 13.1.0 (/path)"

const char *pl__blas_library_text(void) {
    return atomic_load_explicit(&found, memory_order_acquire) ? text : "not loaded";
}

static pl_status unfit(const char *reason) {
    return pl_fail(PL_EDEVICE,
                   "[cuBLASLt] the library cannot be used: got %s in %s, expected version %d: "
                   "pip install 'paceline[cuda13]' brings it, or set PACELINE_CUBLASLT to its path",
                   reason, pl_library_file(PL_LIBRARY_CUBLASLT), PL_LT_MAJOR);
}

static pl_status find_locked(void) {
    void *handle;
    PL_TRY(pl_library_open(PL_LIBRARY_CUBLASLT, &handle));
#define X(member, name, result, parameters)         \
    *(void **)(&lib.member) = dlsym(handle, #name); \
    if (!lib.member) return unfit("no " #name);
    PL_LT_FUNCTIONS(X)
#undef X
    size_t v = lib.version();
    if (v / 10000 != PL_LT_MAJOR) {
        char reason[64];
        (void)snprintf(reason, sizeof reason, "version %zu.%zu", v / 10000, v / 100 % 100);
        return unfit(reason);
    }
    Dl_info where;
    bool known = dladdr((void *)(uintptr_t)lib.matmul, &where) != 0 && where.dli_fname;
    (void)snprintf(text, sizeof text, "cuBLASLt %zu.%zu.%zu (%s)", v / 10000, v / 100 % 100,
                   v % 100, known ? where.dli_fname : pl_library_file(PL_LIBRARY_CUBLASLT));
    atomic_store_explicit(&found, true, memory_order_release);
    return PL_OK;
}

pl_status pl__blas_library(const pl_lt_library **out) {
    if (!atomic_load_explicit(&found, memory_order_acquire)) {
        (void)pthread_mutex_lock(&find_lock);
        bool done = atomic_load_explicit(&found, memory_order_relaxed);
        pl_status st = done ? PL_OK : find_locked();
        (void)pthread_mutex_unlock(&find_lock);
        PL_TRY(st);
    }
    *out = &lib;
    return PL_OK;
}

pl_status pl__blas_failed(const char *doing, int status) {
    return pl_fail(PL_EDEVICE, "[cuBLASLt] %s failed: got %s of %s", doing, lib.status_name(status),
                   pl__blas_library_text());
}

// SPDX-License-Identifier: Apache-2.0
// cublaslt_library: cuBLASLt's functions, found once per process, and what is wrong where they or
// the version are not what they must be. Where the library is: base/library.h.
#include <dlfcn.h>
#include <stdio.h>

#include "base/library.h"
#include "cuda/cublaslt_internal.h"

// Once it is found, `lib` and `text` never change.
static pl_library_use use = PL_LIBRARY_USE;
static pl_lt_library lib;
static char text[4200];  // "cuBLASLt 13.1.0 (/path)"

const char *pl__blas_library_text(void) {
    return atomic_load_explicit(&use.found, memory_order_acquire) ? text : "not loaded";
}

static pl_status unfit(const char *reason) {
    return pl_fail(PL_EDEVICE,
                   "[cuBLASLt] the library cannot be used: got %s in %s, expected version %d: "
                   "pip install 'paceline[cuda13]' brings it, or set PACELINE_CUBLASLT to its path",
                   reason, pl_library_file(PL_LIBRARY_CUBLASLT), PL_LT_MAJOR);
}

static pl_status find(void) {
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
    pl_library_describe(PL_LIBRARY_CUBLASLT, v, (void *)(uintptr_t)lib.matmul, text, sizeof text);
    return PL_OK;
}

pl_status pl__blas_library(const pl_lt_library **out) {
    PL_TRY(pl_library_find(&use, find));
    *out = &lib;
    return PL_OK;
}

pl_status pl__blas_failed(const char *doing, int status) {
    return pl_fail(PL_EDEVICE, "[cuBLASLt] %s failed: got %s of %s", doing, lib.status_name(status),
                   pl__blas_library_text());
}

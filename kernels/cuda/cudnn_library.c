// SPDX-License-Identifier: Apache-2.0
// cudnn_library: cuDNN's functions, found once per process, and what is wrong where they or the
// version are not what they must be. Where the library is: base/library.h. It compiles kernels when
// it makes a plan, by NVRTC, which it finds beside itself; NVRTC's built-in headers are looked for
// by name alone, so they are opened here first, beside NVRTC.
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "base/library.h"
#include "cuda/cudnn_internal.h"

// Once it is found, `lib` and `text` never change.
static pl_library_use use = PL_LIBRARY_USE;
static pl_dnn_library lib;
static char text[4200];  // "cuDNN 9.19.0 (/path)"

const char *pl_cuda_dnn_library(void) {
    return atomic_load_explicit(&use.found, memory_order_acquire) ? text : "not loaded";
}

static pl_status unfit(const char *reason) {
    return pl_fail(PL_EDEVICE,
                   "[cuDNN] the library cannot be used: got %s in %s, expected version %d.%d or "
                   "later of %d: pip install 'paceline[cudnn]' brings it, or set PACELINE_CUDNN to "
                   "its path",
                   reason, pl_library_file(PL_LIBRARY_CUDNN), PL_DNN_MAJOR,
                   PL_DNN_OLDEST / 100 % 100, PL_DNN_MAJOR);
}

// Without NVRTC, or its headers, plans fail later and own kernels are taken.
static void open_compiler(void) {
    void *handle, *version;
    Dl_info where;
    int major, minor;
    char path[4200];
    if (pl_library_open(PL_LIBRARY_NVRTC, &handle) != PL_OK) return;
    version = dlsym(handle, "nvrtcVersion");
    if (!version || !dladdr(version, &where) || !where.dli_fname) return;
    int (*ask)(int *, int *);
    *(void **)(&ask) = version;
    if (ask(&major, &minor) != 0) return;
    const char *slash = strrchr(where.dli_fname, '/');
    int folder = slash ? (int)(slash - where.dli_fname) + 1 : 0;
    (void)snprintf(path, sizeof path, "%.*slibnvrtc-builtins.so.%d.%d", folder, where.dli_fname,
                   major, minor);
    (void)dlopen(path, RTLD_NOW | RTLD_LOCAL);
}

static pl_status find(void) {
    void *handle;
    PL_TRY(pl_library_open(PL_LIBRARY_CUDNN, &handle));
#define X(member, name, result, parameters)         \
    *(void **)(&lib.member) = dlsym(handle, #name); \
    if (!lib.member) return unfit("no " #name);
    PL_DNN_FUNCTIONS(X)
#undef X
    size_t v = lib.version();
    if (v / 10000 != PL_DNN_MAJOR || v < PL_DNN_OLDEST) {
        char reason[64];
        (void)snprintf(reason, sizeof reason, "version %zu.%zu", v / 10000, v / 100 % 100);
        return unfit(reason);
    }
    open_compiler();
    pl_library_describe(PL_LIBRARY_CUDNN, v, (void *)(uintptr_t)lib.execute, text, sizeof text);
    return PL_OK;
}

pl_status pl__dnn_library(const pl_dnn_library **out) {
    PL_TRY(pl_library_find(&use, find));
    *out = &lib;
    return PL_OK;
}

pl_status pl__dnn_failed(const char *doing, int status) {
    return pl_fail(PL_EDEVICE, "[cuDNN] %s failed: got %s", doing, lib.status_name(status));
}

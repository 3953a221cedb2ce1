// SPDX-License-Identifier: Apache-2.0
// backend: the entry of paceline/_cuda.so, and the few functions of base that the kernels call,
// which the library cannot link: it is opened by a module that shows none of its own symbols.
// Host code only.
#include "cuda/backend.h"

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>

#include "cuda/runtime.cuh"

// The virtual GPU of the tests (tests/c/vcuda) has another.
#ifndef PL_CUDA_DRIVER
#define PL_CUDA_DRIVER "libcuda.so.1"
#endif

static const pl_cuda_host *opener;

// ---- Of base/base.h -----------------------------------------------------------------------------

pl_status pl_fail_at(pl_status st, const char *file, int line, const char *fmt, ...) {
    char text[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    return opener->fail(st, file, line, text);
}

size_t pl_dtype_size(pl_dtype dt) {
#define X(name, text, size, kind) size,
    static const size_t sizes[] = {PL_DTYPE_MAP(X)};
#undef X
    return sizes[dt];
}

const char *pl_dtype_name(pl_dtype dt) {
#define X(name, text, size, kind) text,
    static const char *const names[] = {PL_DTYPE_MAP(X)};
#undef X
    return names[dt];
}

// Round to nearest even, by way of the compiler's own type.
pl_f16 pl_f32_to_f16(float f) {
    union {
        _Float16 half;
        pl_f16 bits;
    } v = {(_Float16)f};
    return v.bits;
}

// ---- The table ----------------------------------------------------------------------------------

// cudart says "insufficient driver" where there is none at all: the library is looked for first.
static pl_status device_count(int *out) {
    PL_TRY(pl_cuda_usable());
    void *driver = dlopen(PL_CUDA_DRIVER, RTLD_LAZY | RTLD_GLOBAL);
    if (driver == NULL) {
        return pl_fail(PL_EDEVICE, "[cuda] no NVIDIA driver: " PL_CUDA_DRIVER
                                   " cannot be opened; "
                                   "install a driver of CUDA 13 (580 or later)");
    }
    int version = 0, count = 0;
    cudaError_t e = cudaDriverGetVersion(&version);
    if (e == cudaSuccess && version < 13000) {
        return pl_fail(PL_EDEVICE,
                       "[cuda] the NVIDIA driver is too old: got CUDA %d.%d, expected 13.0 or "
                       "later (driver 580)",
                       version / 1000, version % 1000 / 10);
    }
    if (e == cudaSuccess) e = cudaGetDeviceCount(&count);
    if (e == cudaErrorNoDevice) {
        e = cudaSuccess;
        count = 0;
    }
    PL_TRY(pl_cuda_status("driver", e));
    *out = count;
    return PL_OK;
}

static pl_status check_index(int index) {
    int count = 0;
    PL_TRY(device_count(&count));
    if (index >= 0 && index < count) return PL_OK;
    return pl_fail(PL_EDEVICE, "[cuda] no GPU of index %d: got %d GPU%s (CUDA_VISIBLE_DEVICES?)",
                   index, count, count == 1 ? "" : "s");
}

static pl_status properties(int index, pl_cuda_properties *out) {
    PL_TRY(check_index(index));
    cudaDeviceProp p;
    PL_TRY(pl_cuda_status("properties", cudaGetDeviceProperties(&p, index)));
    snprintf(out->name, sizeof(out->name), "%.127s", p.name);
    out->major = p.major;
    out->minor = p.minor;
    out->processors = p.multiProcessorCount;
    out->memory = p.totalGlobalMem;
    return PL_OK;
}

static pl_status runtime(int index, pl_runtime **out) {
    PL_TRY(check_index(index));
    return pl_cuda_runtime(index, out);
}

const pl_cuda_backend *pl_cuda_backend_open(int version, const pl_cuda_host *host) {
    static const pl_cuda_backend table = {
        PL_CUDA_BACKEND_VERSION, device_count, properties, runtime, pl_cuda_fault_status,
#define PL_CUDA_KERNEL(name) pl_cuda_##name,
#include "cuda/kernels.inc.h"
#undef PL_CUDA_KERNEL
    };
    if (version != PL_CUDA_BACKEND_VERSION) return NULL;
    opener = host;
    return &table;
}

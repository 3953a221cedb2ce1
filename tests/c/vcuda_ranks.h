// SPDX-License-Identifier: Apache-2.0
// vcuda_ranks: the virtual GPU as the device of each rank of a C test (ranks.h, start_forks): a
// rank opens it in its own process. Includes ranks.h; a test file includes it after test.h.
#ifndef PL_TEST_VCUDA_RANKS_H
#define PL_TEST_VCUDA_RANKS_H

#include <dlfcn.h>

#include "cuda/backend.h"
#include "ranks.h"

static const pl_device gpu = {PL_CUDA, 0};
static pl_device_services gpu_services;  // of this process
static int gpu_seed;

static pl_status gpu_fail(pl_status st, const char *file, int line, const char *message) {
    return pl_fail_at(st, file, line, "%s", message);
}

static pl_runtime *gpu_open(void) {
    static const pl_cuda_host host = {gpu_fail};
    char seed[16];
    if (gpu_services.runtime) return gpu_services.runtime;
    snprintf(seed, sizeof seed, "%d", gpu_seed);
    setenv("PACELINE_VCUDA_SEED", seed, 1);
    setenv("PACELINE_VCUDA_WORKER", "1", 1);
    setenv("PACELINE_NCCL", VCUDA_LIBRARY, 0);
    void *library = dlopen(VCUDA_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) TEST_FAIL("%s", dlerror());
    const pl_cuda_backend *(*open)(int, const pl_cuda_host *);
    *(void **)&open = dlsym(library, "pl_cuda_backend_open");
    const pl_cuda_backend *backend = open ? open(PL_CUDA_BACKEND_VERSION, &host) : NULL;
    CHECK(backend != NULL);
    pl_runtime *r;
    CHECK_OK(backend->runtime(0, &r));
    gpu_services.runtime = r;
    gpu_services.name = "virtual";
    CHECK_OK(r->stream_new(r, false, &gpu_services.compute));
    CHECK_OK(pl_device_register(&gpu_services));
    return r;
}

static void *gpu_alloc(size_t nbytes) {
    pl_runtime *r = gpu_open();
    void *p;
    CHECK_OK(r->malloc(r, nbytes ? nbytes : 1, &p));
    return p;
}

// On the compute stream; from host memory that stays until gpu_wait.
static void gpu_write(void *to, const void *from, size_t nbytes) {
    pl_runtime *r = gpu_open();
    CHECK_OK(r->copy(r, gpu_services.compute, PL_COPY_TO_DEVICE, to, from, nbytes));
}

__attribute__((unused)) static pl_status gpu_read(void *to, const void *from, size_t nbytes) {
    pl_runtime *r = gpu_open();
    PL_TRY(r->copy(r, gpu_services.compute, PL_COPY_TO_HOST, to, from, nbytes));
    return pl_device_wait(&gpu_services, gpu_services.compute);
}

#endif

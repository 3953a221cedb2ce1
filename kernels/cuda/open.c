// SPDX-License-Identifier: Apache-2.0
// See open.h: finding the library of kernels and asking it for GPUs. What stands on an open GPU is
// device.c's.
#include "cuda/open.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>

#include "base/library.h"
#include "cuda/state.h"

// The library cannot link the core's: it is lent this one.
static pl_status fail(pl_status st, const char *file, int line, const char *message) {
    return pl_fail_at(st, file, line, "%s", message);
}

static const pl_cuda_host host = {.fail = fail};

// Guards `found`, and that a GPU is opened once.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const pl_cuda_backend *found;

static pl_status find_locked(void) {
    typedef const pl_cuda_backend *(*open_fn)(int, const pl_cuda_host *);
    union {  // an object pointer is no function pointer in ISO C; POSIX says they have one form
        void *object;
        open_fn function;
    } symbol;
    void *library;
    if (found != NULL) return PL_OK;
    PL_TRY(pl_library_open(PL_LIBRARY_CUDA, &library));
    symbol.object = dlsym(library, "pl_cuda_backend_open");
    if (symbol.object != NULL) found = symbol.function(PL_CUDA_BACKEND_VERSION, &host);
    if (found != NULL) return PL_OK;
    return pl_fail(
        PL_EDEVICE,
        "[cuda] the library of kernels does not fit: got %s (%s), expected version %d of "
        "its entry; install paceline again",
        pl_library_file(PL_LIBRARY_CUDA),
        symbol.object == NULL ? "without an entry" : "of another version", PL_CUDA_BACKEND_VERSION);
}

pl_status pl_cuda_backend_find(const pl_cuda_backend **out) {
    pthread_mutex_lock(&lock);
    pl_status st = find_locked();
    if (st == PL_OK) *out = found;
    pthread_mutex_unlock(&lock);
    return st;
}

pl_status pl_cuda_device_count(int *out) {
    const pl_cuda_backend *b;
    PL_TRY(pl_cuda_backend_find(&b));
    return b->device_count(out);
}

static pl_status check_index(const pl_cuda_backend *b, int index) {
    int count;
    PL_TRY(b->device_count(&count));
    if (index >= 0 && index < count) return PL_OK;
    return pl_fail(
        PL_EDEVICE,
        "[cuda] no such GPU: got cuda:%d, expected an index below %d, the number of GPUs "
        "that this process sees",
        index, count);
}

pl_status pl_cuda_device_properties(int index, pl_cuda_properties *out) {
    const pl_cuda_backend *b;
    PL_TRY(pl_cuda_backend_find(&b));
    PL_TRY(check_index(b, index));
    return b->properties(index, out);
}

pl_status pl_cuda_open(int index) {
    const pl_device_services *open = pl_device_open_one();
    if (open != NULL && open->runtime->device.index == index) return PL_OK;
    if (open != NULL) {
        return pl_fail(PL_EDEVICE,
                       "[cuda] one GPU per process: got cuda:%d, expected cuda:%d, which is in use "
                       "already; start one process per GPU (paceline launch does)",
                       index, open->runtime->device.index);
    }
    const pl_cuda_backend *b;
    PL_TRY(pl_cuda_backend_find(&b));
    PL_TRY(check_index(b, index));
    pthread_mutex_lock(&lock);
    pl_status st = pl_device_open_one() == NULL ? pl__cuda_start(b, index) : PL_OK;
    pthread_mutex_unlock(&lock);
    return st;
}

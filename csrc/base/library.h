// SPDX-License-Identifier: Apache-2.0
// library: the shared libraries of a device, opened at run time and never closed. One search for
// all of them; knows none of their functions.
//
// Order: 1. the file that an environment variable names, and then nothing else; 2. the copy that
// this process holds already (PyTorch's, so that there is one); 3. the file that Python found among
// the installed packages (pl_library_set_path); 4. the name under which a system installs it.
#ifndef PL_LIBRARY_H
#define PL_LIBRARY_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/base.h"

// enum, variable, name of the file, what messages call it
#define PL_LIBRARY_MAP(X)                                             \
    X(CUDA, "PACELINE_CUDA_LIBRARY", "", "paceline's CUDA kernels")   \
    X(CUBLASLT, "PACELINE_CUBLASLT", "libcublasLt.so.13", "cuBLASLt") \
    X(NCCL, "PACELINE_NCCL", "libnccl.so.2", "NCCL")                  \
    X(CUDNN, "PACELINE_CUDNN", "libcudnn.so.9", "cuDNN")              \
    X(NVRTC, "PACELINE_NVRTC", "libnvrtc.so.13", "NVRTC")

typedef enum pl_library {
#define X(name, variable, file, text) PL_LIBRARY_##name,
    PL_LIBRARY_MAP(X)
#undef X
        PL_LIBRARY_COUNT
} pl_library;

// Where Python found it; NULL or "": nowhere. No effect once it is open.
void pl_library_set_path(pl_library which, const char *path);
// dlopen's handle, the same every time. PL_EDEVICE says what was tried and what to do.
pl_status pl_library_open(pl_library which, void **out) PL_MUST_USE;
// The file it was opened from, "" before. Never freed.
const char *pl_library_file(pl_library which);

// Once per process, whichever thread comes first: what `find` has set is seen by all who get PL_OK.
// After a failure the next one tries again.
typedef struct pl_library_use {
    pthread_mutex_t lock;
    atomic_bool found;  // set last, with release
} pl_library_use;
#define PL_LIBRARY_USE {.lock = PTHREAD_MUTEX_INITIALIZER}
pl_status pl_library_find(pl_library_use *use, pl_status (*find)(void)) PL_MUST_USE;
// "cuDNN 9.19.0 (/path)": version is 91900, the path that of the file that has `function`.
void pl_library_describe(pl_library which, size_t version, const void *function, char *text,
                         size_t cap);

#endif

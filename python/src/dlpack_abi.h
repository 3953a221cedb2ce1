// SPDX-License-Identifier: Apache-2.0
// The memory layout of DLPack 0.x and 1.x (https://dmlc.github.io/dlpack/latest/c_api.html), as
// far as it is used here: an agreement between libraries, which no version of ours may change.
#ifndef PL_DLPACK_ABI_H
#define PL_DLPACK_ABI_H

#include <stdint.h>

enum { PL_DL_MAJOR = 1, PL_DL_MINOR = 0 };
enum { PL_DL_CPU = 1, PL_DL_CUDA = 2 };  // device_type
enum { PL_DL_INT, PL_DL_UINT, PL_DL_FLOAT, PL_DL_BFLOAT = 4, PL_DL_COMPLEX, PL_DL_BOOL };
#define PL_DL_READ_ONLY ((uint64_t)1)

typedef struct pl_dl_device {
    int32_t type, id;
} pl_dl_device;

typedef struct pl_dl_dtype {
    uint8_t code, bits;
    uint16_t lanes;
} pl_dl_dtype;

typedef struct pl_dl_tensor {
    void *data;
    pl_dl_device device;
    int32_t ndim;
    pl_dl_dtype dtype;
    int64_t *shape;    // [ndim]
    int64_t *strides;  // [ndim] in elements; NULL: row-major
    uint64_t byte_offset;
} pl_dl_tensor;

// The consumer calls deleter once, from any thread, when it needs the memory no more.
typedef struct pl_dl_managed {  // "dltensor"
    pl_dl_tensor tensor;
    void *ctx;
    void (*deleter)(struct pl_dl_managed *self);
} pl_dl_managed;

typedef struct pl_dl_versioned {  // "dltensor_versioned"
    uint32_t major, minor;
    void *ctx;
    void (*deleter)(struct pl_dl_versioned *self);
    uint64_t flags;
    pl_dl_tensor tensor;
} pl_dl_versioned;

#endif

// SPDX-License-Identifier: Apache-2.0
// Compiled against NVIDIA's nccl.h where that is found: csrc/comm/nccl_abi.h says of the library
// what NVIDIA says.
#include <nccl.h>

#include "alike.h"
#include "comm/nccl_abi.h"

#define X(result, name, parameters) \
    static_assert(called_alike((result(*) parameters)0, &name), "another declaration of " #name);
PL__NCCL_MAP(X)
#undef X

SAME_VALUE(PL__NCCL_ID_BYTES, NCCL_UNIQUE_ID_BYTES);
SAME_VALUE(PL__NCCL_SUCCESS, ncclSuccess);
SAME_VALUE(PL__NCCL_CUDA_ERROR, ncclUnhandledCudaError);
SAME_VALUE(PL__NCCL_SYSTEM_ERROR, ncclSystemError);
SAME_VALUE(PL__NCCL_INTERNAL_ERROR, ncclInternalError);
SAME_VALUE(PL__NCCL_INVALID_ARGUMENT, ncclInvalidArgument);
SAME_VALUE(PL__NCCL_INVALID_USAGE, ncclInvalidUsage);
SAME_VALUE(PL__NCCL_REMOTE_ERROR, ncclRemoteError);
SAME_VALUE(PL__NCCL_IN_PROGRESS, ncclInProgress);
SAME_VALUE(PL__NCCL_UINT8, ncclUint8);
SAME_VALUE(PL__NCCL_INT32, ncclInt32);
SAME_VALUE(PL__NCCL_INT64, ncclInt64);
SAME_VALUE(PL__NCCL_FLOAT16, ncclFloat16);
SAME_VALUE(PL__NCCL_FLOAT32, ncclFloat32);
SAME_VALUE(PL__NCCL_FLOAT64, ncclFloat64);
SAME_VALUE(PL__NCCL_BFLOAT16, ncclBfloat16);
SAME_VALUE(PL__NCCL_SUM, ncclSum);
SAME_VALUE(PL__NCCL_MAX, ncclMax);
SAME_VALUE(PL__NCCL_MIN, ncclMin);
SAME_VALUE(PL__NCCL_AVG, ncclAvg);

static_assert(sizeof(pl__nccl_id) == sizeof(ncclUniqueId));
// A newer library reads as many bytes as the struct says it has.
static_assert(sizeof(pl__nccl_config) <= sizeof(ncclConfig_t));
SAME_PLACE(pl__nccl_config, size, ncclConfig_t, size);
SAME_PLACE(pl__nccl_config, magic, ncclConfig_t, magic);
SAME_PLACE(pl__nccl_config, version, ncclConfig_t, version);
SAME_PLACE(pl__nccl_config, blocking, ncclConfig_t, blocking);
constexpr ncclConfig_t initial = NCCL_CONFIG_INITIALIZER;
static_assert(initial.magic == PL__NCCL_CONFIG_MAGIC);
static_assert(initial.version >= PL__NCCL_CONFIG_VERSION);

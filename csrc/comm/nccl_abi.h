// SPDX-License-Identifier: Apache-2.0
// The part of NCCL's C interface that this project uses, declared by ourselves: the library is
// opened at run time, and its header is never needed. Sizes and numbers are NCCL's, stable since
// 2.14.
#ifndef PL_COMM_NCCL_ABI_H
#define PL_COMM_NCCL_ABI_H

#include <limits.h>
#include <stddef.h>

typedef struct ncclComm *pl__nccl_comm;

enum { PL__NCCL_ID_BYTES = 128 };
typedef struct pl__nccl_id {
    char internal[PL__NCCL_ID_BYTES];
} pl__nccl_id;

// ncclResult_t
enum {
    PL__NCCL_SUCCESS = 0,
    PL__NCCL_CUDA_ERROR = 1,
    PL__NCCL_SYSTEM_ERROR = 2,
    PL__NCCL_INTERNAL_ERROR = 3,
    PL__NCCL_INVALID_ARGUMENT = 4,
    PL__NCCL_INVALID_USAGE = 5,
    PL__NCCL_REMOTE_ERROR = 6,
    PL__NCCL_IN_PROGRESS = 7,
};

// ncclDataType_t
enum {
    PL__NCCL_UINT8 = 1,
    PL__NCCL_INT32 = 2,
    PL__NCCL_INT64 = 4,
    PL__NCCL_FLOAT16 = 6,
    PL__NCCL_FLOAT32 = 7,
    PL__NCCL_FLOAT64 = 8,
    PL__NCCL_BFLOAT16 = 9,
};

// ncclRedOp_t
enum { PL__NCCL_SUM = 0, PL__NCCL_MAX = 2, PL__NCCL_MIN = 3, PL__NCCL_AVG = 4 };

// ncclConfig_t as 2.14 had it: a newer library reads `size` bytes and takes its defaults for what
// came later (`version` says the same).
typedef struct pl__nccl_config {
    size_t size;
    unsigned int magic;
    unsigned int version;
    int blocking;
} pl__nccl_config;
#define PL__NCCL_CONFIG_MAGIC 0xcafebeefu
#define PL__NCCL_CONFIG_VERSION 21400u

// What is looked up, each under its name: result, name, arguments. A stream is a cudaStream_t.
#define PL__NCCL_MAP(X)                                                                            \
    X(int, ncclGetVersion, (int *version))                                                         \
    X(int, ncclGetUniqueId, (pl__nccl_id * id))                                                    \
    X(int, ncclCommInitRankConfig,                                                                 \
      (pl__nccl_comm * comm, int world, pl__nccl_id id, int rank, pl__nccl_config *config))        \
    X(int, ncclCommGetAsyncError, (pl__nccl_comm comm, int *error))                                \
    X(int, ncclCommFinalize, (pl__nccl_comm comm))                                                 \
    X(int, ncclCommDestroy, (pl__nccl_comm comm))                                                  \
    X(int, ncclCommAbort, (pl__nccl_comm comm))                                                    \
    X(const char *, ncclGetErrorString, (int result))                                              \
    X(const char *, ncclGetLastError, (pl__nccl_comm comm))                                        \
    X(int, ncclGroupStart, (void))                                                                 \
    X(int, ncclGroupEnd, (void))                                                                   \
    X(int, ncclAllReduce,                                                                          \
      (const void *in, void *out, size_t count, int dtype, int op, pl__nccl_comm comm, void *s))   \
    X(int, ncclReduce,                                                                             \
      (const void *in, void *out, size_t count, int dtype, int op, int root, pl__nccl_comm comm,   \
       void *s))                                                                                   \
    X(int, ncclReduceScatter,                                                                      \
      (const void *in, void *out, size_t count, int dtype, int op, pl__nccl_comm comm, void *s))   \
    X(int, ncclAllGather,                                                                          \
      (const void *in, void *out, size_t count, int dtype, pl__nccl_comm comm, void *s))           \
    X(int, ncclBroadcast,                                                                          \
      (const void *in, void *out, size_t count, int dtype, int root, pl__nccl_comm comm, void *s)) \
    X(int, ncclSend,                                                                               \
      (const void *in, size_t count, int dtype, int to, pl__nccl_comm comm, void *s))              \
    X(int, ncclRecv, (void *out, size_t count, int dtype, int from, pl__nccl_comm comm, void *s))

#endif

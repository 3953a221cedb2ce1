// SPDX-License-Identifier: Apache-2.0
// nccl: the library, opened once per process at the first need, and what its results are called.
// Knows no group. Thread-safe.
#ifndef PL_COMM_NCCL_H
#define PL_COMM_NCCL_H

#include "base/base.h"
#include "comm/nccl_abi.h"

typedef struct pl__nccl {
    int version;  // 22809 is 2.28.9
#define X(result, name, arguments) result(*name) arguments;
    PL__NCCL_MAP(X)
#undef X
} pl__nccl;

// PL_EDEVICE in one sentence: not installed, too old, or not NCCL. *out lives for ever.
pl_status pl__nccl_open(const pl__nccl **out) PL_MUST_USE;
// "2.28.9"
const char *pl__nccl_version_text(int version, char *buf, size_t cap);
// PL_OK for success and for what is under way; else PL_EDEVICE in NCCL's words. comm may be NULL.
pl_status pl__nccl_status(const pl__nccl *n, const char *op, int result,
                          pl__nccl_comm comm) PL_MUST_USE;

#endif

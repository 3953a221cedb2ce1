// SPDX-License-Identifier: Apache-2.0
// fault: what a kernel found wrong with a value, as the failure that the CPU would have given. Host
// code only.
#include "cuda/cuda.h"

static pl_status out_of_range(const char *op, const pl_cuda_fault *f, int64_t lowest) {
    return pl_fail(PL_EINDEX, "[%s] index out of range: got %lld, expected [%lld, %lld)", op,
                   (long long)f->got, (long long)lowest, (long long)f->limit);
}

pl_status pl_cuda_fault_status(const pl_cuda_fault *f) {
    switch (f->kind) {
        case PL_CUDA_FAULT_NONE:
            return PL_OK;
        case PL_CUDA_FAULT_DIVIDE:
            return pl_fail(PL_EINVAL, "[%s] integer division by zero",
                           f->got == PL_BINARY_REMAINDER ? "remainder" : "floor_divide");
        case PL_CUDA_FAULT_TAKE:
            return out_of_range("take", f, -f->limit);
        case PL_CUDA_FAULT_TAKE_GRAD:
            return out_of_range("take_grad", f, -f->limit);
        case PL_CUDA_FAULT_GATHER:
            return out_of_range("gather", f, 0);
        case PL_CUDA_FAULT_SCATTER:
            return out_of_range("scatter_add", f, 0);
        case PL_CUDA_FAULT_TARGET:
            return pl_fail(PL_EINDEX,
                           "[cross_entropy] target out of range: got %lld, expected [0, %lld)",
                           (long long)f->got, (long long)f->limit);
    }
    return pl_fail(PL_EBUG, "[cuda] unknown fault: got %d", (int)f->kind);
}

// SPDX-License-Identifier: Apache-2.0
// cublaslt_abi: the part of the C interface of NVIDIA's cuBLASLt 13 that this project uses, in its
// own words, so that the core builds without CUDA. Names of values follow NVIDIA's documentation
// (cublasLt.h). Descriptors are the library's own and opaque here.
#ifndef PL_CUDA_CUBLASLT_ABI_H
#define PL_CUDA_CUBLASLT_ABI_H

#include <stddef.h>
#include <stdint.h>

enum { PL_LT_MAJOR = 13 };  // cublasLtGetVersion() / 10000
// cublasStatus_t
enum {
    PL_LT_SUCCESS = 0,
    PL_LT_INVALID_VALUE = 7,
    PL_LT_ARCH_MISMATCH = 8,
    PL_LT_NOT_SUPPORTED = 15
};
enum { PL_LT_OP_N = 0, PL_LT_OP_T = 1 };                       // cublasOperation_t
enum { PL_LT_32F = 68, PL_LT_64F = 70, PL_LT_32F_TF32 = 77 };  // cublasComputeType_t
// cudaDataType
enum { PL_LT_R_32F = 0, PL_LT_R_64F = 1, PL_LT_R_16F = 2, PL_LT_R_16BF = 14 };

// cublasLtMatrixLayoutAttribute_t: batch count int32, offset int64
enum { PL_LT_LAYOUT_BATCH_COUNT = 5, PL_LT_LAYOUT_BATCH_OFFSET = 6 };

// cublasLtMatmulDescAttributes_t
enum {
    PL_LT_DESC_TRANSA = 3,    // int32
    PL_LT_DESC_TRANSB = 4,    // int32
    PL_LT_DESC_EPILOGUE = 7,  // uint32
    PL_LT_DESC_BIAS_POINTER = 8,
    PL_LT_DESC_AUX_POINTER = 11,
    PL_LT_DESC_AUX_LD = 12,  // int64
};

// cublasLtEpilogue_t: bits
enum {
    PL_LT_EPILOGUE_DEFAULT = 1,
    PL_LT_EPILOGUE_BIAS = 4,
    PL_LT_EPILOGUE_GELU = 32,  // by tanh
    PL_LT_EPILOGUE_AUX = 128,
    PL_LT_EPILOGUE_DGELU = 64 | PL_LT_EPILOGUE_AUX,
    PL_LT_EPILOGUE_BGRADB = 512,
};

// cublasLtMatmulPreferenceAttributes_t
enum {
    PL_LT_PREF_WORKSPACE = 1,       // uint64, bytes
    PL_LT_PREF_REDUCTION_MASK = 3,  // uint32
    PL_LT_PREF_ALIGNMENT_A = 5,     // uint32, bytes; then B, C, D
};
// Split sums through a workspace in the compute type, added in a second step: not in place behind a
// counter (1), and not rounded to the output's type between (4). Undivided sums are always allowed.
enum { PL_LT_REDUCTION_COMPUTE_TYPE = 2 };

typedef struct pl_lt_algo {
    uint64_t data[8];
} pl_lt_algo;

typedef struct pl_lt_proposal {  // cublasLtMatmulHeuristicResult_t
    pl_lt_algo algo;
    size_t workspace;
    int state;  // PL_LT_SUCCESS: the rest is valid
    float waves;
    int reserved[4];
} pl_lt_proposal;

// X(member, name in the library, result, parameters)
#define PL_LT_FUNCTIONS(X)                                                                        \
    X(version, cublasLtGetVersion, size_t, (void))                                                \
    X(create, cublasLtCreate, int, (void **handle))                                               \
    X(destroy, cublasLtDestroy, int, (void *handle))                                              \
    X(status_name, cublasLtGetStatusName, const char *, (int status))                             \
    X(desc_create, cublasLtMatmulDescCreate, int, (void **desc, int compute, int scale))          \
    X(desc_destroy, cublasLtMatmulDescDestroy, int, (void *desc))                                 \
    X(desc_set, cublasLtMatmulDescSetAttribute, int,                                              \
      (void *desc, int attribute, const void *value, size_t nbytes))                              \
    X(layout_create, cublasLtMatrixLayoutCreate, int,                                             \
      (void **layout, int type, uint64_t rows, uint64_t cols, int64_t ld))                        \
    X(layout_destroy, cublasLtMatrixLayoutDestroy, int, (void *layout))                           \
    X(layout_set, cublasLtMatrixLayoutSetAttribute, int,                                          \
      (void *layout, int attribute, const void *value, size_t nbytes))                            \
    X(pref_create, cublasLtMatmulPreferenceCreate, int, (void **pref))                            \
    X(pref_destroy, cublasLtMatmulPreferenceDestroy, int, (void *pref))                           \
    X(pref_set, cublasLtMatmulPreferenceSetAttribute, int,                                        \
      (void *pref, int attribute, const void *value, size_t nbytes))                              \
    X(propose, cublasLtMatmulAlgoGetHeuristic, int,                                               \
      (void *handle, void *desc, void *a, void *b, void *c, void *d, void *pref, int wanted,      \
       pl_lt_proposal *out, int *count))                                                          \
    X(check, cublasLtMatmulAlgoCheck, int,                                                        \
      (void *handle, void *desc, void *a, void *b, void *c, void *d, const pl_lt_algo *algo,      \
       pl_lt_proposal *out))                                                                      \
    X(matmul, cublasLtMatmul, int,                                                                \
      (void *handle, void *desc, const void *alpha, const void *a, void *a_layout, const void *b, \
       void *b_layout, const void *beta, const void *c, void *c_layout, void *d, void *d_layout,  \
       const pl_lt_algo *algo, void *workspace, size_t workspace_nbytes, void *stream))

typedef struct pl_lt_library {
#define X(member, name, result, parameters) result(*member) parameters;
    PL_LT_FUNCTIONS(X)
#undef X
} pl_lt_library;

#endif

// SPDX-License-Identifier: Apache-2.0
// cudnn_abi: the part of the C interface of NVIDIA's cuDNN 9 that this project uses, in its own
// words, so that the core builds without CUDA. Names and values follow NVIDIA's documentation (the
// "backend" of cudnn_graph.h): descriptors are made, given attributes by number, and finalised.
#ifndef PL_CUDA_CUDNN_ABI_H
#define PL_CUDA_CUDNN_ABI_H

#include <stddef.h>
#include <stdint.h>

// cudnnGetVersion(): major * 10000 + minor * 100 + patch. Before 9.16 attention has faults at some
// lengths, or wants a mask of padding for them.
enum { PL_DNN_MAJOR = 9, PL_DNN_OLDEST = 91600 };
enum { PL_DNN_SUCCESS = 0, PL_DNN_NOT_SUPPORTED = 3000 };  // cudnnStatus_t; 3000 to 3999: refusals

// cudnnDataType_t
enum {
    PL_DNN_FLOAT = 0,
    PL_DNN_HALF = 2,
    PL_DNN_INT32 = 4,
    PL_DNN_BFLOAT16 = 9,
    PL_DNN_BOOLEAN = 11
};

// cudnnPointwiseMode_t, cudnnReduceTensorOp_t, cudnnBackendHeurMode_t
enum {
    PL_DNN_MUL = 1,
    PL_DNN_ADD = 0,
    PL_DNN_DIV = 6,
    PL_DNN_SUB = 9,
    PL_DNN_EXP = 13,
    PL_DNN_LOG = 15,
    PL_DNN_CMP_GE = 303,
    PL_DNN_GEN_INDEX = 501,
    PL_DNN_SELECT = 601,  // t ? x : b
};
enum { PL_DNN_REDUCE_ADD = 0, PL_DNN_REDUCE_MAX = 3 };
enum { PL_DNN_HEUR_A = 3 };

// cudnnBackendDescriptorType_t
enum {
    PL_DNN_POINTWISE = 0,
    PL_DNN_ENGINE_CONFIG = 3,
    PL_DNN_HEURISTICS = 4,
    PL_DNN_PLAN = 5,
    PL_DNN_OP_POINTWISE = 13,
    PL_DNN_GRAPH = 15,
    PL_DNN_VARIANT_PACK = 16,
    PL_DNN_TENSOR = 17,
    PL_DNN_MATMUL = 18,
    PL_DNN_OP_MATMUL = 19,
    PL_DNN_REDUCTION = 21,
    PL_DNN_OP_REDUCTION = 22,
    PL_DNN_OP_RESHAPE = 31,
    PL_DNN_DEVICE_PROPERTIES = 38,
};

// cudnnBackendAttributeType_t
enum {
    PL_DNN_T_HANDLE = 0,
    PL_DNN_T_DATA_TYPE = 1,  // int
    PL_DNN_T_BOOLEAN = 2,    // one byte
    PL_DNN_T_INT64 = 3,
    PL_DNN_T_VOID_PTR = 6,
    PL_DNN_T_HEUR_MODE = 8,        // int
    PL_DNN_T_POINTWISE_MODE = 14,  // int
    PL_DNN_T_DESCRIPTOR = 15,      // the library's pointer
    PL_DNN_T_REDUCTION = 18,       // int
    PL_DNN_T_CHAR = 24,
};

// cudnnBackendAttributeName_t, with the type that goes with it
enum {
    PL_DNN_A_POINTWISE_MODE = 0,       // POINTWISE_MODE
    PL_DNN_A_POINTWISE_MATH = 1,       // DATA_TYPE
    PL_DNN_A_POINTWISE_AXIS = 9,       // INT64
    PL_DNN_A_HEUR_MODE = 200,          // HEUR_MODE
    PL_DNN_A_HEUR_GRAPH = 201,         // DESCRIPTOR
    PL_DNN_A_HEUR_RESULTS = 202,       // DESCRIPTOR
    PL_DNN_A_HEUR_DEVICE = 204,        // DESCRIPTOR
    PL_DNN_A_PLAN_CONFIG = 401,        // DESCRIPTOR
    PL_DNN_A_PLAN_WORKSPACE = 402,     // INT64
    PL_DNN_A_OP_POINTWISE_DESC = 750,  // DESCRIPTOR, to OP_POINTWISE_T
    PL_DNN_A_OP_POINTWISE_X = 751,
    PL_DNN_A_OP_POINTWISE_B = 752,
    PL_DNN_A_OP_POINTWISE_Y = 753,
    PL_DNN_A_OP_POINTWISE_T = 758,
    PL_DNN_A_GRAPH_HANDLE = 800,       // HANDLE
    PL_DNN_A_GRAPH_OPS = 801,          // DESCRIPTOR
    PL_DNN_A_TENSOR_ALIGNMENT = 900,   // INT64, bytes
    PL_DNN_A_TENSOR_TYPE = 901,        // DATA_TYPE
    PL_DNN_A_TENSOR_DIMENSIONS = 902,  // INT64
    PL_DNN_A_TENSOR_STRIDES = 903,     // INT64
    PL_DNN_A_TENSOR_ID = 906,          // INT64
    PL_DNN_A_TENSOR_VIRTUAL = 907,     // BOOLEAN
    PL_DNN_A_TENSOR_BY_VALUE = 908,    // BOOLEAN
    PL_DNN_A_PACK_IDS = 1000,          // INT64
    PL_DNN_A_PACK_POINTERS = 1001,     // VOID_PTR
    PL_DNN_A_PACK_WORKSPACE = 1003,    // VOID_PTR
    PL_DNN_A_MATMUL_MATH = 1500,       // DATA_TYPE
    PL_DNN_A_OP_MATMUL_A = 1520,       // DESCRIPTOR, to OP_MATMUL_DESC
    PL_DNN_A_OP_MATMUL_B = 1521,
    PL_DNN_A_OP_MATMUL_C = 1522,
    PL_DNN_A_OP_MATMUL_DESC = 1523,
    PL_DNN_A_REDUCTION_OPERATOR = 1600,  // REDUCTION
    PL_DNN_A_REDUCTION_MATH = 1601,      // DATA_TYPE
    PL_DNN_A_OP_REDUCTION_X = 1610,      // DESCRIPTOR, to OP_RESHAPE_Y
    PL_DNN_A_OP_REDUCTION_Y = 1611,
    PL_DNN_A_OP_REDUCTION_DESC = 1612,
    PL_DNN_A_OP_RESHAPE_X = 2200,
    PL_DNN_A_OP_RESHAPE_Y = 2201,
    PL_DNN_A_DEVICE_JSON = 2702,  // CHAR
};

// X(member, name in the library, result, parameters)
#define PL_DNN_FUNCTIONS(X)                                                              \
    X(version, cudnnGetVersion, size_t, (void))                                          \
    X(create, cudnnCreate, int, (void **handle))                                         \
    X(destroy, cudnnDestroy, int, (void *handle))                                        \
    X(set_stream, cudnnSetStream, int, (void *handle, void *stream))                     \
    X(status_name, cudnnGetErrorString, const char *, (int status))                      \
    X(desc_create, cudnnBackendCreateDescriptor, int, (int kind, void **desc))           \
    X(desc_destroy, cudnnBackendDestroyDescriptor, int, (void *desc))                    \
    X(desc_set, cudnnBackendSetAttribute, int,                                           \
      (void *desc, int attribute, int type, int64_t count, const void *values))          \
    X(desc_get, cudnnBackendGetAttribute, int,                                           \
      (void *desc, int attribute, int type, int64_t room, int64_t *count, void *values)) \
    X(finalize, cudnnBackendFinalize, int, (void *desc))                                 \
    X(execute, cudnnBackendExecute, int, (void *handle, void *plan, void *variant_pack))

typedef struct pl_dnn_library {
#define X(member, name, result, parameters) result(*member) parameters;
    PL_DNN_FUNCTIONS(X)
#undef X
} pl_dnn_library;

#endif

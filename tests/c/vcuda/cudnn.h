// SPDX-License-Identifier: Apache-2.0
// cudnn: what the two files of the stand-in for cuDNN share: a graph that was found right, as a
// list of operations on numbered tensors.
#ifndef VCUDA_CUDNN_H
#define VCUDA_CUDNN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { FLOAT = 0, HALF = 2, INT32 = 4, BF16 = 9, BOOLEAN = 11 };  // cudnnDataType_t
enum { OP_POINTWISE = 13, OP_MATMUL = 19, OP_REDUCTION = 22, OP_RESHAPE = 31 };
enum {
    ADD = 0,
    MUL = 1,
    DIV = 6,
    SUB = 9,
    EXP = 13,
    LOG = 15,
    GE = 303,
    INDEX = 501,
    SELECT = 601
};
enum { MOST_TENSORS = 64, MOST_OPS = 32 };

typedef struct tensor {
    int64_t dims[4], strides[4], uid;
    int type;
    bool is_virtual, by_value, read, written;
} tensor;

typedef struct operation {
    int kind, mode;  // mode: of a pointwise one; of a reduction 1: the maximum
    int x, b, t, y;  // tensors; -1: none. A product: x times b
    int64_t axis;
} operation;

typedef struct program {
    tensor tensors[MOST_TENSORS];
    operation ops[MOST_OPS];
    int tensor_count, op_count;
} program;

// The memory of the tensors of a program; by_value: the number.
typedef struct operands {
    void *at[MOST_TENSORS];
    float value[MOST_TENSORS];
} operands;

// Computes it naively, in the memory of the device.
void cudnn_fake_run(const program *p, const operands *o);

#endif

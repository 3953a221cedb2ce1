// SPDX-License-Identifier: Apache-2.0
// cudnn_run: a program of the stand-in for cuDNN, computed one operation after the other: results
// between them are rounded to the type they are said to have.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "vcuda/cudnn.h"
#include "vcuda/numbers.h"

static int64_t count_of(const tensor *t) {
    return t->dims[0] * t->dims[1] * t->dims[2] * t->dims[3];
}

static int64_t offset_of(const tensor *t, int64_t i) {
    int64_t at = 0;
    for (int d = 3; d >= 0; d--) {
        at += i % t->dims[d] * t->strides[d];
        i /= t->dims[d];
    }
    return at;
}

// Element i of a tensor that is spread out to the shape of another.
static int64_t spread(const tensor *small, const tensor *large, int64_t i) {
    int64_t at = 0, step = 1;
    for (int d = 3; d >= 0; d--) {
        if (small->dims[d] > 1) at += i % large->dims[d] * step;
        step *= small->dims[d];
        i /= large->dims[d];
    }
    return at;
}

static float rounded(int type, float v) {
    if (type != HALF && type != BF16) return v;
    return vcuda_from_16(type == BF16, vcuda_to_16(type == BF16, v));
}

static void load(const tensor *t, const void *from, float value, float *to) {
    for (int64_t i = 0; i < count_of(t); i++) {
        int64_t at = offset_of(t, i);
        to[i] = t->by_value        ? value
                : t->type == FLOAT ? ((const float *)from)[at]
                                   : vcuda_from_16(t->type == BF16, ((const uint16_t *)from)[at]);
    }
}

static void store(const tensor *t, const float *from, void *to) {
    for (int64_t i = 0; i < count_of(t); i++) {
        int64_t at = offset_of(t, i);
        if (t->type == FLOAT) {
            ((float *)to)[at] = from[i];
        } else {
            ((uint16_t *)to)[at] = vcuda_to_16(t->type == BF16, from[i]);
        }
    }
}

static float one_point(const operation *op, float x, float b, float t) {
    switch (op->mode) {
        case ADD:
            return x + b;
        case MUL:
            return x * b;
        case DIV:
            return x / b;
        case SUB:
            return x - b;
        case EXP:
            return expf(x);
        case LOG:
            return logf(x);
        case GE:
            return x >= b;
        default:
            return t != 0.0f ? x : b;
    }
}

static void points(const program *p, const operation *op, float **data) {
    const tensor *y = &p->tensors[op->y], *x = &p->tensors[op->x];
    for (int64_t i = 0; i < count_of(y); i++) {
        if (op->mode == INDEX) {
            data[op->y][i] = (float)(op->axis == 3 ? i % y->dims[3] : i / y->dims[3] % y->dims[2]);
            continue;
        }
        float b = op->b < 0 ? 0.0f : data[op->b][spread(&p->tensors[op->b], y, i)];
        float t = op->t < 0 ? 0.0f : data[op->t][spread(&p->tensors[op->t], y, i)];
        data[op->y][i] = one_point(op, data[op->x][spread(x, y, i)], b, t);
    }
}

static void multiply(const program *p, const operation *op, float **data) {
    const tensor *a = &p->tensors[op->x], *y = &p->tensors[op->y];
    int64_t m = y->dims[2], n = y->dims[3], k = a->dims[3], batch = y->dims[0] * y->dims[1];
    for (int64_t i = 0; i < batch * m * n; i++) {
        const float *row = data[op->x] + i / n * k, *column = data[op->b] + i / (m * n) * k * n;
        double sum = 0.0;
        for (int64_t l = 0; l < k; l++) sum += (double)row[l] * (double)column[l * n + i % n];
        data[op->y][i] = (float)sum;
    }
}

static void reduce(const program *p, const operation *op, float **data) {
    const tensor *x = &p->tensors[op->x];
    int64_t columns = x->dims[3];
    for (int64_t i = 0; i < count_of(x) / columns; i++) {
        double result = op->mode ? -INFINITY : 0.0;
        for (int64_t j = 0; j < columns; j++) {
            double v = (double)data[op->x][i * columns + j];
            result = !op->mode ? result + v : v > result || isnan(v) ? v : result;
        }
        data[op->y][i] = (float)result;
    }
}

// The only one there is: the last two dimensions exchanged.
static void turn(const program *p, const operation *op, float **data) {
    const tensor *y = &p->tensors[op->y];
    int64_t rows = y->dims[2], columns = y->dims[3];
    for (int64_t i = 0; i < count_of(y); i++) {
        int64_t matrix = i / (rows * columns), r = i / columns % rows, c = i % columns;
        data[op->y][i] = data[op->x][matrix * rows * columns + c * rows + r];
    }
}

void cudnn_fake_run(const program *p, const operands *o) {
    float *data[MOST_TENSORS];
    for (int i = 0; i < p->tensor_count; i++) {
        const tensor *t = &p->tensors[i];
        data[i] = malloc((size_t)count_of(t) * sizeof(float));
        if (!t->written) load(t, o->at[i], o->value[i], data[i]);
    }
    for (int i = 0; i < p->op_count; i++) {
        const operation *op = &p->ops[i];
        const tensor *y = &p->tensors[op->y];
        if (op->kind == OP_POINTWISE) points(p, op, data);
        if (op->kind == OP_MATMUL) multiply(p, op, data);
        if (op->kind == OP_REDUCTION) reduce(p, op, data);
        if (op->kind == OP_RESHAPE) turn(p, op, data);
        for (int64_t j = 0; j < count_of(y); j++) data[op->y][j] = rounded(y->type, data[op->y][j]);
        if (!y->is_virtual) store(y, data[op->y], o->at[op->y]);
    }
    for (int i = 0; i < p->tensor_count; i++) free(data[i]);
}

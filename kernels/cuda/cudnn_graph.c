// SPDX-License-Identifier: Apache-2.0
// cudnn_graph: attention as cuDNN wants it described, a graph of small operations that its engines
// recognise as a whole and compute in one pass. They are particular: the key comes as its transpose
// (in the gradient the value too), results between are fp32, but what enters the second product of
// the forward pass, and what is transposed for dk and dv, has the inputs' type; the key turned back
// for dq is said to be fp32.
//
// Forward:  s = q k' * scale; hidden above the diagonal; m = max s; e = exp(s - m); z = sum e;
//           lse = m + log z; out = (e / z) v.
// Gradient: sum = rows of g * out; p = exp(s - lse); dv = p' g; ds = p (g v' - sum) * scale;
//           dk = ds' q; dq = ds k.
//
// Note [dq without atomics]: dq is written by the product itself. Given an fp32 tensor to add up in
// instead, cuDNN adds with atomics, in an order that varies; without one it keeps ds, all of it, in
// its workspace and multiplies afterwards. That is what asking for its deterministic algorithm
// means before Blackwell.
#include <math.h>

#include "cuda/cudnn_internal.h"

void *pl__dnn_make(const pl_dnn_library *lib, pl_dnn_bag *bag, int kind, int *status) {
    void *desc = NULL;
    if (*status != PL_DNN_SUCCESS) return NULL;
    if (bag->count == PL_DNN_MOST) {
        *status = PL_DNN_NOT_SUPPORTED;
        return NULL;
    }
    *status = lib->desc_create(kind, &desc);
    if (*status != PL_DNN_SUCCESS) return NULL;
    bag->descs[bag->count++] = desc;
    return desc;
}

void pl__dnn_set(const pl_dnn_library *lib, void *desc, int attribute, int type, int64_t count,
                 const void *values, int *status) {
    if (*status == PL_DNN_SUCCESS) *status = lib->desc_set(desc, attribute, type, count, values);
}

void pl__dnn_finish(const pl_dnn_library *lib, void *desc, int *status) {
    if (*status == PL_DNN_SUCCESS) *status = lib->finalize(desc);
}

void pl__dnn_empty(const pl_dnn_library *lib, pl_dnn_bag *bag) {
    while (bag->count > 0) (void)lib->desc_destroy(bag->descs[--bag->count]);
}

// ---- Tensors ------------------------------------------------------------------------------------

enum { FIRST_VIRTUAL = 100, MOST_OPS = 32, ALIGNMENT = 16 };

typedef struct builder {
    const pl_dnn_library *lib;
    pl_dnn_bag *bag;
    const pl_dnn_call *call;
    int type, status;  // of the inputs, cudnnDataType_t
    int64_t virtuals;
    void *ops[MOST_OPS];
    int op_count;
} builder;

typedef struct form {
    int64_t dims[4], strides[4];
} form;

static void set_ints(builder *b, void *desc, int attribute, int64_t count, const int64_t *v) {
    pl__dnn_set(b->lib, desc, attribute, PL_DNN_T_INT64, count, v, &b->status);
}

static void set_int(builder *b, void *desc, int attribute, int type, int value) {
    pl__dnn_set(b->lib, desc, attribute, type, 1, &value, &b->status);
}

static void set_desc(builder *b, void *desc, int attribute, void *value) {
    pl__dnn_set(b->lib, desc, attribute, PL_DNN_T_DESCRIPTOR, 1, &value, &b->status);
}

// flag: 0, or the attribute that says what kind of a tensor it is.
static void *tensor(builder *b, const form *f, int type, int64_t id, int flag) {
    static const bool yes = true;
    int64_t alignment = ALIGNMENT;
    void *t = pl__dnn_make(b->lib, b->bag, PL_DNN_TENSOR, &b->status);
    set_int(b, t, PL_DNN_A_TENSOR_TYPE, PL_DNN_T_DATA_TYPE, type);
    set_ints(b, t, PL_DNN_A_TENSOR_DIMENSIONS, 4, f->dims);
    set_ints(b, t, PL_DNN_A_TENSOR_STRIDES, 4, f->strides);
    set_ints(b, t, PL_DNN_A_TENSOR_ID, 1, &id);
    set_ints(b, t, PL_DNN_A_TENSOR_ALIGNMENT, 1, &alignment);
    if (flag) pl__dnn_set(b->lib, t, flag, PL_DNN_T_BOOLEAN, 1, &yes, &b->status);
    pl__dnn_finish(b->lib, t, &b->status);
    return t;
}

// A result between operations.
static void *between(builder *b, const form *f, int type) {
    return tensor(b, f, type, FIRST_VIRTUAL + b->virtuals++, PL_DNN_A_TENSOR_VIRTUAL);
}

static void *number(builder *b, pl_dnn_operand which) {
    static const form one = {{1, 1, 1, 1}, {1, 1, 1, 1}};
    return tensor(b, &one, PL_DNN_FLOAT, which + 1, PL_DNN_A_TENSOR_BY_VALUE);
}

static form turned(const form *f) {
    return (form){{f->dims[0], f->dims[1], f->dims[3], f->dims[2]},
                  {f->strides[0], f->strides[1], f->strides[3], f->strides[2]}};
}

static form form_of(const pl_dnn_call *c, pl_dnn_operand which) {
    bool keys = which == PL_DNN_K || which == PL_DNN_V || which == PL_DNN_DK || which == PL_DNN_DV;
    const int64_t *s = c->strides[which];
    return (form){{c->batch, c->heads, keys ? c->keys : c->queries, c->width},
                  {s[0], s[1], s[2], 1}};
}

// (B, H, rows, columns), contiguous.
static form plain(const pl_dnn_call *c, int64_t rows, int64_t columns) {
    return (form){{c->batch, c->heads, rows, columns},
                  {c->heads * rows * columns, rows * columns, columns, 1}};
}

static void *operand(builder *b, pl_dnn_operand which, bool transposed) {
    form f = form_of(b->call, which);
    if (transposed) f = turned(&f);
    return tensor(b, &f, b->type, which + 1, 0);
}

// One number of each query.
static void *per_query(builder *b, pl_dnn_operand which) {
    form f = plain(b->call, b->call->queries, 1);
    return tensor(b, &f, PL_DNN_FLOAT, which + 1, 0);
}

// ---- Operations ---------------------------------------------------------------------------------

static void *add_op(builder *b, void *op) {
    pl__dnn_finish(b->lib, op, &b->status);
    if (b->op_count == MOST_OPS) b->status = PL_DNN_NOT_SUPPORTED;
    if (b->status == PL_DNN_SUCCESS) b->ops[b->op_count++] = op;
    return op;
}

typedef struct pointwise {
    int mode;
    void *x, *b, *t, *y;  // b and t NULL where the mode has none
    int math;             // 0: fp32
    int64_t axis;         // of GEN_INDEX
} pointwise;

static void *point(builder *b, pointwise p) {
    void *desc = pl__dnn_make(b->lib, b->bag, PL_DNN_POINTWISE, &b->status);
    set_int(b, desc, PL_DNN_A_POINTWISE_MODE, PL_DNN_T_POINTWISE_MODE, p.mode);
    set_int(b, desc, PL_DNN_A_POINTWISE_MATH, PL_DNN_T_DATA_TYPE, p.math);
    if (p.mode == PL_DNN_GEN_INDEX) set_ints(b, desc, PL_DNN_A_POINTWISE_AXIS, 1, &p.axis);
    pl__dnn_finish(b->lib, desc, &b->status);
    void *op = pl__dnn_make(b->lib, b->bag, PL_DNN_OP_POINTWISE, &b->status);
    set_desc(b, op, PL_DNN_A_OP_POINTWISE_DESC, desc);
    set_desc(b, op, PL_DNN_A_OP_POINTWISE_X, p.x);
    if (p.b) set_desc(b, op, PL_DNN_A_OP_POINTWISE_B, p.b);
    if (p.t) set_desc(b, op, PL_DNN_A_OP_POINTWISE_T, p.t);
    set_desc(b, op, PL_DNN_A_OP_POINTWISE_Y, p.y);
    add_op(b, op);
    return p.y;
}

static void *product(builder *b, void *x, void *y, void *out) {
    void *desc = pl__dnn_make(b->lib, b->bag, PL_DNN_MATMUL, &b->status);
    set_int(b, desc, PL_DNN_A_MATMUL_MATH, PL_DNN_T_DATA_TYPE, PL_DNN_FLOAT);
    pl__dnn_finish(b->lib, desc, &b->status);
    void *op = pl__dnn_make(b->lib, b->bag, PL_DNN_OP_MATMUL, &b->status);
    set_desc(b, op, PL_DNN_A_OP_MATMUL_A, x);
    set_desc(b, op, PL_DNN_A_OP_MATMUL_B, y);
    set_desc(b, op, PL_DNN_A_OP_MATMUL_C, out);
    set_desc(b, op, PL_DNN_A_OP_MATMUL_DESC, desc);
    add_op(b, op);
    return out;
}

static void *reduce(builder *b, int operator, void *x, void *y) {
    void *desc = pl__dnn_make(b->lib, b->bag, PL_DNN_REDUCTION, &b->status);
    set_int(b, desc, PL_DNN_A_REDUCTION_OPERATOR, PL_DNN_T_REDUCTION, operator);
    set_int(b, desc, PL_DNN_A_REDUCTION_MATH, PL_DNN_T_DATA_TYPE, PL_DNN_FLOAT);
    pl__dnn_finish(b->lib, desc, &b->status);
    void *op = pl__dnn_make(b->lib, b->bag, PL_DNN_OP_REDUCTION, &b->status);
    set_desc(b, op, PL_DNN_A_OP_REDUCTION_X, x);
    set_desc(b, op, PL_DNN_A_OP_REDUCTION_Y, y);
    set_desc(b, op, PL_DNN_A_OP_REDUCTION_DESC, desc);
    add_op(b, op);
    return y;
}

static void *reshape(builder *b, void *x, void *y) {
    void *op = pl__dnn_make(b->lib, b->bag, PL_DNN_OP_RESHAPE, &b->status);
    set_desc(b, op, PL_DNN_A_OP_RESHAPE_X, x);
    set_desc(b, op, PL_DNN_A_OP_RESHAPE_Y, y);
    add_op(b, op);
    return y;
}

// ---- Attention ----------------------------------------------------------------------------------

static void *hide_later_keys(builder *b, void *s, const form *f) {
    void *row = point(
        b,
        (pointwise){.mode = PL_DNN_GEN_INDEX, .x = s, .y = between(b, f, PL_DNN_INT32), .axis = 2});
    void *column = point(
        b,
        (pointwise){.mode = PL_DNN_GEN_INDEX, .x = s, .y = between(b, f, PL_DNN_INT32), .axis = 3});
    void *seen = point(b, (pointwise){.mode = PL_DNN_CMP_GE,
                                      .x = row,
                                      .b = column,
                                      .y = between(b, f, PL_DNN_BOOLEAN),
                                      .math = PL_DNN_BOOLEAN});
    return point(b, (pointwise){.mode = PL_DNN_SELECT,
                                .x = s,
                                .b = number(b, PL_DNN_HIDDEN),
                                .t = seen,
                                .y = between(b, f, PL_DNN_FLOAT)});
}

// y = x `mode` other, in fp32.
static void *with(builder *b, int mode, void *x, void *other, const form *f) {
    return point(b, (pointwise){.mode = mode, .x = x, .b = other, .y = between(b, f, 0)});
}

static void forward(builder *b) {
    const pl_dnn_call *c = b->call;
    form f = plain(c, c->queries, c->keys), one = plain(c, c->queries, 1);
    void *s = product(b, operand(b, PL_DNN_Q, false), operand(b, PL_DNN_K, true),
                      between(b, &f, PL_DNN_FLOAT));
    s = with(b, PL_DNN_MUL, s, number(b, PL_DNN_SCALE), &f);
    if (c->causal) s = hide_later_keys(b, s, &f);
    void *m = reduce(b, PL_DNN_REDUCE_MAX, s, between(b, &one, PL_DNN_FLOAT));
    void *e = with(b, PL_DNN_SUB, s, m, &f);
    e = with(b, PL_DNN_EXP, e, NULL, &f);
    void *z = reduce(b, PL_DNN_REDUCE_ADD, e, between(b, &one, PL_DNN_FLOAT));
    void *log_z = with(b, PL_DNN_LOG, z, NULL, &one);
    point(b, (pointwise){.mode = PL_DNN_ADD, .x = m, .b = log_z, .y = per_query(b, PL_DNN_LSE)});
    void *p =
        point(b, (pointwise){.mode = PL_DNN_DIV, .x = e, .b = z, .y = between(b, &f, b->type)});
    product(b, p, operand(b, PL_DNN_V, false), operand(b, PL_DNN_OUT, false));
}

static void backward(builder *b) {
    const pl_dnn_call *c = b->call;
    form f = plain(c, c->queries, c->keys), f_turned = turned(&f);
    form one = plain(c, c->queries, 1), wide = plain(c, c->queries, c->width);
    void *q = operand(b, PL_DNN_Q, false), *kt = operand(b, PL_DNN_K, true);
    void *g = operand(b, PL_DNN_G, false), *scale = number(b, PL_DNN_SCALE);
    void *sum = with(b, PL_DNN_MUL, g, operand(b, PL_DNN_OUT, false), &wide);
    sum = reduce(b, PL_DNN_REDUCE_ADD, sum, between(b, &one, PL_DNN_FLOAT));
    sum = point(b, (pointwise){.mode = PL_DNN_MUL,
                               .x = sum,
                               .b = number(b, PL_DNN_ONE),
                               .y = per_query(b, PL_DNN_SUM)});
    void *s = product(b, q, kt, between(b, &f, PL_DNN_FLOAT));
    s = with(b, PL_DNN_MUL, s, scale, &f);
    s = with(b, PL_DNN_SUB, s, per_query(b, PL_DNN_LSE), &f);
    if (c->causal) s = hide_later_keys(b, s, &f);
    void *p = with(b, PL_DNN_EXP, s, NULL, &f);
    product(b, reshape(b, p, between(b, &f_turned, b->type)), g, operand(b, PL_DNN_DV, false));
    void *ds = product(b, g, operand(b, PL_DNN_V, true), between(b, &f, PL_DNN_FLOAT));
    ds = with(b, PL_DNN_SUB, ds, sum, &f);
    ds = with(b, PL_DNN_MUL, ds, p, &f);
    ds = with(b, PL_DNN_MUL, ds, scale, &f);
    product(b, reshape(b, ds, between(b, &f_turned, b->type)), q, operand(b, PL_DNN_DK, false));
    form k = form_of(c, PL_DNN_K);
    // Note [dq without atomics].
    product(b, ds, reshape(b, kt, between(b, &k, PL_DNN_FLOAT)), operand(b, PL_DNN_DQ, false));
}

void *pl__dnn_graph(const pl_dnn_library *lib, pl_dnn_bag *bag, const pl_dnn_call *call,
                    void *handle, int *status) {
    builder b = {.lib = lib,
                 .bag = bag,
                 .call = call,
                 .type = call->dtype == PL_BF16 ? PL_DNN_BFLOAT16 : PL_DNN_HALF};
    if (call->gradient) {
        backward(&b);
    } else {
        forward(&b);
    }
    void *graph = pl__dnn_make(lib, bag, PL_DNN_GRAPH, &b.status);
    pl__dnn_set(lib, graph, PL_DNN_A_GRAPH_OPS, PL_DNN_T_DESCRIPTOR, b.op_count, b.ops, &b.status);
    if (handle) {
        pl__dnn_set(lib, graph, PL_DNN_A_GRAPH_HANDLE, PL_DNN_T_HANDLE, 1, &handle, &b.status);
    }
    pl__dnn_finish(lib, graph, &b.status);
    *status = b.status;
    return graph;
}

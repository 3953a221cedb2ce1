// SPDX-License-Identifier: Apache-2.0
// cudnn: a stand-in for NVIDIA's cuDNN 9: its C interface, as much as this project uses, with
// declarations of its own. Strict: every attribute's type and count, what must be set before a
// descriptor is finalised, that nothing changes afterwards, and that a graph's shapes, types and
// order fit; the reason goes to stderr and the call gives BAD_PARAM. A graph that the real
// library's engines do not recognise as attention (found by asking it) gets no proposals.
// VCUDA_CUDNN makes it misbehave, for tests: "nothing" (no proposals), "unfit" (a plan fails, the
// next one is made), "unplanned" (all fail), "large" (workspace), "fails" (when it is run),
// "wrong", "varies" (results), "slow".
#include "vcuda/cudnn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "vcuda.h"

#define EXPORT __attribute__((visibility("default")))

enum { OK = 0, BAD = 2000, UNSUPPORTED = 3000, FAILED = 5000 };
enum { T_HANDLE, T_TYPE, T_BOOL, T_INT64, T_POINTER = 6, T_HEUR = 8, T_POINT = 14, T_DESC = 15 };
enum { T_REDUCE = 18 };
enum { CONFIG = 3, HEUR = 4, PLAN = 5, GRAPH = 15, PACK = 16, TENSOR = 17 };
enum { ALIVE = 0x646e6e31, MOST_ATTRIBUTES = 8, CONFIGS = 2, WORKSPACE = 4096 };

typedef struct value {
    int attribute;
    int64_t count;
    void *data;
} value;

typedef struct desc {
    int magic, kind, values;
    bool final;
    value value[MOST_ATTRIBUTES];
    program *program;  // of a graph, and of what was made of it: borrowed
    int number;        // of a configuration
} desc;

typedef struct handle {
    int magic;
    void *stream;
} handle;

// kind, attribute, its type, least and most values, whether it must be set, what descriptors it
// takes (-1: none).
static const struct rule {
    int kind, attribute, type, least, most;
    bool needed;
    int takes;
} rules[] = {
    {0, 0, T_POINT, 1, 1, true, -1},
    {0, 1, T_TYPE, 1, 1, true, -1},
    {0, 9, T_INT64, 1, 1, false, -1},
    {HEUR, 200, T_HEUR, 1, 1, true, -1},
    {HEUR, 201, T_DESC, 1, 1, true, GRAPH},
    {PLAN, 401, T_DESC, 1, 1, true, CONFIG},
    {OP_POINTWISE, 750, T_DESC, 1, 1, true, 0},
    {OP_POINTWISE, 751, T_DESC, 1, 1, true, TENSOR},
    {OP_POINTWISE, 752, T_DESC, 1, 1, false, TENSOR},
    {OP_POINTWISE, 753, T_DESC, 1, 1, true, TENSOR},
    {OP_POINTWISE, 758, T_DESC, 1, 1, false, TENSOR},
    {GRAPH, 800, T_HANDLE, 1, 1, true, -1},
    {GRAPH, 801, T_DESC, 1, MOST_OPS, true, -1},
    {PACK, 1000, T_INT64, 1, MOST_TENSORS, true, -1},
    {PACK, 1001, T_POINTER, 1, MOST_TENSORS, true, -1},
    {PACK, 1003, T_POINTER, 1, 1, true, -1},
    {TENSOR, 900, T_INT64, 1, 1, true, -1},
    {TENSOR, 901, T_TYPE, 1, 1, true, -1},
    {TENSOR, 902, T_INT64, 4, 4, true, -1},
    {TENSOR, 903, T_INT64, 4, 4, true, -1},
    {TENSOR, 906, T_INT64, 1, 1, true, -1},
    {TENSOR, 907, T_BOOL, 1, 1, false, -1},
    {TENSOR, 908, T_BOOL, 1, 1, false, -1},
    {18, 1500, T_TYPE, 1, 1, true, -1},
    {OP_MATMUL, 1520, T_DESC, 1, 1, true, TENSOR},
    {OP_MATMUL, 1521, T_DESC, 1, 1, true, TENSOR},
    {OP_MATMUL, 1522, T_DESC, 1, 1, true, TENSOR},
    {OP_MATMUL, 1523, T_DESC, 1, 1, true, 18},
    {21, 1600, T_REDUCE, 1, 1, true, -1},
    {21, 1601, T_TYPE, 1, 1, true, -1},
    {OP_REDUCTION, 1610, T_DESC, 1, 1, true, TENSOR},
    {OP_REDUCTION, 1611, T_DESC, 1, 1, true, TENSOR},
    {OP_REDUCTION, 1612, T_DESC, 1, 1, true, 21},
    {OP_RESHAPE, 2200, T_DESC, 1, 1, true, TENSOR},
    {OP_RESHAPE, 2201, T_DESC, 1, 1, true, TENSOR},
};
enum { RULES = sizeof rules / sizeof *rules };

static int refuse(const char *why) {
    fprintf(stderr, "fake cuDNN: %s\n", why);
    return BAD;
}

static bool told(const char *what) {
    const char *said = getenv("VCUDA_CUDNN");
    return said && strcmp(said, what) == 0;
}

static size_t size_of(int type) {
    return type == T_BOOL                                                            ? 1
           : type == T_TYPE || type == T_HEUR || type == T_POINT || type == T_REDUCE ? 4
                                                                                     : 8;
}

static const value *find(const desc *d, int attribute) {
    for (int i = 0; i < d->values; i++) {
        if (d->value[i].attribute == attribute) return &d->value[i];
    }
    return NULL;
}

static int64_t int_of(const desc *d, int attribute, bool wide) {
    const value *v = find(d, attribute);
    return !v ? -1 : wide ? *(const int64_t *)v->data : *(const int *)v->data;
}

static desc *desc_of(const desc *d, int attribute) {
    const value *v = find(d, attribute);
    return v ? *(desc **)v->data : NULL;
}

// ---- Library and descriptors --------------------------------------------------------------------

EXPORT size_t cudnnGetVersion(void);
EXPORT size_t cudnnGetVersion(void) {
    const char *other = getenv("VCUDA_CUDNN_VERSION");  // for tests
    return other ? strtoull(other, NULL, 10) : 91900;
}

EXPORT const char *cudnnGetErrorString(int status);
EXPORT const char *cudnnGetErrorString(int status) {
    return status == OK            ? "CUDNN_STATUS_SUCCESS"
           : status == BAD         ? "CUDNN_STATUS_BAD_PARAM"
           : status == UNSUPPORTED ? "CUDNN_STATUS_NOT_SUPPORTED"
                                   : "CUDNN_STATUS_EXECUTION_FAILED";
}

EXPORT int cudnnCreate(void **out);
EXPORT int cudnnCreate(void **out) {
    handle *h = calloc(1, sizeof *h);
    h->magic = ALIVE;
    *out = h;
    return OK;
}

EXPORT int cudnnDestroy(handle *h);
EXPORT int cudnnDestroy(handle *h) {
    if (!h || h->magic != ALIVE) return refuse("destroying what is no handle");
    h->magic = 0;
    free(h);
    return OK;
}

EXPORT int cudnnSetStream(handle *h, void *stream);
EXPORT int cudnnSetStream(handle *h, void *stream) {
    if (!h || h->magic != ALIVE) return refuse("a stream for what is no handle");
    h->stream = stream;
    return OK;
}

EXPORT int cudnnBackendCreateDescriptor(int kind, void **out);
EXPORT int cudnnBackendCreateDescriptor(int kind, void **out) {
    bool known = kind == CONFIG;
    for (int i = 0; i < RULES; i++) known = known || rules[i].kind == kind;
    if (!known) return refuse("a kind of descriptor that is not in this stand-in");
    desc *d = calloc(1, sizeof *d);
    *d = (desc){.magic = ALIVE, .kind = kind};
    *out = d;
    return OK;
}

EXPORT int cudnnBackendDestroyDescriptor(desc *d);
EXPORT int cudnnBackendDestroyDescriptor(desc *d) {
    if (!d || d->magic != ALIVE) return refuse("destroying what is no descriptor");
    for (int i = 0; i < d->values; i++) free(d->value[i].data);
    if (d->kind == GRAPH) free(d->program);
    memset(d, 0xDD, sizeof *d);
    free(d);
    return OK;
}

static int check_value(const struct rule *r, int type, int64_t count, const void *values) {
    if (!r) return refuse("an attribute that this kind of descriptor has not, or not here");
    if (type != r->type) return refuse("an attribute's type is not what it must be");
    if (count < r->least || count > r->most || !values) return refuse("an attribute's count");
    for (int64_t i = 0; type == T_DESC && i < count; i++) {
        const desc *v = ((desc *const *)values)[i];
        if (!v || v->magic != ALIVE || !v->final) return refuse("no finalised descriptor");
        if (r->takes >= 0 && v->kind != r->takes) return refuse("a descriptor of another kind");
    }
    return OK;
}

EXPORT int cudnnBackendSetAttribute(desc *d, int attribute, int type, int64_t count,
                                    const void *values);
EXPORT int cudnnBackendSetAttribute(desc *d, int attribute, int type, int64_t count,
                                    const void *values) {
    if (!d || d->magic != ALIVE) return refuse("an attribute of what is no descriptor");
    if (d->final) return refuse("an attribute of a descriptor that is final");
    const struct rule *rule = NULL;
    for (int i = 0; i < RULES; i++) {
        if (rules[i].kind == d->kind && rules[i].attribute == attribute) rule = &rules[i];
    }
    int st = check_value(rule, type, count, values);
    if (st != OK) return st;
    if (find(d, attribute)) return refuse("an attribute twice");
    size_t nbytes = (size_t)count * size_of(type);
    value *v = &d->value[d->values++];
    *v = (value){attribute, count, malloc(nbytes)};
    memcpy(v->data, values, nbytes);
    return OK;
}

// ---- Graphs -------------------------------------------------------------------------------------

static int check_tensor(const desc *d) {
    const int64_t *dims = find(d, 902)->data, *strides = find(d, 903)->data;
    int64_t alignment = int_of(d, 900, true);
    for (int i = 0; i < 4; i++) {
        if (dims[i] < 1 || strides[i] < 1) return refuse("a dimension or stride of a tensor");
    }
    if (alignment != 16) return refuse("attention wants 16-byte alignment");
    return find(d, 907) && find(d, 908) ? refuse("a tensor both virtual and by value") : OK;
}

static void read_tensor(const desc *d, tensor *t) {
    *t = (tensor){.uid = int_of(d, 906, true), .type = (int)int_of(d, 901, false)};
    memcpy(t->dims, find(d, 902)->data, sizeof t->dims);
    memcpy(t->strides, find(d, 903)->data, sizeof t->strides);
    t->is_virtual = find(d, 907) != NULL;
    t->by_value = find(d, 908) != NULL;
}

// Its number in the program; -1: none, -2: refused.
static int number_of(program *p, const desc *d, bool writes) {
    tensor t;
    if (!d) return -1;
    read_tensor(d, &t);
    int i = 0;
    while (i < p->tensor_count && p->tensors[i].uid != t.uid) i++;
    if (i == p->tensor_count) {
        if (i == MOST_TENSORS) return -2;
        p->tensors[p->tensor_count++] = t;
    }
    tensor *known = &p->tensors[i];
    bool same = memcmp(known->dims, t.dims, sizeof t.dims) == 0 && known->type == t.type &&
                memcmp(known->strides, t.strides, sizeof t.strides) == 0;
    if (!same) return -2;
    if (writes && (known->written || known->read || known->by_value)) return -2;
    if (!writes && known->is_virtual && !known->written) return -2;
    known->written = known->written || writes;
    known->read = known->read || !writes;
    return i;
}

static bool spreads(const tensor *small, const tensor *large) {
    for (int d = 0; d < 4; d++) {
        if (small->dims[d] != 1 && small->dims[d] != large->dims[d]) return false;
    }
    return true;
}

static bool fits(const program *p, const operation *op) {
    const tensor *x = &p->tensors[op->x], *y = &p->tensors[op->y];
    const tensor *b = op->b < 0 ? NULL : &p->tensors[op->b];
    const tensor *t = op->t < 0 ? NULL : &p->tensors[op->t];
    const int64_t *yd = y->dims;
    bool heads = x->dims[0] == yd[0] && x->dims[1] == yd[1];
    switch (op->kind) {
        case OP_POINTWISE:
            if (op->mode == INDEX && (y->type != INT32 || op->axis < 2 || op->axis > 3))
                return false;
            if (op->mode == GE && (y->type != BOOLEAN || !b || b->type != INT32)) return false;
            if (op->mode == SELECT && (!t || !b || t->type != BOOLEAN)) return false;
            if ((op->mode <= DIV || op->mode == SUB) && (!b || t)) return false;
            return spreads(x, y) && (!b || spreads(b, y)) && (!t || spreads(t, y));
        case OP_MATMUL:
            return heads && b->dims[0] == yd[0] && b->dims[1] == yd[1] && x->dims[2] == yd[2] &&
                   x->dims[3] == b->dims[2] && b->dims[3] == yd[3];
        case OP_REDUCTION:
            return heads && x->dims[2] == yd[2] && yd[3] == 1;
        default:
            return heads && x->dims[2] == yd[3] && x->dims[3] == yd[2] &&
                   x->strides[2] == y->strides[3] && x->strides[3] == y->strides[2];
    }
}

static bool read_op(program *p, const desc *d) {
    static const int ports[][4] = {
        {751, 752, 758, 753}, {1520, 1521, 0, 1522}, {1610, 0, 0, 1611}, {2200, 0, 0, 2201}};
    int which = d->kind == OP_POINTWISE   ? 0
                : d->kind == OP_MATMUL    ? 1
                : d->kind == OP_REDUCTION ? 2
                                          : 3;
    operation *op = &p->ops[p->op_count++];
    *op = (operation){.kind = d->kind};
    op->x = number_of(p, desc_of(d, ports[which][0]), false);
    op->b = number_of(p, desc_of(d, ports[which][1]), false);
    op->t = number_of(p, desc_of(d, ports[which][2]), false);
    op->y = number_of(p, desc_of(d, ports[which][3]), true);
    if (op->x < 0 || op->y < 0 || op->b == -2 || op->t == -2) return false;
    if (which == 0) {
        const desc *mode = desc_of(d, 750);
        op->mode = (int)int_of(mode, 0, false);
        op->axis = int_of(mode, 9, true);
        if ((op->mode == INDEX) != (op->axis >= 0)) return false;
        if (int_of(mode, 1, false) != (op->mode == GE ? BOOLEAN : FLOAT)) return false;
    }
    if (which == 2) op->mode = int_of(desc_of(d, 1612), 1600, false) == 3;
    return fits(p, op);
}

static int check_graph(desc *d) {
    const value *ops = find(d, 801);
    const handle *h = *(handle **)find(d, 800)->data;
    if (!h || h->magic != ALIVE) return refuse("a graph without a handle");
    d->program = calloc(1, sizeof *d->program);
    for (int64_t i = 0; i < ops->count; i++) {
        const desc *op = ((desc **)ops->data)[i];
        bool right = op->kind == OP_POINTWISE || op->kind == OP_MATMUL ||
                     op->kind == OP_REDUCTION || op->kind == OP_RESHAPE;
        if (!right || !read_op(d->program, op)) return refuse("an operation of a graph");
    }
    for (int i = 0; i < d->program->tensor_count; i++) {
        const tensor *t = &d->program->tensors[i];
        if (t->is_virtual && !t->read) return refuse("a result that nobody reads");
    }
    return OK;
}

static int count_ops(const program *p, int kind) {
    int n = 0;
    for (int i = 0; i < p->op_count; i++) n += p->ops[i].kind == kind;
    return n;
}

// What the real library's engines were found to want beyond a graph's being right.
static bool is_attention(const program *p) {
    int products = count_ops(p, OP_MATMUL), turns = count_ops(p, OP_RESHAPE);
    bool forward = products == 2 && turns == 0 && count_ops(p, OP_REDUCTION) == 2;
    bool backward = products == 5 && turns == 3 && count_ops(p, OP_REDUCTION) == 1;
    int io = p->tensors[0].type;
    for (int i = 0; i < p->op_count; i++) {
        const operation *op = &p->ops[i];
        const tensor *x = &p->tensors[op->x], *y = &p->tensors[op->y];
        const tensor *b = op->b < 0 ? NULL : &p->tensors[op->b];
        if (op->kind == OP_RESHAPE && y->type != (x->is_virtual ? io : FLOAT)) return false;
        if (op->kind != OP_MATMUL) continue;
        if (forward && x->type != io) return false;
        if (!b->is_virtual && b->type != io) return false;
        if (!y->is_virtual && y->strides[3] != 1) return false;
    }
    return forward || backward;
}

EXPORT int cudnnBackendFinalize(desc *d);
EXPORT int cudnnBackendFinalize(desc *d) {
    if (!d || d->magic != ALIVE || d->final) return refuse("finalising this");
    for (int i = 0; i < RULES; i++) {
        if (rules[i].kind == d->kind && rules[i].needed && !find(d, rules[i].attribute)) {
            return refuse("an attribute is missing");
        }
    }
    int st = d->kind == TENSOR ? check_tensor(d) : d->kind == GRAPH ? check_graph(d) : OK;
    if (d->kind == CONFIG) st = refuse("configurations come from heuristics");
    if (d->kind == HEUR && int_of(d, 200, false) != 3) st = refuse("a mode of heuristics");
    if (d->kind == PACK && find(d, 1000)->count != find(d, 1001)->count) st = refuse("a pack");
    if (d->kind == PLAN) {
        const desc *config = desc_of(d, 401);
        d->program = config->program;
        if (told("unplanned") || (told("unfit") && config->number == 0)) st = UNSUPPORTED;
    }
    d->final = st == OK;
    return st;
}

EXPORT int cudnnBackendGetAttribute(desc *d, int attribute, int type, int64_t room, int64_t *count,
                                    void *values);
EXPORT int cudnnBackendGetAttribute(desc *d, int attribute, int type, int64_t room, int64_t *count,
                                    void *values) {
    if (!d || d->magic != ALIVE || !d->final) return refuse("asking what is not final");
    if (d->kind == PLAN && attribute == 402 && type == T_INT64 && room == 1) {
        *count = 1;
        *(int64_t *)values = told("large") ? (int64_t)1 << 40 : WORKSPACE + 24;
        return OK;
    }
    if (d->kind != HEUR || attribute != 202 || type != T_DESC) return refuse("asking for this");
    program *p = desc_of(d, 201)->program;
    *count = told("nothing") || !is_attention(p) ? 0 : CONFIGS;
    for (int64_t i = 0; i < *count && i < room; i++) {
        desc *config = ((desc **)values)[i];
        if (!config || config->magic != ALIVE || config->kind != CONFIG) return refuse("no room");
        config->final = true;
        config->number = (int)i;
        config->program = p;
    }
    if (*count > room) *count = room;
    return OK;
}

// ---- Running ------------------------------------------------------------------------------------

typedef struct task {
    const program *program;
    operands operands;
    char *workspace;
    int number;
} task;

static int executions;
EXPORT int vcuda_cudnn_executions(void);
EXPORT int vcuda_cudnn_executions(void) { return executions; }

static void run(void *context) {
    task *t = context;
    memset(t->workspace, 0xFF, WORKSPACE + 24);  // whoever else uses it notices
    // Another scale is as good a mistake as any.
    float spoil = told("wrong") ? 1.5f : told("varies") && t->number % 2 ? 1.004f : 1.0f;
    for (int i = 0; i < t->program->tensor_count; i++) {
        if (t->program->tensors[i].by_value) t->operands.value[i] *= spoil;
    }
    cudnn_fake_run(t->program, &t->operands);
    if (told("slow")) usleep(100000);
}

static int take_operand(const tensor *t, const desc *pack, void **at, float *number) {
    const value *ids = find(pack, 1000), *pointers = find(pack, 1001);
    size_t span = 1;
    for (int d = 0; d < 4; d++) span += (size_t)((t->dims[d] - 1) * t->strides[d]);
    span *= t->type == FLOAT ? 4 : 2;
    for (int64_t i = 0; i < ids->count; i++) {
        if (((int64_t *)ids->data)[i] != t->uid) continue;
        void *p = ((void **)pointers->data)[i];
        if (!p) return refuse("an operand without memory");
        if (t->by_value) {
            *number = *(const float *)p;
            return OK;
        }
        if ((uintptr_t)p % 16) return refuse("an operand is not aligned");
        *at = p;
        return vcuda_is_device(p, span) ? OK : refuse("an operand is not in the device's memory");
    }
    return refuse("an operand is missing");
}

EXPORT int cudnnBackendExecute(handle *h, desc *plan, desc *pack);
EXPORT int cudnnBackendExecute(handle *h, desc *plan, desc *pack) {
    if (!h || h->magic != ALIVE) return refuse("no handle");
    if (!plan || plan->magic != ALIVE || plan->kind != PLAN || !plan->final)
        return refuse("a plan");
    if (!pack || pack->magic != ALIVE || pack->kind != PACK || !pack->final)
        return refuse("a pack");
    if (told("fails")) return FAILED;
    task t = {.program = plan->program, .number = executions};
    int real = 0;
    for (int i = 0; i < t.program->tensor_count; i++) {
        const tensor *x = &t.program->tensors[i];
        if (x->is_virtual) continue;
        real++;
        int st = take_operand(x, pack, &t.operands.at[i], &t.operands.value[i]);
        if (st != OK) return st;
    }
    if (find(pack, 1000)->count != real) return refuse("operands that the graph has not");
    t.workspace = *(void **)find(pack, 1003)->data;
    if (!t.workspace || (uintptr_t)t.workspace % 16) return refuse("the workspace");
    if (!vcuda_is_device(t.workspace, WORKSPACE + 24)) return refuse("the workspace is too small");
    for (int i = 0; i < t.program->tensor_count; i++) {
        int64_t apart = (char *)t.operands.at[i] - t.workspace;
        if (apart >= 0 && apart < WORKSPACE + 24) return refuse("an operand in the workspace");
    }
    executions++;
    vcuda_enqueue(h->stream, run, &t, sizeof t);
    return OK;
}

// SPDX-License-Identifier: Apache-2.0
// Unary, binary and where over any strides: chunk by chunk (walk.h), each operand brought to the
// type that is computed in, the loop of elementwise_loops.h, and the result brought back. A chunk
// that is written where it is read goes through a buffer, since the loops assume no overlap.

#include "cpu/elementwise.h"

#include <stdatomic.h>

#include "cpu/cpu.h"
#include "cpu/gelu.h"
#include "cpu/walk.h"

static bool gives_bool_unary(pl_unary op) {
    return op == PL_UNARY_LOGICAL_NOT || op == PL_UNARY_ISNAN || op == PL_UNARY_ISFINITE;
}
static bool gives_bool_binary(pl_binary op) {
    return op >= PL_BINARY_EQ && op <= PL_BINARY_LOGICAL_XOR;
}
static bool divides(pl_binary op) {
    return op == PL_BINARY_DIV || op == PL_BINARY_REMAINDER || op == PL_BINARY_FLOOR_DIVIDE;
}

// An input as the loops want it: where it lies, or loaded into buf.
typedef struct input {
    pl_load_fn load;
    bool direct;  // stored as it is computed
    size_t size;  // of a loaded element
} input;

typedef struct job {
    pl_walk walk;
    pl_unary_fn unary;
    pl_binary_fn binary;
    pl_where_fn where;
    input in[PL_WALK_MAX];  // [0] unused: operand 0 is the output
    pl_store_fn store;
    bool store_direct;
    size_t result_size;
    bool check_zero;  // of the divisor, operand 2
    atomic_bool divided_by_zero;
} job;

// The buffers of one thread: a chunk for the output and for each input.
typedef struct buffers {
    _Alignas(64) char data[PL_WALK_MAX][PL_CHUNK * 8];
} buffers;

static input input_of(pl_dtype dt) {
    const pl_convert *cv = pl__cpu_convert();
    pl_compute c = pl__cpu_compute(dt);
    pl_dtype computed = pl__cpu_compute_dtype(c);
    return (input){cv->load[dt], dt == computed, pl_dtype_size(computed)};
}

static const void *fetch(const job *j, int k, const pl_cursor *c, int64_t n, buffers *b) {
    const input *in = &j->in[k];
    if (j->walk.op[k].access == PL_SINGLE) return b->data[k];  // filled before the first chunk
    if (in->direct) {
        const void *there = pl__cpu_walk_dense(&j->walk, k, c, n);
        if (there != NULL) return there;
    }
    pl__cpu_walk_load(&j->walk, k, c, n, in->load, in->size, b->data[k]);
    return b->data[k];
}

static bool has_zero(int64_t n, const int64_t *v) {
    bool zero = false;
    for (int64_t i = 0; i < n; i++) zero |= v[i] == 0;
    return zero;
}

static void run_chunk(job *j, const pl_cursor *c, int64_t n, buffers *b) {
    const void *in[PL_WALK_MAX] = {NULL};
    void *out = j->store_direct ? pl__cpu_walk_dense(&j->walk, 0, c, n) : NULL;
    for (int k = 1; k < j->walk.count; k++) {
        in[k] = fetch(j, k, c, n, b);
        if (in[k] == out) out = NULL;
    }
    void *to = out != NULL ? out : b->data[0];
    if (j->check_zero && has_zero(n, in[2])) {
        atomic_store_explicit(&j->divided_by_zero, true, memory_order_relaxed);
        return;
    }
    if (j->unary != NULL) {
        j->unary(n, in[1], to);
    } else if (j->binary != NULL) {
        j->binary(n, in[1], in[2], to);
    } else {
        j->where(n, in[1], in[2], in[3], to);
    }
    if (out == NULL) pl__cpu_walk_store(&j->walk, c, n, j->store, j->result_size, to);
}

static void run_range(int64_t begin, int64_t end, void *ctx) {
    job *j = ctx;
    buffers b;
    for (int k = 1; k < j->walk.count; k++) {
        if (j->walk.op[k].access == PL_SINGLE) {
            int64_t n = end - begin < PL_CHUNK ? end - begin : PL_CHUNK;
            j->in[k].load(n, j->walk.op[k].data, 0, b.data[k]);
        }
    }
    pl_cursor c;
    pl__cpu_cursor_set(&j->walk, begin, &c);
    while (c.index < end) {
        int64_t n = end - c.index < PL_CHUNK ? end - c.index : PL_CHUNK;
        run_chunk(j, &c, n, &b);
        pl__cpu_cursor_advance(&j->walk, n, &c);
    }
}

static void run(job *j) {
    pl_parallel_for(j->walk.numel, pl__cpu_grain(j->walk.numel), run_range, j);
}

// The result is computed as `result` and stored as out's dtype.
static void set_output(job *j, pl_dtype result, pl_dtype out) {
    const pl_convert *cv = pl__cpu_convert();
    j->store_direct = result == out;
    j->result_size = pl_dtype_size(result);
    j->store = result == PL_BOOL ? cv->put[0] : cv->store[pl__cpu_compute(result)][out];
}

pl_status pl_cpu_unary(pl_unary op, const pl_tensor *x, pl_tensor *out) {
    if (out->numel == 0) return PL_OK;
    bool by_tanh = op == PL_UNARY_GELU_TANH;
    if ((op == PL_UNARY_GELU || by_tanh) && pl__gelu(by_tanh, NULL, x, out)) return PL_OK;
    pl_compute c = pl__cpu_compute(x->dtype);
    job j = {.unary = pl__cpu_elementwise()->unary[c][op]};
    if (j.unary == NULL) {
        return pl_fail(PL_ETYPE, "[unary] operator %d is not defined for dtype: got %s", (int)op,
                       pl_dtype_name(x->dtype));
    }
    pl__cpu_walk_init(&j.walk, 2, (const pl_tensor *const[]){out, x});
    j.in[1] = input_of(x->dtype);
    set_output(&j, gives_bool_unary(op) ? PL_BOOL : pl__cpu_compute_dtype(c), out->dtype);
    run(&j);
    return PL_OK;
}

static bool is_single(const pl_tensor *t) {
    for (int d = 0; d < t->ndim; d++) {
        if (t->shape[d] != 1 && t->strides[d] != 0) return false;
    }
    return true;
}

// x ** 2 and x ** -1 with one exponent for all: as one product or quotient.
static bool simple_power(pl_binary op, const pl_tensor *b, pl_unary *instead) {
    if (op != PL_BINARY_POW || !is_single(b)) return false;
    double exponent = 0.0;
    if (b->dtype == PL_F32) {
        exponent = (double)*(const float *)b->data;
    } else if (b->dtype == PL_F64) {
        exponent = *(const double *)b->data;
    } else if (b->dtype == PL_BF16) {
        exponent = (double)pl_bf16_to_f32(*(const pl_bf16 *)b->data);
    }
    *instead = exponent == 2.0 ? PL_UNARY_SQUARE : PL_UNARY_RECIPROCAL;
    return exponent == 2.0 || exponent == -1.0;
}

pl_status pl_cpu_binary(pl_binary op, const pl_tensor *a, const pl_tensor *b, pl_tensor *out) {
    if (out->numel == 0) return PL_OK;
    bool by_tanh = op == PL_BINARY_GELU_TANH_GRAD;
    if ((op == PL_BINARY_GELU_GRAD || by_tanh) && pl__gelu(by_tanh, a, b, out)) return PL_OK;
    pl_compute c = pl__cpu_compute(a->dtype);
    PL_ASSERT(c == pl__cpu_compute(b->dtype));
    job j = {.binary = pl__cpu_elementwise()->binary[c][op]};
    if (j.binary == NULL) {
        return pl_fail(PL_ETYPE, "[binary] operator %d is not defined for dtype: got %s", (int)op,
                       pl_dtype_name(a->dtype));
    }
    pl_unary instead;
    if (simple_power(op, b, &instead) && a->dtype == out->dtype) {
        return pl_cpu_unary(instead, a, out);
    }
    pl__cpu_walk_init(&j.walk, 3, (const pl_tensor *const[]){out, a, b});
    j.in[1] = input_of(a->dtype);
    j.in[2] = input_of(b->dtype);
    set_output(&j, gives_bool_binary(op) ? PL_BOOL : pl__cpu_compute_dtype(c), out->dtype);
    j.check_zero = c == PL_C_I64 && divides(op);
    run(&j);
    if (atomic_load_explicit(&j.divided_by_zero, memory_order_relaxed)) {
        return pl_fail(PL_EINVAL, "[%s] integer division by zero",
                       op == PL_BINARY_REMAINDER ? "remainder" : "floor_divide");
    }
    return PL_OK;
}

pl_status pl_cpu_where(const pl_tensor *cond, const pl_tensor *a, const pl_tensor *b,
                       pl_tensor *out) {
    if (out->numel == 0) return PL_OK;
    if (pl_dtype_size(cond->dtype) != 1 || a->dtype != out->dtype || b->dtype != out->dtype) {
        return pl_fail(PL_ETYPE, "[where] dtypes: got condition %s and choices %s, %s for %s",
                       pl_dtype_name(cond->dtype), pl_dtype_name(a->dtype), pl_dtype_name(b->dtype),
                       pl_dtype_name(out->dtype));
    }
    const pl_convert *cv = pl__cpu_convert();
    size_t size = pl_dtype_size(out->dtype);
    int log2 = pl__cpu_size_log2(size);
    job j = {.where = pl__cpu_elementwise()->where[log2],
             .store = cv->put[log2],
             .store_direct = true,
             .result_size = size};
    pl__cpu_walk_init(&j.walk, 4, (const pl_tensor *const[]){out, cond, a, b});
    j.in[1] = (input){cv->pick[0], true, 1};
    j.in[2] = j.in[3] = (input){cv->pick[log2], true, size};
    run(&j);
    return PL_OK;
}

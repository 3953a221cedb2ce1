// SPDX-License-Identifier: Apache-2.0
// Elementwise kernels, copies and fills of "cpu" against "ref": dtypes x shapes x layouts x values.
#include "test.h"

#include "kernel_cases.h"

static const char *const unary_names[] = {
#define X(name, text) text,
    PL_UNARY_MAP(X)
#undef X
};
static const char *const binary_names[] = {
#define X(name, text) text,
    PL_BINARY_MAP(X)
#undef X
};

// How far an operator may be from the oracle, in units of the dtype's eps (2 ulp at most each):
// arithmetic is exact up to its rounding; the float polynomials' bounds are in vmath.h; where terms
// of either sign are added (the gradients), the error is that of the terms, so absolute.
typedef struct bound {
    double relative, absolute;
} bound;

static bound unary_bound(pl_unary op) {
    switch (op) {
        case PL_UNARY_EXP:
        case PL_UNARY_LOG:
        case PL_UNARY_SIN:
        case PL_UNARY_COS:
            return (bound){2, 0};
        case PL_UNARY_TANH:
        case PL_UNARY_SIGMOID:
        case PL_UNARY_ERF:
            return (bound){3, 0};
        case PL_UNARY_SILU:
            return (bound){4, 0};
        case PL_UNARY_GELU:
        case PL_UNARY_GELU_TANH:
            return (bound){8, 1};  // in the tail the power's error grows
        default:
            return (bound){1, 0};
    }
}

static bound binary_bound(pl_binary op) {
    switch (op) {
        case PL_BINARY_POW:
            return (bound){2, 0};
        case PL_BINARY_TANH_GRAD:
        case PL_BINARY_SIGMOID_GRAD:
            return (bound){4, 4};  // 1 - y loses what y has lost
        case PL_BINARY_GELU_GRAD:
        case PL_BINARY_GELU_TANH_GRAD:
        case PL_BINARY_SILU_GRAD:
            return (bound){8, 32};  // times |g| <= 4
        default:
            return (bound){1, 0};
    }
}

static bool unary_defined(pl_unary op, pl_dtype dt) {
    if (pl_dtype_is_float(dt)) return true;
    return op == PL_UNARY_NEG || op == PL_UNARY_ABS || op == PL_UNARY_SIGN ||
           op == PL_UNARY_SQUARE || op == PL_UNARY_RELU || op == PL_UNARY_FLOOR ||
           op == PL_UNARY_CEIL || op == PL_UNARY_ROUND || op >= PL_UNARY_LOGICAL_NOT;
}

static bool unary_to_bool(pl_unary op) { return op >= PL_UNARY_LOGICAL_NOT; }
static bool binary_to_bool(pl_binary op) {
    return op >= PL_BINARY_EQ && op <= PL_BINARY_LOGICAL_XOR;
}

// Results below the smallest normal may be flushed by sigmoid and what is made of it; and a float
// that overflows on the way in fp32 does not in the oracle's double.
static double tiny(pl_dtype dt) {
    return dt == PL_F64 ? 0x1p-1021 : dt == PL_F16 ? 0x1p-24 : 0x1p-125;
}

static void one_unary(pl_unary op, pl_dtype dt, shape s, layout in, layout out, values v) {
    pl_tensor *x = make_case(dt, s, in, v);
    pl_dtype result = unary_to_bool(op) ? PL_BOOL : dt;
    pl_tensor *got = make_raw(result, s, out), *want = make_raw(result, s, out);
    CHECK_OK(pl_kernels_cpu()->unary(op, x, got));
    CHECK_OK(pl_kernels_ref()->unary(op, x, want));
    bound b = unary_bound(op);
    double eps = dtype_eps(result);
    check_close(unary_names[op], got, want, b.relative * eps, b.absolute * eps + tiny(result));
    if (result == dt && in != EXPANDED && in != BROADCAST) {
        CHECK_OK(pl_kernels_cpu()->unary(op, x, x));
        check_close("in place", x, got, 0.0, 0.0);
    }
    release_all(3, (pl_tensor *[]){x, got, want});
}

TEST(unary_dtypes_and_shapes) {
    for (int op = 0; op < PL_UNARY_COUNT; op++) {
        for (int dt = 0; dt < PL_DTYPE_COUNT; dt++) {
            if (!unary_defined(op, dt)) continue;
            values v = op == PL_UNARY_LOG || op == PL_UNARY_SQRT || op == PL_UNARY_RSQRT ? POSITIVE
                                                                                         : MODERATE;
            for (int s = 0; s < SHAPE_COUNT; s++) {
                one_unary(op, dt, all_shapes[s], DENSE, DENSE, v);
            }
        }
    }
}

TEST(unary_layouts) {
    for (int in = 0; in < LAYOUT_COUNT; in++) {
        for (int out = 0; out < EXPANDED; out++) {
            for (int s = 0; s < SHAPE_COUNT; s++) {
                one_unary(PL_UNARY_SQUARE, PL_F32, all_shapes[s], in, out, MODERATE);
                one_unary(PL_UNARY_GELU, PL_BF16, all_shapes[s], in, out, MODERATE);
                one_unary(PL_UNARY_NEG, PL_I32, all_shapes[s], in, out, MODERATE);
            }
        }
    }
}

// What NaN, infinities, zeros, denormals and huge values become.
TEST(unary_special_values) {
    static const pl_dtype dtypes[] = {PL_F32, PL_F64, PL_BF16, PL_F16, PL_I64, PL_I32, PL_U8};
    for (int op = 0; op < PL_UNARY_COUNT; op++) {
        for (int i = 0; i < 7; i++) {
            if (!unary_defined(op, dtypes[i])) continue;
            if (op == PL_UNARY_SQUARE && pl_dtype_is_float(dtypes[i])) continue;  // below
            one_unary(op, dtypes[i], (shape){1, {1500}}, DENSE, DENSE, SPECIAL);
        }
    }
    one_unary(PL_UNARY_SQUARE, PL_F32, (shape){1, {1500}}, DENSE, DENSE, SPECIAL);
}

TEST(unary_refuses_integers) {
    pl_tensor *x = make_case(PL_I64, (shape){1, {3}}, DENSE, MODERATE);
    CHECK_FAILS(pl_kernels_cpu()->unary(PL_UNARY_EXP, x, x), PL_ETYPE, "int64");
    CHECK_FAILS(pl_kernels_ref()->unary(PL_UNARY_EXP, x, x), PL_ETYPE, "int64");
    pl_tensor_release(x);
}

typedef struct layouts {
    layout a, b, out;
} layouts;

static void one_binary(pl_binary op, pl_dtype da, pl_dtype db, shape s, layouts l, values va,
                       values vb) {
    pl_tensor *a = make_case(da, s, l.a, va), *b = make_case(db, s, l.b, vb);
    pl_dtype common = da > db ? da : db, result = binary_to_bool(op) ? PL_BOOL : common;
    pl_tensor *got = make_raw(result, s, l.out), *want = make_raw(result, s, l.out);
    CHECK_OK(pl_kernels_cpu()->binary(op, a, b, got));
    CHECK_OK(pl_kernels_ref()->binary(op, a, b, want));
    bound k = binary_bound(op);
    double eps = dtype_eps(result);
    check_close(binary_names[op], got, want, k.relative * eps, k.absolute * eps + tiny(result));
    if (result == da && l.a != EXPANDED && l.a != BROADCAST) {
        CHECK_OK(pl_kernels_cpu()->binary(op, a, b, a));
        check_close("in place", a, got, 0.0, 0.0);
    }
    release_all(4, (pl_tensor *[]){a, b, got, want});
}

static bool binary_defined(pl_binary op, pl_dtype dt) {
    return pl_dtype_is_float(dt) || op <= PL_BINARY_RELU_GRAD;
}

TEST(binary_dtypes_and_shapes) {
    for (int op = 0; op < PL_BINARY_COUNT; op++) {
        for (int dt = 0; dt < PL_DTYPE_COUNT; dt++) {
            if (!binary_defined(op, dt)) continue;
            bool nonzero = op == PL_BINARY_POW || op == PL_BINARY_DIV ||
                           op == PL_BINARY_REMAINDER || op == PL_BINARY_FLOOR_DIVIDE;
            for (int s = 0; s < SHAPE_COUNT; s++) {
                one_binary(op, dt, dt, all_shapes[s], (layouts){DENSE, DENSE, DENSE},
                           op == PL_BINARY_POW ? POSITIVE : MODERATE,
                           nonzero ? POSITIVE : MODERATE);
            }
        }
    }
}

TEST(binary_layouts) {
    for (int a = 0; a < LAYOUT_COUNT; a++) {
        for (int b = 0; b < LAYOUT_COUNT; b++) {
            for (int s = 0; s < SHAPE_COUNT; s++) {
                layouts l = {a, b, (layout)((a + b + s) % EXPANDED)};
                one_binary(PL_BINARY_SUB, PL_F32, PL_F32, all_shapes[s], l, MODERATE, MODERATE);
                one_binary(PL_BINARY_LT, PL_I64, PL_I64, all_shapes[s], l, MODERATE, MODERATE);
                one_binary(PL_BINARY_MUL, PL_BF16, PL_F32, all_shapes[s], l, MODERATE, MODERATE);
                one_binary(PL_BINARY_ADD, PL_F32, PL_F16, all_shapes[s], l, MODERATE, MODERATE);
            }
        }
    }
}

TEST(binary_special_values) {
    layouts l = {DENSE, DENSE, DENSE};
    for (int op = 0; op <= PL_BINARY_RELU_GRAD; op++) {
        shape s = {1, {3000}};
        one_binary(op, PL_F64, PL_F64, s, l, SPECIAL, SPECIAL);
        bool divides =
            op == PL_BINARY_DIV || op == PL_BINARY_REMAINDER || op == PL_BINARY_FLOOR_DIVIDE;
        one_binary(op, PL_I64, PL_I64, s, l, SPECIAL, divides ? POSITIVE : SPECIAL);
        one_binary(op, PL_F32, PL_F32, s, l, SPECIAL, SPECIAL);
    }
    // An infinite or huge x has slope 0 or 1, not NaN.
    for (int op = PL_BINARY_GELU_GRAD; op <= PL_BINARY_SILU_GRAD; op++) {
        pl_tensor *g = make_case(PL_F32, (shape){1, {4}}, DENSE, POSITIVE);
        pl_tensor *x = make_raw(PL_F32, (shape){1, {4}}, DENSE),
                  *y = make_raw(PL_F32, shape_of(x), DENSE);
        memcpy(x->data, (float[]){INFINITY, -INFINITY, 1e30f, -1e30f}, 16);
        CHECK_OK(pl_kernels_cpu()->binary(op, g, x, y));
        for (int i = 0; i < 4; i++) {
            CHECK_NEAR(((float *)y->data)[i], i % 2 == 0 ? ((float *)g->data)[i] : 0.0f, 1e-29);
        }
        release_all(3, (pl_tensor *[]){g, x, y});
    }
}

// The most negative integer divided by -1 wraps; by 0 is an error, wherever the 0 is.
TEST(integer_division) {
    shape s = {1, {2000}};
    pl_tensor *a = make_case(PL_I64, s, DENSE, SPECIAL), *b = make_case(PL_I64, s, DENSE, POSITIVE);
    pl_tensor *got = make_raw(PL_I64, s, DENSE), *want = make_raw(PL_I64, s, DENSE);
    ((int64_t *)a->data)[5] = INT64_MIN;
    for (int i = 0; i < 2000; i += 3) ((int64_t *)b->data)[i + 2 < 2000 ? i + 2 : i] = -1;
    static const pl_binary ops[] = {PL_BINARY_DIV, PL_BINARY_REMAINDER, PL_BINARY_FLOOR_DIVIDE};
    for (int i = 0; i < 3; i++) {
        CHECK_OK(pl_kernels_cpu()->binary(ops[i], a, b, got));
        CHECK_OK(pl_kernels_ref()->binary(ops[i], a, b, want));
        check_close(binary_names[ops[i]], got, want, 0.0, 0.0);
    }
    ((int64_t *)b->data)[1999] = 0;
    for (int i = 0; i < 3; i++) {
        CHECK_FAILS(pl_kernels_cpu()->binary(ops[i], a, b, got), PL_EINVAL, "division by zero");
        CHECK_FAILS(pl_kernels_ref()->binary(ops[i], a, b, want), PL_EINVAL, "division by zero");
    }
    release_all(4, (pl_tensor *[]){a, b, got, want});
}

// One exponent for the whole tensor takes a shorter way.
TEST(power_by_a_scalar) {
    static const double exponents[] = {2.0, -1.0, 3.0, 0.5, 0.0, -2.0};
    static const pl_dtype dtypes[] = {PL_F32, PL_F64, PL_BF16, PL_F16};
    for (int i = 0; i < 24; i++) {
        shape s = {2, {5, 9}};
        pl_tensor *x = make_case(dtypes[i % 4], s, DENSE, MODERATE);
        pl_tensor *e = make_raw(dtypes[i % 4], s, DENSE);
        ref_set(e, 0, exponents[i / 4]);
        e->strides[0] = e->strides[1] = 0;
        pl_tensor *got = make_raw(x->dtype, s, DENSE), *want = make_raw(x->dtype, s, DENSE);
        CHECK_OK(pl_kernels_cpu()->binary(PL_BINARY_POW, x, e, got));
        CHECK_OK(pl_kernels_ref()->binary(PL_BINARY_POW, x, e, want));
        check_close("pow", got, want, 2.0 * dtype_eps(x->dtype), 0.0);
        release_all(4, (pl_tensor *[]){x, e, got, want});
    }
}

TEST(where_all) {
    for (int dt = 0; dt < PL_DTYPE_COUNT; dt++) {
        for (int l = 0; l < LAYOUT_COUNT; l++) {
            for (int i = 0; i < SHAPE_COUNT; i++) {
                shape s = all_shapes[i];
                pl_tensor *c = make_case(PL_BOOL, s, (l + 1) % LAYOUT_COUNT, MODERATE);
                pl_tensor *a = make_case(dt, s, l, SPECIAL), *b = make_case(dt, s, DENSE, SPECIAL);
                pl_tensor *got = make_raw(dt, s, l % EXPANDED), *want = make_raw(dt, s, DENSE);
                CHECK_OK(pl_kernels_cpu()->where(c, a, b, got));
                CHECK_OK(pl_kernels_ref()->where(c, a, b, want));
                check_close("where", got, want, 0.0, 0.0);
                release_all(5, (pl_tensor *[]){c, a, b, got, want});
            }
        }
    }
}

static void one_copy(pl_dtype from, pl_dtype to, shape s, layout in, layout out, values v) {
    pl_tensor *x = make_case(from, s, in, v);
    pl_tensor *got = make_raw(to, s, out), *want = make_raw(to, s, DENSE);
    CHECK_OK(pl_kernels_cpu()->copy(x, got));
    CHECK_OK(pl_kernels_ref()->copy(x, want));
    check_close("copy", got, want, 0.0, 0.0);  // a conversion has one right answer
    release_all(3, (pl_tensor *[]){x, got, want});
}

// Heads of attention put side by side, and back: rows that follow one another in no order of
// memory.
TEST(copy_rows_between_permuted_dimensions) {
    for (int back = 0; back < 2; back++) {
        for (int dt = 0; dt < PL_DTYPE_COUNT; dt++) {
            shape s = {4, {2, 5, 3, 70}};
            pl_tensor *x = make_case((pl_dtype)dt, s, DENSE, MODERATE), *got, *turned;
            pl_tensor *dst = make_raw((pl_dtype)dt, (shape){4, {2, 3, 5, 70}}, DENSE);
            CHECK_OK(pl_tensor_transpose(back ? x : dst, 1, 2, &turned));
            CHECK_OK(pl_kernels_cpu()->copy(back ? turned : x, back ? dst : turned));
            CHECK_OK(pl_tensor_transpose(dst, 1, 2, &got));
            check_close("copy", got, x, 0.0, 0.0);
            release_all(4, (pl_tensor *[]){got, turned, dst, x});
        }
    }
}

TEST(copy_any_to_any) {
    for (int from = 0; from < PL_DTYPE_COUNT; from++) {
        for (int to = 0; to < PL_DTYPE_COUNT; to++) {
            one_copy(from, to, (shape){1, {2000}}, DENSE, DENSE, SPECIAL);
            one_copy(from, to, (shape){2, {37, 130}}, TRANSPOSED, DENSE, SPECIAL);
            one_copy(from, to, (shape){2, {37, 130}}, DENSE, TRANSPOSED, SPECIAL);
            one_copy(from, to, (shape){3, {4, 3, 50}}, SLICED, SLICED, SPECIAL);
            one_copy(from, to, (shape){3, {4, 3, 50}}, EXPANDED, DENSE, SPECIAL);
        }
    }
}

TEST(copy_layouts) {
    for (int in = 0; in < LAYOUT_COUNT; in++) {
        for (int out = 0; out < EXPANDED; out++) {
            for (int s = 0; s < SHAPE_COUNT; s++) {
                one_copy(PL_F32, PL_F32, all_shapes[s], in, out, MODERATE);
                one_copy(PL_BOOL, PL_F32, all_shapes[s], in, out, MODERATE);
                one_copy(PL_F32, PL_BF16, all_shapes[s], in, out, MODERATE);
            }
            one_copy(PL_F64, PL_F64, (shape){3, {9, 70, 66}}, in, out, MODERATE);
        }
    }
}

TEST(fills) {
    for (int dt = 0; dt < PL_DTYPE_COUNT; dt++) {
        for (int l = 0; l < EXPANDED; l++) {
            for (int s = 0; s < SHAPE_COUNT; s++) {
                pl_tensor *got = make_raw(dt, all_shapes[s], l),
                          *want = make_raw(dt, all_shapes[s], l);
                CHECK_OK(pl_kernels_cpu()->fill(got, 2.7));
                CHECK_OK(pl_kernels_ref()->fill(want, 2.7));
                check_close("fill", got, want, 0.0, 0.0);
                CHECK_OK(pl_kernels_cpu()->fill_int(got, -3));
                CHECK_OK(pl_kernels_ref()->fill_int(want, -3));
                check_close("fill_int", got, want, 0.0, 0.0);
                // A strided fill touches nothing between its elements.
                const pl_storage *a = got->storage, *b = want->storage;
                CHECK(memcmp(a->data, b->data, a->nbytes) == 0);
                release_all(2, (pl_tensor *[]){got, want});
            }
        }
        if (dt == PL_BOOL) continue;
        pl_tensor *got = make_raw(dt, (shape){1, {1301}}, DENSE),
                  *want = make_raw(dt, (shape){1, {1301}}, DENSE);
        CHECK_OK(pl_kernels_cpu()->arange(got, 3.0, 0.25));
        CHECK_OK(pl_kernels_ref()->arange(want, 3.0, 0.25));
        check_close("arange", got, want, 0.0, 0.0);
        release_all(2, (pl_tensor *[]){got, want});
    }
}

// The same bits with one thread and with several, on a size that is split.
TEST(thread_count_does_not_matter) {
    shape s = {2, {300, 401}};
    pl_tensor *x = make_case(PL_F32, s, SLICED, SPECIAL);
    pl_tensor *one = make_raw(PL_F32, s, DENSE), *many = make_raw(PL_F32, s, DENSE);
    CHECK_OK(pl_set_num_threads(1));
    CHECK_OK(pl_kernels_cpu()->unary(PL_UNARY_GELU, x, one));
    CHECK_OK(pl_set_num_threads(5));
    CHECK_OK(pl_kernels_cpu()->unary(PL_UNARY_GELU, x, many));
    check_close("gelu", many, one, 0.0, 0.0);
    release_all(3, (pl_tensor *[]){x, one, many});
}

// Every bf16 number but NaN: tails, denormals, infinities. GELU has loops of its own there.
TEST(gelu_of_every_bf16) {
    int64_t n = 65536, count = 0;
    pl_tensor *x, *g, *got, *want;
    CHECK_OK(pl_tensor_empty(PL_BF16, 1, &n, &x));
    for (int64_t i = 0; i < n; i++) {
        if ((i & 0x7fff) <= 0x7f80) ((pl_bf16 *)x->data)[count++] = (pl_bf16)i;
    }
    x->shape[0] = x->numel = count;
    CHECK_OK(pl_tensor_empty(PL_BF16, 1, &count, &g));
    CHECK_OK(pl_kernels_cpu()->fill(g, 1.0));
    CHECK_OK(pl_tensor_empty(PL_BF16, 1, &count, &got));
    CHECK_OK(pl_tensor_empty(PL_F64, 1, &count, &want));
    // Half a unit in the last of 8 bits and 1e-4 of the function. 1 + tanh leaves the oracle
    // nothing of tails below 1e-12.
    double rel = 0x1p-8 + 1e-4, least = 1e-12;
    for (int tanh_form = 0; tanh_form < 2; tanh_form++) {
        pl_unary op = tanh_form ? PL_UNARY_GELU_TANH : PL_UNARY_GELU;
        pl_binary grad = tanh_form ? PL_BINARY_GELU_TANH_GRAD : PL_BINARY_GELU_GRAD;
        CHECK_OK(pl_kernels_cpu()->unary(op, x, got));
        CHECK_OK(pl_kernels_ref()->unary(op, x, want));
        check_close("gelu", got, want, rel, least);
        CHECK_OK(pl_kernels_cpu()->binary(grad, g, x, got));
        CHECK_OK(pl_kernels_ref()->binary(grad, g, x, want));
        check_close("gelu's slope", got, want, rel, 2e-5);  // it crosses zero
    }
    pl_tensor_release(want);
    pl_tensor_release(got);
    pl_tensor_release(g);
    pl_tensor_release(x);
}

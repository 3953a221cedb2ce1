// SPDX-License-Identifier: Apache-2.0
// Reductions, places of extremes, running sums and sums of squares of "cpu" against "ref".
#include "test.h"

#include "kernel_cases.h"

static const char *const reduce_names[] = {
#define X(name, text) text,
    PL_REDUCE_MAP(X)
#undef X
};

static shape reduced_shape(shape s, uint32_t dims) {
    for (int d = 0; d < s.ndim; d++) {
        if (dims >> d & 1) s.size[d] = 1;
    }
    return s;
}

static pl_dtype result_dtype(pl_reduce op, pl_dtype dt) {
    return op == PL_REDUCE_ANY || op == PL_REDUCE_ALL ? PL_BOOL : dt;
}

static bool has_empty(shape s, uint32_t dims) {
    for (int d = 0; d < s.ndim; d++) {
        if ((dims >> d & 1) && s.size[d] == 0) return true;
    }
    return false;
}

// CHOICES are multiples of 1/2 whose sums f32 holds exactly, so that no order of adding is excused.
// POSITIVE ones are rounded at most 40 times on the way (16 in a lane and 5 levels of lanes, or 34
// in a block of rows; f64 after that), by half an eps of f32 each, and once to the dtype. Products
// are taken in f64: up to 2000 roundings.
static void one_reduce(pl_reduce op, pl_dtype dt, shape s, layout l, uint32_t dims, values v) {
    bool extreme = op == PL_REDUCE_MAX || op == PL_REDUCE_MIN;
    if (extreme && has_empty(s, dims)) return;  // refused by ops
    pl_tensor *x = make_case(dt, s, l, v);
    pl_dtype result = result_dtype(op, dt);
    pl_tensor *got = make_raw(result, reduced_shape(s, dims), DENSE);
    pl_tensor *want = make_raw(result, reduced_shape(s, dims), DENSE);
    CHECK_OK(pl_kernels_cpu()->reduce(op, x, dims, got));
    CHECK_OK(pl_kernels_ref()->reduce(op, x, dims, want));
    bool exact = extreme || v == CHOICES;
    double f32_sums = dt == PL_F64 ? 0x1p-40 : 0x1p-19;
    check_close(reduce_names[op], got, want,
                op == PL_REDUCE_PROD ? dtype_eps(dt) + 0x1p-40
                : exact              ? 0.0
                                     : f32_sums + dtype_eps(dt),
                op == PL_REDUCE_PROD ? 1e-37 : 0.0);
    release_all(3, (pl_tensor *[]){x, got, want});
}

static bool defined(pl_reduce op, pl_dtype dt) { return op != PL_REDUCE_MEAN || dt >= PL_F16; }

TEST(reduce_dtypes) {
    static const shape shapes[] = {{1, {1025}}, {2, {17, 33}}, {2, {300, 20}}, {3, {4, 5, 6}}};
    for (int op = 0; op < PL_REDUCE_COUNT; op++) {
        for (int dt = 0; dt < PL_DTYPE_COUNT; dt++) {
            for (int i = 0; i < 4 && defined(op, dt); i++) {
                for (uint32_t dims = 0; dims < 1u << shapes[i].ndim; dims++) {
                    one_reduce(op, dt, shapes[i], DENSE, dims, CHOICES);
                    if (op != PL_REDUCE_PROD) {
                        one_reduce(op, dt, shapes[i], DENSE, dims, POSITIVE);
                    }
                }
            }
        }
    }
}

TEST(reduce_shapes_and_layouts) {
    for (int i = 0; i < SHAPE_COUNT; i++) {
        for (uint32_t dims = 0; dims < 1u << all_shapes[i].ndim; dims++) {
            for (int l = 0; l < LAYOUT_COUNT; l++) {
                one_reduce(PL_REDUCE_SUM, PL_F32, all_shapes[i], l, dims, CHOICES);
                one_reduce(PL_REDUCE_MEAN, PL_BF16, all_shapes[i], l, dims, POSITIVE);
                one_reduce(PL_REDUCE_MAX, PL_I32, all_shapes[i], l, dims, MODERATE);
                one_reduce(PL_REDUCE_ALL, PL_BOOL, all_shapes[i], l, dims, POSITIVE);
            }
        }
    }
}

// Sizes where rows are cut into segments (16384) and columns into blocks of rows (128) and tiles.
TEST(reduce_large) {
    static const shape shapes[] = {
        {1, {50001}}, {2, {3, 33000}}, {2, {1000, 520}}, {3, {3, 300, 40}}};
    for (int i = 0; i < 4; i++) {
        for (uint32_t dims = 1; dims < 1u << shapes[i].ndim; dims++) {
            one_reduce(PL_REDUCE_SUM, PL_F32, shapes[i], DENSE, dims, CHOICES);
            one_reduce(PL_REDUCE_SUM, PL_F32, shapes[i], DENSE, dims, POSITIVE);
            one_reduce(PL_REDUCE_MEAN, PL_BF16, shapes[i], DENSE, dims, POSITIVE);
            one_reduce(PL_REDUCE_MIN, PL_F64, shapes[i], DENSE, dims, MODERATE);
            one_reduce(PL_REDUCE_SUM, PL_I64, shapes[i], DENSE, dims, SPECIAL);
        }
    }
}

// NaN wins wherever it is; an infinity stays; opposite ones make NaN.
TEST(reduce_special_values) {
    static const shape shapes[] = {{1, {700}}, {2, {9, 150}}, {2, {150, 9}}};
    static const pl_reduce ops[] = {PL_REDUCE_MAX, PL_REDUCE_MIN, PL_REDUCE_ANY, PL_REDUCE_ALL};
    for (int i = 0; i < 3; i++) {
        for (uint32_t dims = 1; dims < 1u << shapes[i].ndim; dims++) {
            for (int k = 0; k < 4; k++) {
                one_reduce(ops[k], PL_F32, shapes[i], DENSE, dims, SPECIAL);
                one_reduce(ops[k], PL_F64, shapes[i], DENSE, dims, SPECIAL);
                one_reduce(ops[k], PL_I64, shapes[i], DENSE, dims, SPECIAL);
            }
        }
    }
    pl_tensor *x = make_case(PL_F32, (shape){1, {100}}, DENSE, POSITIVE),
              *y = make_raw(PL_F32, (shape){1, {1}}, DENSE);
    for (int i = 0; i < 100; i++) {
        float keep = ((float *)x->data)[i];
        ((float *)x->data)[i] = NAN;
        for (int op = 0; op < PL_REDUCE_ANY; op++) {
            CHECK_OK(pl_kernels_cpu()->reduce(op, x, 1, y));
            CHECK(isnan(*(float *)y->data));
        }
        ((float *)x->data)[i] = i % 2 ? INFINITY : keep;
    }
    CHECK_OK(pl_kernels_cpu()->reduce(PL_REDUCE_SUM, x, 1, y));
    CHECK(isinf(*(float *)y->data));
    release_all(2, (pl_tensor *[]){x, y});
}

// An empty sum is 0, product 1, mean NaN, any false, all true.
TEST(reduce_empty) {
    static const double want[PL_REDUCE_COUNT] = {
        [PL_REDUCE_PROD] = 1, [PL_REDUCE_MEAN] = NAN, [PL_REDUCE_ALL] = 1};
    for (int op = 0; op < PL_REDUCE_COUNT; op++) {
        if (op == PL_REDUCE_MAX || op == PL_REDUCE_MIN) continue;
        pl_tensor *x = make_raw(PL_F32, (shape){2, {3, 0}}, DENSE);
        pl_tensor *y = make_raw(result_dtype(op, PL_F32), (shape){2, {3, 1}}, DENSE);
        CHECK_OK(pl_kernels_cpu()->reduce(op, x, 2, y));
        CHECK(same_value(ref_get(y, 2), want[op]));
        CHECK_OK(pl_kernels_ref()->reduce(op, x, 2, y));
        CHECK(same_value(ref_get(y, 2), want[op]));
        release_all(2, (pl_tensor *[]){x, y});
    }
}

// 2^24 + 1 ones cannot be counted in f32 alone: the partial sums are joined in f64.
TEST(long_sums_keep_their_accuracy) {
    pl_tensor *x = make_raw(PL_F32, (shape){1, {1 << 18}}, DENSE),
              *y = make_raw(PL_F32, (shape){1, {1}}, DENSE);
    CHECK_OK(pl_kernels_cpu()->fill(x, 0.1));
    CHECK_OK(pl_kernels_cpu()->reduce(PL_REDUCE_SUM, x, 1, y));
    CHECK_NEAR(*(float *)y->data, (double)0.1f * (1 << 18), 0.02);  // one at a time: 26 off
    release_all(2, (pl_tensor *[]){x, y});
}

static void one_arg(pl_dtype dt, shape s, layout l, int dim, values v) {
    pl_tensor *x = make_case(dt, s, l, v);
    shape r = reduced_shape(s, s.ndim == 0 ? 0 : 1u << dim);
    pl_tensor *got = make_raw(PL_I64, r, DENSE), *want = make_raw(PL_I64, r, DENSE);
    for (int max = 0; max < 2; max++) {
        CHECK_OK(pl_kernels_cpu()->argreduce(max, x, dim, got));
        CHECK_OK(pl_kernels_ref()->argreduce(max, x, dim, want));
        check_close(max ? "argmax" : "argmin", got, want, 0.0, 0.0);
    }
    release_all(3, (pl_tensor *[]){x, got, want});
}

TEST(argreduce) {
    for (int i = 0; i < SHAPE_COUNT; i++) {
        shape s = all_shapes[i];
        for (int dim = 0; dim < (s.ndim > 0 ? s.ndim : 1); dim++) {
            if (s.ndim > 0 && s.size[dim] == 0) continue;  // refused by ops
            for (int dt = 0; dt < PL_DTYPE_COUNT; dt++) {
                one_arg(dt, s, (layout)(dt % LAYOUT_COUNT), dim, CHOICES);  // equals: the first
                one_arg(dt, s, (layout)((dt + 1) % LAYOUT_COUNT), dim, SPECIAL);
            }
        }
    }
    one_arg(PL_F32, (shape){2, {40, 2000}}, DENSE, 1, MODERATE);
}

TEST(cumsum) {
    for (int i = 0; i < SHAPE_COUNT; i++) {
        shape s = all_shapes[i];
        for (int dim = 0; dim < (s.ndim > 0 ? s.ndim : 1); dim++) {
            for (int dt = PL_U8; dt < PL_DTYPE_COUNT; dt++) {
                pl_tensor *x = make_case(dt, s, (layout)(dt % LAYOUT_COUNT), MODERATE);
                pl_tensor *got = make_raw(dt, s, DENSE), *want = make_raw(dt, s, DENSE);
                CHECK_OK(pl_kernels_cpu()->cumsum(x, dim, got));
                CHECK_OK(pl_kernels_ref()->cumsum(x, dim, want));
                check_close("cumsum", got, want, 0.0, 0.0);  // both in f64, in the same order
                release_all(3, (pl_tensor *[]){x, got, want});
            }
        }
    }
}

TEST(sum_squares) {
    static const int64_t sizes[] = {0, 1, 31, 513, 16384, 16385, 100003};
    for (int i = 0; i < 7; i++) {
        for (int dt = PL_F16; dt < PL_DTYPE_COUNT; dt++) {
            pl_tensor *x = make_case(dt, (shape){1, {sizes[i]}}, DENSE, MODERATE);
            double got = -1.0, want = -1.0, again = -1.0;
            CHECK_OK(pl_set_num_threads(1));
            CHECK_OK(pl_kernels_cpu()->sum_squares(x, &again));
            CHECK_OK(pl_set_num_threads(3));
            CHECK_OK(pl_kernels_cpu()->sum_squares(x, &got));
            CHECK_OK(pl_kernels_ref()->sum_squares(x, &want));
            CHECK_NEAR(got, want, 1e-12 * want);  // n roundings of f64 at most
            CHECK(got == again);
            pl_tensor_release(x);
        }
    }
}

// The same bits with one thread and with several, and on every instruction set (see `exact` above
// for the values): the order of every sum is fixed.
TEST(thread_count_does_not_matter) {
    static const shape shapes[] = {{1, {70001}}, {2, {700, 130}}, {3, {7, 150, 90}}};
    for (int i = 0; i < 3; i++) {
        for (uint32_t dims = 1; dims < 1u << shapes[i].ndim; dims++) {
            pl_tensor *x = make_case(PL_F32, shapes[i], DENSE, MODERATE);
            pl_tensor *one = make_raw(PL_F32, reduced_shape(shapes[i], dims), DENSE);
            pl_tensor *many = make_raw(PL_F32, reduced_shape(shapes[i], dims), DENSE);
            CHECK_OK(pl_set_num_threads(1));
            CHECK_OK(pl_kernels_cpu()->reduce(PL_REDUCE_SUM, x, dims, one));
            CHECK_OK(pl_set_num_threads(5));
            CHECK_OK(pl_kernels_cpu()->reduce(PL_REDUCE_SUM, x, dims, many));
            check_close("sum", many, one, 0.0, 0.0);
            release_all(3, (pl_tensor *[]){x, one, many});
        }
    }
}

// A failed allocation is reported and nothing is leaked.
TEST(out_of_memory) {
    pl_tensor *x = make_case(PL_F32, (shape){2, {300, 600}}, DENSE, MODERATE);
    pl_tensor *y = make_raw(PL_F32, (shape){2, {1, 600}}, DENSE);
    pl_tensor *z = make_raw(PL_F32, (shape){2, {1, 1}}, DENSE);
    double sum;
    pl_alloc_fail_at(1, true);
    CHECK_FAILS(pl_kernels_cpu()->reduce(PL_REDUCE_SUM, x, 1, y), PL_ENOMEM, "");
    CHECK_FAILS(pl_kernels_cpu()->reduce(PL_REDUCE_SUM, x, 3, z), PL_ENOMEM, "");
    CHECK_FAILS(pl_kernels_cpu()->sum_squares(x, &sum), PL_ENOMEM, "");
    pl_alloc_fail_at(0, false);
    release_all(3, (pl_tensor *[]){x, y, z});
}

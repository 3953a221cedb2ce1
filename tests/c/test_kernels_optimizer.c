// SPDX-License-Identifier: Apache-2.0
// Adam, AdamW, SGD and unscaling of "cpu" against "ref", over dtypes, sizes and every switch.
#include "test.h"

#include "kernel_cases.h"

enum { STATES = 4 };

// p, g, m, v: two equal copies of each.
static void make_states(pl_dtype dt, int64_t n, pl_tensor *a[STATES], pl_tensor *b[STATES]) {
    for (int i = 0; i < STATES; i++) {
        a[i] = make_case(dt, (shape){1, {n}}, DENSE, i == 3 ? POSITIVE : MODERATE);
        b[i] = make_raw(dt, (shape){1, {n}}, DENSE);
        memcpy(b[i]->data, a[i]->data, pl_tensor_nbytes(a[i]));
    }
}

// Constants are rounded to f32 before the loop and about ten operations follow: 16 eps of terms of
// up to 4 * 4 (or 4 for f64, whose oracle rounds alike). Half precision is rounded once more, and
// may then differ by one of its own ulp.
static void check_states(const char *what, pl_dtype dt, pl_tensor *a[STATES],
                         pl_tensor *b[STATES]) {
    double work = dt == PL_F64 ? 0x1p-52 : 0x1p-23;
    double once = dt == PL_F16 || dt == PL_BF16 ? dtype_eps(dt) : 0.0;
    for (int i = 0; i < STATES; i++) {
        check_close(what, a[i], b[i], 16 * work + once, 128 * work);
    }
    release_all(STATES, a);
    release_all(STATES, b);
}

static void one_adam(pl_dtype dt, int64_t n, const pl_adam_args *args) {
    pl_tensor *a[STATES], *b[STATES];
    make_states(dt, n, a, b);
    for (int step = 0; step < 2; step++) {
        CHECK_OK(
            pl_kernels_cpu()->adam(args, dt, n, a[0]->data, a[1]->data, a[2]->data, a[3]->data));
        CHECK_OK(
            pl_kernels_ref()->adam(args, dt, n, b[0]->data, b[1]->data, b[2]->data, b[3]->data));
        for (int i = 0; i < STATES; i++) {
            if (step == 0)
                memcpy(b[i]->data, a[i]->data, pl_tensor_nbytes(a[i]));  // one step's error
        }
    }
    check_states("adam", dt, a, b);
}

static void one_sgd(pl_dtype dt, int64_t n, const pl_sgd_args *args) {
    pl_tensor *a[STATES], *b[STATES];
    make_states(dt, n, a, b);
    void *buf_a = args->momentum != 0.0 ? a[2]->data : NULL;
    void *buf_b = args->momentum != 0.0 ? b[2]->data : NULL;
    CHECK_OK(pl_kernels_cpu()->sgd(args, dt, n, a[0]->data, a[1]->data, buf_a));
    CHECK_OK(pl_kernels_ref()->sgd(args, dt, n, b[0]->data, b[1]->data, buf_b));
    check_states("sgd", dt, a, b);
}

static const int64_t sizes[] = {0, 1, 17, 513, 40000};

TEST(adam) {
    for (int i = 0; i < 5; i++) {
        for (int dt = PL_F16; dt < PL_DTYPE_COUNT; dt++) {
            for (int bits = 0; bits < 8; bits++) {
                if (sizes[i] > 1000 && bits != 5) continue;
                pl_adam_args args = {.lr = 0.01,
                                     .beta1 = 0.9,
                                     .beta2 = 0.99,
                                     .eps = 1e-8,
                                     .weight_decay = bits & 1 ? 0.1 : 0.0,
                                     .bias1 = 1 - 0.9 * 0.9,
                                     .bias2 = 1 - 0.99 * 0.99,
                                     .grad_scale = bits & 2 ? 0.25 : 1.0,
                                     .decoupled = bits & 4,
                                     .maximize = bits == 6};
                one_adam(dt, sizes[i], &args);
            }
        }
    }
}

TEST(sgd) {
    for (int i = 0; i < 5; i++) {
        for (int dt = PL_F16; dt < PL_DTYPE_COUNT; dt++) {
            for (int bits = 0; bits < 16; bits++) {
                if (sizes[i] > 1000 && bits != 3) continue;
                pl_sgd_args args = {.lr = 0.1,
                                    .momentum = bits & 1 ? 0.9 : 0.0,
                                    .dampening = bits & 8 ? 0.5 : 0.0,
                                    .weight_decay = bits & 2 ? 0.01 : 0.0,
                                    .grad_scale = bits & 4 ? 0.5 : 1.0,
                                    .nesterov = (bits & 9) == 1 && (bits & 2),
                                    .maximize = bits == 7,
                                    .first = bits == 5};
                one_sgd(dt, sizes[i], &args);
            }
        }
    }
}

// Written out by hand for one element: Adam's first step moves by lr against the sign of g.
TEST(first_adam_step) {
    float p = 1.0f, g = -3.0f, m = 0.0f, v = 0.0f;
    pl_adam_args args = {.lr = 0.001,
                         .beta1 = 0.9,
                         .beta2 = 0.999,
                         .eps = 1e-8,
                         .bias1 = 0.1,
                         .bias2 = 0.001,
                         .grad_scale = 1.0};
    CHECK_OK(pl_kernels_cpu()->adam(&args, PL_F32, 1, &p, &g, &m, &v));
    CHECK_NEAR(p, 1.001, 1e-6);
    CHECK_NEAR(m, -0.3, 1e-6);
    CHECK_NEAR(v, 0.009, 1e-8);
}

// One bad element of each kind, at the first, a middle and the last place.
static const double bad_values[] = {INFINITY, -INFINITY, NAN};

TEST(unscale) {
    static const double factors[] = {1.0, 1.0 / 65536, 3.0};
    for (int i = 0; i < 5; i++) {
        for (int dt = PL_F16; dt < PL_DTYPE_COUNT; dt++) {
            for (int f = 0; f < 3; f++) {
                pl_tensor *a = make_case(dt, (shape){1, {sizes[i]}}, DENSE, MODERATE);
                pl_tensor *b = make_raw(dt, (shape){1, {sizes[i]}}, DENSE);
                memcpy(b->data, a->data, pl_tensor_nbytes(a));
                int bad_a = 0, bad_b = 0;
                CHECK_OK(pl_kernels_cpu()->unscale(dt, sizes[i], a->data, factors[f], &bad_a));
                CHECK_OK(pl_kernels_ref()->unscale(dt, sizes[i], b->data, factors[f], &bad_b));
                CHECK_EQ(bad_a, 0);
                CHECK_EQ(bad_b, 0);
                // One product, rounded once; f32 rounds the factor too. fp16 may end in subnormals.
                double eps = dt == PL_F64 ? 0x1p-52 : dtype_eps(dt);
                check_close("unscale", a, b, 2 * eps, 0x1p-24);
                pl_tensor_release(a);
                pl_tensor_release(b);
            }
        }
    }
}

TEST(unscale_finds_what_is_not_finite) {
    for (int dt = PL_F16; dt < PL_DTYPE_COUNT; dt++) {
        for (int k = 0; k < 9; k++) {
            for (int f = 0; f < 2; f++) {
                int64_t n = 40000, at = k < 3 ? 0 : k < 6 ? n / 2 + 1 : n - 1;
                pl_tensor *t = make_case(dt, (shape){1, {n}}, DENSE, MODERATE);
                ref_set(t, at, bad_values[k % 3]);
                int bad_cpu = 0, bad_ref = 0;
                double factor = f ? 0.5 : 1.0;
                CHECK_OK(pl_kernels_cpu()->unscale(dt, n, t->data, factor, &bad_cpu));
                CHECK_OK(pl_kernels_ref()->unscale(dt, n, t->data, factor, &bad_ref));
                CHECK_EQ(bad_cpu, 1);
                CHECK_EQ(bad_ref, 1);
                pl_tensor_release(t);
            }
        }
    }
}

TEST(largest_numbers_are_finite) {
    float f[3] = {3.402823466e38f, -3.402823466e38f, 0x1p-149f};
    double d[2] = {1.7976931348623157e308, -1.7976931348623157e308};
    pl_f16 h[2] = {0x7bff, 0xfbff};
    pl_bf16 b[2] = {0x7f7f, 0xff7f};
    int bad = 0;
    CHECK_OK(pl_kernels_cpu()->unscale(PL_F32, 3, f, 1.0, &bad));
    CHECK_OK(pl_kernels_cpu()->unscale(PL_F64, 2, d, 1.0, &bad));
    CHECK_OK(pl_kernels_cpu()->unscale(PL_F16, 2, h, 1.0, &bad));
    CHECK_OK(pl_kernels_cpu()->unscale(PL_BF16, 2, b, 1.0, &bad));
    CHECK_EQ(bad, 0);
}

// The steps tell as well; a step with momentum and one without are different loops.
TEST(steps_tell_of_bad_gradients) {
    for (int dt = PL_F16; dt < PL_DTYPE_COUNT; dt++) {
        for (int k = 0; k < 12; k++) {
            int64_t n = 2000;
            pl_tensor *a[STATES], *b[STATES];
            make_states(dt, n, a, b);
            int adam = 0, sgd = 0, plain = 0, ref = 0, expected = k < 9;
            if (expected) ref_set(a[1], k < 3 ? 0 : k < 6 ? n / 2 + 1 : n - 1, bad_values[k % 3]);
            pl_adam_args aa = {.lr = 0.01,
                               .beta1 = 0.9,
                               .beta2 = 0.99,
                               .eps = 1e-8,
                               .bias1 = 0.1,
                               .bias2 = 0.01,
                               .grad_scale = 1.0,
                               .nonfinite = &adam};
            pl_sgd_args sa = {.lr = 0.1, .momentum = 0.9, .grad_scale = 1.0, .nonfinite = &sgd};
            pl_sgd_args pa = {.lr = 0.1, .grad_scale = 1.0, .nonfinite = &plain};
            const pl_kernels *cpu = pl_kernels_cpu();
            CHECK_OK(cpu->adam(&aa, dt, n, a[0]->data, a[1]->data, a[2]->data, a[3]->data));
            CHECK_OK(cpu->sgd(&sa, dt, n, b[0]->data, a[1]->data, b[2]->data));
            CHECK_OK(cpu->sgd(&pa, dt, n, b[0]->data, a[1]->data, NULL));
            pa.nonfinite = &ref;
            CHECK_OK(pl_kernels_ref()->sgd(&pa, dt, n, b[0]->data, a[1]->data, NULL));
            CHECK_EQ(adam, expected);
            CHECK_EQ(sgd, expected);
            CHECK_EQ(plain, expected);
            CHECK_EQ(ref, expected);
            release_all(STATES, a);
            release_all(STATES, b);
        }
    }
}

TEST(nan_gradient_travels) {
    float p[2] = {1.0f, 1.0f}, g[2] = {NAN, 1.0f}, m[2] = {0}, v[2] = {0};
    pl_adam_args args = {.lr = 0.001,
                         .beta1 = 0.9,
                         .beta2 = 0.999,
                         .eps = 1e-8,
                         .bias1 = 0.1,
                         .bias2 = 0.001,
                         .grad_scale = 1.0};
    CHECK_OK(pl_kernels_cpu()->adam(&args, PL_F32, 2, p, g, m, v));
    CHECK(isnan(p[0]) && isnan(m[0]) && isnan(v[0]));
    CHECK(isfinite(p[1]));
}

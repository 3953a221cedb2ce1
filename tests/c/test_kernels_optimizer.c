// SPDX-License-Identifier: Apache-2.0
// Adam, AdamW and SGD of "cpu" against "ref", over dtypes, sizes and every switch.
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

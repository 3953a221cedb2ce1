// SPDX-License-Identifier: Apache-2.0
// Tests of kernels/cpu/norm.c against the oracle, at every instruction set that this machine has
// (test_units.py runs the binaries with PACELINE_CPU_ISA too), and of its fixed order of sums.
#include "kernels_check.h"

static const pl_dtype FLOATS[] = {PL_F32, PL_BF16, PL_F16, PL_F64};

typedef struct norm_case {
    pl_dtype dt, wdt;
    int64_t m, n;
    bool w, b, accumulate;
} norm_case;

static pl_tensor *of_type(pl_dtype dt, const pl_tensor *like) {
    pl_tensor *t;
    CHECK_OK(pl_tensor_empty(dt, like->ndim, like->shape, &t));
    for (int64_t i = 0; i < t->numel; i++) check_set(t, i, check_get(like, i));
    return t;
}

// Errors: mean and rstd are sums of n terms; xhat is below 4 or so, weights below 1.
static void check_forward(const norm_case *c, const pl_tensor *x, const pl_tensor *w,
                          const pl_tensor *b, pl_tensor *mean, pl_tensor *rstd) {
    double tol = check_sum_eps(c->dt) * (16.0 + (double)c->n);
    pl_tensor *out, *want, *want_mean, *want_rstd;
    CHECK_OK(pl_tensor_empty(c->dt, 2, x->shape, &out));
    CHECK_OK(pl_tensor_empty(PL_F64, 2, x->shape, &want));
    CHECK_OK(pl_tensor_empty(PL_F64, 1, &c->m, &want_mean));
    CHECK_OK(pl_tensor_empty(PL_F64, 1, &c->m, &want_rstd));
    CHECK_OK(pl_kernels_ref()->layer_norm(x, w, b, 1e-5, want, want_mean, want_rstd));
    CHECK_OK(pl_kernels_cpu()->layer_norm(x, w, b, 1e-5, out, mean, rstd));
    check_close("mean", mean, want_mean, tol, tol);
    check_close("rstd", rstd, want_rstd, tol, tol);
    // A row of one element has variance 0 and rstd 316: what mean is off by is multiplied so.
    check_close("layer_norm", out, want, check_eps(c->dt) + tol, c->n == 1 ? 316 * tol : 8 * tol);
    pl_tensor_release(want_rstd);
    pl_tensor_release(want_mean);
    pl_tensor_release(want);
    pl_tensor_release(out);
}

static void check_backward(const norm_case *c, const pl_tensor *x, const pl_tensor *w,
                           const pl_tensor *mean, const pl_tensor *rstd) {
    pl_tensor *g = check_tensor(c->dt, 2, x->shape, 1.0), *dx, *want;
    pl_tensor *dw = check_tensor(c->wdt, 1, &c->n, 1.0), *want_w = of_type(PL_F64, dw);
    pl_tensor *db = check_tensor(c->wdt, 1, &c->n, 1.0), *want_b = of_type(PL_F64, db);
    CHECK_OK(pl_tensor_empty(c->dt, 2, x->shape, &dx));
    CHECK_OK(pl_tensor_empty(PL_F64, 2, x->shape, &want));
    CHECK_OK(pl_kernels_ref()->layer_norm_grad(g, x, w, mean, rstd, want, want_w, c->accumulate,
                                               want_b, !c->accumulate));
    CHECK_OK(pl_kernels_cpu()->layer_norm_grad(g, x, w, mean, rstd, dx, dw, c->accumulate, db,
                                               !c->accumulate));
    double tol = check_sum_eps(c->dt) * (32.0 + (double)c->n);
    double wtol = check_sum_eps(c->dt) * (32.0 + (double)c->m) * 8.0;
    double big = c->n == 1 ? 316.0 : 8.0;  // rstd
    check_close("dx", dx, want, check_eps(c->dt) + tol, big * tol);
    check_close("dw", dw, want_w, check_eps(c->wdt), wtol * big);
    check_close("db", db, want_b, check_eps(c->wdt), wtol);
    pl_tensor *alone;  // each of the three alone gives the same
    CHECK_OK(pl_tensor_empty(c->dt, 2, x->shape, &alone));
    CHECK_OK(
        pl_kernels_cpu()->layer_norm_grad(g, x, w, mean, rstd, alone, NULL, false, NULL, false));
    check_same_bits("dx alone", alone, dx);
    pl_tensor_release(alone);
    pl_tensor_release(want);
    pl_tensor_release(dx);
    pl_tensor_release(want_b);
    pl_tensor_release(db);
    pl_tensor_release(want_w);
    pl_tensor_release(dw);
    pl_tensor_release(g);
}

static void check_case(const norm_case *c) {
    pl_dtype stat = c->dt == PL_F64 ? PL_F64 : PL_F32;
    pl_tensor *x = check_tensor(c->dt, 2, (int64_t[]){c->m, c->n}, 1.0), *mean, *rstd;
    pl_tensor *w = c->w ? check_tensor(c->wdt, 1, &c->n, 1.0) : NULL;
    pl_tensor *b = c->b ? check_tensor(c->wdt, 1, &c->n, 1.0) : NULL;
    CHECK_OK(pl_tensor_empty(stat, 1, &c->m, &mean));
    CHECK_OK(pl_tensor_empty(stat, 1, &c->m, &rstd));
    check_forward(c, x, w, b, mean, rstd);
    check_backward(c, x, w, mean, rstd);
    pl_tensor_release(rstd);
    pl_tensor_release(mean);
    pl_tensor_release(b);
    pl_tensor_release(w);
    pl_tensor_release(x);
}

TEST(layer_norm_agrees_with_the_oracle) {
    static const int64_t ms[] = {1, 3, 70, 600}, ns[] = {1, 7, 16, 33, 384};
    for (size_t d = 0; d < sizeof FLOATS / sizeof *FLOATS; d++) {
        for (int i = 0; i < 4; i++) {
            for (int j = 0; j < 5; j++) {
                if (ms[i] * ns[j] > 50000) continue;  // the oracle is slow
                norm_case c = {FLOATS[d], FLOATS[d], ms[i], ns[j], true, true, (i + j) % 2 == 0};
                check_case(&c);
                c.w = (i + j) % 3 == 0, c.b = (i + j) % 3 == 1;
                check_case(&c);
            }
        }
        if (FLOATS[d] == PL_F64) continue;
        check_case(&(norm_case){FLOATS[d], PL_F32, 20, 100, true, true, true});
    }
}

TEST(no_rows_give_zero_gradients) {
    int64_t n = 5, none = 0;
    pl_tensor *x = check_tensor(PL_F32, 2, (int64_t[]){0, 5}, 1.0), *mean, *dw, *db;
    CHECK_OK(pl_tensor_empty(PL_F32, 1, &none, &mean));
    dw = check_tensor(PL_F32, 1, &n, 1.0);
    db = check_tensor(PL_F32, 1, &n, 1.0);
    double kept = check_get(db, 2);
    CHECK_OK(pl_kernels_cpu()->layer_norm_grad(x, x, NULL, mean, mean, NULL, dw, false, db, true));
    for (int64_t j = 0; j < n; j++) CHECK(check_get(dw, j) == 0.0);
    CHECK(check_get(db, 2) == kept);
    pl_tensor_release(db);
    pl_tensor_release(dw);
    pl_tensor_release(mean);
    pl_tensor_release(x);
}

TEST(nan_stays_in_its_row) {
    pl_tensor *x = check_tensor(PL_F32, 2, (int64_t[]){2, 40}, 1.0), *out, *mean, *rstd;
    int64_t m = 2;
    check_set(x, 37, NAN);
    CHECK_OK(pl_tensor_empty(PL_F32, 2, x->shape, &out));
    CHECK_OK(pl_tensor_empty(PL_F32, 1, &m, &mean));
    CHECK_OK(pl_tensor_empty(PL_F32, 1, &m, &rstd));
    CHECK_OK(pl_kernels_cpu()->layer_norm(x, NULL, NULL, 1e-5, out, mean, rstd));
    for (int64_t j = 0; j < 80; j++) CHECK_EQ(isnan(check_get(out, j)) != 0, j < 40);
    pl_tensor_release(rstd);
    pl_tensor_release(mean);
    pl_tensor_release(out);
    pl_tensor_release(x);
}

TEST(the_thread_count_changes_no_bit) {
    int64_t m = 333, n = 100;
    pl_tensor *x = check_tensor(PL_F32, 2, (int64_t[]){m, n}, 1.0), *mean, *rstd, *dw[2], *db[2];
    pl_tensor *dx[2], *out;
    CHECK_OK(pl_tensor_empty(PL_F32, 1, &m, &mean));
    CHECK_OK(pl_tensor_empty(PL_F32, 1, &m, &rstd));
    CHECK_OK(pl_tensor_empty(PL_F32, 2, x->shape, &out));
    CHECK_OK(pl_kernels_cpu()->layer_norm(x, NULL, NULL, 1e-5, out, mean, rstd));
    for (int i = 0; i < 2; i++) {
        CHECK_OK(pl_set_num_threads(i ? 3 : 1));
        CHECK_OK(pl_tensor_empty(PL_F32, 1, &n, &dw[i]));
        CHECK_OK(pl_tensor_empty(PL_F32, 1, &n, &db[i]));
        CHECK_OK(pl_tensor_empty(PL_F32, 2, x->shape, &dx[i]));
        CHECK_OK(pl_kernels_cpu()->layer_norm_grad(out, x, NULL, mean, rstd, dx[i], dw[i], false,
                                                   db[i], false));
    }
    check_same_bits("dw", dw[0], dw[1]);
    check_same_bits("db", db[0], db[1]);
    check_same_bits("dx", dx[0], dx[1]);
    for (int i = 0; i < 2; i++) {
        pl_tensor_release(dx[i]);
        pl_tensor_release(db[i]);
        pl_tensor_release(dw[i]);
    }
    pl_tensor_release(out);
    pl_tensor_release(rstd);
    pl_tensor_release(mean);
    pl_tensor_release(x);
}

// SPDX-License-Identifier: Apache-2.0
// Tests of kernels/cpu/norm.c against the oracle, at every instruction set that this machine has
// (test_units.py runs the binaries with PACELINE_CPU_ISA too), and of its fixed order of sums.
#include "kernels_check.h"

static const pl_dtype FLOATS[] = {PL_F32, PL_BF16, PL_F16, PL_F64};

typedef struct norm_case {
    pl_dtype dt, wdt, xdt;  // of the sum, of the weights, of what is added
    int64_t m, n;
    bool rms, residual, w, b, accumulate;
} norm_case;

static pl_tensor *of_type(pl_dtype dt, const pl_tensor *like) {
    pl_tensor *t;
    CHECK_OK(pl_tensor_empty(dt, like->ndim, like->shape, &t));
    for (int64_t i = 0; i < t->numel; i++) check_set(t, i, check_get(like, i));
    return t;
}

static pl_tensor *empty(pl_dtype dt, int64_t m, int64_t n) {
    pl_tensor *t;
    CHECK_OK(pl_tensor_empty(dt, n ? 2 : 1, (int64_t[]){m, n}, &t));
    return t;
}

// What is normed, made by the kernel where there is a residual, whose other results are those of
// the norm alone then. mean, rstd: filled.
static pl_tensor *check_forward(const norm_case *c, const pl_tensor *w, const pl_tensor *b,
                                pl_tensor *mean, pl_tensor *rstd) {
    int64_t shape[2] = {c->m, c->n};
    pl_tensor *x = check_tensor(c->xdt, 2, shape, 1.0), *out = empty(c->dt, c->m, c->n);
    pl_tensor *sum = x, *again = empty(c->dt, c->m, c->n);
    pl_row_norm_args args = {.rms = c->rms, .eps = 1e-5, .x = x, .w = w, .b = b, .out = out};
    args.mean = c->rms ? NULL : mean;
    args.rstd = rstd;
    if (c->residual) {
        pl_tensor *residual = check_tensor(c->dt, 2, shape, 1.0), *exact = empty(c->dt, c->m, c->n);
        args.residual = residual;
        args.sum = sum = empty(c->dt, c->m, c->n);
        CHECK_OK(pl_kernels_cpu()->norm(&args));
        for (int64_t i = 0; i < x->numel; i++) {
            check_set(exact, i, check_get(x, i) + check_get(residual, i));
        }
        check_same_bits("sum", sum, exact);
        args.x = sum, args.residual = NULL, args.sum = NULL, args.out = again;
        pl_tensor_release(exact);
        pl_tensor_release(residual);
        pl_tensor_release(x);
    }
    CHECK_OK(pl_kernels_cpu()->norm(&args));
    if (c->residual) check_same_bits("with a residual", out, again);
    // Errors: mean and rstd are sums of n terms; xhat is below 4 or so, weights below 1.
    double tol = check_sum_eps(c->dt) * (16.0 + (double)c->n);
    pl_tensor *want = empty(PL_F64, c->m, c->n), *want_mean = empty(PL_F64, c->m, 0);
    pl_tensor *want_rstd = empty(PL_F64, c->m, 0), *got = args.out;
    args.out = want, args.mean = want_mean, args.rstd = want_rstd;
    CHECK_OK(pl_kernels_ref()->norm(&args));
    if (!c->rms) check_close("mean", mean, want_mean, tol, tol);
    check_close("rstd", rstd, want_rstd, tol, tol);
    // A row of one element has variance 0 and rstd 316: what mean is off by is multiplied so.
    check_close("norm", got, want, check_eps(c->dt) + tol, c->n == 1 ? 316 * tol : 8 * tol);
    pl_tensor *all[] = {out, again, want, want_mean, want_rstd};
    for (int i = 0; i < 5; i++) pl_tensor_release(all[i]);
    return sum;
}

static void check_backward(const norm_case *c, const pl_tensor *x, const pl_tensor *w,
                           const pl_tensor *mean, const pl_tensor *rstd) {
    pl_tensor *g = check_tensor(c->dt, 2, x->shape, 1.0);
    pl_tensor *dx = check_tensor(c->dt, 2, x->shape, 1.0), *want = of_type(PL_F64, dx);
    pl_tensor *dw = check_tensor(c->wdt, 1, &c->n, 1.0), *want_w = of_type(PL_F64, dw);
    pl_tensor *db = check_tensor(c->wdt, 1, &c->n, 1.0), *want_b = of_type(PL_F64, db);
    pl_tensor *alone = of_type(c->dt, dx);
    pl_row_norm_grad_args args = {
        .rms = c->rms, .g = g, .x = x, .w = w, .mean = mean, .rstd = rstd};
    args.accumulate_x = args.accumulate_w = c->accumulate;
    args.accumulate_b = !c->accumulate;
    args.dx = dx, args.dw = dw, args.db = c->rms ? NULL : db;
    CHECK_OK(pl_kernels_cpu()->norm_grad(&args));
    args.dx = want, args.dw = want_w, args.db = c->rms ? NULL : want_b;
    CHECK_OK(pl_kernels_ref()->norm_grad(&args));
    double tol = check_sum_eps(c->dt) * (32.0 + (double)c->n);
    double wtol = check_sum_eps(c->dt) * (32.0 + (double)c->m) * 8.0;
    double big = c->n == 1 ? 316.0 : 8.0;  // rstd
    check_close("dx", dx, want, check_eps(c->dt) + tol, big * tol);
    check_close("dw", dw, want_w, check_eps(c->wdt), wtol * big);
    check_close("db", db, want_b, check_eps(c->wdt), wtol);
    args.dx = alone, args.dw = args.db = NULL;  // each of the three alone gives the same
    CHECK_OK(pl_kernels_cpu()->norm_grad(&args));
    check_same_bits("dx alone", alone, dx);
    pl_tensor *all[] = {g, dx, want, dw, want_w, db, want_b, alone};
    for (int i = 0; i < 8; i++) pl_tensor_release(all[i]);
}

static void check_case(const norm_case *c) {
    pl_dtype stat = c->dt == PL_F64 ? PL_F64 : PL_F32;
    pl_tensor *mean = empty(stat, c->m, 0), *rstd = empty(stat, c->m, 0);
    pl_tensor *w = c->w ? check_tensor(c->wdt, 1, &c->n, 1.0) : NULL;
    pl_tensor *b = c->b ? check_tensor(c->wdt, 1, &c->n, 1.0) : NULL;
    pl_tensor *x = check_forward(c, w, b, mean, rstd);
    check_backward(c, x, w, mean, rstd);
    pl_tensor *all[] = {x, w, b, mean, rstd};
    for (int i = 0; i < 5; i++) pl_tensor_release(all[i]);
}

TEST(norms_agree_with_the_oracle) {
    static const int64_t ms[] = {1, 3, 70, 600}, ns[] = {1, 7, 16, 33, 384};
    for (int d = 0; d < 4; d++) {
        for (int i = 0; i < 4; i++) {
            for (int j = 0; j < 5; j++) {
                if (ms[i] * ns[j] > 50000) continue;  // the oracle is slow
                norm_case c = {.dt = FLOATS[d], .wdt = FLOATS[d], .xdt = FLOATS[d]};
                c.m = ms[i], c.n = ns[j], c.w = c.b = true, c.accumulate = (i + j) % 2 == 0;
                check_case(&c);
                c.w = (i + j) % 3 == 0, c.b = (i + j) % 3 == 1;
                c.residual = c.accumulate;
                check_case(&c);
                c.rms = true, c.w = !c.w, c.b = false, c.residual = !c.residual;
                check_case(&c);
            }
        }
        if (FLOATS[d] == PL_F64) continue;
        norm_case c = {.dt = FLOATS[d], .wdt = PL_F32, .xdt = FLOATS[d], .m = 20, .n = 100};
        c.w = c.b = c.accumulate = true;
        check_case(&c);
    }
}

// A residual in f32, to which a product of a lower precision is added.
TEST(the_residual_may_be_wider) {
    static const int64_t ns[] = {5, 64, 100};
    for (int d = 1; d < 3; d++) {
        for (int j = 0; j < 3; j++) {
            norm_case c = {.dt = PL_F32, .wdt = PL_F32, .xdt = FLOATS[d], .m = 9, .n = ns[j]};
            c.residual = c.w = c.accumulate = true, c.rms = j == 1;
            check_case(&c);
        }
    }
}

TEST(no_rows_give_zero_gradients) {
    int64_t n = 5, none = 0;
    pl_tensor *x = check_tensor(PL_F32, 2, (int64_t[]){0, 5}, 1.0), *mean, *dw, *db;
    CHECK_OK(pl_tensor_empty(PL_F32, 1, &none, &mean));
    dw = check_tensor(PL_F32, 1, &n, 1.0);
    db = check_tensor(PL_F32, 1, &n, 1.0);
    double kept = check_get(db, 2);
    pl_row_norm_grad_args args = {.g = x, .x = x, .mean = mean, .rstd = mean, .dw = dw, .db = db};
    args.accumulate_b = true;
    CHECK_OK(pl_kernels_cpu()->norm_grad(&args));
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
    pl_row_norm_args args = {.eps = 1e-5, .x = x, .out = out, .mean = mean, .rstd = rstd};
    CHECK_OK(pl_kernels_cpu()->norm(&args));
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
    pl_row_norm_args f = {.eps = 1e-5, .x = x, .out = out, .mean = mean, .rstd = rstd};
    CHECK_OK(pl_kernels_cpu()->norm(&f));
    for (int i = 0; i < 2; i++) {
        CHECK_OK(pl_set_num_threads(i ? 3 : 1));
        CHECK_OK(pl_tensor_empty(PL_F32, 1, &n, &dw[i]));
        CHECK_OK(pl_tensor_empty(PL_F32, 1, &n, &db[i]));
        CHECK_OK(pl_tensor_empty(PL_F32, 2, x->shape, &dx[i]));
        pl_row_norm_grad_args b = {.g = out, .x = x, .mean = mean, .rstd = rstd, .dx = dx[i]};
        b.dw = dw[i], b.db = db[i];
        CHECK_OK(pl_kernels_cpu()->norm_grad(&b));
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

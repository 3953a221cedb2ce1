// SPDX-License-Identifier: Apache-2.0
// What kernels/cuda has beyond the CPU's table, on the host stand-in: norms with a residual, RMS,
// rows longer than a warp takes. Each against the oracle or a formula in double.
#include "cuda_on_host.h"

#include "kernels_check.h"

static pl_tensor *like(const pl_tensor *t, pl_dtype dt) {
    pl_tensor *n;
    CHECK_OK(pl_tensor_empty(dt, t->ndim, t->shape, &n));
    return n;
}

static pl_status on_host_norm(const pl_cuda_norm_args *args) {
    host_run r = {0};
    host_writes(&r, args->sum, false, NULL);
    host_writes(&r, args->out, false, NULL);
    host_writes(&r, args->mean, false, NULL);
    host_writes(&r, args->rstd, false, NULL);
    ON_HOST(r, pl_cuda_norm(args, &r.q));
}

static pl_status on_host_norm_grad(const pl_cuda_norm_grad_args *args) {
    host_run r = {0};
    host_writes(&r, args->dx, false, NULL);
    host_writes(&r, args->dw, args->accumulate_w, NULL);
    ON_HOST(r, pl_cuda_norm_grad(args, &r.q));
}

// dx and the weights' gradients in one pass: rows for more than one block, warps that share a row,
// rows without packs, rows too long for it, fp64 that goes another way; added to and not.
static void weights_of(pl_dtype dt, int64_t m, int64_t n, bool add) {
    pl_tensor *x = check_tensor(dt, 2, (int64_t[]){m, n}, 1.0);
    pl_tensor *g = check_tensor(dt, 2, (int64_t[]){m, n}, 1.0), *w = check_tensor(dt, 1, &n, 1.0);
    pl_dtype stat = dt == PL_F64 ? PL_F64 : PL_F32;
    pl_tensor *dw = check_tensor(stat, 1, &n, 1.0), *db = check_tensor(dt, 1, &n, 1.0);
    pl_tensor *dx = like(x, dt), *want = like(x, PL_F64), *want_w = like(w, PL_F64);
    pl_tensor *want_b = like(w, PL_F64), *mean, *rstd, *out = like(x, PL_F64), *wmean, *wrstd;
    CHECK_OK(pl_tensor_empty(stat, 1, &m, &mean));
    CHECK_OK(pl_tensor_empty(stat, 1, &m, &rstd));
    CHECK_OK(pl_tensor_empty(PL_F64, 1, &m, &wmean));
    CHECK_OK(pl_tensor_empty(PL_F64, 1, &m, &wrstd));
    const pl_kernels *ref = pl_kernels_ref();
    CHECK_OK(ref->layer_norm(x, w, NULL, 1e-5, out, wmean, wrstd));
    CHECK_OK(ref->copy(wmean, mean));
    CHECK_OK(ref->copy(wrstd, rstd));
    CHECK_OK(ref->copy(dw, want_w));
    CHECK_OK(ref->copy(db, want_b));
    CHECK_OK(host_layer_norm_grad(g, x, w, mean, rstd, dx, dw, add, db, add));
    CHECK_OK(ref->layer_norm_grad(g, x, w, wmean, wrstd, want, want_w, add, want_b, add));
    // A thread adds up to 31 rows, then come its block's warps and the blocks; terms are below 3.
    double tol = check_sum_eps(dt) * 64.0 * 3.0 * sqrt((double)m);
    check_close("dx", dx, want, check_eps(dt) + tol, 8.0 * tol);
    check_close("dw", dw, want_w, check_eps(stat), tol);
    check_close("db", db, want_b, check_eps(dt), tol);
    pl_tensor *all[] = {x, g, w, dw, db, dx, want, want_w, want_b, mean, rstd, out, wmean, wrstd};
    for (int i = 0; i < 14; i++) pl_tensor_release(all[i]);
}

TEST(weights_gradients_of_all_widths) {
    static const pl_dtype dtypes[] = {PL_F32, PL_BF16, PL_F16, PL_F64};
    static const int64_t sizes[][2] = {{300, 96}, {300, 97}, {40, 1032}, {40, 1033}, {3, 8200}};
    for (int d = 0; d < 4; d++) {
        for (int i = 0; i < 5; i++) weights_of(dtypes[d], sizes[i][0], sizes[i][1], i % 2 == 0);
    }
}

// Rows of 2,000: a block each; 2,001: without packs.
static void long_rows(pl_dtype dt, int64_t n) {
    pl_tensor *x = check_tensor(dt, 2, (int64_t[]){3, n}, 1.0), *w = check_tensor(dt, 1, &n, 1.0);
    int64_t m = 3;
    pl_dtype stat = dt == PL_F64 ? PL_F64 : PL_F32;
    pl_tensor *out = like(x, dt), *want = like(x, PL_F64), *mean, *rstd, *wmean, *wrstd;
    CHECK_OK(pl_tensor_empty(stat, 1, &m, &mean));
    CHECK_OK(pl_tensor_empty(stat, 1, &m, &rstd));
    CHECK_OK(pl_tensor_empty(PL_F64, 1, &m, &wmean));
    CHECK_OK(pl_tensor_empty(PL_F64, 1, &m, &wrstd));
    double tol = check_sum_eps(dt) * 64.0;  // 8 per thread, 8 levels of threads
    CHECK_OK(host_layer_norm(x, w, NULL, 1e-5, out, mean, rstd));
    CHECK_OK(pl_kernels_ref()->layer_norm(x, w, NULL, 1e-5, want, wmean, wrstd));
    check_close("layer_norm", out, want, check_eps(dt) + tol, tol);
    CHECK_OK(host_layer_norm_grad(x, x, w, mean, rstd, out, NULL, false, NULL, false));
    CHECK_OK(
        pl_kernels_ref()->layer_norm_grad(x, x, w, mean, rstd, want, NULL, false, NULL, false));
    check_close("dx", out, want, check_eps(dt) + tol, 8.0 * tol);
    CHECK_OK(host_softmax(false, x, out));
    CHECK_OK(pl_kernels_ref()->softmax(false, x, want));
    check_close("softmax", out, want, check_eps(dt) + tol, 0.0);
    pl_tensor *all[] = {x, w, out, want, mean, rstd, wmean, wrstd};
    for (int i = 0; i < 8; i++) pl_tensor_release(all[i]);
}

TEST(long_rows_agree_with_the_oracle) {
    static const pl_dtype dtypes[] = {PL_F32, PL_BF16, PL_F16, PL_F64};
    for (int d = 0; d < 4; d++) {
        long_rows(dtypes[d], 2000);
        long_rows(dtypes[d], 2001);
    }
}

// RMS norm of x + residual and its gradient, in double from the rounded sum.
static void rms_case(pl_dtype dt, int64_t m, int64_t n) {
    pl_tensor *x = check_tensor(dt, 2, (int64_t[]){m, n}, 1.0),
              *res = check_tensor(dt, 2, x->shape, 1.0);
    pl_tensor *w = check_tensor(dt, 1, &n, 1.0), *g = check_tensor(dt, 2, x->shape, 1.0);
    pl_tensor *through = check_tensor(dt, 2, x->shape, 1.0), *sum = like(x, dt), *out = like(x, dt);
    pl_tensor *dx = like(x, dt), *dw = like(w, dt), *rstd;
    CHECK_OK(pl_tensor_empty(PL_F32, 1, &m, &rstd));
    pl_cuda_norm_args f = {.x = x,
                           .residual = res,
                           .w = w,
                           .eps = 1e-6,
                           .rms = true,
                           .sum = sum,
                           .out = out,
                           .rstd = rstd};
    CHECK_OK(on_host_norm(&f));
    pl_cuda_norm_grad_args b = {.g = g,
                                .x = sum,
                                .w = w,
                                .rstd = rstd,
                                .through = through,
                                .rms = true,
                                .dx = dx,
                                .dw = dw};
    CHECK_OK(on_host_norm_grad(&b));
    double eps = check_eps(dt), tol = 1e-5;
    for (int64_t i = 0; i < m; i++) {
        double squares = 0.0, dot = 0.0;
        for (int64_t j = 0; j < n; j++) {
            double s = check_get(sum, i * n + j),
                   a = check_get(x, i * n + j) + check_get(res, i * n + j);
            CHECK_NEAR(s, a, eps * fabs(a) + 1e-7);
            squares += s * s;
        }
        double r = 1.0 / sqrt(squares / (double)n + 1e-6);
        for (int64_t j = 0; j < n; j++) {
            dot += check_get(g, i * n + j) * check_get(w, j) * check_get(sum, i * n + j) * r /
                   (double)n;
        }
        for (int64_t j = 0; j < n; j++) {
            double xhat = check_get(sum, i * n + j) * r, y = xhat * check_get(w, j);
            CHECK_NEAR(check_get(out, i * n + j), y, eps * fabs(y) + tol);
            double d = r * (check_get(g, i * n + j) * check_get(w, j) - xhat * dot) +
                       check_get(through, i * n + j);
            CHECK_NEAR(check_get(dx, i * n + j), d, eps * fabs(d) + 8.0 * tol);
        }
    }
    for (int64_t j = 0; j < n; j++) {
        double d = 0.0;
        for (int64_t i = 0; i < m; i++) {
            d += check_get(g, i * n + j) * check_get(sum, i * n + j) * check_get(rstd, i);
        }
        CHECK_NEAR(check_get(dw, j), d, eps * fabs(d) + 1e-5 * (double)m);
    }
    pl_tensor *all[] = {x, res, w, g, through, sum, out, dx, dw, rstd};
    for (int i = 0; i < 10; i++) pl_tensor_release(all[i]);
}

TEST(rms_norm_with_a_residual) {
    rms_case(PL_F32, 5, 40);
    rms_case(PL_BF16, 70, 64);
    rms_case(PL_F32, 2, 1500);
}

// More rows than a tile of the radix sort, a table of more than 256, one index far more often.
TEST(the_gradient_of_many_rows) {
    int64_t m = 5000, table = 70000, width = 3;
    pl_tensor *g = check_tensor(PL_F32, 2, (int64_t[]){m, width}, 1.0), *index, *dx, *want;
    CHECK_OK(pl_tensor_empty(PL_I64, 1, &m, &index));
    for (int64_t i = 0; i < m; i++) {
        int64_t at = i % 3 == 0 ? 65537 : i % 7 == 0 ? 12 : (i * 7919) % table;
        ((int64_t *)index->data)[i] = i % 5 == 0 ? at - table : at;
    }
    CHECK_OK(pl_tensor_empty(PL_F32, 2, (int64_t[]){table, width}, &dx));
    want = like(dx, PL_F32);
    CHECK_OK(host_take_grad(g, index, 12, false, dx));
    CHECK_OK(pl_kernels_ref()->take_grad(g, index, 12, false, want));
    check_close("take_grad", dx, want, 0.0, 0.0);  // the same order of additions
    ((int64_t *)index->data)[4321] = table;
    CHECK_FAILS(host_take_grad(g, index, -1, true, dx), PL_EINDEX, "got 70000, expected [-70000");
    pl_tensor *all[] = {g, index, dx, want};
    for (int i = 0; i < 4; i++) pl_tensor_release(all[i]);
}

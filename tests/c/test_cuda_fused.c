// SPDX-License-Identifier: Apache-2.0
// What kernels/cuda has beyond the CPU's table, on the host stand-in: rows longer than a warp
// takes. Each against the oracle or a formula in double.
#include "cuda_on_host.h"

#include "kernels_check.h"

static pl_tensor *like(const pl_tensor *t, pl_dtype dt) {
    pl_tensor *n;
    CHECK_OK(pl_tensor_empty(dt, t->ndim, t->shape, &n));
    return n;
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
    pl_row_norm_args f = {.eps = 1e-5, .x = x, .w = w, .out = out, .mean = wmean, .rstd = wrstd};
    CHECK_OK(ref->norm(&f));
    CHECK_OK(ref->copy(wmean, mean));
    CHECK_OK(ref->copy(wrstd, rstd));
    CHECK_OK(ref->copy(dw, want_w));
    CHECK_OK(ref->copy(db, want_b));
    pl_row_norm_grad_args b = {.g = g,
                               .x = x,
                               .w = w,
                               .mean = mean,
                               .rstd = rstd,
                               .dx = dx,
                               .dw = dw,
                               .db = db,
                               .accumulate_w = add,
                               .accumulate_b = add};
    CHECK_OK(host_row_norm_grad(&b));
    b.mean = wmean, b.rstd = wrstd, b.dx = want, b.dw = want_w, b.db = want_b;
    CHECK_OK(ref->norm_grad(&b));
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

// Rows of 2,000: a block each; 2,001: without packs; 8,200: more than a block holds in registers.
static void long_rows(pl_dtype dt, int64_t n, bool rms) {
    pl_tensor *x = check_tensor(dt, 2, (int64_t[]){3, n}, 1.0), *w = check_tensor(dt, 1, &n, 1.0);
    int64_t m = 3;
    pl_dtype stat = dt == PL_F64 ? PL_F64 : PL_F32, x_dt = dt == PL_F32 && rms ? PL_BF16 : dt;
    pl_tensor *out = like(x, dt), *want = like(x, PL_F64), *mean, *rstd, *wmean, *wrstd;
    pl_tensor *before = check_tensor(x_dt, 2, x->shape, 1.0), *sum = like(x, dt);
    CHECK_OK(pl_tensor_empty(stat, 1, &m, &mean));
    CHECK_OK(pl_tensor_empty(stat, 1, &m, &rstd));
    CHECK_OK(pl_tensor_empty(PL_F64, 1, &m, &wmean));
    CHECK_OK(pl_tensor_empty(PL_F64, 1, &m, &wrstd));
    double tol = check_sum_eps(dt) * 64.0;  // 8 per thread, 8 levels of threads
    pl_row_norm_args f = {.rms = rms,
                          .eps = 1e-5,
                          .x = before,
                          .residual = x,
                          .sum = sum,
                          .w = w,
                          .out = out,
                          .mean = mean,
                          .rstd = rstd};
    CHECK_OK(host_row_norm(&f));
    pl_row_norm_args r = {
        .rms = rms, .eps = 1e-5, .x = sum, .w = w, .out = want, .mean = wmean, .rstd = wrstd};
    CHECK_OK(pl_kernels_ref()->norm(&r));
    check_close("norm", out, want, check_eps(dt) + tol, tol);
    r.x = before, r.residual = x, r.sum = like(x, dt);
    CHECK_OK(pl_kernels_ref()->norm(&r));
    check_same_bits("sum", sum, r.sum);
    pl_row_norm_grad_args b = {
        .rms = rms, .g = x, .x = sum, .w = w, .mean = mean, .rstd = rstd, .dx = out};
    CHECK_OK(host_row_norm_grad(&b));
    b.dx = want;
    CHECK_OK(pl_kernels_ref()->norm_grad(&b));
    check_close("dx", out, want, check_eps(dt) + tol, 8.0 * tol);
    CHECK_OK(host_softmax(false, x, out));
    CHECK_OK(pl_kernels_ref()->softmax(false, x, want));
    check_close("softmax", out, want, check_eps(dt) + tol, dt == PL_F16 ? 0x1p-25 : 0.0);
    pl_tensor *all[] = {x, w, out, want, mean, rstd, wmean, wrstd, before, sum, r.sum};
    for (int i = 0; i < 11; i++) pl_tensor_release(all[i]);
}

TEST(long_rows_agree_with_the_oracle) {
    static const pl_dtype dtypes[] = {PL_F32, PL_BF16, PL_F16, PL_F64};
    for (int d = 0; d < 4; d++) {
        long_rows(dtypes[d], 2000, false);
        long_rows(dtypes[d], 2001, true);
        long_rows(dtypes[d], 8200, d % 2 == 0);
    }
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

// SPDX-License-Identifier: Apache-2.0
// Tests of kernels/cpu/loss.c against the oracle: weights, smoothing, ignored rows, in place.
#include "kernels_check.h"

static const pl_dtype FLOATS[] = {PL_F32, PL_BF16, PL_F16, PL_F64};

typedef struct loss_case {
    pl_dtype dt;
    int64_t m, n;
    bool weighted, scalar_g, in_place;
    double smoothing;
} loss_case;

static pl_tensor *make_targets(int64_t m, int64_t n) {
    pl_tensor *t;
    CHECK_OK(pl_tensor_empty(PL_I64, 1, &m, &t));
    for (int64_t i = 0; i < m; i++) ((int64_t *)t->data)[i] = i % 5 == 3 ? -100 : (i * 7919) % n;
    return t;
}

static void check_gradient(const loss_case *c, pl_tensor *x, const pl_tensor *target,
                           const pl_tensor *w, const pl_tensor *lse, double tol) {
    pl_dtype real = c->dt == PL_F64 ? PL_F64 : PL_F32;
    pl_tensor *g, *dx, *want;
    if (c->scalar_g) {
        g = check_tensor(real, 0, NULL, 1.0);
    } else {
        g = check_tensor(real, 1, &c->m, 1.0);
    }
    CHECK_OK(pl_tensor_empty(PL_F64, 2, x->shape, &want));
    CHECK_OK(pl_kernels_ref()->cross_entropy_grad(g, x, target, w, lse, -100, c->smoothing, want));
    if (c->in_place) {
        dx = pl_tensor_retain(x);
    } else {
        CHECK_OK(pl_tensor_empty(c->dt, 2, x->shape, &dx));
    }
    CHECK_OK(pl_kernels_cpu()->cross_entropy_grad(g, x, target, w, lse, -100, c->smoothing, dx));
    check_close("cross_entropy_grad", dx, want, check_eps(c->dt) + tol,
                tol + (c->dt == PL_F16 ? 0x1p-25 : 0.0));
    pl_tensor_release(want);
    pl_tensor_release(dx);
    pl_tensor_release(g);
}

// lse is a sum of n exponentials, good to n eps; the logits reach 6, a loss some 20.
static void check_case(const loss_case *c) {
    pl_dtype real = c->dt == PL_F64 ? PL_F64 : PL_F32;
    double tol = check_sum_eps(c->dt) * (32.0 + 2.0 * (double)c->n);
    pl_tensor *x = check_tensor(c->dt, 2, (int64_t[]){c->m, c->n}, 6.0), *losses, *lse;
    pl_tensor *target = make_targets(c->m, c->n), *want, *want_lse, *w = NULL;
    if (c->weighted) {
        w = check_tensor(real, 1, &c->n, 1.0);
        for (int64_t i = 0; i < c->n; i++) check_set(w, i, fabs(check_get(w, i)));
    }
    CHECK_OK(pl_tensor_empty(real, 1, &c->m, &losses));
    CHECK_OK(pl_tensor_empty(real, 1, &c->m, &lse));
    CHECK_OK(pl_tensor_empty(PL_F64, 1, &c->m, &want));
    CHECK_OK(pl_tensor_empty(PL_F64, 1, &c->m, &want_lse));
    CHECK_OK(pl_kernels_ref()->cross_entropy(x, target, w, -100, c->smoothing, want, want_lse));
    CHECK_OK(pl_kernels_cpu()->cross_entropy(x, target, w, -100, c->smoothing, losses, lse));
    check_close("lse", lse, want_lse, tol, tol);
    check_close("cross_entropy", losses, want, tol, 4 * tol);
    check_gradient(c, x, target, w, lse, tol);
    pl_tensor_release(want_lse);
    pl_tensor_release(want);
    pl_tensor_release(lse);
    pl_tensor_release(losses);
    pl_tensor_release(w);
    pl_tensor_release(target);
    pl_tensor_release(x);
}

TEST(cross_entropy_agrees_with_the_oracle) {
    static const int64_t ns[] = {1, 3, 16, 65, 1030, 3000};
    for (size_t d = 0; d < sizeof FLOATS / sizeof *FLOATS; d++) {
        for (int i = 0; i < 6; i++) {
            for (int v = 0; v < 8; v++) {
                loss_case c = {FLOATS[d],    i == 5 ? 3 : 9,        ns[i], v & 1, (v & 2) != 0,
                               (v & 4) != 0, v % 3 == 0 ? 0.0 : 0.1};
                check_case(&c);
            }
        }
        check_case(&(loss_case){FLOATS[d], 0, 4, false, false, false, 0.0});
    }
}

// Logits with `before` elements in front of them and rows `more` elements longer than n: at any
// address, and with gaps, which nobody may write.
typedef struct fused_case {
    pl_dtype dt;
    int64_t m, n, before, more;
    int g;  // 0 none, 1 one number, 2 one a row
    bool weighted, losses;
    double smoothing;
} fused_case;

static pl_tensor *rows_of(const fused_case *c, const pl_tensor *from, pl_tensor **whole) {
    int64_t ld = c->n + c->more, size = c->before + c->m * ld;
    pl_tensor *rows;
    CHECK_OK(pl_tensor_empty(from->dtype, 1, &size, whole));
    for (int64_t i = 0; i < size; i++) check_set(*whole, i, 7.0);
    CHECK_OK(pl_tensor_as_strided(*whole, 2, (int64_t[]){c->m, c->n}, (int64_t[]){ld, 1}, c->before,
                                  &rows));
    CHECK_OK(pl_kernels_ref()->copy(from, rows));
    return rows;
}

static void check_gaps(const fused_case *c, const pl_tensor *whole) {
    for (int64_t i = 0; i < c->before; i++) CHECK_EQ((int)check_get(whole, i), 7);
    for (int64_t i = 0; i < c->m; i++) {
        for (int64_t j = 0; j < c->more; j++) {
            int64_t at = c->before + i * (c->n + c->more) + c->n + j;
            CHECK_EQ((int)check_get(whole, at), 7);
        }
    }
}

static void check_fused(const fused_case *c) {
    pl_dtype real = c->dt == PL_F64 ? PL_F64 : PL_F32;
    double tol = check_sum_eps(c->dt) * (32.0 + 2.0 * (double)c->n);
    pl_tensor *x = check_tensor(c->dt, 2, (int64_t[]){c->m, c->n}, 6.0), *whole, *want, *lse;
    pl_tensor *rows = rows_of(c, x, &whole), *target = make_targets(c->m, c->n), *losses, *want_l;
    pl_tensor *g = c->g == 0 ? NULL : check_tensor(real, c->g - 1, &c->m, 1.0), *w = NULL;
    if (c->weighted) w = check_tensor(real, 1, &c->n, 1.0);
    for (int64_t i = 0; w && i < c->n; i++) check_set(w, i, fabs(check_get(w, i)));
    CHECK_OK(pl_tensor_empty(PL_F64, 2, x->shape, &want));
    CHECK_OK(pl_kernels_ref()->copy(x, want));
    CHECK_OK(pl_tensor_empty(real, 1, &c->m, &losses));
    CHECK_OK(pl_tensor_empty(real, 1, &c->m, &lse));
    CHECK_OK(pl_tensor_empty(PL_F64, 1, &c->m, &want_l));
    const pl_kernels *ref = pl_kernels_ref(), *k = pl_kernels_cpu();
    CHECK_OK(ref->cross_entropy_fused(g, want, target, w, -100, c->smoothing, want_l));
    CHECK_OK(k->cross_entropy(rows, target, w, -100, c->smoothing, losses, lse));
    check_close("losses of rows apart", losses, want_l, tol, 4 * tol);
    CHECK_OK(
        k->cross_entropy_fused(g, rows, target, w, -100, c->smoothing, c->losses ? losses : NULL));
    check_close("losses", losses, want_l, tol, 4 * tol);
    check_close("cross_entropy_fused", rows, want, check_eps(c->dt) + tol,
                tol + (c->dt == PL_F16 ? 0x1p-25 : 0.0));
    check_gaps(c, whole);
    pl_tensor *all[] = {x, whole, want, lse, rows, target, losses, want_l, g, w};
    for (int i = 0; i < 10; i++) pl_tensor_release(all[i]);
}

TEST(fused_cross_entropy_agrees_with_the_oracle) {
    static const int64_t ns[] = {1, 7, 65, 700, 1031};
    for (size_t d = 0; d < sizeof FLOATS / sizeof *FLOATS; d++) {
        for (int i = 0; i < 5; i++) {
            for (int v = 0; v < 6; v++) {
                check_fused(&(fused_case){FLOATS[d], i == 4 ? 3 : 5, ns[i], v % 4, (v * 3) % 5,
                                          v % 3, v & 1, v != 4, v % 2 == 0 ? 0.0 : 0.1});
            }
        }
        check_fused(&(fused_case){FLOATS[d], 0, 4, 0, 0, 0, false, true, 0.0});
    }
}

TEST(a_vocabulary_in_one_row) {
    for (int d = 0; d < 2; d++) {
        check_fused(&(fused_case){FLOATS[d], 2, 16411, 1, 0, 2, false, true, 0.0});
    }
}

TEST(a_target_out_of_range_is_named) {
    pl_tensor *x = check_tensor(PL_F32, 2, (int64_t[]){2, 4}, 1.0), *losses;
    int64_t m = 2;
    pl_tensor *target;
    CHECK_OK(pl_tensor_empty(PL_I64, 1, &m, &target));
    CHECK_OK(pl_tensor_empty(PL_F32, 1, &m, &losses));
    int64_t *t = target->data;
    t[0] = 1, t[1] = 4;
    CHECK_FAILS(pl_kernels_cpu()->cross_entropy(x, target, NULL, -100, 0.0, losses, losses),
                PL_EINDEX, "got 4, expected [0, 4)");
    t[1] = -1;
    CHECK_FAILS(pl_kernels_cpu()->cross_entropy_grad(losses, x, target, NULL, losses, -100, 0.0, x),
                PL_EINDEX, "got -1");
    CHECK_FAILS(pl_kernels_cpu()->cross_entropy_fused(NULL, x, target, NULL, -100, 0.0, losses),
                PL_EINDEX, "got -1, expected [0, 4)");
    pl_tensor_release(losses);
    pl_tensor_release(target);
    pl_tensor_release(x);
}

TEST(infinities_travel) {
    pl_tensor *x = check_tensor(PL_F32, 2, (int64_t[]){4, 20}, 1.0), *losses, *lse, *want, *target;
    int64_t m = 4;
    CHECK_OK(pl_tensor_empty(PL_I64, 1, &m, &target));
    for (int64_t i = 0; i < m; i++) ((int64_t *)target->data)[i] = 2;
    check_set(x, 1, -INFINITY);   // a class that cannot be: harmless
    check_set(x, 22, -INFINITY);  // the target cannot be: loss inf
    check_set(x, 45, NAN);
    check_set(x, 66, INFINITY);
    CHECK_OK(pl_tensor_empty(PL_F32, 1, &m, &losses));
    CHECK_OK(pl_tensor_empty(PL_F32, 1, &m, &lse));
    CHECK_OK(pl_tensor_empty(PL_F64, 1, &m, &want));
    CHECK_OK(pl_kernels_ref()->cross_entropy(x, target, NULL, -100, 0.0, want, lse));
    CHECK_OK(pl_kernels_cpu()->cross_entropy(x, target, NULL, -100, 0.0, losses, lse));
    check_close("cross_entropy", losses, want, 64 * check_sum_eps(PL_F32), 0.0);
    CHECK_OK(pl_kernels_cpu()->cross_entropy_fused(NULL, x, target, NULL, -100, 0.0, losses));
    check_close("cross_entropy_fused", losses, want, 64 * check_sum_eps(PL_F32), 0.0);
    pl_tensor_release(want);
    pl_tensor_release(lse);
    pl_tensor_release(losses);
    pl_tensor_release(target);
    pl_tensor_release(x);
}

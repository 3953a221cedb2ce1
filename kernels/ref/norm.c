// SPDX-License-Identifier: Apache-2.0
// The oracle's layer norm over the last dimension of a contiguous (M, N), in double.

#include "ref/ref.h"

pl_status pl_ref_layer_norm(const pl_tensor *x, const pl_tensor *w, const pl_tensor *b, double eps,
                            pl_tensor *out, pl_tensor *mean, pl_tensor *rstd) {
    int64_t rows = ref_rows(x), n = ref_last(x);
    for (int64_t i = 0; i < rows; i++) {
        double sum = 0.0, squares = 0.0;
        for (int64_t j = 0; j < n; j++) sum += ref_get(x, i * n + j);
        double mu = sum / (double)n;
        for (int64_t j = 0; j < n; j++) {
            double d = ref_get(x, i * n + j) - mu;
            squares += d * d;
        }
        double r = 1.0 / sqrt(squares / (double)n + eps);
        ref_set(mean, i, mu);
        ref_set(rstd, i, r);
        for (int64_t j = 0; j < n; j++) {
            double y = (ref_get(x, i * n + j) - mu) * r;
            if (w != NULL) y *= ref_get(w, j);
            if (b != NULL) y += ref_get(b, j);
            ref_set(out, i * n + j, y);
        }
    }
    return PL_OK;
}

// One column of dw and db.
static void grad_column(const pl_tensor *g, const pl_tensor *x, const pl_tensor *mean,
                        const pl_tensor *rstd, int64_t j, double *dw, double *db) {
    int64_t rows = ref_rows(x), n = ref_last(x);
    *dw = *db = 0.0;
    for (int64_t i = 0; i < rows; i++) {
        double xhat = (ref_get(x, i * n + j) - ref_get(mean, i)) * ref_get(rstd, i);
        *dw += ref_get(g, i * n + j) * xhat;
        *db += ref_get(g, i * n + j);
    }
}

// One row of dx: rstd * (gw - mean(gw) - xhat * mean(gw * xhat)) with gw = g * w.
static void grad_row(const pl_tensor *g, const pl_tensor *x, const pl_tensor *w, double mu,
                     double r, int64_t i, pl_tensor *dx) {
    int64_t n = ref_last(x);
    double sum = 0.0, dot = 0.0;
    for (int64_t j = 0; j < n; j++) {
        double gw = ref_get(g, i * n + j) * (w != NULL ? ref_get(w, j) : 1.0);
        sum += gw;
        dot += gw * (ref_get(x, i * n + j) - mu) * r;
    }
    for (int64_t j = 0; j < n; j++) {
        double gw = ref_get(g, i * n + j) * (w != NULL ? ref_get(w, j) : 1.0);
        double xhat = (ref_get(x, i * n + j) - mu) * r;
        ref_set(dx, i * n + j, r * (gw - sum / (double)n - xhat * dot / (double)n));
    }
}

pl_status pl_ref_layer_norm_grad(const pl_tensor *g, const pl_tensor *x, const pl_tensor *w,
                                 const pl_tensor *mean, const pl_tensor *rstd, pl_tensor *dx,
                                 pl_tensor *dw, bool accumulate_w, pl_tensor *db,
                                 bool accumulate_b) {
    int64_t rows = ref_rows(x), n = ref_last(x);
    for (int64_t j = 0; j < n && (dw != NULL || db != NULL); j++) {
        double sum_w, sum_b;
        grad_column(g, x, mean, rstd, j, &sum_w, &sum_b);
        if (dw != NULL) ref_set(dw, j, sum_w + (accumulate_w ? ref_get(dw, j) : 0.0));
        if (db != NULL) ref_set(db, j, sum_b + (accumulate_b ? ref_get(db, j) : 0.0));
    }
    for (int64_t i = 0; i < rows && dx != NULL; i++) {
        grad_row(g, x, w, ref_get(mean, i), ref_get(rstd, i), i, dx);
    }
    return PL_OK;
}

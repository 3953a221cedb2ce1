// SPDX-License-Identifier: Apache-2.0
// The oracle's layer norm and RMS norm over the last dimension of a contiguous (M, N), in double.

#include "ref/ref.h"

static double mean_of(const pl_tensor *x, int64_t at, int64_t n) {
    double sum = 0.0;
    for (int64_t j = 0; j < n; j++) sum += ref_get(x, at + j);
    return sum / (double)n;
}

static void norm_row(const pl_row_norm_args *a, const pl_tensor *x, int64_t i, int64_t n) {
    double mu = a->rms ? 0.0 : mean_of(x, i * n, n), squares = 0.0;
    for (int64_t j = 0; j < n; j++) {
        double d = ref_get(x, i * n + j) - mu;
        squares += d * d;
    }
    double r = 1.0 / sqrt(squares / (double)n + a->eps);
    if (!a->rms) ref_set(a->mean, i, mu);
    ref_set(a->rstd, i, r);
    for (int64_t j = 0; j < n; j++) {
        double y = (ref_get(x, i * n + j) - mu) * r;
        if (a->w != NULL) y *= ref_get(a->w, j);
        if (a->b != NULL) y += ref_get(a->b, j);
        ref_set(a->out, i * n + j, y);
    }
}

pl_status pl_ref_norm(const pl_row_norm_args *a) {
    int64_t rows = ref_rows(a->x), n = ref_last(a->x);
    const pl_tensor *x = a->residual != NULL ? a->sum : a->x;
    for (int64_t i = 0; i < rows * n && a->residual != NULL; i++) {
        ref_set(a->sum, i, ref_get(a->x, i) + ref_get(a->residual, i));
    }
    for (int64_t i = 0; i < rows; i++) norm_row(a, x, i, n);
    return PL_OK;
}

static double mu_of(const pl_row_norm_grad_args *a, int64_t i) {
    return a->rms ? 0.0 : ref_get(a->mean, i);
}

// One column of dw and db.
static void grad_column(const pl_row_norm_grad_args *a, int64_t j, double *dw, double *db) {
    int64_t rows = ref_rows(a->x), n = ref_last(a->x);
    *dw = *db = 0.0;
    for (int64_t i = 0; i < rows; i++) {
        double xhat = (ref_get(a->x, i * n + j) - mu_of(a, i)) * ref_get(a->rstd, i);
        *dw += ref_get(a->g, i * n + j) * xhat;
        *db += ref_get(a->g, i * n + j);
    }
}

// One row of dx: rstd * (gw - mean(gw) - xhat * mean(gw * xhat)) with gw = g * w; RMS without
// mean(gw).
static void grad_row(const pl_row_norm_grad_args *a, int64_t i) {
    int64_t n = ref_last(a->x);
    double mu = mu_of(a, i), r = ref_get(a->rstd, i), sum = 0.0, dot = 0.0;
    for (int64_t j = 0; j < n; j++) {
        double gw = ref_get(a->g, i * n + j) * (a->w != NULL ? ref_get(a->w, j) : 1.0);
        sum += gw;
        dot += gw * (ref_get(a->x, i * n + j) - mu) * r;
    }
    if (a->rms) sum = 0.0;
    for (int64_t j = 0; j < n; j++) {
        double gw = ref_get(a->g, i * n + j) * (a->w != NULL ? ref_get(a->w, j) : 1.0);
        double xhat = (ref_get(a->x, i * n + j) - mu) * r;
        double dx = r * (gw - sum / (double)n - xhat * dot / (double)n);
        ref_set(a->dx, i * n + j, dx + (a->accumulate_x ? ref_get(a->dx, i * n + j) : 0.0));
    }
}

pl_status pl_ref_norm_grad(const pl_row_norm_grad_args *a) {
    int64_t rows = ref_rows(a->x), n = ref_last(a->x);
    for (int64_t j = 0; j < n && (a->dw != NULL || a->db != NULL); j++) {
        double dw, db;
        grad_column(a, j, &dw, &db);
        if (a->dw != NULL) ref_set(a->dw, j, dw + (a->accumulate_w ? ref_get(a->dw, j) : 0.0));
        if (a->db != NULL) ref_set(a->db, j, db + (a->accumulate_b ? ref_get(a->db, j) : 0.0));
    }
    for (int64_t i = 0; i < rows && a->dx != NULL; i++) grad_row(a, i);
    return PL_OK;
}

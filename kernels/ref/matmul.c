// SPDX-License-Identifier: Apache-2.0
// The oracle's matrix products: the textbook triple loop in double, any strides.

#include "ref/ref.h"

// Element (i, j) of the product at one batch index, whose offsets are in ao and bo.
static double dot(const pl_tensor *a, int64_t ao, int64_t i, const pl_tensor *b, int64_t bo,
                  int64_t j) {
    int n = a->ndim;
    double sum = 0.0;
    for (int64_t k = 0; k < a->shape[n - 1]; k++) {
        sum += ref_get(a, ao + i * a->strides[n - 2] + k * a->strides[n - 1]) *
               ref_get(b, bo + k * b->strides[n - 2] + j * b->strides[n - 1]);
    }
    return sum;
}

pl_status pl_ref_matmul(const pl_tensor *a, const pl_tensor *b, bool accumulate, pl_tensor *out) {
    if (out->numel == 0) return PL_OK;
    int n = out->ndim;
    int64_t batch[PL_MAX_DIMS] = {0};
    do {
        int64_t ao = ref_offset(a, batch), bo = ref_offset(b, batch), oo = ref_offset(out, batch);
        for (int64_t i = 0; i < out->shape[n - 2]; i++) {
            for (int64_t j = 0; j < out->shape[n - 1]; j++) {
                int64_t o = oo + i * out->strides[n - 2] + j * out->strides[n - 1];
                double before = accumulate ? ref_get(out, o) : 0.0;
                ref_set(out, o, before + dot(a, ao, i, b, bo, j));
            }
        }
    } while (ref_next(n - 2, out->shape, batch));
    return PL_OK;
}

pl_status pl_ref_linear(const pl_tensor *x, const pl_tensor *w, const pl_tensor *bias,
                        pl_activation act, pl_tensor *preact, pl_tensor *out) {
    for (int64_t i = 0; i < out->shape[0]; i++) {
        for (int64_t j = 0; j < out->shape[1]; j++) {
            double sum = bias != NULL ? ref_get(bias, j * bias->strides[0]) : 0.0;
            for (int64_t k = 0; k < x->shape[1]; k++) {
                sum += ref_get(x, i * x->strides[0] + k * x->strides[1]) *
                       ref_get(w, j * w->strides[0] + k * w->strides[1]);
            }
            int64_t o = i * out->strides[0] + j * out->strides[1];
            if (preact != NULL) ref_set(preact, o, sum);
            ref_set(out, o, pl_ref_activation(act, sum));
        }
    }
    return PL_OK;
}

pl_status pl_ref_linear_grad(const pl_tensor *g, const pl_tensor *x, pl_tensor *dw,
                             bool accumulate_w, pl_tensor *db, bool accumulate_b) {
    for (int64_t n = 0; n < db->shape[0]; n++) {
        double total = accumulate_b ? ref_get(db, n) : 0.0;
        for (int64_t m = 0; m < g->shape[0]; m++) {
            total += ref_get(g, m * g->strides[0] + n * g->strides[1]);
        }
        ref_set(db, n, total);
        for (int64_t k = 0; k < x->shape[1]; k++) {
            int64_t o = n * dw->strides[0] + k * dw->strides[1];
            double sum = accumulate_w ? ref_get(dw, o) : 0.0;
            for (int64_t m = 0; m < g->shape[0]; m++) {
                sum += ref_get(g, m * g->strides[0] + n * g->strides[1]) *
                       ref_get(x, m * x->strides[0] + k * x->strides[1]);
            }
            ref_set(dw, o, sum);
        }
    }
    return PL_OK;
}

pl_status pl_ref_linear_grad_gelu(const pl_tensor *g, const pl_tensor *w, const pl_tensor *x,
                                  pl_tensor *dx) {
    for (int64_t i = 0; i < dx->shape[0]; i++) {
        for (int64_t j = 0; j < dx->shape[1]; j++) {
            double slope = pl_ref_gelu_tanh_slope(ref_get(x, i * x->strides[0] + j));
            ref_set(dx, i * dx->strides[0] + j, dot(g, 0, i, w, 0, j) * slope);
        }
    }
    return PL_OK;
}

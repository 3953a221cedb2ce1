// SPDX-License-Identifier: Apache-2.0
// The oracle's cross-entropy over rows of logits (M, C), in double.

#include "ref/ref.h"

static double weight_of(const pl_tensor *weight, int64_t c) {
    return weight == NULL ? 1.0 : ref_get(weight, c * weight->strides[0]);
}

static double log_sum_exp(const pl_tensor *x, int64_t row, int64_t classes) {
    double top = -INFINITY, sum = 0.0;
    for (int64_t c = 0; c < classes; c++) top = fmax(top, ref_get(x, row * classes + c));
    if (isinf(top)) return top;
    for (int64_t c = 0; c < classes; c++) sum += exp(ref_get(x, row * classes + c) - top);
    return top + log(sum);
}

static pl_status check_target(int64_t t, int64_t ignore_index, int64_t classes) {
    if (t == ignore_index || (t >= 0 && t < classes)) return PL_OK;
    return pl_fail(PL_EINDEX, "[cross_entropy] target out of range: got %lld, expected [0, %lld)",
                   (long long)t, (long long)classes);
}

pl_status pl_ref_cross_entropy(const pl_tensor *logits, const pl_tensor *target,
                               const pl_tensor *weight, int64_t ignore_index,
                               double label_smoothing, pl_tensor *losses, pl_tensor *lse) {
    int64_t classes = ref_last(logits), rows = target->numel;
    for (int64_t i = 0; i < rows; i++) {
        int64_t t = ref_get_int(target, i);
        PL_TRY(check_target(t, ignore_index, classes));
        double l = log_sum_exp(logits, i, classes), loss = 0.0;
        ref_set(lse, i, l);
        if (t != ignore_index) {
            loss = (1.0 - label_smoothing) * weight_of(weight, t) *
                   (l - ref_get(logits, i * classes + t));
        }
        for (int64_t c = 0; c < classes && t != ignore_index && label_smoothing != 0.0; c++) {
            loss += label_smoothing / (double)classes * weight_of(weight, c) *
                    (l - ref_get(logits, i * classes + c));
        }
        ref_set(losses, i, loss);
    }
    return PL_OK;
}

pl_status pl_ref_cross_entropy_grad(const pl_tensor *g, const pl_tensor *logits,
                                    const pl_tensor *target, const pl_tensor *weight,
                                    const pl_tensor *lse, int64_t ignore_index,
                                    double label_smoothing, pl_tensor *dlogits) {
    int64_t classes = ref_last(logits), rows = target->numel;
    double total = 0.0, smooth = label_smoothing / (double)classes;
    for (int64_t c = 0; c < classes; c++) total += weight_of(weight, c);
    for (int64_t i = 0; i < rows; i++) {
        int64_t t = ref_get_int(target, i);
        PL_TRY(check_target(t, ignore_index, classes));
        double gi = ref_get(g, g->ndim == 0 ? 0 : i * g->strides[0]);
        for (int64_t c = 0; c < classes; c++) {
            double d = 0.0;
            if (t != ignore_index) {
                double p = exp(ref_get(logits, i * classes + c) - ref_get(lse, i));
                d = (1.0 - label_smoothing) * weight_of(weight, t) * (p - (c == t)) +
                    smooth * (total * p - weight_of(weight, c));
            }
            ref_set(dlogits, i * classes + c, t == ignore_index ? 0.0 : gi * d);
        }
    }
    return PL_OK;
}

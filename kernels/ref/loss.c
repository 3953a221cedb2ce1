// SPDX-License-Identifier: Apache-2.0
// The oracle's cross-entropy over rows of logits (M, C), in double.

#include "ref/ref.h"

static double weight_of(const pl_tensor *weight, int64_t c) {
    return weight == NULL ? 1.0 : ref_get(weight, c * weight->strides[0]);
}

// One row's arguments; its elements start at x[at].
typedef struct row {
    const pl_tensor *x, *weight;
    int64_t at, classes, t;
    double smoothing;
} row;

static double log_sum_exp(const row *r) {
    double top = -INFINITY, sum = 0.0;
    for (int64_t c = 0; c < r->classes; c++) top = fmax(top, ref_get(r->x, r->at + c));
    if (isinf(top)) return top;
    for (int64_t c = 0; c < r->classes; c++) sum += exp(ref_get(r->x, r->at + c) - top);
    return top + log(sum);
}

static double row_loss(const row *r, double lse) {
    double loss =
        (1.0 - r->smoothing) * weight_of(r->weight, r->t) * (lse - ref_get(r->x, r->at + r->t));
    for (int64_t c = 0; c < r->classes && r->smoothing != 0.0; c++) {
        loss += r->smoothing / (double)r->classes * weight_of(r->weight, c) *
                (lse - ref_get(r->x, r->at + c));
    }
    return loss;
}

// d(loss) / dx[c]; total is the sum of all classes' weights.
static double slope(const row *r, double lse, double total, int64_t c) {
    double p = exp(ref_get(r->x, r->at + c) - lse);
    return (1.0 - r->smoothing) * weight_of(r->weight, r->t) * (p - (c == r->t)) +
           r->smoothing / (double)r->classes * (total * p - weight_of(r->weight, c));
}

static pl_status check_target(int64_t t, int64_t ignore_index, int64_t classes) {
    if (t == ignore_index || (t >= 0 && t < classes)) return PL_OK;
    return pl_fail(PL_EINDEX, "[cross_entropy] target out of range: got %lld, expected [0, %lld)",
                   (long long)t, (long long)classes);
}

static double weight_total(const pl_tensor *weight, int64_t classes) {
    double total = 0.0;
    for (int64_t c = 0; c < classes; c++) total += weight_of(weight, c);
    return total;
}

pl_status pl_ref_cross_entropy(const pl_tensor *logits, const pl_tensor *target,
                               const pl_tensor *weight, int64_t ignore_index,
                               double label_smoothing, pl_tensor *losses, pl_tensor *lse) {
    int64_t classes = ref_last(logits);
    for (int64_t i = 0; i < target->numel; i++) {
        row r = {.x = logits, .weight = weight, .classes = classes, .smoothing = label_smoothing};
        r.at = i * logits->strides[0];
        r.t = ref_get_int(target, i);
        PL_TRY(check_target(r.t, ignore_index, classes));
        double l = log_sum_exp(&r);
        ref_set(lse, i, l);
        ref_set(losses, i, r.t == ignore_index ? 0.0 : row_loss(&r, l));
    }
    return PL_OK;
}

pl_status pl_ref_cross_entropy_grad(const pl_tensor *g, const pl_tensor *logits,
                                    const pl_tensor *target, const pl_tensor *weight,
                                    const pl_tensor *lse, int64_t ignore_index,
                                    double label_smoothing, pl_tensor *dlogits) {
    int64_t classes = ref_last(logits);
    double total = weight_total(weight, classes);
    for (int64_t i = 0; i < target->numel; i++) {
        row r = {.x = logits, .weight = weight, .classes = classes, .smoothing = label_smoothing};
        r.at = i * classes;
        r.t = ref_get_int(target, i);
        PL_TRY(check_target(r.t, ignore_index, classes));
        double gi = ref_get(g, g->ndim == 0 ? 0 : i * g->strides[0]);
        for (int64_t c = 0; c < classes; c++) {
            double d = r.t == ignore_index ? 0.0 : gi * slope(&r, ref_get(lse, i), total, c);
            ref_set(dlogits, r.at + c, d);
        }
    }
    return PL_OK;
}

pl_status pl_ref_cross_entropy_fused(const pl_tensor *g, pl_tensor *logits, const pl_tensor *target,
                                     const pl_tensor *weight, int64_t ignore_index,
                                     double label_smoothing, pl_tensor *losses) {
    int64_t classes = ref_last(logits);
    double total = weight_total(weight, classes);
    for (int64_t i = 0; i < target->numel; i++) {
        row r = {.x = logits, .weight = weight, .classes = classes, .smoothing = label_smoothing};
        r.at = i * logits->strides[0];
        r.t = ref_get_int(target, i);
        PL_TRY(check_target(r.t, ignore_index, classes));
        bool used = r.t != ignore_index;
        double gi = g == NULL ? 1.0 : ref_get(g, g->ndim == 0 ? 0 : i * g->strides[0]);
        double l = log_sum_exp(&r);
        if (losses != NULL) ref_set(losses, i, used ? row_loss(&r, l) : 0.0);
        for (int64_t c = 0; c < classes; c++) {
            ref_set(logits, r.at + c, used ? gi * slope(&r, l, total, c) : 0.0);
        }
    }
    return PL_OK;
}

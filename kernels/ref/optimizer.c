// SPDX-License-Identifier: Apache-2.0
// The oracle's optimizer updates over runs of n elements: PyTorch's formulas in double, each state
// rounded when it is stored.

#include "ref/ref.h"

// A run as a tensor, so that ref_get and ref_set serve.
static pl_tensor run_of(pl_dtype dt, int64_t n, const void *data) {
    pl_tensor t = {.dtype = dt, .ndim = 1, .shape = {n}, .strides = {1}, .numel = n};
    memcpy(&t.data, &data, sizeof(data));
    return t;
}

static void note(int *nonfinite, double g) {
    if (nonfinite && !isfinite(g)) *nonfinite = 1;
}

pl_status pl_ref_adam(const pl_adam_args *args, pl_dtype dt, int64_t n, void *p, const void *g,
                      void *m, void *v) {
    pl_tensor tp = run_of(dt, n, p), tg = run_of(dt, n, g), tm = run_of(dt, n, m),
              tv = run_of(dt, n, v);
    for (int64_t i = 0; i < n; i++) {
        double param = ref_get(&tp, i), grad = ref_get(&tg, i) * args->grad_scale;
        note(args->nonfinite, ref_get(&tg, i));
        if (args->maximize) grad = -grad;
        if (args->decoupled) {
            param *= 1.0 - args->lr * args->weight_decay;
        } else {
            grad += args->weight_decay * param;
        }
        double m1 = args->beta1 * ref_get(&tm, i) + (1.0 - args->beta1) * grad;
        double v1 = args->beta2 * ref_get(&tv, i) + (1.0 - args->beta2) * grad * grad;
        double denom = sqrt(v1) / sqrt(args->bias2) + args->eps;
        ref_set(&tm, i, m1);
        ref_set(&tv, i, v1);
        ref_set(&tp, i, param - args->lr / args->bias1 * m1 / denom);
    }
    return PL_OK;
}

pl_status pl_ref_sgd(const pl_sgd_args *args, pl_dtype dt, int64_t n, void *p, const void *g,
                     void *momentum) {
    pl_tensor tp = run_of(dt, n, p), tg = run_of(dt, n, g), tb = run_of(dt, n, momentum);
    for (int64_t i = 0; i < n; i++) {
        double param = ref_get(&tp, i), grad = ref_get(&tg, i) * args->grad_scale;
        note(args->nonfinite, ref_get(&tg, i));
        if (args->maximize) grad = -grad;
        grad += args->weight_decay * param;
        if (args->momentum != 0.0) {
            double buf = args->first
                             ? grad
                             : args->momentum * ref_get(&tb, i) + (1.0 - args->dampening) * grad;
            ref_set(&tb, i, buf);
            grad = args->nesterov ? grad + args->momentum * buf : buf;
        }
        ref_set(&tp, i, param - args->lr * grad);
    }
    return PL_OK;
}

pl_status pl_ref_unscale(pl_dtype dt, int64_t n, void *g, double factor, int *nonfinite) {
    pl_tensor t = run_of(dt, n, g);
    for (int64_t i = 0; i < n; i++) {
        double x = ref_get(&t, i);
        note(nonfinite, x);
        if (factor != 1.0) ref_set(&t, i, x * factor);
    }
    return PL_OK;
}

// SPDX-License-Identifier: Apache-2.0
// The oracle's softmax and log-softmax over the last dimension of contiguous tensors, in double.

#include "ref/ref.h"

pl_status pl_ref_softmax(bool log_form, const pl_tensor *x, pl_tensor *out) {
    int64_t rows = x->numel == 0 ? 0 : ref_rows(x), n = ref_last(x);
    for (int64_t i = 0; i < rows; i++) {
        double top = -INFINITY, sum = 0.0;
        for (int64_t j = 0; j < n; j++) top = fmax(top, ref_get(x, i * n + j));
        for (int64_t j = 0; j < n; j++) sum += exp(ref_get(x, i * n + j) - top);
        for (int64_t j = 0; j < n; j++) {
            double d = ref_get(x, i * n + j) - top;
            ref_set(out, i * n + j, log_form ? d - log(sum) : exp(d) / sum);
        }
    }
    return PL_OK;
}

pl_status pl_ref_softmax_grad(bool log_form, const pl_tensor *g, const pl_tensor *y,
                              pl_tensor *dx) {
    int64_t rows = y->numel == 0 ? 0 : ref_rows(y), n = ref_last(y);
    for (int64_t i = 0; i < rows; i++) {
        double sum = 0.0;
        for (int64_t j = 0; j < n; j++) {
            sum += ref_get(g, i * n + j) * (log_form ? 1.0 : ref_get(y, i * n + j));
        }
        for (int64_t j = 0; j < n; j++) {
            double gj = ref_get(g, i * n + j), yj = ref_get(y, i * n + j);
            ref_set(dx, i * n + j, log_form ? gj - exp(yj) * sum : yj * (gj - sum));
        }
    }
    return PL_OK;
}

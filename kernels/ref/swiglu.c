// SPDX-License-Identifier: Apache-2.0
// The oracle's SwiGLU: silu(gate) * up of rows that hold gate, then up; in double.

#include "ref/ref.h"

pl_status pl_ref_swiglu(const pl_tensor *x, pl_tensor *out) {
    int64_t n = ref_last(out), rows = ref_rows(out);
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < n; j++) {
            int64_t at = i * 2 * n + j;
            ref_set(out, i * n + j, pl_ref_silu(ref_get(x, at)) * ref_get(x, at + n));
        }
    }
    return PL_OK;
}

pl_status pl_ref_swiglu_grad(const pl_tensor *g, const pl_tensor *x, pl_tensor *dx) {
    int64_t n = ref_last(g), rows = ref_rows(g);
    for (int64_t i = 0; i < rows; i++) {
        for (int64_t j = 0; j < n; j++) {
            int64_t at = i * 2 * n + j;
            double gate = ref_get(x, at), up = ref_get(x, at + n), gi = ref_get(g, i * n + j);
            ref_set(dx, at, gi * up * pl_ref_silu_slope(gate));
            ref_set(dx, at + n, gi * pl_ref_silu(gate));
        }
    }
    return PL_OK;
}

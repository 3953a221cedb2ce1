// SPDX-License-Identifier: Apache-2.0
// vector: see vector.h.
#include "vector.h"

#include "cpu.h"

pl_status pl__vector_init(const pl_tensor *t, pl_dtype dt, pl_vector *out) {
    *out = (pl_vector){NULL, NULL};
    if (!t) return PL_OK;
    out->data = t->data;
    if (t->dtype == dt && (t->numel <= 1 || t->strides[t->ndim - 1] == 1)) return PL_OK;
    PL_TRY(pl_tensor_empty(dt, t->ndim, t->shape, &out->owned));
    out->data = out->owned->data;
    return pl_cpu_copy(t, out->owned);
}

pl_status pl__vector_init_const(int64_t n, double value, pl_dtype dt, pl_vector *out) {
    *out = (pl_vector){NULL, NULL};
    PL_TRY(pl_tensor_empty(dt, 1, &n, &out->owned));
    out->data = out->owned->data;
    return pl_cpu_fill(out->owned, value);
}

void pl__vector_deinit(pl_vector *v) { pl_tensor_release(v->owned); }

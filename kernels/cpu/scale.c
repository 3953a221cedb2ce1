// SPDX-License-Identifier: Apache-2.0
// scale: factor * x, written or added. The loop is scale_body.h.
#include "cpu.h"
#include "rows.h"

pl_status pl_cpu_scale(const pl_tensor *x, const pl_tensor *factor, bool accumulate,
                       pl_tensor *out) {
    bool wide = x->dtype == PL_F64;
    pl_scale_job job = {.x = x->data, .out = out->data, .n = x->numel, .dt = x->dtype};
    job.add = accumulate;
    job.factor = wide ? *(const double *)factor->data : (double)*(const float *)factor->data;
    if (job.factor == 1.0 && !accumulate && x->data == out->data) return PL_OK;
    int64_t chunks = (x->numel + PL_SCALE_CHUNK - 1) / PL_SCALE_CHUNK;
    pl_parallel_for(chunks, 4, pl__rows()->scale[wide], &job);
    return PL_OK;
}

// SPDX-License-Identifier: Apache-2.0
// rotary: walks the heads in the order in which x lies in memory, positions or heads outside. The
// loop is rotary_body.h.
#include "cpu.h"
#include "rows.h"

pl_status pl_cpu_rotary(const pl_tensor *x, const pl_tensor *cosine, const pl_tensor *sine,
                        int64_t first, bool back, pl_tensor *out) {
    if (x->numel == 0) return PL_OK;
    pl_rotary_job job = {.x = x->data,
                         .out = out->data,
                         .cosine = cosine->data,
                         .sine = sine->data,
                         .half = x->shape[3] / 2,
                         .first = first,
                         .x_step = x->strides[3],
                         .out_step = out->strides[3],
                         .back = back,
                         .dt = x->dtype};
    bool heads_outside = x->strides[2] > x->strides[1];
    const int order[3] = {0, heads_outside ? 2 : 1, heads_outside ? 1 : 2};
    for (int i = 0; i < 3; i++) {
        int d = order[i];
        job.size[i] = x->shape[d];
        job.x_strides[i] = x->strides[d];
        job.out_strides[i] = out->strides[d];
        job.angle_strides[i] = d == 1 ? job.half : 0;
    }
    int64_t grain = 1 + 4096 / job.half;
    pl_parallel_for(x->numel / x->shape[3], grain, pl__rows()->rotary[x->dtype == PL_F64], &job);
    return PL_OK;
}

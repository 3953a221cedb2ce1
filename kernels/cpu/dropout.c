// SPDX-License-Identifier: Apache-2.0
// dropout: keeps what ref/random.c's stream keeps. The loop is dropout_body.h.
#include "cpu.h"
#include "rows.h"

pl_status pl_cpu_dropout(const pl_tensor *x, double p, uint64_t seed, uint64_t offset,
                         pl_tensor *out) {
    pl_dropout_job job = {.x = x->data,
                          .out = out->data,
                          .n = x->numel,
                          .p = p,
                          .seed = seed,
                          .offset = offset,
                          .dt = x->dtype};
    int64_t chunks = (x->numel + PL_DROPOUT_CHUNK - 1) / PL_DROPOUT_CHUNK;
    pl_parallel_for(chunks, 8, pl__rows()->dropout[x->dtype == PL_F64], &job);
    return PL_OK;
}

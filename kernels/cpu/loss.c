// SPDX-License-Identifier: Apache-2.0
// loss: cross-entropy of rows of logits, and its gradient. Targets are checked first, since the
// parallel loops (loss_body.h) cannot fail.
#include "cpu.h"
#include "rows.h"
#include "vector.h"

static pl_status check_targets(const pl_tensor *target, int64_t ignore_index, int64_t classes) {
    const int64_t *t = target->data;
    int64_t step = target->ndim == 0 ? 1 : target->strides[0];
    for (int64_t i = 0; i < target->numel; i++) {
        int64_t v = t[i * step];
        if (PL_UNLIKELY((v < 0 || v >= classes) && v != ignore_index)) {
            return pl_fail(PL_EINDEX,
                           "[cross_entropy] target out of range: got %lld, expected "
                           "[0, %lld)",
                           (long long)v, (long long)classes);
        }
    }
    return PL_OK;
}

static double weight_total(const pl_vector *w, pl_dtype dr, int64_t n) {
    double total = 0.0;
    for (int64_t c = 0; c < n; c++) {
        total += !w->data       ? 1.0
                 : dr == PL_F64 ? ((const double *)w->data)[c]
                                : (double)((const float *)w->data)[c];
    }
    return total;
}

static pl_loss_job make_job(const pl_tensor *logits, const pl_tensor *target, int64_t ignore_index,
                            double smoothing) {
    return (pl_loss_job){.logits = logits->data,
                         .target = target->data,
                         .target_stride = target->ndim == 0 ? 1 : target->strides[0],
                         .ignore_index = ignore_index,
                         .n = logits->shape[logits->ndim - 1],
                         .ld = logits->strides[0],
                         .smoothing = smoothing,
                         .dt = logits->dtype};
}

static int64_t step_of(const pl_tensor *g) {
    return g->ndim == 0 || g->numel == 1 ? 0 : g->strides[0];
}

static int64_t row_grain(int64_t n) { return n >= 4096 ? 1 : 4096 / (n > 0 ? n : 1); }

pl_status pl_cpu_cross_entropy(const pl_tensor *logits, const pl_tensor *target,
                               const pl_tensor *weight, int64_t ignore_index,
                               double label_smoothing, pl_tensor *losses, pl_tensor *lse) {
    bool wide = logits->dtype == PL_F64;
    pl_loss_job job = make_job(logits, target, ignore_index, label_smoothing);
    PL_TRY(check_targets(target, ignore_index, job.n));
    pl_vector w;
    pl_status st = pl__vector_init(weight, wide ? PL_F64 : PL_F32, &w);
    if (st == PL_OK) {
        job.weight = w.data;
        job.losses = losses->data;
        job.lse = lse->data;
        pl_parallel_for(target->numel, row_grain(job.n), pl__rows()->cross_entropy[wide], &job);
    }
    pl__vector_deinit(&w);
    return st;
}

pl_status pl_cpu_cross_entropy_grad(const pl_tensor *g, const pl_tensor *logits,
                                    const pl_tensor *target, const pl_tensor *weight,
                                    const pl_tensor *lse, int64_t ignore_index,
                                    double label_smoothing, pl_tensor *dlogits) {
    bool wide = logits->dtype == PL_F64;
    pl_dtype dr = wide ? PL_F64 : PL_F32;
    pl_loss_job job = make_job(logits, target, ignore_index, label_smoothing);
    PL_TRY(check_targets(target, ignore_index, job.n));
    pl_vector w = {0};
    pl_status st = pl__vector_init(weight, dr, &w);
    if (st == PL_OK) {
        job.weight = w.data;
        job.weight_sum = label_smoothing != 0.0 ? weight_total(&w, dr, job.n) : 0.0;
        job.lse = lse->data;
        job.g = g->data;
        job.g_stride = step_of(g);
        job.dlogits = dlogits->data;
        pl_parallel_for(target->numel, row_grain(job.n), pl__rows()->cross_entropy_grad[wide],
                        &job);
    }
    pl__vector_deinit(&w);
    return st;
}

pl_status pl_cpu_cross_entropy_fused(const pl_tensor *g, pl_tensor *logits, const pl_tensor *target,
                                     const pl_tensor *weight, int64_t ignore_index,
                                     double label_smoothing, pl_tensor *losses) {
    bool wide = logits->dtype == PL_F64;
    pl_dtype dr = wide ? PL_F64 : PL_F32;
    pl_loss_job job = make_job(logits, target, ignore_index, label_smoothing);
    PL_TRY(check_targets(target, ignore_index, job.n));
    pl_vector w = {0};
    PL_TRY(pl__vector_init(weight, dr, &w));
    job.weight = w.data;
    job.weight_sum = label_smoothing != 0.0 ? weight_total(&w, dr, job.n) : 0.0;
    job.losses = losses ? losses->data : NULL;
    job.g = g ? g->data : NULL;
    job.g_stride = g ? step_of(g) : 0;
    job.dlogits = logits->data;
    pl_parallel_for(target->numel, row_grain(job.n), pl__rows()->cross_entropy_fused[wide], &job);
    pl__vector_deinit(&w);
    return PL_OK;
}

// SPDX-License-Identifier: Apache-2.0
// cublaslt_linear: linear. Fused: the library adds the bias, applies GELU and keeps the sum before
// it inside the product. Separate: the bias rides on the product too: out is filled with it and the
// product added, so that the sum is rounded once; then comes the activation.
//
// Note [what is not fused]: ReLU, of which the library does not say that NaN stays NaN; GELU by
// erf, since the library's is by tanh; fp64.
#include "cuda/cublaslt_internal.h"

typedef struct linear_job {
    pl_cuda_blas *blas;
    pl_tensor x, wt;        // readable
    const pl_tensor *bias;  // or NULL
    pl_activation act;
    pl_tensor *preact, *out;
    pl_blas_product fused;
    bool activates;  // the fused call leaves nothing to do
} linear_job;

static pl_tensor *sum_of(const linear_job *j) { return j->preact ? j->preact : j->out; }

static pl_status activate(const linear_job *j) {
    const pl_cuda_backend *k = j->blas->args.backend;
    pl_tensor *sum = sum_of(j);
    if (j->act == PL_ACT_NONE) {
        return sum == j->out ? PL_OK : k->copy(sum, j->out, j->blas->args.queue);
    }
    pl_unary op = j->act == PL_ACT_RELU   ? PL_UNARY_RELU
                  : j->act == PL_ACT_GELU ? PL_UNARY_GELU
                                          : PL_UNARY_GELU_TANH;
    return k->unary(op, sum, j->out, j->blas->args.queue);
}

// Note [what is not fused]. False where there is nothing to fuse.
static pl_status fuse_linear(linear_job *j, bool *out) {
    const pl_tensor *bias = j->bias;
    int64_t n = j->out->shape[1], e = 0;
    bool fits = !bias || (bias->dtype == j->out->dtype && (bias->strides[0] == 1 || n == 1));
    bool gelu = j->act == PL_ACT_GELU_TANH && (!j->preact || pl__blas_is_auxiliary(j->preact));
    if (bias) e |= PL_LT_EPILOGUE_BIAS;
    if (gelu) e |= PL_LT_EPILOGUE_GELU | (j->preact ? PL_LT_EPILOGUE_AUX : 0);
    *out = fits && e != 0 && j->out->dtype != PL_F64;
    if (!*out) return PL_OK;
    j->activates = gelu;
    pl_blas_product *p = &j->fused;
    PL_TRY(pl__blas_product(&j->x, &j->wt, false, gelu ? j->out : sum_of(j), p));
    p->call.epilogue = e;
    p->data.bias = bias ? bias->data : NULL;
    if (e & PL_LT_EPILOGUE_AUX) {
        p->data.aux = j->preact->data;
        p->call.aux_ld = n;
    }
    pl__blas_align(&p->call, &p->data);
    return PL_OK;
}

static pl_status linear_fused(void *context) {
    const linear_job *j = context;
    PL_TRY(pl__blas_run(j->blas, &j->fused.call, &j->fused.data));
    return j->activates ? PL_OK : activate(j);
}

// x w^T + bias into `sum`, which can hold the bias without rounding it.
static pl_status biased_product(const linear_job *j, pl_tensor *sum) {
    const pl_cuda_backend *k = j->blas->args.backend;
    pl_blas_product p;
    if (j->bias) {
        pl_tensor rows = *j->bias;
        rows.ndim = 2;
        rows.shape[0] = sum->shape[0];
        rows.shape[1] = sum->shape[1];
        rows.strides[1] = j->bias->strides[0];
        rows.strides[0] = 0;
        rows.numel = sum->numel;
        PL_TRY(k->copy(&rows, sum, j->blas->args.queue));
    }
    if (j->x.shape[1] == 0) {
        return j->bias ? PL_OK : k->fill(sum, 0.0, j->blas->args.queue);
    }
    PL_TRY(pl__blas_product(&j->x, &j->wt, j->bias != NULL, sum, &p));
    return pl__blas_product_run(j->blas, &p);
}

static pl_status linear_separate(void *context) {
    const linear_job *j = context;
    const pl_cuda_blas_args *args = &j->blas->args;
    pl_tensor *sum = sum_of(j);
    bool wider = j->bias && pl_dtype_size(j->bias->dtype) > pl_dtype_size(sum->dtype);
    if (!wider) {
        PL_TRY(biased_product(j, sum));
    } else {
        void *data;
        PL_TRY(args->alloc((size_t)sum->numel * sizeof(float), "a linear layer's sum", &data));
        pl_tensor wide = pl__blas_over(data, PL_F32, 2, sum->shape);
        pl_status st = biased_product(j, &wide);
        if (st == PL_OK) st = args->backend->copy(&wide, sum, args->queue);
        args->release(data);
        PL_TRY(st);
    }
    return activate(j);
}

static pl_status linear_job_run(linear_job *j) {
    bool fused = false;
    if (j->x.shape[1] > 0) PL_TRY(fuse_linear(j, &fused));
    if (!fused) return linear_separate(j);
    const pl_blas_routes r = {linear_fused, linear_separate, j};
    return pl__blas_faster(j->blas, &j->fused, &r);
}

pl_status pl_cuda_blas_linear(const pl_tensor *x, const pl_tensor *w, const pl_tensor *bias,
                              pl_activation act, pl_tensor *preact, pl_tensor *out,
                              pl_cuda_blas *blas) {
    if (out->numel == 0) return PL_OK;
    PL_TRY(pl__blas_ready(blas));
    pl_tensor wt = pl__blas_transposed(w);
    pl_blas_factor fx, fw;
    PL_TRY(pl__blas_factor(blas, x, &fx));
    pl_status st = pl__blas_factor(blas, &wt, &fw);
    if (st == PL_OK) {
        linear_job j = {.blas = blas, .x = fx.t, .wt = fw.t, .bias = bias, .act = act};
        j.preact = preact;
        j.out = out;
        st = linear_job_run(&j);
        pl__blas_factor_release(blas, &fw);
    }
    pl__blas_factor_release(blas, &fx);
    return st;
}

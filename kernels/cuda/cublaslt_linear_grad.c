// SPDX-License-Identifier: Apache-2.0
// cublaslt_linear_grad: the gradients of linear. Of weight and bias: fused, the library sums the
// gradient's rows inside the weight's product; separate, own kernels sum them beside it. Of the
// input where that was the result of GELU (by tanh): fused, the library multiplies by GELU's slope
// inside the product; separate, an own kernel does so after it.
#include "cuda/cublaslt_internal.h"

// ---- Weight and bias ----------------------------------------------------------------------------

typedef struct grad_job {
    pl_cuda_blas *blas;
    pl_tensor g, gt, x;  // gt and x readable
    pl_tensor dw, db;
    bool add_w, add_b;
    void *sums;  // of g's rows, in db's dtype; NULL: straight into db
    pl_blas_product fused;
} grad_job;

static pl_status grad_fused(void *context) {
    const grad_job *j = context;
    const pl_cuda_blas_args *args = &j->blas->args;
    PL_TRY(pl__blas_run(j->blas, &j->fused.call, &j->fused.data));
    if (!j->sums) return PL_OK;
    pl_tensor sums = pl__blas_over(j->sums, j->db.dtype, 1, j->db.shape), db = j->db;
    return args->backend->binary(PL_BINARY_ADD, &db, &sums, &db, args->queue);
}

static pl_status grad_separate(void *context) {
    const grad_job *j = context;
    const pl_cuda_blas_args *args = &j->blas->args;
    pl_tensor dw = j->dw, db = j->db;
    pl_blas_product p;
    if (dw.numel > 0) {
        PL_TRY(pl__blas_product(&j->gt, &j->x, j->add_w, &dw, &p));
        PL_TRY(pl__blas_product_run(j->blas, &p));
    }
    return args->backend->sum_rows(&j->g, j->add_b, &db, args->queue);
}

static pl_status grad_fuse(grad_job *j, bool *out) {
    *out = j->dw.numel > 0 && j->dw.dtype == j->db.dtype && j->dw.dtype != PL_F64;
    if (!*out) return PL_OK;
    pl_blas_product *p = &j->fused;
    PL_TRY(pl__blas_product(&j->gt, &j->x, j->add_w, &j->dw, p));
    p->call.epilogue = PL_LT_EPILOGUE_BGRADB;
    p->data.bias = j->sums ? j->sums : j->db.data;
    pl__blas_align(&p->call, &p->data);
    return PL_OK;
}

// Routes are compared on stand-ins for what they would add to.
static pl_status grad_compare(const grad_job *j) {
    const pl_cuda_blas_args *args = &j->blas->args;
    grad_job trial = *j;
    const pl_blas_routes r = {grad_fused, grad_separate, &trial};
    void *dw = NULL, *db = NULL;
    pl_status st = PL_OK;
    if (j->add_w) st = args->alloc(pl_tensor_nbytes(&j->dw), "measuring a product", &dw);
    if (st == PL_OK && j->add_b) {
        st = args->alloc(pl_tensor_nbytes(&j->db), "measuring a product", &db);
    }
    if (st == PL_OK) {
        if (dw) trial.dw.data = trial.fused.data.d = dw;
        if (db) trial.db.data = db;
        st = pl__blas_compare(j->blas, &j->fused, &r);
    } else if (st == PL_ENOMEM) {
        st = PL_OK;  // no room: it stays undecided, and fused
    }
    if (db) args->release(db);
    if (dw) args->release(dw);
    return st;
}

static pl_status grad_job_run(grad_job *j) {
    bool fused, undecided;
    PL_TRY(grad_fuse(j, &fused));
    if (!fused) return grad_separate(j);
    const pl_blas_routes r = {grad_fused, grad_separate, j};
    PL_TRY(pl__blas_undecided(j->blas, &j->fused, &undecided));
    if (undecided) PL_TRY(grad_compare(j));
    return pl__blas_take(j->blas, &j->fused, &r);
}

static pl_status zero_unless(bool keep, pl_tensor *t, const pl_cuda_blas *blas) {
    if (keep || t->numel == 0) return PL_OK;
    return blas->args.backend->fill(t, 0.0, blas->args.queue);
}

pl_status pl_cuda_blas_linear_grad(const pl_tensor *g, const pl_tensor *x, pl_tensor *dw,
                                   bool accumulate_w, pl_tensor *db, bool accumulate_b,
                                   pl_cuda_blas *blas) {
    if (db->numel == 0) return PL_OK;
    if (g->shape[0] == 0) {
        PL_TRY(zero_unless(accumulate_w, dw, blas));
        return zero_unless(accumulate_b, db, blas);
    }
    PL_TRY(pl__blas_ready(blas));
    pl_tensor gt = pl__blas_transposed(g);
    grad_job j = {.blas = blas, .g = *g, .dw = *dw, .db = *db};
    j.add_w = accumulate_w;
    j.add_b = accumulate_b;
    pl_blas_factor fg, fx;
    PL_TRY(pl__blas_factor(blas, &gt, &fg));
    pl_status st = pl__blas_factor(blas, x, &fx);
    if (st == PL_OK && accumulate_b) {
        st = blas->args.alloc(pl_tensor_nbytes(db), "a bias' gradient", &j.sums);
    }
    if (st == PL_OK) {
        j.gt = fg.t;
        j.x = fx.t;
        st = grad_job_run(&j);
    }
    if (j.sums) blas->args.release(j.sums);
    pl__blas_factor_release(blas, &fx);
    pl__blas_factor_release(blas, &fg);
    return st;
}

// ---- The input, through GELU --------------------------------------------------------------------

typedef struct gelu_job {
    pl_cuda_blas *blas;
    pl_tensor g, w;  // readable
    const pl_tensor *x;
    pl_tensor *dx;
    pl_blas_product fused;
} gelu_job;

static pl_status gelu_fused(void *context) {
    const gelu_job *j = context;
    return pl__blas_run(j->blas, &j->fused.call, &j->fused.data);
}

static pl_status gelu_separate(void *context) {
    const gelu_job *j = context;
    const pl_cuda_blas_args *args = &j->blas->args;
    PL_TRY(pl_cuda_blas_matmul(&j->g, &j->w, false, j->dx, j->blas));
    return args->backend->binary(PL_BINARY_GELU_TANH_GRAD, j->dx, j->x, j->dx, args->queue);
}

static pl_status gelu_job_run(gelu_job *j) {
    bool fits = j->g.shape[1] > 0 && j->dx->dtype != PL_F64 && pl__blas_is_auxiliary(j->x);
    if (!fits) return gelu_separate(j);
    pl_blas_product *p = &j->fused;
    PL_TRY(pl__blas_product(&j->g, &j->w, false, j->dx, p));
    p->call.epilogue = PL_LT_EPILOGUE_DGELU;
    p->call.aux_ld = j->x->shape[1];
    p->data.aux = j->x->data;
    pl__blas_align(&p->call, &p->data);
    const pl_blas_routes r = {gelu_fused, gelu_separate, j};
    return pl__blas_faster(j->blas, p, &r);
}

pl_status pl_cuda_blas_linear_grad_gelu(const pl_tensor *g, const pl_tensor *w, const pl_tensor *x,
                                        pl_tensor *dx, pl_cuda_blas *blas) {
    if (dx->numel == 0) return PL_OK;
    PL_TRY(pl__blas_ready(blas));
    pl_blas_factor fg, fw;
    PL_TRY(pl__blas_factor(blas, g, &fg));
    pl_status st = pl__blas_factor(blas, w, &fw);
    if (st == PL_OK) {
        gelu_job j = {.blas = blas, .g = fg.t, .w = fw.t, .x = x, .dx = dx};
        st = gelu_job_run(&j);
        pl__blas_factor_release(blas, &fw);
    }
    pl__blas_factor_release(blas, &fg);
    return st;
}

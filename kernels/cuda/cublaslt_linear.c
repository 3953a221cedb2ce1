// SPDX-License-Identifier: Apache-2.0
// cublaslt_linear: linear and the gradients of its weight and bias. Each has two routes: fused (the
// library adds the bias, applies GELU and keeps the sum before it, or sums the gradient's rows,
// inside the product) and separate (own kernels around a plain product); the faster one is found by
// measuring, where the library can fuse at all. The separate bias rides on the product too: out is
// filled with it and the product added, so that the sum is rounded once.
//
// Note [what is not fused]: ReLU, of which the library does not say that NaN stays NaN; GELU by
// erf, since the library's is by tanh; fp64. GELU's gradient is a call of its own in ops/.
#include "cuda/cublaslt_internal.h"

// The kept sum (the auxiliary matrix): its rows are a multiple of so many elements long, its
// address of so many bytes.
enum { AUX_STEP = 8, AUX_ALIGN = 16 };

// Compares routes once; `context` has all that they need, and that they may write.
typedef struct routes {
    pl_status (*fused)(void *context);
    pl_status (*separate)(void *context);
    void *context;
} routes;

static pl_status compare(pl_cuda_blas *blas, const pl_blas_call *call, const pl_blas_data *data,
                         const routes *r) {
    double fused, separate;
    pl_blas_plan *p;
    PL_TRY(pl__blas_time(blas, r->fused, r->context, &fused));
    PL_TRY(pl__blas_time(blas, r->separate, r->context, &separate));
    PL_TRY(pl__blas_plan(blas, call, data, &p));  // found again: others were made since
    p->choice.route = separate < fused ? PL_BLAS_SEPARATE : PL_BLAS_FUSED;
    return pl__blas_memory_keep(&blas->memory, &p->choice);
}

// Whether the fused call is to be used; `undecided` where that could be measured now.
static pl_status decide(pl_cuda_blas *blas, const pl_blas_call *call, const pl_blas_data *data,
                        bool *fused, bool *undecided) {
    pl_blas_plan *p;
    PL_TRY(pl__blas_plan(blas, call, data, &p));
    *fused = p->choice.possible && p->choice.route != PL_BLAS_SEPARATE;
    *undecided =
        p->choice.possible && p->choice.route == PL_BLAS_UNKNOWN && pl__blas_may_measure(blas);
    return PL_OK;
}

// The one call of a product of two matrices.
static pl_status one_call(pl_cuda_blas *blas, const pl_tensor *a, const pl_tensor *b,
                          bool accumulate, pl_tensor *out, pl_blas_product *p) {
    PL_TRY(pl__blas_product(a, b, accumulate, out, p));
    p->call.tf32 = blas->tf32 && a->dtype == PL_F32;
    return PL_OK;
}

// ---- linear
// --------------------------------------------------------------------------------------

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
    bool kept_fits =
        !j->preact || (n % AUX_STEP == 0 && (uintptr_t)j->preact->data % AUX_ALIGN == 0);
    bool gelu = j->act == PL_ACT_GELU_TANH && kept_fits;
    if (bias) e |= PL_LT_EPILOGUE_BIAS;
    if (gelu) e |= PL_LT_EPILOGUE_GELU | (j->preact ? PL_LT_EPILOGUE_AUX : 0);
    *out = fits && e != 0 && j->out->dtype != PL_F64;
    if (!*out) return PL_OK;
    j->activates = gelu;
    pl_blas_product *p = &j->fused;
    PL_TRY(one_call(j->blas, &j->x, &j->wt, false, gelu ? j->out : sum_of(j), p));
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
    PL_TRY(one_call(j->blas, &j->x, &j->wt, j->bias != NULL, sum, &p));
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
    bool fused = false, undecided = false;
    if (j->x.shape[1] > 0) PL_TRY(fuse_linear(j, &fused));
    if (!fused) return linear_separate(j);
    const pl_blas_call *call = &j->fused.call;
    PL_TRY(decide(j->blas, call, &j->fused.data, &fused, &undecided));
    if (undecided) {
        const routes r = {linear_fused, linear_separate, j};
        PL_TRY(compare(j->blas, call, &j->fused.data, &r));
        PL_TRY(decide(j->blas, call, &j->fused.data, &fused, &undecided));
    }
    return fused ? linear_fused(j) : linear_separate(j);
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

// ---- linear_grad
// ---------------------------------------------------------------------------------

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
        PL_TRY(one_call(j->blas, &j->gt, &j->x, j->add_w, &dw, &p));
        PL_TRY(pl__blas_product_run(j->blas, &p));
    }
    return args->backend->sum_rows(&j->g, j->add_b, &db, args->queue);
}

static pl_status grad_fuse(grad_job *j, bool *out) {
    *out = j->dw.numel > 0 && j->dw.dtype == j->db.dtype && j->dw.dtype != PL_F64;
    if (!*out) return PL_OK;
    pl_blas_product *p = &j->fused;
    PL_TRY(one_call(j->blas, &j->gt, &j->x, j->add_w, &j->dw, p));
    p->call.epilogue = PL_LT_EPILOGUE_BGRADB;
    p->data.bias = j->sums ? j->sums : j->db.data;
    pl__blas_align(&p->call, &p->data);
    return PL_OK;
}

// Routes are compared on stand-ins for what they would add to.
static pl_status grad_compare(const grad_job *j) {
    const pl_cuda_blas_args *args = &j->blas->args;
    grad_job trial = *j;
    const routes r = {grad_fused, grad_separate, &trial};
    void *dw = NULL, *db = NULL;
    pl_status st = PL_OK;
    if (j->add_w) st = args->alloc(pl_tensor_nbytes(&j->dw), "measuring a product", &dw);
    if (st == PL_OK && j->add_b) {
        st = args->alloc(pl_tensor_nbytes(&j->db), "measuring a product", &db);
    }
    if (st == PL_OK) {
        if (dw) trial.dw.data = trial.fused.data.d = dw;
        if (db) trial.db.data = db;
        st = compare(j->blas, &j->fused.call, &j->fused.data, &r);
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
    PL_TRY(decide(j->blas, &j->fused.call, &j->fused.data, &fused, &undecided));
    if (undecided) {
        PL_TRY(grad_compare(j));
        PL_TRY(decide(j->blas, &j->fused.call, &j->fused.data, &fused, &undecided));
    }
    return fused ? grad_fused(j) : grad_separate(j);
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

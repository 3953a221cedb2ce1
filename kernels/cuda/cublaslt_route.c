// SPDX-License-Identifier: Apache-2.0
// cublaslt_route: what a linear layer needs beside a product has two routes: fused (the library
// does it in the product's epilogue) and separate (own kernels around a plain product). The faster
// one is found by measuring, once per call, where the library can fuse at all.
#include "cuda/cublaslt_internal.h"

// What the library asks of the auxiliary matrix of GELU: a row's length is a multiple of so many
// elements, the address of so many bytes.
enum { AUX_STEP = 8, AUX_ALIGN = 16 };

bool pl__blas_is_auxiliary(const pl_tensor *t) {
    return t->shape[1] % AUX_STEP == 0 && (uintptr_t)t->data % AUX_ALIGN == 0;
}

pl_status pl__blas_undecided(pl_cuda_blas *blas, const pl_blas_product *p, bool *out) {
    pl_blas_plan *plan;
    PL_TRY(pl__blas_plan(blas, &p->call, &p->data, &plan));
    const pl_blas_choice *c = &plan->choice;
    *out = c->possible && c->route == PL_BLAS_UNKNOWN && pl__blas_may_measure(blas);
    return PL_OK;
}

static pl_status is_possible(pl_cuda_blas *blas, const pl_blas_product *p, bool *out) {
    pl_blas_plan *plan;
    PL_TRY(pl__blas_plan(blas, &p->call, &p->data, &plan));
    *out = plan->choice.possible;
    return PL_OK;
}

pl_status pl__blas_compare(pl_cuda_blas *blas, const pl_blas_product *p, const pl_blas_routes *r) {
    double fused, separate;
    bool possible;
    pl_blas_plan *plan;
    pl_status st = pl__blas_time(blas, r->fused, r->context, &fused);
    PL_TRY(is_possible(blas, p, &possible));
    if (!possible) return PL_OK;  // refused when it was made: nothing to compare
    PL_TRY(st);
    PL_TRY(pl__blas_time(blas, r->separate, r->context, &separate));
    PL_TRY(pl__blas_plan(blas, &p->call, &p->data, &plan));  // found again: others were made since
    plan->choice.route = separate < fused ? PL_BLAS_SEPARATE : PL_BLAS_FUSED;
    return pl__choices_keep(&blas->memory, &plan->choice);
}

pl_status pl__blas_take(pl_cuda_blas *blas, const pl_blas_product *p, const pl_blas_routes *r) {
    pl_blas_plan *plan;
    PL_TRY(pl__blas_plan(blas, &p->call, &p->data, &plan));
    bool fused = plan->choice.possible && plan->choice.route != PL_BLAS_SEPARATE;
    if (!fused) return r->separate(r->context);
    pl_status st = r->fused(r->context);
    if (st == PL_OK) return PL_OK;
    PL_TRY(is_possible(blas, p, &fused));
    return fused ? st : r->separate(r->context);
}

pl_status pl__blas_faster(pl_cuda_blas *blas, const pl_blas_product *p, const pl_blas_routes *r) {
    bool undecided;
    PL_TRY(pl__blas_undecided(blas, p, &undecided));
    if (undecided) PL_TRY(pl__blas_compare(blas, p, r));
    return pl__blas_take(blas, p, r);
}

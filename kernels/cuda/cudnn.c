// SPDX-License-Identifier: Apache-2.0
// cudnn: see cudnn.h. Which calls may be cuDNN's, and their description.
#include "cuda/cudnn.h"

#include <stdlib.h>
#include <string.h>

#include "cuda/cudnn_internal.h"

_Static_assert(sizeof(pl_dnn_call) == PL_DNN_KEY * sizeof(int64_t), "a key has no padding");

enum { OLDEST_GPU = 80, GRADIENT_FROM = 90, GRADIENT_BELOW = 100, WIDEST = 128, LEAST = 2 };

pl_status pl_cuda_dnn_new(pl_cuda_blas *blas, int capability, pl_cuda_dnn **out) {
    const char *rule = getenv("PACELINE_ATTENTION");
    static const char *const rules[] = {"auto", "own", "cudnn"};
    int which = 0;
    if (rule && rule[0]) {
        while (which < 3 && strcmp(rule, rules[which]) != 0) which++;
    }
    if (which == 3) {
        return pl_fail(PL_EINVAL,
                       "[attention] PACELINE_ATTENTION is no way to compute it: got \"%s\", "
                       "expected auto, own or cudnn",
                       rule);
    }
    void *p;
    PL_TRY(pl_calloc(sizeof(pl_cuda_dnn), &p));
    pl_cuda_dnn *dnn = p;
    dnn->blas = blas;
    dnn->capability = capability;
    dnn->rule = which == 0 ? PL_DNN_AUTO : which == 1 ? PL_DNN_NEVER : PL_DNN_ALWAYS;
    *out = dnn;
    return PL_OK;
}

void pl_cuda_dnn_free(pl_cuda_dnn *dnn) {
    if (!dnn) return;
    pl__dnn_plans_free(dnn);
    if (dnn->lib) {
        (void)dnn->lib->destroy(dnn->handle);
        pl__choices_deinit(&dnn->choices);
    }
    pl_free(dnn);
}

// ---- Opening ------------------------------------------------------------------------------------

static pl_status open_library(pl_cuda_dnn *dnn) {
    const pl_dnn_library *lib;
    const pl_cuda_blas_args *args = &dnn->blas->args;
    void *handle;
    PL_TRY(pl__dnn_library(&lib));
    int made = lib->create(&handle);
    if (made != PL_DNN_SUCCESS) return pl__dnn_failed("starting", made);
    pl_status st =
        pl__choices_init(&dnn->choices, &pl__dnn_form, args->device_name, lib->version());
    if (st != PL_OK) {
        (void)lib->destroy(handle);
        return st;
    }
    dnn->handle = handle;
    dnn->lib = lib;
    return PL_OK;
}

// That it is not there is a failure only where somebody asked for it.
static pl_status ready(pl_cuda_dnn *dnn, bool *usable) {
    const char *named = getenv("PACELINE_CUDNN");
    *usable = false;
    if (!dnn->opened) {
        bool asked = dnn->rule == PL_DNN_ALWAYS || (named && named[0]);
        pl_status st = pl__blas_ready(dnn->blas);  // time to measure, and this thread's device
        if (st == PL_OK) st = open_library(dnn);
        if (st != PL_OK && asked) return st;
        dnn->opened = true;
    }
    if (dnn->lib) PL_TRY(pl__blas_ready(dnn->blas));
    *usable = dnn->lib != NULL;
    return PL_OK;
}

// ---- Calls --------------------------------------------------------------------------------------

// The strides of a tensor that cuDNN can take: 16-byte aligned rows, the last dimension dense.
static bool add_operand(pl_dnn_call *c, pl_dnn_operand which, const pl_tensor *t) {
    const int64_t step = 8;  // elements in 16 bytes
    if ((uintptr_t)t->data % 16 != 0 || t->strides[3] != 1) return false;
    int64_t all = t->shape[3];
    for (int d = 2; d >= 0; d--) {
        // What a dimension of one element has says nothing.
        int64_t stride = t->shape[d] == 1 ? all : t->strides[d];
        if (stride <= 0 || stride % step != 0) return false;
        c->strides[which][d] = stride;
        all = stride * t->shape[d] > all ? stride * t->shape[d] : all;
    }
    return true;
}

static bool takes_shape(const pl_cuda_dnn *dnn, const pl_dnn_work *w) {
    const pl_tensor *q = w->q, *k = w->k;
    if (q->dtype != PL_BF16 && q->dtype != PL_F16) return false;
    if (dnn->rule == PL_DNN_NEVER || dnn->capability < OLDEST_GPU) return false;
    // Note [dq without atomics] (cudnn_graph.c) is known of these.
    bool here = dnn->capability >= GRADIENT_FROM && dnn->capability < GRADIENT_BELOW;
    if (w->g && !here) return false;
    if (w->args->mask || w->args->dropout_p > 0.0) return false;
    if (q->shape[3] > WIDEST || q->shape[3] % 8 != 0 || q->shape[1] != k->shape[1]) return false;
    return q->numel > 0 && q->shape[2] >= LEAST && k->shape[2] >= LEAST;
}

static bool describe(const pl_cuda_dnn *dnn, const pl_dnn_work *w, pl_dnn_call *c) {
    if (!takes_shape(dnn, w)) return false;
    memset(c, 0, sizeof *c);
    c->batch = w->q->shape[0], c->heads = w->q->shape[1];
    c->queries = w->q->shape[2], c->keys = w->k->shape[2];
    c->width = w->q->shape[3];
    c->dtype = w->q->dtype;
    c->causal = w->args->causal;
    c->gradient = w->g != NULL;
    const pl_tensor *all[] = {w->q, w->k, w->v, w->out, w->g, w->dq, w->dk, w->dv};
    for (int i = 0; i < (w->g ? PL_DNN_OPERANDS : PL_DNN_G); i++) {
        if (!add_operand(c, (pl_dnn_operand)i, all[i])) return false;
    }
    return true;
}

pl_dnn_data pl__dnn_data(const pl_dnn_work *w) {
    const pl_tensor *all[] = {w->q, w->k, w->v, w->out, w->g, w->dq, w->dk, w->dv, w->lse};
    pl_dnn_data data = {.scale = (float)w->args->scale};
    for (int i = 0; i <= PL_DNN_LSE; i++) data.at[i] = all[i] ? all[i]->data : NULL;
    return data;
}

pl_status pl__dnn_own(pl_cuda_dnn *dnn, const pl_dnn_work *w) {
    const pl_cuda_backend *b = dnn->blas->args.backend;
    pl_cuda_queue *queue = dnn->blas->args.queue;
    if (!w->g) return b->attention(w->q, w->k, w->v, w->args, w->out, w->lse, queue);
    return b->attention_grad(w->g, w->q, w->k, w->v, w->out, w->lse, w->args, w->dq, w->dk, w->dv,
                             queue);
}

static pl_status attend(pl_cuda_dnn *dnn, const pl_dnn_work *w) {
    pl_dnn_call call;
    pl_dnn_plan *plan;
    bool usable, library;
    if (!describe(dnn, w, &call)) return pl__dnn_own(dnn, w);
    PL_TRY(ready(dnn, &usable));
    if (!usable) return pl__dnn_own(dnn, w);
    PL_TRY(pl__dnn_place(dnn, &call, &plan));
    PL_TRY(pl__dnn_choose(dnn, plan, w, &library));
    if (!library) return pl__dnn_own(dnn, w);
    pl_dnn_data data = pl__dnn_data(w);
    return pl__dnn_run(dnn, plan, &data);
}

pl_status pl_cuda_dnn_attention(const pl_tensor *q, const pl_tensor *k, const pl_tensor *v,
                                const pl_attention_args *args, pl_tensor *out, pl_tensor *lse,
                                pl_cuda_dnn *dnn) {
    pl_dnn_work work = {.q = q, .k = k, .v = v, .out = out, .lse = lse, .args = args};
    return attend(dnn, &work);
}

pl_status pl_cuda_dnn_attention_grad(const pl_tensor *g, const pl_tensor *q, const pl_tensor *k,
                                     const pl_tensor *v, const pl_tensor *out, const pl_tensor *lse,
                                     const pl_attention_args *args, pl_tensor *dq, pl_tensor *dk,
                                     pl_tensor *dv, pl_cuda_dnn *dnn) {
    // Read only here; the struct serves both directions.
    pl_dnn_work work = {.q = q,
                        .k = k,
                        .v = v,
                        .g = g,
                        .out = (pl_tensor *)(uintptr_t)out,
                        .lse = (pl_tensor *)(uintptr_t)lse,
                        .dq = dq,
                        .dk = dk,
                        .dv = dv,
                        .args = args};
    return attend(dnn, &work);
}

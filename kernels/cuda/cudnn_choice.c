// SPDX-License-Identifier: Apache-2.0
// cudnn_choice: whether a call is cuDNN's or the own kernels', by what is remembered, else by
// computing it both ways on the tensors of its first call. cuDNN is chosen only where its results
// are close to the own kernels', a gradient is the same twice, and it is faster.
#include <math.h>
#include <string.h>

#include "cuda/cudnn_internal.h"

// Of the norm of the difference to that of the result. Both round probabilities to 16 bits and add
// up in fp32; a mistake in the mask, the scale or a stride is of the size of the result.
static const double CLOSE = 0x1p-6;

// ---- Remembering --------------------------------------------------------------------------------

static bool read_choice(const char *line, void *record) {
    pl_dnn_choice *out = record;
    uint64_t words[PL_DNN_KEY + 1];
    for (int i = 0; i <= PL_DNN_KEY; i++) {
        if (!pl__choices_number(&line, 10, &words[i])) return false;
    }
    memcpy(&out->call, words, sizeof out->call);
    out->route = (int64_t)words[PL_DNN_KEY];
    out->measured = 1;
    return out->route >= PL_DNN_OWN && out->route <= PL_DNN_DIFFERS && strcmp(line, "\n") == 0;
}

static bool write_choice(const void *record, pl_choices_line *line) {
    const pl_dnn_choice *c = record;
    uint64_t words[PL_DNN_KEY];
    memcpy(words, &c->call, sizeof words);
    for (int i = 0; i < PL_DNN_KEY; i++) pl__choices_put(line, words[i], false);
    pl__choices_put(line, (uint64_t)c->route, false);
    return c->measured != 0;
}

const pl_choices_form pl__dnn_form = {.library = "cuDNN",
                                      .file = "cudnn",
                                      .format = 1,
                                      .nbytes = sizeof(pl_dnn_choice),
                                      .key_bytes = sizeof(pl_dnn_call),
                                      .read = read_choice,
                                      .write = write_choice};

// ---- Comparing ----------------------------------------------------------------------------------

enum { RESULTS = 3 };

typedef struct contest {
    pl_cuda_dnn *dnn;
    pl_dnn_plan *plan;
    const pl_dnn_work *work;  // cuDNN writes its results
    pl_dnn_work other;        // the own kernels (and cuDNN's second time) these
    int results;
    pl_tensor *first[RESULTS];
    pl_tensor second[RESULTS];
    void *room, *difference;
    double *norms;  // two, the device's
} contest;

static pl_status by_library(void *context) {
    const contest *c = context;
    pl_dnn_data data = pl__dnn_data(c->work);
    return pl__dnn_run(c->dnn, c->plan, &data);
}

static pl_status by_own(void *context) {
    const contest *c = context;
    return pl__dnn_own(c->dnn, &c->other);
}

// Other memory for the results, of the same strides, and for a difference.
static pl_status prepare(contest *c) {
    const pl_dnn_work *w = c->work;
    pl_tensor *forward[] = {w->out, w->lse}, *backward[] = {w->dq, w->dk, w->dv};
    size_t offset[RESULTS], total = 0, most = 0;
    c->results = w->g ? 3 : 2;
    for (int i = 0; i < c->results; i++) {
        const pl_tensor *t = c->first[i] = w->g ? backward[i] : forward[i];
        int64_t span = 1;
        for (int d = 0; d < t->ndim; d++) span += (t->shape[d] - 1) * t->strides[d];
        offset[i] = total;
        total += ((size_t)span * pl_dtype_size(t->dtype) + 255) / 256 * 256;
        size_t plain = ((size_t)t->numel * pl_dtype_size(t->dtype) + 255) / 256 * 256;
        if (plain > most) most = plain;
    }
    PL_TRY(c->dnn->blas->args.alloc(total + most + 2 * sizeof(double), "comparing attention",
                                    &c->room));
    for (int i = 0; i < c->results; i++) {
        c->second[i] = *c->first[i];
        c->second[i].data = (char *)c->room + offset[i];
    }
    c->other = *w;
    if (w->g) {
        c->other.dq = &c->second[0], c->other.dk = &c->second[1], c->other.dv = &c->second[2];
    } else {
        c->other.out = &c->second[0], c->other.lse = &c->second[1];
    }
    c->difference = (char *)c->room + total;
    c->norms = (double *)(uintptr_t)((char *)c->room + total + most);
    return PL_OK;
}

// *out, in device memory: the norm of t, which is contiguous.
static pl_status norm_of(const contest *c, const pl_tensor *t, double *out) {
    const pl_cuda_blas_args *args = &c->dnn->blas->args;
    pl_norm_args norm = {.due = 1.0, .norm = out};
    pl_run run = {.dtype = t->dtype, .n = t->numel, .at = {t->data}};
    return args->backend->list_norm(&norm, 1, &run, args->queue);
}

// The norm of first - second by that of second, the worst of the results; NaN: second is not
// finite.
static pl_status distance(contest *c, double *out) {
    const pl_cuda_blas_args *args = &c->dnn->blas->args;
    pl_runtime *r = args->runtime;
    *out = 0.0;
    for (int i = 0; i < c->results; i++) {
        const pl_tensor *t = c->first[i];
        pl_tensor plain = pl__blas_over(c->difference, t->dtype, t->ndim, t->shape);
        plain.storage = t->storage;  // which says what device it is on
        double host[2];
        PL_TRY(args->backend->binary(PL_BINARY_SUB, t, &c->second[i], &plain, args->queue));
        PL_TRY(norm_of(c, &plain, &c->norms[0]));
        PL_TRY(args->backend->copy(&c->second[i], &plain, args->queue));
        PL_TRY(norm_of(c, &plain, &c->norms[1]));
        PL_TRY(r->copy(r, args->stream, PL_COPY_TO_HOST, host, c->norms, sizeof host));
        PL_TRY(r->sync_stream(r, args->stream));
        double ratio = host[0] == 0.0 ? 0.0 : host[0] / host[1];
        if (isnan(ratio)) ratio = INFINITY;
        if (!isfinite(host[1])) ratio = NAN;
        if (!(ratio <= *out)) *out = ratio;
        if (isnan(ratio)) return PL_OK;
    }
    return PL_OK;
}

// Whether cuDNN gives the own kernels' results; *undecided where neither gives numbers.
static pl_status agrees(contest *c, bool *out, bool *undecided) {
    double apart;
    *out = *undecided = false;
    if (c->work->g) {  // twice the same
        contest again = *c;
        again.work = &c->other;
        if (by_library(&again) != PL_OK || by_library(c) != PL_OK) return PL_OK;
        PL_TRY(distance(c, &apart));
        if (apart > 0.0) return PL_OK;
    } else if (by_library(c) != PL_OK) {
        return PL_OK;
    }
    PL_TRY(by_own(c));
    PL_TRY(distance(c, &apart));
    *undecided = isnan(apart);
    *out = apart <= CLOSE;
    return PL_OK;
}

static pl_status compete(contest *c, pl_dnn_route *out) {
    bool close, undecided;
    double library, own;
    PL_TRY(agrees(c, &close, &undecided));
    *out = undecided ? PL_DNN_UNKNOWN : PL_DNN_DIFFERS;
    if (!close) return PL_OK;
    PL_TRY(pl__blas_time(c->dnn->blas, by_library, c, &library));
    PL_TRY(pl__blas_time(c->dnn->blas, by_own, c, &own));
    *out = library < own ? PL_DNN_LIBRARY : PL_DNN_OWN;
    return PL_OK;
}

static pl_status measure(pl_cuda_dnn *dnn, pl_dnn_plan *plan, const pl_dnn_work *work) {
    contest c = {.dnn = dnn, .plan = plan, .work = work};
    pl_status st = PL_OK;
    plan->route = PL_DNN_OWN;
    if (plan->plan) {
        if (prepare(&c) != PL_OK) return PL_OK;  // no room: this time, in this process
        st = compete(&c, &plan->route);
        dnn->blas->args.release(c.room);
    }
    if (st != PL_OK || plan->route == PL_DNN_UNKNOWN) return st;
    pl_dnn_choice choice = {plan->call, plan->route, 1};
    return pl__choices_keep(&dnn->choices, &choice);
}

pl_status pl__dnn_choose(pl_cuda_dnn *dnn, pl_dnn_plan *plan, const pl_dnn_work *work,
                         bool *library) {
    const pl_dnn_choice *known = NULL;
    if (plan->route == PL_DNN_UNKNOWN && dnn->rule == PL_DNN_AUTO) {
        known = pl__choices_find(&dnn->choices, &plan->call);
        if (known) plan->route = (pl_dnn_route)known->route;
    }
    bool always = dnn->rule == PL_DNN_ALWAYS;
    bool measures = plan->route == PL_DNN_UNKNOWN && !always && pl__blas_may_measure(dnn->blas);
    bool wanted = always || measures || plan->route == PL_DNN_LIBRARY;
    if (wanted && !plan->asked) {
        PL_TRY(pl_check_interrupt());
        (void)pl__dnn_build(dnn->lib, dnn->handle, NULL, plan);  // a refusal: the own kernels
    }
    if (measures) PL_TRY(measure(dnn, plan, work));
    *library = plan->plan && (always || plan->route == PL_DNN_LIBRARY);
    return PL_OK;
}

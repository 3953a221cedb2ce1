// SPDX-License-Identifier: Apache-2.0
// cublaslt_choice: measures which of the library's proposals is the fastest here, on the tensors of
// the first call of its shape. Time is the device's, from the start of several runs to their end:
// what a run costs the host counts only where the device waits for it.
#include <math.h>

#include "cuda/cublaslt_internal.h"

// In all, per process: shapes that change all the time are then no longer measured.
static const int64_t MOST_NS = INT64_C(20000000000);
static const double LONG_ENOUGH = 2e-3;  // seconds of one measurement
enum { MOST_RUNS = 20, ROUNDS = 2 };

bool pl__blas_may_measure(const pl_cuda_blas *blas) {
    return blas->memory.measures && blas->measured_ns < MOST_NS;
}

static pl_status start_clock(pl_cuda_blas *blas) {
    pl_runtime *r = blas->args.runtime;
    for (int i = 0; i < 2; i++) {
        if (!blas->clock[i]) PL_TRY(r->timed_event_new(r, &blas->clock[i]));
    }
    return r->record(r, blas->clock[0], blas->args.stream);
}

static pl_status timed(pl_cuda_blas *blas, pl_status (*run)(void *context), void *context, int runs,
                       double *out) {
    pl_runtime *r = blas->args.runtime;
    float ms = 0.0f;
    int64_t start = pl_now_ns();
    PL_TRY(start_clock(blas));
    for (int i = 0; i < runs; i++) PL_TRY(run(context));
    PL_TRY(r->record(r, blas->clock[1], blas->args.stream));
    PL_TRY(r->sync_stream(r, blas->args.stream));
    PL_TRY(r->elapsed(r, blas->clock[0], blas->clock[1], &ms));
    blas->measured_ns += pl_now_ns() - start;
    *out = (double)ms * 1e-3 / runs;
    return PL_OK;
}

pl_status pl__blas_time(pl_cuda_blas *blas, pl_status (*run)(void *context), void *context,
                        double *out) {
    double first, best = INFINITY, next;
    PL_TRY(pl_check_interrupt());
    PL_TRY(timed(blas, run, context, 1, &first));  // loads the kernel, measures what it is made of
    PL_TRY(timed(blas, run, context, 1, &first));
    double runs = LONG_ENOUGH / (first > 1e-6 ? first : 1e-6);
    int count = runs < 1.0 ? 1 : runs > MOST_RUNS ? MOST_RUNS : (int)runs;
    for (int i = 0; i < ROUNDS; i++) {
        PL_TRY(timed(blas, run, context, count, &next));
        if (next < best) best = next;
    }
    *out = best;
    return PL_OK;
}

typedef struct trial {
    pl_cuda_blas *blas;
    pl_blas_plan *plan;
    const pl_lt_algo *algo;
    const pl_blas_data *data;
} trial;

static pl_status run_trial(void *context) {
    const trial *t = context;
    return pl__blas_enqueue(t->blas, t->plan, t->algo, t->data);
}

// What is added to must not be added to by a trial: all of D, its gaps too, in other memory.
static pl_status stand_in(pl_cuda_blas *blas, const pl_blas_call *c, void **out) {
    int64_t elements = (c->batch - 1) * c->stride_d + (c->n - 1) * c->ldd + c->m;
    return blas->args.alloc((size_t)elements * pl_dtype_size((pl_dtype)c->type_d),
                            "measuring a product", out);
}

pl_status pl__blas_fastest(pl_cuda_blas *blas, pl_blas_plan *plan, const pl_blas_data *data,
                           const pl_lt_proposal *proposals, int count) {
    const pl_blas_call *c = &plan->choice.call;
    pl_blas_data use = *data;
    void *other = NULL;
    if (c->accumulate) {
        if (stand_in(blas, c, &other) != PL_OK) return PL_OK;  // no room: the first proposal
        use.d = other;
    }
    pl_runtime *r = blas->args.runtime;
    pl_status st = r->sync_stream(r, blas->args.stream);  // what is before it is not measured
    double best = INFINITY;
    for (int i = 0; i < count && st == PL_OK; i++) {
        trial t = {blas, plan, &proposals[i].algo, &use};
        double seconds;
        if (run_trial(&t) != PL_OK) continue;  // some only say so when they are called
        st = pl__blas_time(blas, run_trial, &t, &seconds);
        if (st == PL_OK && seconds < best) {
            best = seconds;
            plan->choice.algo = proposals[i].algo;
            plan->choice.workspace = proposals[i].workspace;
        }
    }
    if (other) blas->args.release(other);
    PL_TRY(st);
    // Where all are refused, a device that has failed says so when it is waited for.
    if (best == INFINITY) PL_TRY(r->sync_stream(r, blas->args.stream));
    plan->choice.possible = best < INFINITY;
    plan->choice.measured = true;
    return PL_OK;
}

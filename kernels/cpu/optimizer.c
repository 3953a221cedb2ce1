// SPDX-License-Identifier: Apache-2.0
// Adam, AdamW, SGD and unscaling over flat runs: one pass, bound by memory. f32 computes in f32,
// f64 in f64; bf16 and f16 runs are brought to f32 a chunk at a time and rounded once on the way
// back.

#include <float.h>
#include <math.h>

#include "cpu/cpu.h"
#include "cpu/isa.h"
#include "cpu/walk.h"

// grad = g * scale + decay * p; p = p * shrink - step * m / (sqrt(v) * root + eps)
typedef struct adam_constants {
    double scale, decay, shrink, beta1, rest1, beta2, rest2, step, root, eps;
} adam_constants;

// grad as above; buf = blend * buf + fresh * grad; p -= lr * (direct * grad + ahead * buf)
typedef struct sgd_constants {
    double scale, decay, blend, fresh, direct, ahead, lr;
    bool momentum, first;
} sgd_constants;

// Each gives whether a gradient was NaN or infinite.
typedef bool (*adam_fn)(const adam_constants *c, int64_t n, void *p, const void *g, void *m,
                        void *v);
typedef bool (*sgd_fn)(const sgd_constants *c, int64_t n, void *p, const void *g, void *buf);
typedef bool (*unscale_fn)(double factor, int64_t n, void *g);

typedef struct optimizer_loops {
    adam_fn adam_f32, adam_f64;
    sgd_fn sgd_f32, sgd_f64;
    unscale_fn unscale_f32, unscale_f64;
} optimizer_loops;

#define PL_LOOPS "cpu/optimizer_loops.h"
#include "cpu/each_isa.h"

typedef struct job {
    adam_constants adam;
    sgd_constants sgd;
    adam_fn run_adam;  // one of the two is NULL
    sgd_fn run_sgd;
    pl_dtype dtype;
    char *p, *m, *v;  // m: also SGD's buffer; NULL where unused
    const char *g;
    int *nonfinite;  // NULL: nobody asks
} job;

// Threads report into one place, and all report the same.
static void report(int *nonfinite, bool bad) {
    if (bad && nonfinite != NULL) __atomic_store_n(nonfinite, 1, __ATOMIC_RELAXED);
}

static void run(const job *j, int64_t n, void *p, const void *g, void *m, void *v) {
    report(j->nonfinite, j->run_adam != NULL ? j->run_adam(&j->adam, n, p, g, m, v)
                                             : j->run_sgd(&j->sgd, n, p, g, m));
}

static char *at(char *base, int64_t offset) { return base != NULL ? base + offset : NULL; }

// Half precision: through f32 buffers.
static void run_half(const job *j, int64_t n, int64_t offset) {
    const pl_convert *cv = pl__cpu_convert();
    pl_load_fn load = cv->load[j->dtype];
    pl_store_fn store = cv->store[PL_C_F32][j->dtype];
    _Alignas(64) float p[PL_CHUNK], g[PL_CHUNK], m[PL_CHUNK], v[PL_CHUNK];
    load(n, j->p + offset, 1, p);
    load(n, j->g + offset, 1, g);
    if (j->m != NULL) load(n, j->m + offset, 1, m);
    if (j->v != NULL) load(n, j->v + offset, 1, v);
    run(j, n, p, g, m, v);
    store(n, p, j->p + offset, 1);
    if (j->m != NULL) store(n, m, j->m + offset, 1);
    if (j->v != NULL) store(n, v, j->v + offset, 1);
}

static void run_range(int64_t begin, int64_t end, void *ctx) {
    const job *j = ctx;
    int64_t size = (int64_t)pl_dtype_size(j->dtype);
    if (j->dtype == PL_F32 || j->dtype == PL_F64) {
        int64_t offset = begin * size;
        run(j, end - begin, j->p + offset, j->g + offset, at(j->m, offset), at(j->v, offset));
        return;
    }
    for (int64_t i = begin; i < end; i += PL_CHUNK) {
        run_half(j, end - i < PL_CHUNK ? end - i : PL_CHUNK, i * size);
    }
}

pl_status pl_cpu_adam(const pl_adam_args *args, pl_dtype dt, int64_t n, void *p, const void *g,
                      void *m, void *v) {
    const optimizer_loops *loops = PL_ISA_PICK(loops);
    job j = {.run_adam = dt == PL_F64 ? loops->adam_f64 : loops->adam_f32,
             .dtype = dt,
             .p = p,
             .g = g,
             .m = m,
             .v = v,
             .nonfinite = args->nonfinite};
    j.adam = (adam_constants){
        .scale = args->maximize ? -args->grad_scale : args->grad_scale,
        .decay = args->decoupled ? 0.0 : args->weight_decay,
        .shrink = args->decoupled ? 1.0 - args->lr * args->weight_decay : 1.0,
        .beta1 = args->beta1,
        .rest1 = 1.0 - args->beta1,
        .beta2 = args->beta2,
        .rest2 = 1.0 - args->beta2,
        .step = args->lr / args->bias1,
        .root = 1.0 / sqrt(args->bias2),
        .eps = args->eps,
    };
    pl_parallel_for(n, pl__cpu_grain(n), run_range, &j);
    return PL_OK;
}

pl_status pl_cpu_sgd(const pl_sgd_args *args, pl_dtype dt, int64_t n, void *p, const void *g,
                     void *momentum) {
    const optimizer_loops *loops = PL_ISA_PICK(loops);
    bool with_momentum = args->momentum != 0.0;
    job j = {.run_sgd = dt == PL_F64 ? loops->sgd_f64 : loops->sgd_f32,
             .dtype = dt,
             .p = p,
             .g = g,
             .m = with_momentum ? momentum : NULL,
             .nonfinite = args->nonfinite};
    j.sgd = (sgd_constants){
        .scale = args->maximize ? -args->grad_scale : args->grad_scale,
        .decay = args->weight_decay,
        .blend = args->momentum,
        .fresh = 1.0 - args->dampening,
        .direct = args->nesterov ? 1.0 : 0.0,
        .ahead = args->nesterov ? args->momentum : 1.0,
        .lr = args->lr,
        .momentum = with_momentum,
        .first = args->first,
    };
    pl_parallel_for(n, pl__cpu_grain(n), run_range, &j);
    return PL_OK;
}

typedef struct unscale_job {
    unscale_fn run;
    pl_dtype dtype;
    char *g;
    double factor;
    int *nonfinite;
} unscale_job;

static void unscale_range(int64_t begin, int64_t end, void *ctx) {
    const unscale_job *j = ctx;
    int64_t size = (int64_t)pl_dtype_size(j->dtype);
    if (j->dtype == PL_F32 || j->dtype == PL_F64) {
        report(j->nonfinite, j->run(j->factor, end - begin, j->g + begin * size));
        return;
    }
    const pl_convert *cv = pl__cpu_convert();
    _Alignas(64) float x[PL_CHUNK];
    for (int64_t i = begin; i < end; i += PL_CHUNK) {
        int64_t n = end - i < PL_CHUNK ? end - i : PL_CHUNK;
        cv->load[j->dtype](n, j->g + i * size, 1, x);
        report(j->nonfinite, j->run(j->factor, n, x));
        if (j->factor != 1.0) cv->store[PL_C_F32][j->dtype](n, x, j->g + i * size, 1);
    }
}

pl_status pl_cpu_unscale(pl_dtype dt, int64_t n, void *g, double factor, int *nonfinite) {
    const optimizer_loops *loops = PL_ISA_PICK(loops);
    unscale_job j = {.run = dt == PL_F64 ? loops->unscale_f64 : loops->unscale_f32,
                     .dtype = dt,
                     .g = g,
                     .factor = factor,
                     .nonfinite = nonfinite};
    pl_parallel_for(n, pl__cpu_grain(n), unscale_range, &j);
    return PL_OK;
}

// SPDX-License-Identifier: Apache-2.0
// Kernels that take lists of runs (Note [lists], kernels.h), on the host stand-in: the bits of one
// call for each run, for runs of all lengths, dtypes and addresses, in one launch; what stays on
// the device: the norm, the factor that clips, flags.
#include "cuda_on_host.h"

#include "kernels_check.h"

enum { RUNS = 9, STATES = 4 };
static const int64_t lengths[RUNS] = {5, 0, 8192, 8193, 1, 40000, 0, 513, 0};

// p, g, m, v of a run in memory of its own, `off` elements behind 64 bytes.
typedef struct state {
    pl_tensor *t[STATES];
    pl_run run;
} state;

static state state_new(pl_dtype dt, int i, int64_t off) {
    state s = {.run = {.dtype = dt, .index = i, .n = lengths[i]}};
    int64_t whole = lengths[i] + off;
    for (int k = 0; k < STATES; k++) {
        s.t[k] = check_tensor(dt, 1, &whole, 1.0);
        for (int64_t e = 0; k == 3 && e < whole; e++) {
            check_set(s.t[k], e, 0.01 + fabs(check_random()));
        }
        s.run.at[k] = (char *)s.t[k]->data + (size_t)off * pl_dtype_size(dt);
    }
    return s;
}

static state state_copy(const state *s) {
    state c = *s;
    for (int k = 0; k < STATES; k++) {
        CHECK_OK(pl_tensor_empty(s->t[k]->dtype, 1, s->t[k]->shape, &c.t[k]));
        memcpy(c.t[k]->data, s->t[k]->data, pl_tensor_nbytes(s->t[k]));
        ptrdiff_t off = (char *)s->run.at[k] - (char *)s->t[k]->data;
        c.run.at[k] = (char *)c.t[k]->data + off;
    }
    return c;
}

static void check_states(const char *what, state *a, state *b) {
    for (int i = 0; i < RUNS; i++) {
        for (int k = 0; k < STATES; k++) {
            check_same_bits(what, a[i].t[k], b[i].t[k]);
            pl_tensor_release(a[i].t[k]);
            pl_tensor_release(b[i].t[k]);
        }
    }
}

// Two dtypes, addresses that packs may be taken from and others.
static void states_of(pl_dtype one, pl_dtype other, state *a, state *b, pl_run *runs) {
    for (int i = 0; i < RUNS; i++) {
        a[i] = state_new(i % 2 ? one : other, i, i % 3 == 1 ? 3 : 0);
        b[i] = state_copy(&a[i]);
        runs[i] = a[i].run;
    }
}

static pl_adam_args adam_args(void) {
    return (pl_adam_args){.lr = 1e-2,
                          .beta1 = 0.9,
                          .beta2 = 0.95,
                          .eps = 1e-8,
                          .weight_decay = 0.1,
                          .bias1 = 0.19,
                          .bias2 = 0.0975,
                          .grad_scale = 0.3,
                          .decoupled = true};
}

// Each run alone by kernels for one run, its factor known to the host; together by a list, the
// factor's other half on the device. 0.5 is exact, so that the products are.
static void one_step(bool sgd, pl_dtype one, pl_dtype other) {
    state a[RUNS], b[RUNS];
    pl_run runs[RUNS];
    double half = 0.5;
    int flags[RUNS] = {0}, flag = 0;
    pl_cuda_queue q = {0};
    states_of(one, other, a, b, runs);
    for (int i = 0; i < RUNS; i++) {
        if (lengths[i] != 8193) continue;
        check_set(a[i].t[1], 8000, NAN);
        check_set(b[i].t[1], 8000, NAN);
    }
    pl_adam_args adam = adam_args(), adam_one = adam_args();
    pl_sgd_args plain = {.lr = 0.1, .momentum = 0.9, .weight_decay = 0.01, .grad_scale = 0.3};
    pl_sgd_args plain_one = plain;
    adam.scale = plain.scale = &half;
    adam.nonfinite = plain.nonfinite = flags;
    adam_one.nonfinite = plain_one.nonfinite = &flag;
    adam_one.grad_scale = plain_one.grad_scale = 0.15;
    CHECK_OK(sgd ? pl_cuda_list_sgd(&plain, RUNS, runs, &q)
                 : pl_cuda_list_adam(&adam, RUNS, runs, &q));
    for (int i = 0; i < RUNS; i++) {
        void **at = b[i].run.at;
        flag = 0;
        CHECK_OK(
            sgd ? host_sgd(&plain_one, b[i].run.dtype, lengths[i], at[0], at[1], at[2])
                : host_adam(&adam_one, b[i].run.dtype, lengths[i], at[0], at[1], at[2], at[3]));
        CHECK_EQ(flags[i], flag);
        CHECK_EQ(flag, lengths[i] == 8193);
    }
    check_states(sgd ? "sgd" : "adam", a, b);
}

TEST(a_step_for_a_list_has_the_bits_of_steps_for_each) {
    for (int sgd = 0; sgd < 2; sgd++) {
        one_step(sgd, PL_F32, PL_BF16);
        one_step(sgd, PL_F64, PL_F16);
    }
}

// Of the runs that ask for it, at addresses for packs and others: what a cast would give.
static void one_low(bool sgd, pl_dtype low) {
    state a[RUNS], b[RUNS];
    pl_run runs[RUNS];
    pl_tensor *copy[RUNS], *want;
    pl_cuda_queue q = {.stream = NULL};
    states_of(PL_F32, PL_F32, a, b, runs);
    for (int i = 0; i < RUNS; i++) {
        int64_t whole = lengths[i] + 1;
        copy[i] = check_tensor(low, 1, &whole, 1.0);
        check_set(copy[i], lengths[i], 7.0);
        runs[i].low = i % 4 == 3 ? NULL : copy[i]->data;
    }
    pl_adam_args adam = adam_args();
    pl_sgd_args plain = {.lr = 0.1, .grad_scale = 1.0, .low = low};
    adam.low = low;
    CHECK_OK(sgd ? pl_cuda_list_sgd(&plain, RUNS, runs, &q)
                 : pl_cuda_list_adam(&adam, RUNS, runs, &q));
    for (int i = 0; i < RUNS; i++) {
        CHECK_OK(pl_tensor_empty(low, 1, a[i].t[0]->shape, &want));
        CHECK_OK(pl_kernels_ref()->copy(a[i].t[0], want));
        size_t size = pl_dtype_size(low), off = (size_t)(want->numel - lengths[i]) * size;
        bool same = memcmp(copy[i]->data, (char *)want->data + off, lengths[i] * size) == 0;
        CHECK(same == (runs[i].low != NULL || lengths[i] == 0));
        CHECK(check_get(copy[i], lengths[i]) == 7.0);
        pl_tensor_release(want);
        pl_tensor_release(copy[i]);
        for (int k = 0; k < STATES; k++) {
            pl_tensor_release(a[i].t[k]);
            pl_tensor_release(b[i].t[k]);
        }
    }
}

TEST(a_step_writes_copies_in_a_half_type) {
    for (int i = 0; i < 4; i++) one_low(i % 2, i / 2 ? PL_F16 : PL_BF16);
}

TEST(unscaling_a_list) {
    static const double factors[] = {1.0, 0.25, 3.0};
    for (int f = 0; f < 3; f++) {
        state a[RUNS], b[RUNS];
        pl_run runs[RUNS];
        double there = 2.0;
        pl_cuda_queue q = {0};
        states_of(PL_F32, PL_F16, a, b, runs);
        pl_unscale_args args = {.factor = factors[f] / 2.0, .scale = &there};
        for (int i = 0; i < RUNS; i++) {
            CHECK_OK(host_unscale(runs[i].dtype, lengths[i], b[i].run.at[0], factors[f], NULL));
        }
        CHECK_OK(pl_cuda_list_unscale(&args, RUNS, runs, &q));
        check_states("unscale", a, b);
    }
}

static pl_status host_norm(const pl_norm_args *args, const pl_run *runs) {
    host_run r = {0};
    if (args->each) host_add(&r, NULL, (char *)args->each, RUNS * sizeof(double), false);
    host_add(&r, NULL, (char *)args->norm, sizeof(double), false);
    host_add(&r, NULL, (char *)args->factor, sizeof(double), false);
    host_add(&r, NULL, (char *)args->norm_f32, sizeof(float), false);
    ON_HOST(r, pl_cuda_list_norm(args, RUNS, runs, &r.q));
}

static void one_norm(bool inf, bool each) {
    state a[RUNS], b[RUNS];
    pl_run runs[RUNS];
    double numbers[RUNS], norm, factor, want = 0.0;
    float told;
    states_of(PL_F32, PL_BF16, a, b, runs);
    pl_norm_args args = {.inf = inf,
                         .due = 0.25,
                         .each = each ? numbers : NULL,
                         .norm = &norm,
                         .norm_f32 = &told,
                         .factor = &factor,
                         .max_norm = 0.1};
    CHECK_OK(host_norm(&args, runs));
    // The numbers of each run alone, added up in order: the bits.
    for (int i = 0; i < RUNS; i++) {
        pl_run run = runs[i];
        double one = -1.0;
        run.index = 0;
        pl_cuda_queue q = {.scratch = host_scratch, .owner = &(host_run){.st = PL_OK}};
        CHECK_OK(
            pl_cuda_list_norm(&(pl_norm_args){.inf = inf, .due = 0.25, .each = &one}, 1, &run, &q));
        pl_free(((host_run *)q.owner)->scratch);
        if (each) CHECK(numbers[i] == one);
        want = inf ? fmax(want, one) : want + one;
    }
    if (!inf) want = sqrt(want);
    CHECK(norm == want);
    CHECK(told == (float)want);
    CHECK(factor == 0.1 / (want + 1e-6));
    args.max_norm = 1e6;  // longer than it is
    CHECK_OK(host_norm(&args, runs));
    CHECK(factor == 1.0);
    check_states("norm", a, b);
}

TEST(the_norm_of_a_list_and_the_factor_that_clips_it) {
    for (int i = 0; i < 4; i++) one_norm(i % 2, i / 2);
}

TEST(a_norm_that_is_not_finite) {
    state a[RUNS], b[RUNS];
    pl_run runs[RUNS];
    double norm, factor;
    float told;
    states_of(PL_F32, PL_F64, a, b, runs);
    pl_norm_args args = {
        .due = 1.0, .norm = &norm, .norm_f32 = &told, .factor = &factor, .max_norm = 1.0};
    ((double *)a[2].run.at[0])[77] = ((double *)b[2].run.at[0])[77] = INFINITY;
    CHECK_OK(host_norm(&args, runs));
    CHECK(isinf(norm) && isinf(told) && factor == 0.0);
    ((float *)a[7].run.at[0])[5] = ((float *)b[7].run.at[0])[5] = NAN;
    for (int inf = 0; inf < 2; inf++) {
        args.inf = inf;
        args.keep_nonfinite = false;
        CHECK_OK(host_norm(&args, runs));
        CHECK(isnan(norm) && isnan(told) && isnan(factor));
        args.keep_nonfinite = true;
        CHECK_OK(host_norm(&args, runs));
        CHECK(isnan(norm) && factor == 1.0);
    }
    check_states("norm", a, b);
}

// More runs than a table holds: several launches, the same bits.
TEST(a_list_longer_than_a_table) {
    enum { MANY = 700 };
    static float memory[MANY * 3], again[MANY * 3];
    static pl_run runs[MANY];
    double norm, want = 0.0;
    pl_cuda_queue q = {.scratch = host_scratch, .owner = &(host_run){.st = PL_OK}};
    for (int i = 0; i < MANY * 3; i++) memory[i] = again[i] = (float)(i % 17) - 8.0f;
    for (int i = 0; i < MANY; i++) {
        runs[i] = (pl_run){.dtype = PL_F32, .index = i, .n = 3, .at = {memory + 3 * i}};
        for (int e = 0; e < 3; e++) want += (double)(memory[3 * i + e] * memory[3 * i + e]);
    }
    long before = (long)simt_launches();
    CHECK_OK(pl_cuda_list_norm(&(pl_norm_args){.due = 1.0, .norm = &norm}, MANY, runs, &q));
    CHECK(norm == sqrt(want));  // whole numbers
    CHECK_EQ((long)simt_launches() - before, 4);
    CHECK_OK(pl_cuda_list_unscale(&(pl_unscale_args){.factor = 0.5}, MANY, runs, &q));
    for (int i = 0; i < MANY * 3; i++) CHECK(memory[i] == 0.5f * again[i]);
    pl_free(((host_run *)q.owner)->scratch);
}

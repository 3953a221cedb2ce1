// SPDX-License-Identifier: Apache-2.0
// Random tensors. The streams are defined in ref/random.c (Note [random streams]); this file gives
// the same bits, the words made 16 blocks at a time. A piece of work starts at a multiple of the
// chunk, so that a block of words is never split between threads.

#include <math.h>
#include <string.h>

#include "cpu/cpu.h"
#include "cpu/isa.h"
#include "cpu/walk.h"
#include "normal.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

// Philox 4x32-10, as in base/random.c.
#define PHILOX_M0 0xD2511F53u
#define PHILOX_M1 0xCD9E8D57u
#define PHILOX_W0 0x9E3779B9u
#define PHILOX_W1 0xBB67AE85u

typedef struct random_loops {
    void (*philox16)(uint64_t seed, uint64_t offset, uint32_t *out);
    void (*uniform_words)(int64_t n, const uint32_t *w, double lo, double width, double *out);
    // Values 2k and 2k + 1 of out from u1[k] and u2[k].
    void (*normals)(int64_t pairs, const double *u1, const double *u2, double mean, double std,
                    double *out);
} random_loops;

#define PL_LOOPS "cpu/random_loops.h"
#include "cpu/each_isa.h"

typedef struct job {
    pl_tensor *out;
    uint64_t seed, offset;
    double lo, hi;  // uniform; mean and standard deviation for normal
    int64_t first;  // randint
    uint64_t span;
    double top;  // the largest value of out's dtype below hi
} job;

// The words of elements [begin, begin + PL_CHUNK): one each, or two each for 8-byte dtypes.
static void fill_words(const job *j, int64_t begin, int64_t n, uint32_t words[2 * PL_CHUNK]) {
    const random_loops *loops = PL_ISA_PICK(loops);
    int64_t per = pl_dtype_size(j->out->dtype) == 8 ? 2 : 1;
    uint64_t block = j->offset + (uint64_t)(begin * per / 4);
    for (int64_t w = 0; w < n * per; w += 64, block += 16) {
        loops->philox16(j->seed, block, words + w);
    }
}

static uint64_t word64(const uint32_t *words, int64_t i) {
    return (uint64_t)words[2 * i] << 32 | words[2 * i + 1];
}

static void store_chunk(const job *j, pl_compute c, int64_t begin, int64_t n, const void *values) {
    pl_dtype dt = j->out->dtype;
    char *to = (char *)j->out->data + begin * (int64_t)pl_dtype_size(dt);
    pl__cpu_convert()->store[c][dt](n, values, to, 1);
}

static void run(job *j, pl_range_fn fn) {
    pl_parallel_for(j->out->numel, j->out->numel < PL_SERIAL / 4 ? j->out->numel : 2 * PL_CHUNK, fn,
                    j);
}

// ---- uniform

// v in dtype dt, read back.
static double rounded(pl_dtype dt, double v) {
    char stored[8];
    pl_compute c = pl__cpu_compute(dt);
    const pl_convert *cv = pl__cpu_convert();
    cv->store[PL_C_F64][dt](1, &v, stored, 1);
    if (c == PL_C_F64) {
        memcpy(&v, stored, sizeof(v));
        return v;
    }
    float f;
    cv->load[dt](1, stored, 1, &f);
    return (double)f;
}

// The largest value of dtype dt below hi.
static double largest_below(pl_dtype dt, double hi) {
    double v = rounded(dt, hi);
    if (v < hi) return v;
    if (dt == PL_F64) return nextafter(v, -INFINITY);
    if (dt == PL_F32) return (double)nextafterf((float)v, -INFINITY);
    // Half precision: the nearest value below is what a little less rounds to.
    for (double less = fabs(v) * 0x1p-12 + 0x1p-134;; less *= 2.0) {
        double down = rounded(dt, v - less);
        if (down < v) return down;
    }
}

static void uniform_range(int64_t begin, int64_t end, void *ctx) {
    const job *j = ctx;
    const random_loops *loops = PL_ISA_PICK(loops);
    uint32_t words[2 * PL_CHUNK];
    double values[PL_CHUNK];
    for (int64_t i = begin; i < end; i += PL_CHUNK) {
        int64_t n = end - i < PL_CHUNK ? end - i : PL_CHUNK;
        fill_words(j, i, n, words);
        if (j->out->dtype == PL_F64) {
            for (int64_t k = 0; k < n; k++) {
                double u = (double)(word64(words, k) >> 11) * 0x1p-53;
                values[k] = j->lo + u * (j->hi - j->lo);
            }
        } else {
            loops->uniform_words(n, words, j->lo, j->hi - j->lo, values);
        }
        // Values above top would round to hi or more.
        for (int64_t k = 0; k < n; k++) values[k] = values[k] > j->top ? j->top : values[k];
        store_chunk(j, PL_C_F64, i, n, values);
    }
}

pl_status pl_cpu_uniform(pl_tensor *out, double lo, double hi, uint64_t seed, uint64_t offset) {
    job j = {.out = out, .seed = seed, .offset = offset, .lo = lo, .hi = hi};
    j.top = hi > lo ? largest_below(out->dtype, hi) : hi;
    run(&j, uniform_range);
    return PL_OK;
}

// ---- normal

// The two uniforms of each pair of elements (Note [random streams]).
static void pair_uniforms(const uint32_t *words, bool wide, int64_t pairs, double *u1, double *u2) {
    for (int64_t k = 0; k < pairs; k++) {
        if (wide) {
            u1[k] = ((double)(word64(words, 2 * k) >> 11) + 1.0) * 0x1p-53;
            u2[k] = (double)(word64(words, 2 * k + 1) >> 11) * 0x1p-53;
        } else {
            u1[k] = ((double)words[2 * k] + 1.0) * 0x1p-32;
            u2[k] = (double)words[2 * k + 1] * 0x1p-32;
        }
    }
}

static void normal_range(int64_t begin, int64_t end, void *ctx) {
    const job *j = ctx;
    const random_loops *loops = PL_ISA_PICK(loops);
    uint32_t words[2 * PL_CHUNK];
    double u1[PL_CHUNK / 2], u2[PL_CHUNK / 2], values[PL_CHUNK];
    for (int64_t i = begin; i < end; i += PL_CHUNK) {
        int64_t n = end - i < PL_CHUNK ? end - i : PL_CHUNK, pairs = (n + 1) / 2;
        fill_words(j, i, 2 * pairs, words);
        pair_uniforms(words, j->out->dtype == PL_F64, pairs, u1, u2);
        loops->normals(pairs, u1, u2, j->lo, j->hi, values);
        store_chunk(j, PL_C_F64, i, n, values);
    }
}

pl_status pl_cpu_normal(pl_tensor *out, double mean, double std, uint64_t seed, uint64_t offset) {
    job j = {.out = out, .seed = seed, .offset = offset, .lo = mean, .hi = std};
    run(&j, normal_range);
    return PL_OK;
}

// ---- integers

static void randint_range(int64_t begin, int64_t end, void *ctx) {
    const job *j = ctx;
    uint32_t words[2 * PL_CHUNK];
    int64_t values[PL_CHUNK];
    bool wide = pl_dtype_size(j->out->dtype) == 8;
    for (int64_t i = begin; i < end; i += PL_CHUNK) {
        int64_t n = end - i < PL_CHUNK ? end - i : PL_CHUNK;
        fill_words(j, i, n, words);
        for (int64_t k = 0; k < n; k++) {
            uint64_t draw = wide ? (uint64_t)((unsigned __int128)word64(words, k) * j->span >> 64)
                                 : (words[k] * j->span) >> 32;
            values[k] = (int64_t)((uint64_t)j->first + draw);
        }
        store_chunk(j, PL_C_I64, i, n, values);
    }
}

pl_status pl_cpu_randint(pl_tensor *out, int64_t lo, int64_t hi, uint64_t seed, uint64_t offset) {
    job j = {.out = out,
             .seed = seed,
             .offset = offset,
             .first = lo,
             .span = (uint64_t)hi - (uint64_t)lo};
    run(&j, randint_range);
    return PL_OK;
}

// SPDX-License-Identifier: Apache-2.0
// Folding of vectors over ranks in the order of Note [the tree] (reduce.h).
//
// The vectors are walked in blocks that fit the first-level cache. For a block, the tree is a
// binary counter: each rank's block is pushed on a stack; after rank r, as many merges are done as
// r + 1 has trailing zero bits, and at the end the rest of the stack is merged from the top. The
// last merge writes into the first two destinations, the others get copies. bf16 and f16 are
// widened to fp32 when pushed and narrowed once at the end. The last, ragged block goes through
// padded copies, so that the loops see whole vectors only.
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "comm/reduce.h"

#define BLOCK_BYTES 4096  // of accumulators; a handful of blocks stay in a 32 KiB cache
#define LEVELS 10         // PL_MAX_RANKS = 2^8 leaves: 9 entries, and one being merged

// Vectors of 64 bytes without alignment, over memory of any type.
#define VECTOR(name, type) typedef type name __attribute__((vector_size(64), aligned(1), may_alias))
VECTOR(v_f32, float);
VECTOR(v_f64, double);
VECTOR(v_i32, int32_t);
VECTOR(v_u32, uint32_t);
VECTOR(v_i64, int64_t);
VECTOR(v_u64, uint64_t);
VECTOR(v_u8, uint8_t);

typedef void (*fold_fn)(const void *a, const void *b, void *d0, void *d1, int64_t n, double scale);

enum { FOLD_SUM, FOLD_MUL, FOLD_DIV, FOLD_MAX, FOLD_MIN, FOLDS };

typedef struct loops {
    fold_fn fold[PL_DTYPE_COUNT][FOLDS];
    void (*load[PL_DTYPE_COUNT])(const void *src, float *dst, int64_t n);
    void (*store[PL_DTYPE_COUNT])(const float *src, void *dst, int64_t n);
} loops;

#define LOOPS_NAME(x) x##_base
#define LOOPS_TARGET
#define LOOPS_LEVEL 0
#include "comm/reduce_loops.h"
#if defined(__x86_64__)
#define LOOPS_NAME(x) x##_avx2
#define LOOPS_TARGET __attribute__((target("avx2,f16c")))
#define LOOPS_LEVEL 1
#include "comm/reduce_loops.h"
#define LOOPS_NAME(x) x##_avx512
#define LOOPS_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq")))
#define LOOPS_LEVEL 2
#include "comm/reduce_loops.h"
#endif

static const loops *pick_loops(void) {
#if defined(__x86_64__)
    if (pl_cpu()->avx512) return &table_avx512;
    if (pl_cpu()->avx2_fma) return &table_avx2;
#endif
    return &table_base;
}

typedef struct job {
    const loops *l;
    const void *const *src;
    void *const *dst;
    int n_src, n_dst;
    pl_dtype in, acc, out;  // of the sources; of the accumulators; of the destinations
    fold_fn merge, last;    // between; for the root of the tree (divides for MEAN)
    double scale;
} job;

static size_t bytes_of(pl_dtype dt, int64_t n) { return (size_t)n * pl_dtype_size(dt); }

// The workspace of one block: one accumulator per level of the stack.
typedef struct work {
    _Alignas(64) unsigned char level[LEVELS][BLOCK_BYTES];
    _Alignas(64) unsigned char leaf[BLOCK_BYTES];
    _Alignas(64) unsigned char result[BLOCK_BYTES];
} work;

// The r-th source's elements from i on as accumulators: in place where the type allows, else in
// `own`.
static const void *push(const job *j, work *w, int r, int64_t i, int64_t n, int64_t padded,
                        unsigned char *own) {
    const char *p = (const char *)j->src[r] + bytes_of(j->in, i);
    if (j->acc != j->in) {
        if (n != padded) {
            memset(w->leaf, 0, bytes_of(j->in, padded));
            memcpy(w->leaf, p, bytes_of(j->in, n));
            p = (const char *)w->leaf;
        }
        j->l->load[j->in](p, (float *)(void *)own, padded);
        return own;
    }
    if (n == padded) return p;
    memset(own, 0, bytes_of(j->in, padded));
    memcpy(own, p, bytes_of(j->in, n));
    return own;
}

// The tree over one block of n elements from i on; padded is n rounded up to whole vectors.
static void fold_block(const job *j, work *w, int64_t i, int64_t n, int64_t padded) {
    const void *stack[LEVELS];
    int top = 0;  // entries
    bool direct = j->acc == j->out && n == padded;
    size_t at = bytes_of(j->out, i);
    void *d0 = direct ? (char *)j->dst[0] + at : (void *)w->result;
    void *d1 = direct && j->n_dst > 1 ? (char *)j->dst[1] + at : NULL;
    for (int r = 0; r < j->n_src; r++) {
        stack[top] = push(j, w, r, i, n, padded, w->level[top]);
        top++;
        bool end = r == j->n_src - 1;
        for (unsigned k = (unsigned)r + 1; top > 1 && (end || !(k & 1)); k >>= 1) {
            top--;
            if (end && top == 1) {
                j->last(stack[0], stack[1], d0, d1, padded, j->scale);
            } else {
                j->merge(stack[top - 1], stack[top], w->level[top - 1], NULL, padded, 0);
                stack[top - 1] = w->level[top - 1];
            }
        }
    }
    int done = direct ? (d1 ? 2 : 1) : 0;
    const void *result = d0;
    if (j->acc != j->out) {
        j->l->store[j->out]((const float *)(void *)w->result, w->leaf, padded);
        result = w->leaf;
    }
    for (int d = done; d < j->n_dst; d++) {
        memcpy((char *)j->dst[d] + at, result, bytes_of(j->out, n));
    }
}

static void copy_all(const job *j, int64_t n) {
    for (int d = 0; d < j->n_dst; d++) {
        if (j->dst[d] != j->src[0]) memmove(j->dst[d], j->src[0], bytes_of(j->in, n));
    }
}

pl_dtype pl__reduce_acc(pl_dtype dt) { return dt == PL_BF16 || dt == PL_F16 ? PL_F32 : dt; }

// `world`: how many ranks the result is of, which is what MEAN divides by.
static job plan(const void *const *src, int n_src, void *const *dst, int n_dst, pl_dtype dt,
                pl_redop op, int world) {
    job j = {.l = pick_loops(),
             .src = src,
             .dst = dst,
             .n_src = n_src,
             .n_dst = n_dst,
             .in = dt,
             .acc = pl__reduce_acc(dt),
             .out = dt};
    const fold_fn *f = j.l->fold[j.acc];
    j.merge = f[op == PL_RED_MAX ? FOLD_MAX : op == PL_RED_MIN ? FOLD_MIN : FOLD_SUM];
    j.last = j.merge;
    if (op == PL_RED_MEAN) {
        // Multiplying by the inverse of a power of two rounds like the division, and is quicker.
        bool power = (world & (world - 1)) == 0;
        j.last = f[power ? FOLD_MUL : FOLD_DIV];
        j.scale = power ? 1.0 / world : world;
    }
    return j;
}

static void run(const job *j, int64_t n) {
    work w;
    // Whole vectors of accumulators and of what they are read from and written to.
    bool same = j->acc == j->in && j->acc == j->out;
    int64_t lanes = 64 / (int64_t)(same ? pl_dtype_size(j->acc) : sizeof(float));
    int64_t block = BLOCK_BYTES / 64 * lanes;
    for (int64_t i = 0; i < n; i += block) {
        int64_t m = n - i < block ? n - i : block;
        int64_t whole = m / lanes * lanes;
        if (whole) fold_block(j, &w, i, whole, whole);
        if (m > whole) fold_block(j, &w, i + whole, m - whole, lanes);
    }
}

void pl__reduce(const void *const *src, int world, void *const *dst, int n_dst, int64_t n,
                pl_dtype dt, pl_redop op) {
    job j = plan(src, world, dst, n_dst, dt, op, world);
    if (world == 1) {
        copy_all(&j, n);
    } else {
        run(&j, n);
    }
}

void pl__reduce_block(const void *const *src, int n_src, void *dst, int64_t n, pl_dtype dt,
                      pl_redop op) {
    job j = plan(src, n_src, &dst, 1, dt, op == PL_RED_MEAN ? PL_RED_SUM : op, n_src);
    j.out = j.acc;
    run(&j, n);
}

void pl__reduce_blocks(const void *const *src, int n_src, void *dst, int64_t n, pl_dtype dt,
                       pl_redop op, int world) {
    job j = plan(src, n_src, &dst, 1, dt, op, world);
    j.in = j.acc;
    run(&j, n);
}

pl_status pl__reduce_check(const char *name, pl_dtype dt, pl_redop op) {
    if ((unsigned)dt >= PL_DTYPE_COUNT)
        return pl_fail(PL_ETYPE, "[%s] unknown dtype: got %d", name, dt);
    if ((unsigned)op > PL_RED_MIN) {
        return pl_fail(PL_EINVAL, "[%s] unknown reduction: got %d, expected 0 to 3", name, op);
    }
    if (op == PL_RED_MEAN && !pl_dtype_is_float(dt)) {
        return pl_fail(PL_ETYPE, "[%s] mean needs a floating dtype: got %s, expected float or sum",
                       name, pl_dtype_name(dt));
    }
    return PL_OK;
}

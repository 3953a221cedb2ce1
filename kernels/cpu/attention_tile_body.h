// SPDX-License-Identifier: Apache-2.0
// What attention's forward and backward passes share: the additive mask and the dropout factors of
// one tile, transposed like it, and results written back. Note [attention in tiles]. Compiled for
// float, for double, and for float with bf16 operands.
#include "philox.h"

#ifndef PL_ATTENTION_TILE
#define PL_ATTENTION_TILE
typedef struct att_tile {
    int64_t b, h, q0, k0, queries, keys;  // its first query and key, and how many there are
} att_tile;

PL_INLINE const void *att_row(const pl_attention_job *job, const pl_attention_view *v,
                              const att_tile *t, int64_t row) {
    int64_t h = v->group == 1 ? t->h : t->h / v->group;
    return (const char *)v->data +
           (t->b * v->b + h * v->h + row * v->row) * (int64_t)pl_dtype_size(job->dt);
}

// Asks for the next head's rows [row, row + 64) while this head is worked on: rows of a head lie
// far apart in a packed qkv, where the processor does not foresee them. Beyond the last head the
// address may be nobody's, which a prefetch does not mind.
PL_INLINE void att_prefetch(const pl_attention_job *job, const pl_attention_view *v,
                            const att_tile *t, int64_t row, int64_t rows, int64_t width) {
    bool last = t->h + 1 == job->heads;
    att_tile next = {t->b + last, last ? 0 : t->h + 1, 0, 0, 0, 0};
    int64_t nbytes = width * (int64_t)pl_dtype_size(job->dt);
    for (int64_t r = row; r < row + 64 && r < rows; r++) {
        const char *p = att_row(job, v, &next, r);
        for (int64_t at = 0; at < nbytes; at += 64) __builtin_prefetch(p + at);
    }
}

// Random words of queries [lane, lane + PHILOX_LANES) and keys [kk, kk + 4), keys a multiple of 4.
PL_INLINE void att_words(const pl_attention_job *job, const att_tile *t, int64_t lane, int64_t kk,
                         uint32_t words[4][PHILOX_LANES]) {
    int64_t line = (t->b * job->heads + t->h) * job->queries + t->q0 + lane;
    uint64_t first = (uint64_t)(line * job->keys + t->k0 + kk) / 4;
    philox_strided(job->seed, job->offset + first, (uint64_t)job->keys / 4, words);
}

// The same for any number of keys, one element.
PL_INLINE uint32_t att_word(const pl_attention_job *job, const att_tile *t, int64_t lane,
                            int64_t kk) {
    int64_t line = (t->b * job->heads + t->h) * job->queries + t->q0 + lane;
    uint64_t i = (uint64_t)(line * job->keys + t->k0 + kk);
    uint32_t words[4];
    pl_philox(job->seed, job->offset + i / 4, 0, words);
    return words[i % 4];
}
#endif

// keep (64, 64): 0 or 1 / (1 - p).
static void FN(fill_keep)(const pl_attention_job *job, const att_tile *t, R *keep) {
    uint32_t threshold = philox_threshold(job->dropout_p), words[4][PHILOX_LANES];
    R factor = (R)(1.0 / (1.0 - job->dropout_p));
    if (job->keys % 4 != 0) {
        for (int64_t kk = 0; kk < t->keys; kk++) {
            for (int64_t l = 0; l < 64; l++) {
                bool kept = l < t->queries && att_word(job, t, l, kk) >> 8 >= threshold;
                keep[kk * 64 + l] = kept ? factor : 0;
            }
        }
        return;
    }
    for (int64_t kk = 0; kk < t->keys; kk += 4) {
        for (int64_t lane = 0; lane < t->queries; lane += PHILOX_LANES) {
            att_words(job, t, lane, kk, words);
            for (int w = 0; w < 4; w++) {
                R *row = keep + (kk + w) * 64 + lane;
                for (int l = 0; l < PHILOX_LANES; l++) {
                    row[l] = words[w][l] >> 8 >= threshold ? factor : 0;
                }
            }
        }
    }
}

PL_INLINE R FN(mask_value)(const pl_tensor *mask, int64_t i) {
    switch (mask->dtype) {
        case PL_BOOL:
            return ((const uint8_t *)mask->data)[i] ? 0 : -(R)INFINITY;
        case PL_F16:
            return (R)pl_f16_to_f32(((const pl_f16 *)mask->data)[i]);
        case PL_BF16:
            return (R)pl_bf16_to_f32(((const pl_bf16 *)mask->data)[i]);
        case PL_F32:
            return (R)((const float *)mask->data)[i];
        default:
            return (R)((const double *)mask->data)[i];
    }
}

// bias (64, 64): what the mask adds to a score, times log2 e; 0 for queries beyond the last.
static void FN(fill_bias)(const pl_attention_job *job, const att_tile *t, R *bias) {
    const pl_tensor *m = job->mask;
    int64_t at =
        t->b * m->strides[0] + t->h * m->strides[1] + t->q0 * m->strides[2] + t->k0 * m->strides[3];
    for (int64_t kk = 0; kk < t->keys; kk++) {
        R *row = bias + kk * 64;
        int64_t i = at + kk * m->strides[3];
        R same = m->strides[2] == 0 ? FN(mask_value)(m, i) * (R)PL_LOG2_E : 0;
        for (int64_t l = 0; l < 64; l++) {
            row[l] = l >= t->queries      ? 0
                     : m->strides[2] == 0 ? same
                                          : FN(mask_value)(m, i + l * m->strides[2]) * (R)PL_LOG2_E;
        }
    }
}

// dst (rows, cols) = src^T, src (cols, 64), each row times its factor.
PL_INLINE void FN(unpack_cols)(pl_dtype dt, void *dst, int64_t step, int64_t rows, int64_t cols,
                               const R *src, const R *factor) {
    for (int64_t r = 0; r < rows; r += VN) {
        VR f = V(load)(factor + r);
        for (int64_t c = 0; c < cols; c += VN) {
            VR block[VN];
            for (int i = 0; i < VN; i++) {
                block[i] = c + i < cols ? V(load)(src + (c + i) * 64 + r) * f : V(set1)(0);
            }
            V(transpose)(block);
            for (int i = 0; i < VN && r + i < rows; i++) {
                if (cols - c >= VN) {
                    V(put)(dst, (r + i) * step + c, dt, block[i]);
                } else {
                    V(put_n)(dst, (r + i) * step + c, cols - c, dt, block[i]);
                }
            }
        }
    }
}

static void FN(write_transposed)(pl_dtype dtype, const void *dst, int64_t step, int64_t rows,
                                 int64_t cols, const R *src, const R *factor) {
    void *to = (void *)(uintptr_t)dst;
    PL_EACH_DTYPE(dtype, FN(unpack_cols), to, step, rows, cols, src, factor);
}

PL_INLINE void FN(unpack_rows)(pl_dtype dt, void *dst, int64_t step, int64_t rows, int64_t cols,
                               const R *src, int64_t ld, R factor) {
    VR f = V(set1)(factor);
    for (int64_t r = 0; r < rows; r++) {
        for (int64_t c = 0; c < cols; c += VN) {
            VR v = V(load)(src + r * ld + c) * f;
            if (cols - c >= VN) {
                V(put)(dst, r * step + c, dt, v);
            } else {
                V(put_n)(dst, r * step + c, cols - c, dt, v);
            }
        }
    }
}

static void FN(write_rows)(pl_dtype dtype, const void *dst, int64_t step, int64_t rows,
                           int64_t cols, const R *src, int64_t ld, R factor) {
    void *to = (void *)(uintptr_t)dst;
    PL_EACH_DTYPE(dtype, FN(unpack_rows), to, step, rows, cols, src, ld, factor);
}

PL_INLINE VR FN(lanes)(int64_t first) {  // first, first + 1, ...
    R t[VN];
    for (int i = 0; i < VN; i++) t[i] = (R)(first + i);
    return V(load)(t);
}

// Keys of the tile that some query of lanes [lane, lane + count) sees.
PL_INLINE int64_t FN(keys_seen)(const pl_attention_job *job, const att_tile *t, int64_t lane,
                                int64_t count) {
    int64_t seen = t->q0 + lane + count - t->k0;
    return job->causal && seen < t->keys ? seen : t->keys;
}

// ST (keys, 64) = A BT over the columns of queries, where causal only the part that is seen.
PL_INLINE void FN(scores)(const pl_attention_job *job, const att_tile *t, const E *a, int64_t lda,
                          const E *bt, int64_t k, R *st) {
    if (FN(keys_seen)(job, t, 0, 1) == t->keys) {
        int64_t cols = (t->queries + 2 * VN - 1) / (2 * VN) * (2 * VN);
        FN(product)(false, t->keys, cols, k, a, lda, bt, 64, st, 64);
        return;
    }
    for (int64_t j = 0; j < t->queries; j += 2 * VN) {
        FN(product)(false, FN(keys_seen)(job, t, j, 2 * VN), 2 * VN, k, a, lda, bt + j * FORM_COLS,
                    64, st + j, 64);
    }
}

// CT (m, 64) (+)= A PT over the columns of queries: A (m, keys), PT (keys, 64) in form B.
PL_INLINE void FN(gather_keys)(const pl_attention_job *job, const att_tile *t, bool add, int64_t m,
                               const E *a, const E *pt, R *ct) {
    if (FN(keys_seen)(job, t, 0, 1) == t->keys) {
        int64_t cols = (t->queries + 2 * VN - 1) / (2 * VN) * (2 * VN);
        FN(product)(add, m, cols, FORM_DEPTH(t->keys), a, 64, pt, 64, ct, 64);
        return;
    }
    for (int64_t j = 0; j < t->queries; j += 2 * VN) {
        int64_t keys = FORM_DEPTH(FN(keys_seen)(job, t, j, 2 * VN));
        FN(product)(add, m, 2 * VN, keys, a, 64, pt + j * FORM_COLS, 64, ct + j, 64);
    }
}

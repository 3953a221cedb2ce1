// SPDX-License-Identifier: Apache-2.0
// attention: what attention.c hands to the loops that are compiled per instruction set
// (attention_body.h, attention_grad_body.h). Private to kernels/cpu.
//
// Note [attention in tiles]
// Work goes by tiles of 64 queries by 64 keys. All products are held transposed, queries along the
// vector: S^T = K Q^T, so that a query's maximum, sum and dropout block live in one lane and
// softmax needs no shuffle. Names below: T suffix, transposed.
//   forward, one tile of queries, keys in order (running maximum m and sum l per query):
//       ST = K QT;  PT = e^(ST - m);  OT = OT * e^(m_old - m) + VT PT
//   backward, one head, tiles of queries in order, for each the keys in order:
//       ST = K QT;  PT = e^(ST - lse);  dPT = V GT;  dST = PT * (dPT - delta)
//       dV += PT G;  dK += dST Q;  dQT += KT dST
// where G is the gradient of the output, delta = sum(G * out) of a query, and dropout's factors
// multiply PT in dV and dPT. A product C (m, n) = A (m, k) B (k, n) wants A's numbers by row (they
// are broadcast) and B's with n adjacent; with bf16 dot products two neighbours along k lie side by
// side in both. So each operand is packed once in form A or form B (attention_forms_*.h), and
// everything else is the same code. Sums are in R: float, or double for doubles.
#ifndef PL_KERNELS_CPU_ATTENTION_H
#define PL_KERNELS_CPU_ATTENTION_H

#include <stdatomic.h>

#include "kernels.h"

// Scores are kept times log2 e inside the loops, so that probabilities are powers of two.
#define PL_LOG2_E 1.4426950408889634
#define PL_LN_2 0.6931471805599453

enum { PL_ATT_Q = 64, PL_ATT_K = 64 };  // tile of queries, tile of keys

// A (B, H / group, rows, width) tensor, whose head h / group serves head h; width's stride is 1.
typedef struct pl_attention_view {
    void *data;
    int64_t b, h, row;  // strides in elements
    int64_t group;
} pl_attention_view;

typedef struct pl_attention_job {
    pl_attention_view q, k, v, out, g, dq, dk, dv;
    void *lse;  // (B, H, T) R, written forward, read backward
    int64_t lse_b, lse_h, lse_row;
    int64_t heads;  // H; a head of the batch is numbered b * H + h
    int64_t queries, keys, width, vwidth;
    double scale;
    bool causal;
    const pl_tensor *mask;
    double dropout_p;
    uint64_t seed, offset;
    pl_dtype dt;
    char *scratch;          // one piece per thread
    size_t scratch_nbytes;  // of a piece
    atomic_int next_scratch;
} pl_attention_job;

// Bytes of scratch that one thread's loop takes, for numbers of `real` bytes.
size_t pl__attention_scratch(const pl_attention_job *job, bool backward, size_t real);

// bf16 dot products (AVX512-BF16): NULL where this build or processor has none.
pl_range_fn pl__attention_dot(bool backward);

#endif

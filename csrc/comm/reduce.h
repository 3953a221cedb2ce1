// SPDX-License-Identifier: Apache-2.0
// The arithmetic of reductions: vectors of one element type, folded over ranks. Knows no shared
// memory and no group; thread-safe, uses no OpenMP.
//
// Note [the tree]: the sum over ranks 0..w-1 is sum(0..p-1) + sum(p..w-1), p the largest power of
// two below w, lower block first, and so on down: w = 3 is (0+1)+2, w = 4 is (0+1)+(2+3), w = 7 is
// ((0+1)+(2+3))+((4+5)+6). It depends on w only: not on the transport, the size, the slices, the
// bucket or the rank that computes it. bf16 and f16 are summed in fp32 and rounded once at the
// end. MEAN divides the sum by w before that rounding. MAX and MIN walk the same tree, and the
// NaN of the lowest rank that has one is the result.
#ifndef PL_COMM_REDUCE_H
#define PL_COMM_REDUCE_H

#include "base/base.h"
#include "comm/comm.h"

// dst[d][i] = fold of src[r][i] over r < world, for every d < n_dst, i < n. A dst may be one of
// the src (the same address), else they do not overlap. Integers wrap; bool: SUM and MAX are
// "or", MIN is "and".
void pl__reduce(const void *const *src, int world, void *const *dst, int n_dst, int64_t n,
                pl_dtype dt, pl_redop op);
// The same in two halves, for a tree whose lower levels are folded elsewhere. A fold of a whole
// block of 2^k ranks is a node of the tree: it stays in the accumulator's type (pl__reduce_acc) and
// is neither divided nor rounded; the fold of all blocks then ends it, for `world` ranks in all.
pl_dtype pl__reduce_acc(pl_dtype dt);
void pl__reduce_block(const void *const *src, int n_src, void *dst, int64_t n, pl_dtype dt,
                      pl_redop op);
void pl__reduce_blocks(const void *const *src, int n_src, void *dst, int64_t n, pl_dtype dt,
                       pl_redop op, int world);
// Whether op has a meaning for dt: MEAN of integers and bool has none.
pl_status pl__reduce_check(const char *name, pl_dtype dt, pl_redop op) PL_MUST_USE;

#endif

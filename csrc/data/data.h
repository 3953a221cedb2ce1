// SPDX-License-Identifier: Apache-2.0
// data: which sample goes to which rank, as plain index arithmetic. Knows no tensor, no process
// group and no data set: it is given counts and an order and fills in indices.
// Threads: no state; any thread. Nothing here blocks or allocates.
#ifndef PL_DATA_H
#define PL_DATA_H

#include "base/base.h"

// Samples of one rank out of `world`: sample i of the padded (or cut) order goes to rank
// i % world, so that ranks side by side see samples side by side. Without drop_last the order is
// padded by looping from its start until it divides; with it, the tail is left out.
pl_status pl_data_distributed_count(int64_t n, int world, int rank, bool drop_last,
                                    int64_t *out) PL_MUST_USE;
// out has the count of above. order: (n) or NULL for 0..n-1.
pl_status pl_data_distributed_fill(const int64_t *order, int64_t n, int world, int rank,
                                   bool drop_last, int64_t *out) PL_MUST_USE;

// Batches of one rank. Without `split`, rank r takes the batches r, r + world, ... of the order cut
// into batches of batch_size; with it, batch_size is that of all ranks together (a multiple of
// world) and each batch is cut into `world` parts. `even`: the tail is completed by looping over
// the first samples, until every rank has as many batches and each is full. drop_last: batches
// that cannot be full, and without split groups that cannot give every rank one, are left out.
typedef struct pl_data_shard {
    int64_t n, batch_size;
    int world, rank;
    bool drop_last, even, split;
} pl_data_shard;

pl_status pl_data_shard_count(const pl_data_shard *shard, int64_t *n_batches,
                              int64_t *n_indices) PL_MUST_USE;
// indices: (n_indices); offsets: (n_batches + 1), batch b is indices[offsets[b] .. offsets[b+1]).
pl_status pl_data_shard_fill(const pl_data_shard *shard, const int64_t *order, int64_t *indices,
                             int64_t *offsets) PL_MUST_USE;

#endif

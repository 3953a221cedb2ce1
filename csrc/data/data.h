// SPDX-License-Identifier: Apache-2.0
// data: which sample goes to which rank, as plain index arithmetic; rows of arrays gathered into
// batches, ahead of their use where asked; memory in which worker processes hand batches over.
// Knows no process group and no data set.
// Threads: as said at each part; index arithmetic has no state, neither blocks nor allocates.
#ifndef PL_DATA_H
#define PL_DATA_H

#include "base/base.h"
#include "tensor/tensor.h"

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

// ---------------------------------------------------------------------------------------------
// Gathering. Rows of an array: n rows of row_bytes, stride_bytes apart. Borrowed memory.
typedef struct pl_rows {
    const void *data;
    int64_t n, row_bytes, stride_bytes;
} pl_rows;

// out[i] = rows[index[i]], out (count, row_bytes) contiguous. An index outside [-n, n) is PL_EINDEX
// with nothing written. Any thread; `parallel` uses the loop pool, so only where that is allowed.
pl_status pl_data_gather(const pl_rows *rows, const int64_t *index, int64_t count, bool parallel,
                         void *out) PL_MUST_USE;

// A thread that gathers batches ahead of their use, in the order of asking. It calls nothing but
// memcpy and its lock: it stays out of OpenMP (Note [comm thread stays out of OpenMP], comm/comm.h)
// and out of the allocator, and blocks all signals. One owner thread asks, takes and frees. A
// forked child has no such thread: there every call but free fails.
#define PL_PREFETCH_MAX 8  // batches asked for and not taken yet
typedef struct pl_prefetch pl_prefetch;

// columns (n_columns), copied; their memory must stay until pl_prefetch_free.
pl_status pl_prefetch_new(int n_columns, const pl_rows *columns, pl_prefetch **out) PL_MUST_USE;
// index: 1-d contiguous int64. outs (n_columns): where the rows go, contiguous. All are retained.
pl_status pl_prefetch_ask(pl_prefetch *p, pl_tensor *index, pl_tensor *const *outs) PL_MUST_USE;
// Waits for the oldest batch asked for; outs (n_columns) are the caller's. A bad index is told
// here, and the next batch can be taken. An interrupt leaves the batch to be taken again.
pl_status pl_prefetch_take(pl_prefetch *p, pl_tensor **outs) PL_MUST_USE;
int pl_prefetch_pending(const pl_prefetch *p);
void pl_prefetch_free(pl_prefetch *p);  // joins the thread: waits for one gather at most

// ---------------------------------------------------------------------------------------------
// Memory that worker processes and their parent both map. Tensors over it count as its users; the
// mapping goes with the last of them and of the references. Any thread.
typedef struct pl_shared pl_shared;

// Maps the first nbytes (> 0) of a memfd of at least that size; the descriptor stays the caller's.
pl_status pl_shared_map(int fd, size_t nbytes, pl_shared **out) PL_MUST_USE;
void pl_shared_release(pl_shared *s);  // NULL is legal
size_t pl_shared_nbytes(const pl_shared *s);
int pl_shared_users(const pl_shared *s);  // tensors over it that are alive
// A contiguous tensor at offset bytes (a multiple of 64), which must fit.
pl_status pl_shared_tensor(pl_shared *s, size_t offset, pl_dtype dt, int ndim, const int64_t *shape,
                           pl_tensor **out) PL_MUST_USE;
pl_status pl_shared_write(pl_shared *s, size_t offset, const void *from, size_t nbytes) PL_MUST_USE;

#endif

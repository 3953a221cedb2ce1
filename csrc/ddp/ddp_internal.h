// SPDX-License-Identifier: Apache-2.0
// Private to ddp: the reducer's fields.
#ifndef PL_DDP_INTERNAL_H
#define PL_DDP_INTERNAL_H

#include "ddp/ddp.h"

typedef struct pl__bucket {
    int64_t offset, nbytes;  // in the storage
    pl_dtype dtype;
    int first, n;    // its parameters: members[first .. first + n)
    int ready;       // gradients that are complete in this pass
    uint64_t *used;  // bit i: parameter i of the bucket has a gradient; then the union over ranks
    pl_work *work;   // the reduction under way, or NULL
    int64_t first_block, n_blocks;  // norm.c: of the reducer's blocks
    bool measured;                  // this rank sums up squares in this pass
} pl__bucket;

typedef struct pl__slot {
    int bucket, place;  // parameter `place` of that bucket
    int64_t offset;     // bytes, in the storage
    int64_t first_block;
} pl__slot;

struct pl_reducer {
    pl_group *group;
    pl_redop op;
    pl_reduce_on on;
    pl_site site;
    pl_device device;     // of all parameters
    pl_storage *storage;  // all buckets
    pl_segment *segment;  // which the storage is made of, on the CPU; else NULL
    int n;
    pl_tensor **params;  // [n] retained
    pl__slot *slots;     // [n]
    int64_t nbytes;
    int64_t *blocks;  // norm.c: where each block begins in its bucket; NULL: nothing is gathered
    int64_t sums_at;  // bytes, in the storage: a sum for each block
    int *members;     // [n] parameter numbers by bucket
    int n_buckets;
    pl__bucket *buckets;
    // Note [bucket order]: all ranks launch buckets in the order `order`, however they become
    // ready: a bucket waits for those before it. The first pass uses the order of the layout and
    // records in which order buckets became ready; rank 0's record is then everyone's.
    int *order;     // [n_buckets]
    int *finished;  // [n_buckets] the order in which buckets became ready in this pass
    int n_finished, n_launched;
    bool *ready;  // [n] gradients that are complete in this pass
    bool learned;
    bool sync;
    bool polled;    // this pass's buckets are reduced by this thread
    bool expected;  // a reduction is owed
    bool broken;    // a pass failed half-way: gradients and peers are out of step
};

pl_status pl__reducer_on_ready(void *ctx, int p) PL_MUST_USE;  // ctx: the reducer
pl_status pl__reducer_grad_view(const pl_reducer *r, int p, pl_tensor **out) PL_MUST_USE;
pl_status pl__reducer_check_whole(const pl_reducer *r) PL_MUST_USE;
void pl__reducer_forget(pl_reducer *r);  // the pass that is open, if one is
// norm.c: behind the layout; for a bucket that is sent; when all are back
pl_status pl__norm_layout(pl_reducer *r) PL_MUST_USE;
void pl__norm_ask(const pl_reducer *r, pl__bucket *b, pl_bucket_call *call);
void pl__norm_keep(const pl_reducer *r);
// memory.c
pl_status pl__memory_open(pl_reducer *r) PL_MUST_USE;
void pl__memory_place(const pl_reducer *r, const pl__bucket *b, pl_bucket_call *call);
pl_status pl__layout_build(pl_reducer *r, const pl_reducer_options *opt);

#endif

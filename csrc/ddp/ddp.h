// SPDX-License-Identifier: Apache-2.0
// ddp: gradients live in buckets, buckets live in memory that all ranks share, or that of the
// parameters' device, and each is reduced as soon as its last gradient is there, while the backward
// pass goes on.
// Threads: a reducer belongs to the thread that runs the backward passes; the reduction itself
// runs on the group's communication thread, or on that one (pl_reduce_on).
//
// Note [outside gradients]: gradients may be computed by another library. A parameter of its is
// given as a leaf without memory, of its shape and dtype; that library takes the gradient's place
// in the bucket (pl_reducer_grad) for its own, and says what the backward pass here would say:
// that a gradient is complete (ready), whether there is one (mark), and that a pass is over
// (finalize) or has failed (fail). Buckets, order and reduction are the same for both.
#ifndef PL_DDP_H
#define PL_DDP_H

#include "autograd/autograd.h"
#include "comm/comm.h"

typedef struct pl_reducer pl_reducer;

// Which thread reduces while the backward pass goes on.
typedef enum pl_reduce_on {
    PL_REDUCE_ON_SPARE = 0,  // the communication thread where a processor is spare for it
    PL_REDUCE_ON_COMM,
    PL_REDUCE_ON_CALLER,  // that of the backward pass, whenever a gradient is complete
} pl_reduce_on;

typedef struct pl_reducer_options {
    pl_group *group;             // borrowed; must outlive the reducer
    int n;                       // parameters that require grad, in order of registration
    pl_tensor *const *params;    // retained
    int64_t first_bucket_bytes;  // small, so that the first reduction starts early
    int64_t bucket_bytes;        // at most; less where the ranks share memory
    pl_redop op;                 // PL_RED_MEAN or PL_RED_SUM
    pl_reduce_on on;
} pl_reducer_options;

// Collective: every rank makes it with the same parameters (compared; PL_EMISMATCH). Existing
// gradients are carried over.
pl_status pl_reducer_new(const pl_reducer_options *opt, pl_site site, pl_reducer **out) PL_MUST_USE;
void pl_reducer_free(pl_reducer *r);  // parameters keep their gradients, in memory of their own

// no_sync: while off, gradients only add up locally.
void pl_reducer_set_sync(pl_reducer *r, bool on);
// The model's forward ran: a reduction is owed, even if no parameter gets a gradient here.
void pl_reducer_expect(pl_reducer *r);
bool pl_reducer_owed(const pl_reducer *r);  // expected, and no pass has settled it since
// Settles what a backward pass has not: buckets with unused parameters, or all of them where no
// hook fired on this rank. Does nothing if nothing is owed. Waits for all buckets.
pl_status pl_reducer_finalize(pl_reducer *r) PL_MUST_USE;

// See Note [outside gradients]. ready: gradient p has had its last contribution in this pass; a
// second call in one pass changes nothing, and *late tells whether the bucket was already sent, so
// that what came since is lost. mark: whether p has a gradient, where ready did not say so.
pl_status pl_reducer_ready(pl_reducer *r, int p, bool *late) PL_MUST_USE;
pl_status pl_reducer_mark(pl_reducer *r, int p, bool defined) PL_MUST_USE;
bool pl_reducer_marked(const pl_reducer *r, int p);
bool pl_reducer_is_ready(const pl_reducer *r, int p);  // in this pass
// The place of gradient p: the parameter's shape, row-major, in memory that the tensor keeps.
pl_status pl_reducer_grad(const pl_reducer *r, int p, pl_tensor **out) PL_MUST_USE;
void pl_reducer_fail(pl_reducer *r);  // a pass failed half-way; does nothing if nothing was sent

int pl_reducer_n_params(const pl_reducer *r);
int pl_reducer_n_buckets(const pl_reducer *r);
// Parameter numbers of a bucket, in their order in memory.
const int *pl_reducer_bucket(const pl_reducer *r, int bucket, int *n);

#endif

// SPDX-License-Identifier: Apache-2.0
// Where each parameter's gradient lies: buckets in reverse order of registration, because that is
// about the order in which a backward pass finishes gradients. A pure function of the parameters,
// so that all ranks agree without talking.
#include "ddp/ddp_internal.h"

// Gradients start on cache lines, so that no line is written by two kernels.
#define ALIGN 64

// A model this small has one bucket: a second meeting costs more than an early start gains.
#define ONE_BUCKET_BYTES ((int64_t)4 << 20)

// In memory that the ranks share a bucket is reduced soonest while it is still in their caches: 43
// MB in buckets of 2 MiB take 1.1 ms, from memory 2.9. Elsewhere larger ones cost less.
#define NEAR_BUCKET_BYTES ((int64_t)2 << 20)
#define NEAR_BUCKETS 512  // more cost more than they gain

static int64_t most_bytes(const pl_reducer *r, const pl_reducer_options *opt, int64_t total) {
    int64_t near = total / NEAR_BUCKETS;
    if (r->device.type != PL_CPU || !pl_group_on_one_machine(opt->group)) return opt->bucket_bytes;
    if (near < NEAR_BUCKET_BYTES) near = NEAR_BUCKET_BYTES;
    return near < opt->bucket_bytes ? near : opt->bucket_bytes;
}

static int64_t padded(const pl_tensor *t) {
    int64_t bytes = (int64_t)pl_tensor_nbytes(t);
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

pl_status pl__layout_build(pl_reducer *r, const pl_reducer_options *opt) {
    int64_t at = 0, used = 0, total = 0;
    for (int p = 0; p < opt->n; p++) total += padded(opt->params[p]);
    bool small = total <= ONE_BUCKET_BYTES;
    int64_t most = small ? opt->bucket_bytes : most_bytes(r, opt, total);
    PL_TRY(pl_calloc((size_t)opt->n * sizeof *r->members, (void **)&r->members));
    PL_TRY(pl_calloc((size_t)opt->n * sizeof *r->slots, (void **)&r->slots));
    PL_TRY(pl_calloc((size_t)opt->n * sizeof *r->buckets, (void **)&r->buckets));
    for (int k = 0; k < opt->n; k++) {
        int p = opt->n - 1 - k;
        const pl_tensor *t = opt->params[p];
        pl__bucket *b = r->n_buckets ? &r->buckets[r->n_buckets - 1] : NULL;
        int64_t cap = r->n_buckets <= 1 && !small ? opt->first_bucket_bytes : most;
        if (!b || b->dtype != t->dtype || (used > 0 && used + padded(t) > cap)) {
            b = &r->buckets[r->n_buckets++];
            *b = (pl__bucket){.offset = at, .dtype = t->dtype, .first = k};
            used = 0;
        }
        r->members[k] = p;
        r->slots[p] = (pl__slot){.bucket = r->n_buckets - 1, .place = k - b->first, .offset = at};
        b->n++;
        at += padded(t);
        used += padded(t);
        b->nbytes = at - b->offset;
    }
    r->nbytes = at;
    return PL_OK;
}

int pl_reducer_n_buckets(const pl_reducer *r) { return r->n_buckets; }

const int *pl_reducer_bucket(const pl_reducer *r, int bucket, int *n) {
    *n = r->buckets[bucket].n;
    return r->members + r->buckets[bucket].first;
}

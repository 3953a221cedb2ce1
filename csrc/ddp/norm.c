// SPDX-License-Identifier: Apache-2.0
// The norm of gradients, gathered where they are reduced: Note [early norm] of autograd.h for
// gradients that a reduction makes. Knows the order in which the kernel adds up squares, and that
// buckets lie in memory that all ranks share; elsewhere nothing is gathered.
//
// Gradients are cut into the blocks of that kernel, and an owner reduces whole blocks. It puts the
// sum of squares of each, which it has just written, behind the buckets of every rank. A place
// where no sum stands holds ABSENT from before the bucket is sent, so a rank that does not clip, or
// has not yet, leaves the others to read the gradients again. A sum of squares is never negative.
#include <string.h>

#include "ddp/ddp_internal.h"
#include "kernels.h"

#define ABSENT (-1.0)

static int64_t blocks_of(int64_t numel) {
    return (numel + PL_SQUARES_BLOCK - 1) / PL_SQUARES_BLOCK;
}

// Runs on whichever thread reduces: one block, so no pool is entered.
static double squares_of(const void *data, int64_t n, pl_dtype dt) {
    pl_tensor t = {.dtype = dt, .ndim = 1, .shape = {n}, .strides = {1}, .numel = n};
    double squares = ABSENT;
    memcpy(&t.data, &data, sizeof data);  // the kernel reads only
    pl_status st = pl_kernels_active()->sum_squares(&t, &squares);
    return st == PL_OK ? squares : ABSENT;
}

pl_status pl__norm_layout(pl_reducer *r) {
    int64_t total = 0, at = 0;
    for (int p = 0; p < r->n; p++) total += blocks_of(r->params[p]->numel);
    if (r->device.type != PL_CPU || !pl_group_on_one_machine(r->group)) return PL_OK;
    PL_TRY(pl_calloc((size_t)(total + r->n_buckets + 1) * sizeof(int64_t), (void **)&r->blocks));
    for (int k = 0; k < r->n_buckets; k++) {
        pl__bucket *b = &r->buckets[k];
        int64_t size = (int64_t)pl_dtype_size(b->dtype);
        b->first_block = at;
        for (int i = 0; i < b->n; i++) {
            int p = r->members[b->first + i];
            int64_t begin = (r->slots[p].offset - b->offset) / size;
            r->slots[p].first_block = at;
            for (int64_t j = 0; j < blocks_of(r->params[p]->numel); j++) {
                r->blocks[at++] = begin + j * PL_SQUARES_BLOCK;
            }
        }
        b->n_blocks = at - b->first_block;
        r->blocks[at++] = b->nbytes / size;
    }
    r->sums_at = r->nbytes;  // a whole number of lines
    r->nbytes += at * (int64_t)sizeof(double);
    return PL_OK;
}

static bool is_due(const pl_reducer *r, const pl__bucket *b) {
    if (b->dtype != PL_F32 && b->dtype != PL_F64) return false;
    for (int i = 0; i < b->n; i++) {
        if (pl_autograd_norm_is_due(r->params[r->members[b->first + i]])) return true;
    }
    return false;
}

static double *sums_of(const pl_reducer *r, int64_t block) {
    return (double *)(void *)((char *)r->storage->data + r->sums_at) + block;
}

void pl__norm_ask(const pl_reducer *r, pl__bucket *b, pl_bucket_call *call) {
    if (!r->blocks) return;
    call->blocks = r->blocks + b->first_block;
    call->n_blocks = b->n_blocks;
    call->measures = (size_t)(r->sums_at + b->first_block * (int64_t)sizeof(double));
    b->measured = is_due(r, b);
    if (!b->measured) return;
    for (int64_t i = 0; i < b->n_blocks; i++) *sums_of(r, b->first_block + i) = ABSENT;
    call->measure = squares_of;
}

void pl__norm_keep(const pl_reducer *r) {
    bool any = false;
    for (int k = 0; k < r->n_buckets; k++) any = any || r->buckets[k].measured;
    // Somebody who holds a gradient could change it unseen.
    if (!any || !pl_autograd_grads_unseen(r->n, r->params)) return;
    for (int p = 0; p < r->n; p++) {
        const pl__slot *s = &r->slots[p];
        int64_t n = blocks_of(r->params[p]->numel);
        const double *sums = sums_of(r, s->first_block);
        bool whole = r->buckets[s->bucket].measured && n > 0 && pl_grad_of(r->params[p]);
        for (int64_t i = 0; whole && i < n; i++) whole = sums[i] != ABSENT;
        if (whole) pl_autograd_keep_squares(r->params[p], pl_sum_pairwise(sums, n));
    }
}

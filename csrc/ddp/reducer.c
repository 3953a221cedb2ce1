// SPDX-License-Identifier: Apache-2.0
// The reducer. See ddp.h for the contract, ddp_internal.h for Note [bucket order].
//
// A pass: `ready` counts gradients per bucket; a full bucket whose turn it is goes to the
// communication thread; `done` (after the last node) launches what is left, with zeros for
// parameters that got no gradient here, and waits. The last bucket never goes to the other thread:
// nothing is left to overlap with, and to hand it over and be woken again only costs time. Where
// no processor is spare for that thread, no bucket does: this one polls with every gradient. Then a
// parameter that any rank used has the reduced gradient, and one that no rank used has none.
#include <string.h>

#include "ddp/ddp_internal.h"

pl_status pl__reducer_grad_view(const pl_reducer *r, int p, pl_tensor **out) {
    const pl_tensor *t = r->params[p];
    int64_t at = r->slots[p].offset / (int64_t)pl_dtype_size(t->dtype);
    return pl_tensor_from_storage(r->storage, t->dtype, t->ndim, t->shape, NULL, at, out);
}

// Publishes which parameters have a gradient and zeroes the places of those without.
static pl_status fill_used(pl_reducer *r, pl__bucket *b) {
    memset(b->used, 0, (size_t)(b->n + 63) / 64 * sizeof *b->used);
    for (int i = 0; i < b->n; i++) {
        int p = r->members[b->first + i];
        if (pl_grad_of(r->params[p])) {
            b->used[i / 64] |= (uint64_t)1 << (i % 64);
            PL_TRY(pl_autograd_settle(r->params[p]));  // of an earlier pass, untouched by this one
        } else {
            char *at = (char *)r->storage->data + r->slots[p].offset;
            PL_TRY(pl_bytes_zero(r->device, at, pl_tensor_nbytes(r->params[p])));
        }
    }
    return PL_OK;
}

static bool is_last(const pl_reducer *r) { return r->n_launched == r->n_buckets - 1; }

static pl_status launch(pl_reducer *r, int k) {
    pl__bucket *b = &r->buckets[k];
    PL_TRY(fill_used(r, b));
    pl_bucket_call call = {.count = b->nbytes / (int64_t)pl_dtype_size(b->dtype),
                           .dtype = b->dtype,
                           .op = r->op,
                           .bucket = k,
                           .n_params = b->n,
                           .used = b->used,
                           .polled = r->polled,
                           .sync = is_last(r) && !r->polled};
    pl__memory_place(r, b, &call);
    pl__norm_ask(r, b, &call);
    return pl_group_reduce_bucket(r->group, &call, r->site, &b->work);
}

static pl_status launch_ready(pl_reducer *r) {
    while (r->n_launched < r->n_buckets && !is_last(r)) {
        int k = r->order[r->n_launched];
        if (r->buckets[k].ready < r->buckets[k].n) break;
        PL_TRY(launch(r, k));
        r->n_launched++;
    }
    return pl_group_poll(r->group);
}

pl_status pl__reducer_check_whole(const pl_reducer *r) {
    if (!r->broken) return PL_OK;
    return pl_fail(PL_ERUNTIME,
                   "[ddp] an earlier backward pass failed half-way, so gradients and ranks are out "
                   "of step: restart the job from its last checkpoint");
}

static bool on_caller(const pl_reducer *r) {
    if (r->device.type != PL_CPU) return false;
    if (r->on != PL_REDUCE_ON_SPARE) return r->on == PL_REDUCE_ON_CALLER;
    return pl_group_crowded(r->group, pl_num_threads());
}

pl_status pl__reducer_on_ready(void *ctx, int p) {
    pl_reducer *r = ctx;
    pl__bucket *b = &r->buckets[r->slots[p].bucket];
    if (!r->sync) return PL_OK;
    PL_TRY(pl__reducer_check_whole(r));
    if (r->n_launched == 0) r->polled = on_caller(r);
    r->ready[p] = true;
    if (++b->ready == b->n) r->finished[r->n_finished++] = r->slots[p].bucket;
    return launch_ready(r);
}

// Rank 0's order of the first pass becomes everyone's, if that pass filled every bucket there.
static pl_status learn_order(pl_reducer *r) {
    int64_t order[1 + 1024];
    if (r->learned || r->n_buckets > 1024) return PL_OK;
    order[0] = r->n_finished == r->n_buckets;
    for (int i = 0; i < r->n_buckets; i++) order[1 + i] = order[0] ? r->finished[i] : i;
    PL_TRY(pl_group_broadcast(r->group, order, 1 + r->n_buckets, PL_I64, 0, r->site));
    for (int i = 0; i < r->n_buckets; i++) r->order[i] = (int)order[1 + i];
    r->learned = order[0] != 0;
    return PL_OK;
}

static pl_status wait_all(pl_reducer *r) {
    pl_status st = PL_OK;
    for (int i = 0; i < r->n_buckets; i++) {
        // Who waits for the last of polled ones has done all before.
        int k = r->polled ? r->n_buckets - 1 - i : i;
        pl__bucket *b = &r->buckets[r->order[k]];
        if (!b->work) continue;
        if (st == PL_OK) st = pl_work_wait(b->work);
        if (st != PL_OK) return st;
        pl_work_free(b->work);
        b->work = NULL;
    }
    return st;
}

void pl__reducer_forget(pl_reducer *r) {
    memset(r->ready, 0, (size_t)r->n * sizeof *r->ready);
    for (int k = 0; k < r->n_buckets; k++) r->buckets[k].ready = 0;
    r->n_finished = 0;
    r->n_launched = 0;
    r->expected = false;
}

static void settle_grads(pl_reducer *r) {
    for (int k = 0; k < r->n_buckets; k++) {
        pl__bucket *b = &r->buckets[k];
        for (int i = 0; i < b->n; i++) {
            bool used = b->used[i / 64] >> (i % 64) & 1u;
            pl_autograd_mark_grad(r->params[r->members[b->first + i]], used);
        }
    }
    pl__norm_keep(r);
    pl__reducer_forget(r);
}

static pl_status finish_pass(pl_reducer *r) {
    PL_TRY(pl__reducer_check_whole(r));
    if (r->n_launched == 0) r->polled = on_caller(r);
    for (; r->n_launched < r->n_buckets; r->n_launched++) {
        if (is_last(r) && !r->polled) PL_TRY(wait_all(r));  // what failed first is told first
        PL_TRY(launch(r, r->order[r->n_launched]));
    }
    if (r->polled) PL_TRY(wait_all(r));
    PL_TRY(learn_order(r));
    settle_grads(r);
    return PL_OK;
}

static void on_failed(void *ctx) {
    pl_reducer *r = ctx;
    if (r->sync) r->broken = true;
}

static pl_status on_done(void *ctx) {
    pl_reducer *r = ctx;
    if (!r->sync) return PL_OK;
    pl_status st = finish_pass(r);
    if (st != PL_OK) r->broken = true;
    return st;
}

void pl_reducer_set_sync(pl_reducer *r, bool on) { r->sync = on; }

void pl_reducer_expect(pl_reducer *r) { r->expected = true; }

bool pl_reducer_owed(const pl_reducer *r) { return r->expected; }

pl_status pl_reducer_finalize(pl_reducer *r) {
    if (!r->sync) r->expected = false;
    if (!r->expected) return PL_OK;
    return on_done(r);
}

// All ranks must have made the same reducer: count, shapes and dtypes as one number.
static pl_status compare_ranks(pl_reducer *r) {
    uint64_t h = 1469598103934665603u;  // FNV-1a
    for (int i = 0; i < r->n; i++) {
        const pl_tensor *t = r->params[i];
        uint64_t words[2 + PL_MAX_DIMS] = {(uint64_t)t->dtype, (uint64_t)t->ndim};
        for (int d = 0; d < t->ndim; d++) words[2 + d] = (uint64_t)t->shape[d];
        for (int w = 0; w < 2 + t->ndim; w++) h = (h ^ words[w]) * 1099511628211u;
    }
    // The largest of h and the largest of -h are this rank's h and -h on every rank only if all are
    // equal.
    int64_t pair[2] = {(int64_t)(h >> 1), -(int64_t)(h >> 1)};
    int64_t mine = pair[0];
    PL_TRY(pl_group_all_reduce(r->group, pair, 2, PL_I64, PL_RED_MAX, r->site));
    if (pair[0] == mine && pair[1] == -mine) return PL_OK;
    return pl_fail(PL_EMISMATCH,
                   "[prepare] the ranks' models differ: this rank (%d) has %d parameters that "
                   "require grad, and their shapes or dtypes are not those of every other rank",
                   pl_group_rank(r->group), r->n);
}

static pl_status attach(pl_reducer *r) {
    for (int p = 0; p < r->n; p++) {
        pl_leaf_hook hook = {pl__reducer_on_ready, on_done, on_failed, r, p};
        pl_tensor *view = NULL;
        pl_status st = pl__reducer_grad_view(r, p, &view);
        if (st == PL_OK) st = pl_autograd_set_grad_view(r->params[p], view);
        if (st == PL_OK) st = pl_autograd_set_hook(r->params[p], &hook);
        pl_tensor_release(view);
        PL_TRY(st);
    }
    return PL_OK;
}

static pl_status check_params(const pl_reducer_options *opt) {
    for (int p = 0; p < opt->n; p++) {
        const pl_tensor *t = opt->params[p];
        if (!pl_is_leaf(t) || !pl_requires_grad(t)) {
            return pl_fail(PL_EINVAL, "[ddp] parameter %d is not a leaf that requires grad", p);
        }
        if (pl_autograd_has_grad_view(t)) {
            return pl_fail(PL_EINVAL,
                           "[ddp] parameter %d is in another reducer: its gradient can live in one "
                           "bucket only (Accelerator.free_memory gives it free)",
                           p);
        }
        if (!pl_device_equal(pl_tensor_device(t), pl_tensor_device(opt->params[0]))) {
            return pl_fail(
                PL_EINVAL,
                "[ddp] parameter %d lies on another device than parameter 0: got a "
                "model in parts, expected all of it on one; move it with model.to(device)",
                p);
        }
        if (!pl_tensor_is_contiguous(t)) {
            return pl_fail(PL_EINVAL, "[ddp] parameter %d is not contiguous", p);
        }
    }
    return PL_OK;
}

static pl_status prepare(pl_reducer *r, const pl_reducer_options *opt) {
    PL_TRY(pl_calloc((size_t)(opt->n + 1) * sizeof *r->params, (void **)&r->params));
    for (int p = 0; p < opt->n; p++) r->params[p] = pl_tensor_retain(opt->params[p]);
    r->n = opt->n;
    if (r->n) r->device = pl_tensor_device(r->params[0]);
    PL_TRY(pl__layout_build(r, opt));
    PL_TRY(pl__norm_layout(r));
    PL_TRY(pl_calloc((size_t)(r->n + 1) * sizeof *r->ready, (void **)&r->ready));
    PL_TRY(pl_calloc((size_t)(r->n_buckets + 1) * sizeof(int), (void **)&r->order));
    PL_TRY(pl_calloc((size_t)(r->n_buckets + 1) * sizeof(int), (void **)&r->finished));
    for (int k = 0; k < r->n_buckets; k++) {
        r->order[k] = k;
        size_t words = (size_t)(r->buckets[k].n + 63) / 64;
        PL_TRY(pl_calloc(words * sizeof(uint64_t), (void **)&r->buckets[k].used));
    }
    PL_TRY(compare_ranks(r));
    PL_TRY(pl__memory_open(r));
    return attach(r);
}

pl_status pl_reducer_new(const pl_reducer_options *opt, pl_site site, pl_reducer **out) {
    pl_reducer *r = NULL;
    PL_TRY(check_params(opt));
    PL_TRY(pl_calloc(sizeof *r, (void **)&r));
    pl_live_add(PL_KIND_REDUCER, 1);
    r->group = opt->group;
    r->op = opt->op;
    r->on = opt->on;
    r->site = site;
    r->sync = true;
    pl_status st = prepare(r, opt);
    if (st != PL_OK) {
        pl_reducer_free(r);
        return st;
    }
    *out = r;
    return PL_OK;
}

// Gradients leave the shared memory, if there is memory for that; else they go.
static void detach(pl_reducer *r) {
    for (int p = 0; p < r->n; p++) {
        pl_status st = pl_autograd_set_hook(r->params[p], NULL);
        if (st == PL_OK) st = pl_autograd_set_grad_view(r->params[p], NULL);
        if (st != PL_OK) pl_autograd_mark_grad(r->params[p], false);
        pl_tensor_release(r->params[p]);
    }
}

void pl_reducer_free(pl_reducer *r) {
    if (!r) return;
    bool busy = false;
    pl_status st = r->broken ? pl_group_poll(r->group) : PL_OK;  // what can be done by now
    (void)st;
    for (int k = 0; k < r->n_buckets; k++) {
        pl_work *w = r->buckets[k].work;
        // A pass that failed may have left work that only the peers can end: it is left alone
        // (with its bits and its bucket) rather than waited for.
        if (w && r->broken && !pl_work_done(w)) {
            busy = true;
        } else {
            pl_work_free(w);
        }
    }
    if (r->params) detach(r);
    for (int k = 0; k < r->n_buckets && !busy; k++) pl_free(r->buckets[k].used);
    if (!busy) pl_segment_release(r->segment);
    if (!busy || r->segment) pl_storage_release(r->storage);
    pl_free(r->params);
    pl_free(r->members);
    pl_free(r->slots);
    if (!busy) pl_free(r->blocks);
    pl_free(r->ready);
    pl_free(r->buckets);
    pl_free(r->order);
    pl_free(r->finished);
    pl_live_add(PL_KIND_REDUCER, -1);
    pl_free(r);
}

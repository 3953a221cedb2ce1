// SPDX-License-Identifier: Apache-2.0
// The reducer as another library's backward pass drives it. See ddp.h, Note [outside gradients].
#include "ddp/ddp_internal.h"

// The last bucket is full, and only waits for the end of the pass: to the caller it is gone.
static bool last_is_full(const pl_reducer *r) {
    if (r->n_launched != r->n_buckets - 1) return false;
    const pl__bucket *b = &r->buckets[r->order[r->n_launched]];
    return b->ready == b->n;
}

static pl_status check_index(const pl_reducer *r, int p) {
    if (p >= 0 && p < r->n) return PL_OK;
    return pl_fail(PL_EINDEX, "[ddp] parameter: got %d, expected 0 to %d", p, r->n - 1);
}

pl_status pl_reducer_ready(pl_reducer *r, int p, bool *late) {
    PL_TRY(check_index(r, p));
    *late = false;
    PL_TRY(pl__reducer_check_whole(r));
    if (r->ready[p]) {
        *late = r->buckets[r->slots[p].bucket].work != NULL || last_is_full(r);
        return PL_OK;
    }
    pl_autograd_mark_grad(r->params[p], true);
    if (!r->sync) return PL_OK;
    r->expected = true;
    return pl__reducer_on_ready(r, p);
}

pl_status pl_reducer_mark(pl_reducer *r, int p, bool defined) {
    PL_TRY(check_index(r, p));
    pl_autograd_mark_grad(r->params[p], defined);
    return PL_OK;
}

bool pl_reducer_marked(const pl_reducer *r, int p) {
    return p >= 0 && p < r->n && pl_grad_of(r->params[p]) != NULL;
}

bool pl_reducer_is_ready(const pl_reducer *r, int p) { return p >= 0 && p < r->n && r->ready[p]; }

pl_status pl_reducer_grad(const pl_reducer *r, int p, pl_tensor **out) {
    PL_TRY(check_index(r, p));
    return pl__reducer_grad_view(r, p, out);
}

void pl_reducer_fail(pl_reducer *r) {
    // Gradients that only this rank saw are wrong here, but no peer is out of step yet: the pass
    // is forgotten. Once a bucket is out, the peers wait for the others.
    if (r->n_launched > 0 || last_is_full(r)) {
        r->broken = true;
        return;
    }
    pl__reducer_forget(r);
}

int pl_reducer_n_params(const pl_reducer *r) { return r->n; }

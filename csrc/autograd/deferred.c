// SPDX-License-Identifier: Apache-2.0
// Factors that gradients are still to be multiplied by, see Note [deferred scale] in autograd.h.
// Knows gradients and their memory; knows no optimizer.
#include <math.h>

#include "autograd/graph.h"

static int32_t refs_of(const int32_t *refs) { return __atomic_load_n(refs, __ATOMIC_ACQUIRE); }

// Does nobody but the leaf hold this gradient? Its memory is looked at apart.
static bool held_by_leaf_only(const struct pl_grad_meta *m) {
    const pl_tensor *g = m->grad;
    return refs_of(&g->refs) == (g == m->grad_view ? 2 : 1) && pl_tensor_is_contiguous(g) &&
           (g->dtype == PL_F32 || g->dtype == PL_F64);  // halves would be rounded once less
}

// The storage that a leaf's gradient lies in, or would lie in; NULL: none yet.
static const pl_storage *place_of(const pl_tensor *leaf) {
    const struct pl_grad_meta *m = leaf->meta;
    if (!m) return NULL;
    if (m->grad) return m->grad->storage;
    return m->grad_view ? m->grad_view->storage : NULL;
}

bool pl_autograd_grads_unseen(int n, pl_tensor *const *leaves) {
    for (int i = 0; i < n;) {
        const pl_storage *s = place_of(leaves[i]);
        int holders = 0;
        // A bucket's storage is held by its reducer, and by one view for each of its parameters,
        // which stand side by side here; if not all of them do, it looks seen, which is safe.
        for (; i < n && place_of(leaves[i]) == s; i++, holders++) {
            const struct pl_grad_meta *m = leaves[i]->meta;
            if (m && m->grad && !held_by_leaf_only(m)) return false;
            if (s && holders == 0 && m->grad_view) holders = 1;
        }
        if (s && refs_of(&s->refs) != holders) return false;
    }
    return true;
}

double pl_autograd_due(const pl_tensor *leaf) {
    return leaf->meta && leaf->meta->has_due ? leaf->meta->due : 1.0;
}

void pl_autograd_defer_scale(pl_tensor *leaf, double factor) {
    struct pl_grad_meta *m = leaf->meta;
    if (!m || !m->grad) return;
    m->due = pl_autograd_due(leaf) * factor;
    m->has_due = true;
}

void pl_autograd_defer_scale_there(pl_tensor *leaf, pl_tensor *factor) {
    struct pl_grad_meta *m = leaf->meta;
    if (!m || !m->grad) return;
    pl_tensor_release(m->due_there);
    m->due_there = pl_tensor_retain(factor);
}

pl_tensor *pl_autograd_due_there(const pl_tensor *leaf) {
    return leaf->meta ? leaf->meta->due_there : NULL;
}

void pl_autograd_keep_squares(pl_tensor *leaf, double squares) {
    if (!leaf->meta) return;
    leaf->meta->squares = squares;
    leaf->meta->has_squares = true;
}

bool pl_autograd_squares(const pl_tensor *leaf, double *out) {
    if (!leaf->meta || !leaf->meta->has_squares) return false;
    *out = leaf->meta->squares;
    return true;
}

void pl_autograd_norm_asked(pl_tensor *leaf) {
    struct pl_grad_meta *m = leaf->meta;
    if (!m || m->passes == 0) return;  // asked again: of the same passes
    m->norm_after = m->passes;
    m->passes = 0;
}

bool pl_autograd_norm_is_due(const pl_tensor *leaf) {
    const struct pl_grad_meta *m = leaf->meta;
    return m && m->norm_after != 0 && m->passes == m->norm_after;
}

pl_status pl__leaf_complete(pl_tensor *leaf) {
    struct pl_grad_meta *m = leaf->meta;
    const pl_tensor *g = m->grad;
    if (m->passes < UINT32_MAX) m->passes++;
    // What a hook has still to reduce is another gradient. A device would be waited for.
    if (!pl_autograd_norm_is_due(leaf) || !g || m->hook.ready) return PL_OK;
    if (!pl_tensor_is_cpu(g) || !held_by_leaf_only(m)) return PL_OK;
    if (refs_of(&g->storage->refs) != 1) return PL_OK;  // somebody could change it unseen
    double squares;
    PL_TRY(pl_k(g)->sum_squares(g, &squares));
    pl_autograd_keep_squares(leaf, squares);
    return PL_OK;
}

static pl_status apply_there(struct pl_grad_meta *m) {
    pl_tensor *g = m->grad, *factor = m->due_there;
    double here = m->has_due ? m->due : 1.0;
    m->has_due = false;
    m->due_there = NULL;
    pl_status st = PL_OK;
    if (g) {
        pl_run run = {.dtype = g->dtype, .n = g->numel, .at = {g->data}};
        pl_unscale_args args = {.factor = here, .scale = factor->data};
        pl_storage_bump(g->storage);
        st = pl_k(g)->lists->unscale(&args, 1, &run);
    }
    pl_tensor_release(factor);
    return st;
}

pl_status pl__apply_due(struct pl_grad_meta *m) {
    m->has_squares = false;
    if (m->due_there) return apply_there(m);
    if (!m->has_due) return PL_OK;
    m->has_due = false;
    if (!m->grad || m->due == 1.0) return PL_OK;
    pl_storage_bump(m->grad->storage);
    return pl_k(m->grad)->unscale(m->grad->dtype, m->grad->numel, m->grad->data, m->due, NULL);
}

pl_status pl_autograd_settle(pl_tensor *leaf) {
    return leaf->meta ? pl__apply_due(leaf->meta) : PL_OK;
}

// SPDX-License-Identifier: Apache-2.0
// Gradient state of tensors: requires_grad, .grad, detach, hooks, autocast copies.
#include "autograd/graph.h"

static _Thread_local bool grad_on = true;

bool pl_grad_enabled(void) { return grad_on; }

bool pl_grad_set_enabled(bool on) {
    bool before = grad_on;
    grad_on = on;
    return before;
}

bool pl_requires_grad(const pl_tensor *t) {
    return t->meta && (t->meta->requires_grad || t->meta->node);
}

bool pl_is_leaf(const pl_tensor *t) { return !t->meta || !t->meta->node; }

pl_status pl_set_requires_grad(pl_tensor *t, bool on) {
    if (!pl_is_leaf(t)) {
        if (on) return PL_OK;
        return pl_fail(PL_ERUNTIME,
                       "[requires_grad] only a leaf can stop requiring a gradient: this tensor is "
                       "the result of %s; use x.detach()",
                       pl_grad_fn_name(t));
    }
    if (on && !pl_dtype_is_float(t->dtype)) {
        return pl_fail(PL_ERUNTIME,
                       "[requires_grad] only floating tensors can require gradients: got %s",
                       pl_dtype_name(t->dtype));
    }
    if (!on && !t->meta) return PL_OK;
    PL_TRY(pl__meta_ensure(t));
    t->meta->requires_grad = on;
    return PL_OK;
}

const char *pl_grad_fn_name(const pl_tensor *t) {
    return pl_is_leaf(t) ? NULL : t->meta->node->op->name;
}

pl_tensor *pl_grad_of(const pl_tensor *t) { return t->meta ? t->meta->grad : NULL; }

pl_status pl_set_grad(pl_tensor *t, pl_tensor *grad) {
    if (!grad && !t->meta) return PL_OK;
    PL_TRY(pl__meta_ensure(t));
    struct pl_grad_meta *m = t->meta;
    if (grad) {
        char a[128], b[128];
        if (grad->dtype != t->dtype ||
            !pl_shape_equal(grad->ndim, grad->shape, t->ndim, t->shape)) {
            return pl_fail(PL_ERUNTIME,
                           "[grad] a gradient has its tensor's shape and dtype: got %s of %s, "
                           "expected %s of %s",
                           pl_shape_text(grad->ndim, grad->shape, a, sizeof a),
                           pl_dtype_name(grad->dtype),
                           pl_shape_text(t->ndim, t->shape, b, sizeof b), pl_dtype_name(t->dtype));
        }
        if (!pl_device_equal(pl_tensor_device(grad), pl_tensor_device(t))) {
            return pl_fail(PL_ERUNTIME,
                           "[grad] a gradient lies where its tensor does: got another device; move "
                           "it with .to(device)");
        }
        // Its own gradient may be given back to it, or a view of it.
        PL_TRY(pl__apply_due(m));
        if (m->grad_view && grad->data != m->grad_view->data) {
            PL_TRY(pl_k(grad)->copy(grad, m->grad_view));
            grad = m->grad_view;
        }
        pl_tensor_retain(grad);
    }
    pl_tensor *old = m->grad;
    pl__forget_due(m);
    m->grad = grad;
    pl_tensor_release(old);
    return PL_OK;
}

pl_status pl_detach(pl_tensor *t, pl_tensor **out) {
    return pl_tensor_as_strided(t, t->ndim, t->shape, t->strides, 0, out);
}

pl_status pl_autograd_set_hook(pl_tensor *leaf, const pl_leaf_hook *hook) {
    if (!hook && !leaf->meta) return PL_OK;
    PL_TRY(pl__meta_ensure(leaf));
    leaf->meta->hook = hook ? *hook : (pl_leaf_hook){0};
    return PL_OK;
}

pl_status pl_autograd_set_grad_view(pl_tensor *leaf, pl_tensor *view) {
    PL_TRY(pl__meta_ensure(leaf));
    struct pl_grad_meta *m = leaf->meta;
    pl_tensor *now = NULL;
    PL_TRY(pl__apply_due(m));
    if (m->grad && view) {
        PL_TRY(pl_k(m->grad)->copy(m->grad, view));
        now = pl_tensor_retain(view);
    } else if (m->grad) {
        PL_TRY(pl_copy_new(m->grad, m->grad->dtype, &now));
    }
    pl_tensor_release(m->grad);
    pl_tensor_release(m->grad_view);
    m->grad = now;
    m->grad_view = view ? pl_tensor_retain(view) : NULL;
    return PL_OK;
}

bool pl_autograd_has_grad_view(const pl_tensor *leaf) {
    return leaf->meta != NULL && leaf->meta->grad_view != NULL;
}

void pl_autograd_mark_grad(pl_tensor *leaf, bool defined) {
    struct pl_grad_meta *m = leaf->meta;
    if (!m || !m->grad_view) return;
    pl__forget_due(m);
    if ((m->grad != NULL) == defined) return;
    pl_tensor *old = m->grad;
    m->grad = defined ? pl_tensor_retain(m->grad_view) : NULL;
    pl_tensor_release(old);
}

pl_status pl_autograd_low(pl_tensor *t, pl_dtype dt, pl_tensor **out) {
    struct pl_grad_meta *m = t->meta;
    if (!m) return pl_cast(t, dt, out);
    uint32_t version = pl_storage_version(t->storage);
    bool fresh = m->low && m->low->dtype == dt && m->low_version == version && m->low_of == t->data;
    if (!fresh) {
        // The old copy's memory serves again if no graph holds it.
        if (!(m->low && m->low->dtype == dt && pl_tensor_is_only(m->low) &&
              pl_device_equal(pl_tensor_device(m->low), pl_tensor_device(t)) &&
              pl_tensor_is_contiguous(t))) {
            pl_tensor_release(m->low);
            m->low = NULL;
            PL_TRY(pl_tensor_empty_like(t, dt, &m->low));
        }
        PL_TRY(pl_k(t)->copy(t, m->low));
        m->low_version = version;
        m->low_of = t->data;
    }
    m->low_dtype = dt;
    m->low_used = true;
    *out = pl_tensor_retain(m->low);
    return PL_OK;
}

bool pl_autograd_low_used(const pl_tensor *leaf, pl_dtype *dt) {
    const struct pl_grad_meta *m = leaf->meta;
    if (!m || !m->low_used) return false;
    *dt = m->low_dtype;
    return true;
}

void pl_autograd_keep_low(pl_tensor *leaf, pl_tensor *low) {
    struct pl_grad_meta *m = leaf->meta;
    if (!m) return;
    pl_tensor *old = m->low;
    m->low = pl_tensor_retain(low);
    m->low_version = pl_storage_version(leaf->storage);
    m->low_of = leaf->data;
    m->low_used = false;
    pl_tensor_release(old);
}

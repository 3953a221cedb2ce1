// SPDX-License-Identifier: Apache-2.0
// Life of graph nodes and of a tensor's gradient state.
// Threads: counts are atomic; the list of nodes to free is per thread.
#include <string.h>

#include "autograd/graph.h"

static void meta_free(struct pl_grad_meta *m) {
    pl__node_release(m->node);
    pl_tensor_release(m->grad);
    pl_tensor_release(m->grad_view);
    pl_tensor_release(m->low);
    pl_tensor_release(m->due_there);
    pl_free(m);
}

pl_status pl__meta_ensure(pl_tensor *t) {
    if (t->meta) return PL_OK;
    struct pl_grad_meta *m = NULL;
    PL_TRY(pl_calloc(sizeof *m, (void **)&m));
    t->meta = m;
    t->meta_free = meta_free;
    return PL_OK;
}

void pl__node_retain(pl_node *n) { __atomic_add_fetch(&n->refs, 1, __ATOMIC_RELAXED); }

void pl__node_drop_saved(pl_node *n) {
    for (int i = 0; i < PL_OP_MAX_SAVED; i++) {
        pl_tensor *t = n->saved[i];
        n->saved[i] = NULL;
        pl_tensor_release(t);
    }
    pl__again_free(n);
}

// Nodes are freed from a list, not by recursion: a chain of a million calls must not need a
// million stack frames. Releasing a node's tensors can drop the last reference to further nodes,
// which re-enters here and only lengthens the list.
static _Thread_local pl_node *free_list;
static _Thread_local bool freeing;

void pl__node_release(pl_node *n) {
    if (!n || __atomic_sub_fetch(&n->refs, 1, __ATOMIC_ACQ_REL) != 0) return;
    n->next_free = free_list;
    free_list = n;
    if (freeing) return;
    freeing = true;
    while (free_list) {
        pl_node *dead = free_list;
        free_list = dead->next_free;
        pl__node_drop_saved(dead);
        pl_tensor_release(dead->grad);
        pl_tensor_release(dead->remade);
        for (int i = 0; i < dead->n_in; i++) {
            pl__node_release(dead->edges[i].node);
            pl_tensor_release(dead->edges[i].leaf);
        }
        pl_live_add(PL_KIND_NODE, -1);
        pl_free(dead);
    }
    freeing = false;
}

pl_status pl__sum_into(pl_tensor **sum, pl_tensor *g) {
    if (!*sum) {
        *sum = g;
        return PL_OK;
    }
    if (*sum == g) {  // the operator added into the sum itself
        pl_tensor_release(g);
        return PL_OK;
    }
    pl_status st;
    if (pl_tensor_is_only(*sum)) {
        st = pl_k(*sum)->binary(PL_BINARY_ADD, *sum, g, *sum);
        pl_tensor_release(g);
        return st;
    }
    pl_tensor *r = NULL;
    if (pl_tensor_is_only(g)) {
        st = pl_k(*sum)->binary(PL_BINARY_ADD, *sum, g, g);
        r = g;
    } else {
        st = pl_binary_new(PL_BINARY_ADD, "backward", *sum, g, &r);
        pl_tensor_release(g);
    }
    if (st != PL_OK) {
        pl_tensor_release(r);
        return st;
    }
    pl_tensor_release(*sum);
    *sum = r;
    return PL_OK;
}

static pl_status leaf_add(struct pl_grad_meta *m, pl_tensor *g) {
    if (m->grad == g) return PL_OK;
    if (m->grad) {
        PL_TRY(pl__apply_due(m));
        pl_storage_bump(m->grad->storage);
        return pl_k(m->grad)->binary(PL_BINARY_ADD, m->grad, g, m->grad);
    }
    if (m->grad_view) {
        if (g != m->grad_view) PL_TRY(pl_k(g)->copy(g, m->grad_view));
        m->grad = pl_tensor_retain(m->grad_view);
        return PL_OK;
    }
    if (pl_tensor_is_only(g)) {
        m->grad = pl_tensor_retain(g);
        return PL_OK;
    }
    return pl_copy_new(g, g->dtype, &m->grad);
}

pl_status pl__leaf_accumulate(pl_tensor *leaf, pl_tensor *g) {
    pl_tensor *same = NULL;
    pl_status st = pl_cast(g, leaf->dtype, &same);
    if (same == g && st == PL_OK) {
        pl_tensor_release(same);  // keep one reference, so that "exclusive" can hold
        st = leaf_add(leaf->meta, g);
    } else if (st == PL_OK) {
        st = leaf_add(leaf->meta, same);
        pl_tensor_release(same);
    }
    pl_tensor_release(g);
    return st;
}

// SPDX-License-Identifier: Apache-2.0
// Note [made again]: what a node would save, but the node that made it can make again.
//
// The input of a linear layer is often the result of a GELU or a layer norm, whose own gradients
// keep what it was computed from. Then the linear's node does not hold its input: it remembers
// which of its inputs that was, and asks the maker for it when its turn comes. The maker runs later
// in the pass (it was called earlier), so it still has what it saved; it keeps the result until its
// own turn, for others that ask. In a GPT that is ten sixteenths of the activations instead of all.
//
// The node keeps a weak reference to the storage, so that a change in place is refused as it is for
// everything saved. Threads: as the node's.
#include <string.h>

#include "autograd/graph.h"

// Below this a node more or less costs more than its memory.
#define LEAST_BYTES ((size_t)128 << 10)

// The node that made edge i and can make it again, or NULL.
static pl_node *maker(const pl_node *node, int i, pl_tensor *t) {
    pl_node *from = node->edges[i].node;
    if (!from || !pl_op_can_remake(from->op, &from->attrs)) return NULL;
    // In-place changes and views have nodes of their own; what is left is the result itself.
    bool whole = pl_tensor_is_contiguous(t) && t->dtype == from->out.dtype &&
                 pl_shape_equal(t->ndim, t->shape, from->out.ndim, from->out.shape);
    return whole ? from : NULL;
}

// True where `saved` is all of `in`, perhaps in another shape.
static bool is_all_of(const pl_tensor *saved, const pl_tensor *in) {
    return saved && saved->storage == in->storage && saved->dtype == in->dtype &&
           saved->numel == in->numel && saved->data == in->data && pl_tensor_is_contiguous(saved) &&
           pl_tensor_is_contiguous(in);
}

static pl_status remember(pl_node *node, int slot, int input) {
    pl_tensor *t = node->saved[slot];
    pl_again *a = NULL;
    PL_TRY(pl_alloc(sizeof *a, (void **)&a));
    a->slot = slot;
    a->input = input;
    a->storage = t->storage;
    a->as.dtype = t->dtype;
    a->as.ndim = t->ndim;
    a->as.device = pl_tensor_device(t);
    memcpy(a->as.shape, t->shape, sizeof t->shape);
    pl_storage_watch(a->storage);
    node->again = a;
    node->saved[slot] = NULL;
    pl_tensor_release(t);
    return PL_OK;
}

pl_status pl__again_record(pl_node *node, pl_tensor *const *in, pl_tensor *const *edges) {
    for (int i = 0; i < node->n_in; i++) {
        if (!edges[i] || !in[i] || pl_tensor_nbytes(in[i]) < LEAST_BYTES) continue;
        if (!maker(node, i, edges[i])) continue;
        for (int slot = 0; slot < PL_OP_MAX_SAVED; slot++) {
            // A node that is itself a maker holds what it makes from: no chains.
            if (pl_op_remake_needs(node->op, &node->attrs, slot)) continue;
            if (is_all_of(node->saved[slot], in[i])) return remember(node, slot, i);
        }
    }
    return PL_OK;
}

pl_status pl__again_make(pl_node *node) {
    pl_again *a = node->again;
    pl_node *from = node->edges[a->input].node;
    pl_tensor *cast = NULL;
    if (!from->remade) {
        PL_TRY(pl__check_saved(from));
        PL_TRY(pl_op_remake(from->op, &from->attrs, from->saved, &from->remade));
    }
    PL_TRY(pl_cast(from->remade, a->as.dtype, &cast));
    pl_status st = pl_tensor_view(cast, a->as.ndim, a->as.shape, &node->saved[a->slot]);
    pl_tensor_release(cast);
    return st;
}

void pl__again_unmake(pl_node *node) {
    int slot = node->again->slot;
    pl_tensor *t = node->saved[slot];
    node->saved[slot] = NULL;
    pl_tensor_release(t);
}

void pl__again_free(pl_node *node) {
    pl_again *a = node->again;
    node->again = NULL;
    if (!a) return;
    pl_storage_unwatch(a->storage);
    pl_free(a);
}

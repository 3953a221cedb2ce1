// SPDX-License-Identifier: Apache-2.0
// Private to autograd: nodes, edges and a tensor's gradient state.
#ifndef PL_AUTOGRAD_GRAPH_H
#define PL_AUTOGRAD_GRAPH_H

#include "autograd/autograd.h"

typedef struct pl_node pl_node;

// What a node does not hold, because the maker of one of its inputs can make it again.
typedef struct pl_again {
    int slot, input;      // which of saved, from which input
    pl_storage *storage;  // watched, not held
    pl_in_meta as;        // as it was saved: linear keeps rows
} pl_again;

typedef struct pl_edge {
    pl_node *node;    // retained: the call that made the input, or NULL
    pl_tensor *leaf;  // retained: the input itself where it is a leaf, or NULL
} pl_edge;

// One recorded call. The graph points backwards only: a node holds its inputs' nodes and its saved
// tensors, never its output, so reference counts free it.
struct pl_node {
    int32_t refs;
    const pl_op *op;
    uint64_t seq;  // creation order on this process: inputs always have lower numbers
    pl_attrs attrs;
    pl_in_meta out;  // shape and dtype of the result
    pl_tensor *saved[PL_OP_MAX_SAVED];
    uint32_t versions[PL_OP_MAX_SAVED];
    pl_again *again;     // what is not in saved but made again (again.c), or NULL
    pl_tensor *remade;   // this call's result, made again in this pass for who saved it
    bool released;       // a backward pass has freed what was saved
    bool came_through;   // Note [through GELU], ops.h: so the sum under way is to be understood
    int32_t givers;      // how many edges lead here in that pass
    uint64_t pass;       // the pass that last reached this node
    pl_tensor *grad;     // the sum under way in that pass
    pl_node *next_free;  // links nodes on their way out
    int n_in;
    pl_edge *edges;  // [n_in]
    pl_in_meta *in;  // [n_in]
};

struct pl_grad_meta {
    bool requires_grad;
    bool is_view;
    pl_node *node;         // retained; NULL for a leaf
    pl_tensor *grad;       // leaf: the gradient, or NULL
    pl_tensor *grad_view;  // leaf: where a gradient lives, or NULL
    pl_leaf_hook hook;
    pl_tensor *low;  // autocast's copy
    const void *low_of;
    uint32_t low_version;
    pl_dtype low_dtype;
    bool low_used;
    uint64_t pass;    // the pass that last counted this leaf
    int64_t pending;  // contributions still to come in it
    // Note [deferred scale], autograd.h: `due` is the factor, `squares` the sum of squares of
    // what stands in memory; each valid while its flag is set.
    double due, squares;
    bool has_due, has_squares;
    pl_tensor *due_there;  // NULL: none
    // Note [early norm], autograd.h: passes since the norm was asked for; after how many it was
    // the last time (0: never).
    uint32_t passes, norm_after;
};

pl_status pl__meta_ensure(pl_tensor *t);
void pl__node_retain(pl_node *n);
void pl__node_release(pl_node *n);
void pl__node_drop_saved(pl_node *n);
// Fails where something that the node saved was changed in place.
pl_status pl__check_saved(const pl_node *node);
// Note [made again], again.c: at recording; at the node's turn and after it; with the node.
pl_status pl__again_record(pl_node *node, pl_tensor *const *in, pl_tensor *const *edges);
pl_status pl__again_make(pl_node *node);
void pl__again_unmake(pl_node *node);
void pl__again_free(pl_node *node);
// Adds g (taken over) to *sum (NULL: none yet), in place where one of both is nobody else's.
pl_status pl__sum_into(pl_tensor **sum, pl_tensor *g);
// Applies what is due to the leaf's gradient; to be called before its memory is used or changed.
pl_status pl__apply_due(struct pl_grad_meta *m);
// The last contribution of a pass has come: Note [early norm].
pl_status pl__leaf_complete(pl_tensor *leaf);
// The gradient is another one now: nothing is due to it.
static inline void pl__forget_due(struct pl_grad_meta *m) {
    m->has_due = m->has_squares = false;
    if (!m->due_there) return;
    pl_tensor_release(m->due_there);
    m->due_there = NULL;
}
// Adds g (taken over) to the leaf's gradient.
pl_status pl__leaf_accumulate(pl_tensor *leaf, pl_tensor *g);

#endif

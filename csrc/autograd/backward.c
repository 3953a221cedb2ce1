// SPDX-License-Identifier: Apache-2.0
// The backward pass.
//
// From the roots, every reachable node is collected and the contributions that each leaf will get
// are counted. Nodes then run in falling order of creation, which is an order in which every node
// runs after all that use its result. A node's gradient is a sum under way until its turn; a
// leaf's contributions go to its .grad at once (into the bucket where it has one), and its `ready`
// hook fires with the last. One pass at a time: the marks in nodes and leaves are the pass's.
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "autograd/graph.h"
#include "base/trace.h"

// Guards: marks, sums and counts in nodes and leaves. Order: outermost; nothing is taken inside
// but the locks of the allocator and of process groups.
static pthread_mutex_t pass_lock = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local bool in_pass;
static uint64_t pass_id;

typedef struct capture {
    pl_node *node;    // the call that made the input, or NULL
    pl_tensor *leaf;  // the input, where it is a leaf
    pl_tensor *grad;  // owned
} capture;

typedef struct pass {
    uint64_t id;
    pl_node **nodes;
    int64_t n, cap;
    bool retain;
    int n_captures;
    capture *captures;    // NULL: a backward pass, which fills .grad
    pl_leaf_hook *fired;  // one entry per ctx whose ready was called
    int n_fired, cap_fired;
} pass;

static pl_status grow(void **items, int64_t n, int64_t cap, size_t size, int64_t *new_cap) {
    int64_t want = cap ? cap * 2 : 64;
    void *more = NULL;
    PL_TRY(pl_alloc((size_t)want * size, &more));
    if (n) memcpy(more, *items, (size_t)n * size);
    pl_free(*items);
    *items = more;
    *new_cap = want;
    return PL_OK;
}

static pl_status push(pass *p, pl_node *node) {
    if (node->pass == p->id) return PL_OK;
    if (node->released) {
        return pl_fail(PL_ERUNTIME,
                       "[backward] trying to go backward through the graph a second time: what "
                       "'%s' saved was freed by the first pass; call backward(retain_graph=True) "
                       "the first time if you need this",
                       node->op->name);
    }
    node->pass = p->id;
    node->givers = 0;
    node->came_through = false;
    if (p->n == p->cap) {
        PL_TRY(grow((void **)&p->nodes, p->n, p->cap, sizeof *p->nodes, &p->cap));
    }
    p->nodes[p->n++] = node;
    return PL_OK;
}

static void count_leaf(pass *p, pl_tensor *leaf) {
    struct pl_grad_meta *m = leaf->meta;
    if (m->pass != p->id) {
        m->pass = p->id;
        m->pending = 0;
    }
    m->pending++;
}

// Breadth-first over the graph, nodes[] being its own queue.
static pl_status collect(pass *p) {
    for (int64_t at = 0; at < p->n; at++) {
        pl_node *node = p->nodes[at];
        for (int i = 0; i < node->n_in; i++) {
            if (node->edges[i].node) {
                PL_TRY(push(p, node->edges[i].node));
                node->edges[i].node->givers++;
            }
            if (node->edges[i].leaf) count_leaf(p, node->edges[i].leaf);
        }
    }
    return PL_OK;
}

static int by_seq_falling(const void *a, const void *b) {
    uint64_t x = (*(pl_node *const *)a)->seq, y = (*(pl_node *const *)b)->seq;
    return x < y ? 1 : x > y ? -1 : 0;
}

pl_status pl__check_saved(const pl_node *node) {
    char text[128];
    for (int i = 0; i < PL_OP_MAX_SAVED; i++) {
        const pl_tensor *t = node->saved[i];
        const pl_again *a = node->again && node->again->slot == i ? node->again : NULL;
        if (!t && !a) continue;
        uint32_t version = pl_storage_version(a ? a->storage : t->storage);
        if (version == node->versions[i]) continue;
        return pl_fail(
            PL_ERUNTIME,
            "[backward] a tensor needed for the gradient of '%s' was changed in place: "
            "shape %s is at version %u, expected %u; use the operator that gives a new "
            "tensor, or clone() first",
            node->op->name,
            pl_shape_text(a ? a->as.ndim : t->ndim, a ? a->as.shape : t->shape, text, sizeof text),
            version, node->versions[i]);
    }
    return PL_OK;
}

static capture *find_capture(const pass *p, const pl_node *node, const pl_tensor *leaf) {
    for (int i = 0; i < p->n_captures; i++) {
        capture *c = &p->captures[i];
        if ((node && c->node == node) || (leaf && c->leaf == leaf)) return c;
    }
    return NULL;
}

static pl_status remember_fired(pass *p, const pl_leaf_hook *hook) {
    for (int i = 0; i < p->n_fired; i++) {
        if (p->fired[i].ctx == hook->ctx) return PL_OK;
    }
    if (p->n_fired == p->cap_fired) {
        int64_t cap;
        PL_TRY(grow((void **)&p->fired, p->n_fired, p->cap_fired, sizeof *p->fired, &cap));
        p->cap_fired = (int)cap;
    }
    p->fired[p->n_fired++] = *hook;
    return PL_OK;
}

// g (taken over, may be NULL) where its receiver lies: a 0-d tensor of the CPU may have met others
// on a device (pl_meet).
static pl_status carry(pl_tensor **g, pl_device to) {
    pl_tensor *there = NULL;
    if (!*g || PL_LIKELY(pl_device_equal(pl_tensor_device(*g), to))) return PL_OK;
    pl_status st = pl_to_device(*g, to, false, &there);
    pl_tensor_release(*g);
    *g = there;
    return st;
}

// One contribution to a leaf; g is taken over and may be NULL (an operator had none to give).
static pl_status to_leaf(pass *p, pl_tensor *leaf, pl_tensor *g) {
    PL_TRY(carry(&g, pl_tensor_device(leaf)));
    if (p->captures) {
        capture *c = find_capture(p, NULL, leaf);
        if (c && g) return pl__sum_into(&c->grad, g);
        pl_tensor_release(g);
        return PL_OK;
    }
    struct pl_grad_meta *m = leaf->meta;
    m->pending--;
    if (g) PL_TRY(pl__leaf_accumulate(leaf, g));
    if (m->pending == 0) {
        // What autocast computed with is not needed before the next forward, which mostly comes
        // after an update: its memory serves the other gradients.
        pl_tensor_release(m->low);
        m->low = NULL;
        PL_TRY(pl__leaf_complete(leaf));
    }
    if (m->pending == 0 && m->hook.ready && m->grad) {
        PL_TRY(remember_fired(p, &m->hook));
        PL_TRY(m->hook.ready(m->hook.ctx, m->hook.index));
    }
    return PL_OK;
}

static pl_status to_node(pl_node *node, pl_tensor *g) {
    if (!g) return PL_OK;
    PL_TRY(carry(&g, node->out.device));
    if (g->dtype != node->out.dtype) {
        pl_tensor *cast = NULL;
        pl_status st = pl_cast(g, node->out.dtype, &cast);
        pl_tensor_release(g);
        PL_TRY(st);
        g = cast;
    }
    return pl__sum_into(&node->grad, g);
}

// Where input i's gradient may be put right away: see pl_op_back.
static pl_status offer_destination(const pass *p, const pl_node *node, int i, pl_tensor **into,
                                   bool *accumulate) {
    const pl_edge *e = &node->edges[i];
    for (int k = 0; k < i; k++) {  // one input twice: only the first may write
        if ((e->leaf && node->edges[k].leaf == e->leaf) ||
            (e->node && node->edges[k].node == e->node)) {
            return PL_OK;
        }
    }
    if (e->leaf && !p->captures) {
        struct pl_grad_meta *m = e->leaf->meta;
        PL_TRY(pl__apply_due(m));
        *into = m->grad ? m->grad : m->grad_view;
        *accumulate = m->grad != NULL;
    } else if (e->node && e->node->grad && pl_tensor_is_only(e->node->grad)) {
        *into = e->node->grad;
        *accumulate = true;
    }
    return PL_OK;
}

// Note [through GELU], ops.h: x, where the node that made input 0 gets its gradient from this node
// alone (it is no root either, which has one already) and nobody else is to see that gradient.
static pl_status offer_through(const pass *p, const pl_node *node, pl_tensor **x) {
    const pl_node *from = node->edges[0].node;
    if (!from || from->givers != 1 || from->grad) return PL_OK;
    pl_tensor *offer = pl_op_through(from->op, &from->attrs, from->saved);
    if (!offer || (p->captures && find_capture(p, from, NULL))) return PL_OK;
    if (!pl_device_equal(from->out.device, node->out.device)) return PL_OK;
    PL_TRY(pl__check_saved(from));
    *x = offer;
    return PL_OK;
}

// The gradients of a node's inputs (out, taken over) to where they go, or away after a failure.
static pl_status hand_on(pass *p, const pl_node *node, const bool *needs, pl_tensor *const *out,
                         pl_status st) {
    for (int i = 0; i < node->n_in; i++) {
        pl_tensor *g = out[i];
        if (st != PL_OK || !needs[i]) {
            pl_tensor_release(g);
        } else if (node->edges[i].leaf) {
            st = to_leaf(p, node->edges[i].leaf, g);
        } else {
            st = to_node(node->edges[i].node, g);
        }
    }
    return st;
}

#define FEW 8  // inputs whose bookkeeping fits on the stack; cat may have more

static pl_status run_node(pass *p, pl_node *node) {
    bool few_needs[FEW], few_acc[FEW];
    pl_tensor *few_into[FEW], *few_out[FEW];
    bool *needs = few_needs, *acc = few_acc;
    pl_tensor **into = few_into, **out = few_out;
    void *block = NULL;
    size_t n = (size_t)node->n_in;
    int64_t since = pl_trace_begin();
    if (n > FEW) {
        PL_TRY(pl_alloc(n * (2 * sizeof(pl_tensor *) + 2 * sizeof(bool)), &block));
        into = block;
        out = into + n;
        needs = (bool *)(out + n);
        acc = needs + n;
    }
    pl_status st = pl__check_saved(node);
    if (st == PL_OK && node->again) st = pl__again_make(node);
    pl_tensor *through = NULL;
    bool went_through = false;
    if (st == PL_OK && pl_op_goes_through(node->op)) st = offer_through(p, node, &through);
    for (int i = 0; i < node->n_in; i++) {
        needs[i] = node->edges[i].node || node->edges[i].leaf;
        acc[i] = false;
        into[i] = out[i] = NULL;
        if (needs[i] && st == PL_OK) st = offer_destination(p, node, i, &into[i], &acc[i]);
    }
    pl_op_back b = {.op = node->op,
                    .n_in = node->n_in,
                    .attrs = &node->attrs,
                    .saved = node->saved,
                    .grad = node->grad,
                    .in = node->in,
                    .needs = needs,
                    .last = !p->retain,
                    .into = into,
                    .accumulate = acc,
                    .out = out,
                    .through = through,
                    .went_through = &went_through,
                    .came_through = node->came_through};
    if (st == PL_OK) st = node->op->backward(&b);
    if (went_through) node->edges[0].node->came_through = true;
    if (node->again) pl__again_unmake(node);
    pl_tensor_release(node->grad);
    node->grad = NULL;
    if (!p->retain && st == PL_OK) {
        pl__node_drop_saved(node);
        node->released = true;
    }
    st = hand_on(p, node, needs, out, st);
    pl_free(block);
    pl_trace_end(since, PL_TRACE_BACKWARD, node->op->name);
    return st;
}

// A node without a gradient (its consumers had none to give) still settles its leaves' counts.
static pl_status skip_node(pass *p, pl_node *node) {
    for (int i = 0; i < node->n_in; i++) {
        if (node->edges[i].leaf) PL_TRY(to_leaf(p, node->edges[i].leaf, NULL));
    }
    return PL_OK;
}

static pl_status run_all(pass *p) {
    qsort(p->nodes, (size_t)p->n, sizeof *p->nodes, by_seq_falling);
    for (int64_t i = 0; i < p->n; i++) {
        pl_node *node = p->nodes[i];
        PL_TRY(pl_check_interrupt());
        capture *c = p->captures ? find_capture(p, node, NULL) : NULL;
        if (c && node->grad) {
            pl_tensor_release(c->grad);
            c->grad = pl_tensor_retain(node->grad);
        }
        // Who asked for this node's result has run: they were called later.
        pl_tensor_release(node->remade);
        node->remade = NULL;
        PL_TRY(node->grad ? run_node(p, node) : skip_node(p, node));
    }
    return PL_OK;
}

static pl_status root_grad(const pl_tensor *root, pl_tensor *given, pl_tensor **out) {
    char a[128], b[128];
    if (given) {
        if (!pl_shape_equal(given->ndim, given->shape, root->ndim, root->shape)) {
            return pl_fail(PL_ERUNTIME,
                           "[backward] a gradient must have its output's shape: got %s, expected "
                           "%s",
                           pl_shape_text(given->ndim, given->shape, a, sizeof a),
                           pl_shape_text(root->ndim, root->shape, b, sizeof b));
        }
        if (!pl_device_equal(pl_tensor_device(given), pl_tensor_device(root))) {
            return pl_fail(PL_ERUNTIME,
                           "[backward] a gradient must lie where its output does: got another "
                           "device; move it with .to(device)");
        }
        return pl_cast(given, root->dtype, out);
    }
    if (root->numel != 1) {
        return pl_fail(PL_ERUNTIME,
                       "[backward] a gradient can be made up only for an output of one element: "
                       "got shape %s; pass gradient=, or reduce the loss with mean() or sum()",
                       pl_shape_text(root->ndim, root->shape, a, sizeof a));
    }
    PL_TRY(pl_tensor_empty_beside(root, root->dtype, root->ndim, root->shape, out));
    pl_status st = pl_k(*out)->fill(*out, 1.0);
    if (st != PL_OK) pl_tensor_release(*out);
    return st;
}

static pl_status seed(pass *p, int n, pl_tensor *const *roots, pl_tensor *const *grads) {
    for (int i = 0; i < n; i++) {
        pl_tensor *root = roots[i], *g = NULL;
        if (!pl_requires_grad(root)) {
            return pl_fail(PL_ERUNTIME,
                           "[backward] output %d does not require grad and has no grad_fn: was it "
                           "computed under no_grad(), or from tensors that need no gradient?",
                           i);
        }
        if (root->meta->node) PL_TRY(push(p, root->meta->node));
        if (!root->meta->node) count_leaf(p, root);
        PL_TRY(root_grad(root, grads ? grads[i] : NULL, &g));
        if (root->meta->node) PL_TRY(to_node(root->meta->node, g));
        // A root that is a leaf is settled after the counts are complete.
        if (!root->meta->node) pl_tensor_release(g);
    }
    return PL_OK;
}

static pl_status settle_leaf_roots(pass *p, int n, pl_tensor *const *roots,
                                   pl_tensor *const *grads) {
    for (int i = 0; i < n; i++) {
        pl_tensor *g = NULL;
        if (roots[i]->meta->node) continue;
        PL_TRY(root_grad(roots[i], grads ? grads[i] : NULL, &g));
        PL_TRY(to_leaf(p, roots[i], g));
    }
    return PL_OK;
}

// After the last node. A failure leaves no sum in the graph and tells the hooks.
static pl_status finish(pass *p, pl_status st) {
    for (int i = 0; st == PL_OK && i < p->n_fired; i++) {
        if (p->fired[i].done) st = p->fired[i].done(p->fired[i].ctx);
    }
    for (int i = 0; st != PL_OK && i < p->n_fired; i++) {
        if (p->fired[i].failed) p->fired[i].failed(p->fired[i].ctx);
    }
    for (int64_t i = 0; st != PL_OK && i < p->n; i++) {
        pl_tensor_release(p->nodes[i]->grad);
        pl_tensor_release(p->nodes[i]->remade);
        p->nodes[i]->grad = p->nodes[i]->remade = NULL;
    }
    pl_free(p->nodes);
    pl_free(p->fired);
    return st;
}

// Note [chosen streams], base/device.h.
static pl_status order_streams(int n, pl_tensor *const *roots, bool before) {
    const pl_device_services *d = NULL;
    for (int i = 0; i < n && !d; i++) d = pl_device_find(pl_tensor_device(roots[i]));
    return d && d->order_streams ? d->order_streams(before) : PL_OK;
}

static pl_status run_pass(pass *p, int n, pl_tensor *const *roots, pl_tensor *const *grads) {
    if (in_pass) {
        return pl_fail(PL_ERUNTIME, "[backward] called from inside a backward pass");
    }
    pthread_mutex_lock(&pass_lock);
    in_pass = true;
    p->id = ++pass_id;
    pl_status st = order_streams(n, roots, true);
    if (st == PL_OK) st = seed(p, n, roots, grads);
    if (st == PL_OK) st = collect(p);
    if (st == PL_OK) st = settle_leaf_roots(p, n, roots, grads);
    if (st == PL_OK) st = run_all(p);
    st = finish(p, st);
    pl_status ordered = order_streams(n, roots, false);  // after a failure too: memory was released
    if (st == PL_OK) st = ordered;
    in_pass = false;
    pthread_mutex_unlock(&pass_lock);
    return st;
}

pl_status pl_backward(int n, pl_tensor *const *roots, pl_tensor *const *grads, bool retain_graph) {
    pass p = {.retain = retain_graph};
    return run_pass(&p, n, roots, grads);
}

pl_status pl_grad(int n, pl_tensor *const *roots, pl_tensor *const *grads, int n_inputs,
                  pl_tensor *const *inputs, bool retain_graph, bool allow_unused, pl_tensor **out) {
    pass p = {.retain = retain_graph, .n_captures = n_inputs};
    PL_TRY(pl_calloc((size_t)(n_inputs ? n_inputs : 1) * sizeof *p.captures, (void **)&p.captures));
    pl_status st = PL_OK;
    for (int i = 0; i < n_inputs && st == PL_OK; i++) {
        if (!pl_requires_grad(inputs[i])) {
            st = pl_fail(PL_ERUNTIME, "[grad] input %d does not require grad", i);
        } else if (inputs[i]->meta->node) {
            p.captures[i].node = inputs[i]->meta->node;
        } else {
            p.captures[i].leaf = inputs[i];
        }
    }
    if (st == PL_OK) st = run_pass(&p, n, roots, grads);
    for (int i = 0; i < n_inputs && st == PL_OK; i++) {
        if (!p.captures[i].grad && !allow_unused) {
            st = pl_fail(PL_ERUNTIME,
                         "[grad] input %d was not used in the graph of the outputs: pass "
                         "allow_unused=True if that is meant",
                         i);
        }
    }
    for (int i = 0; i < n_inputs; i++) {
        if (st == PL_OK) {
            out[i] = p.captures[i].grad;
        } else {
            pl_tensor_release(p.captures[i].grad);
        }
    }
    pl_free(p.captures);
    return st;
}

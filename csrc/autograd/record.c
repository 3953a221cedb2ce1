// SPDX-License-Identifier: Apache-2.0
// Running operators and recording them. One allocation a call: node, edges and metas together.
#include <string.h>

#include "autograd/graph.h"
#include "base/trace.h"

static uint64_t next_seq;  // atomic

// Bit i: input i (the last bit: any from there on).
static uint32_t wanted(const pl_op *op, int n_in, pl_tensor *const *edges) {
    uint32_t bits = 0;
    if (!op->backward || !pl_grad_enabled()) return 0;
    for (int i = 0; i < n_in; i++) {
        if (edges[i] && pl_requires_grad(edges[i])) bits |= 1u << (i < 31 ? i : 31);
    }
    return bits;
}

static void meta_of(const pl_tensor *t, pl_in_meta *m) {
    m->dtype = t->dtype;
    m->ndim = t->ndim;
    m->device = pl_tensor_device(t);
    memcpy(m->shape, t->shape, sizeof m->shape);
}

static pl_status node_new(pl_op_call *call, pl_tensor *const *edges, pl_node **out) {
    size_t n = (size_t)call->n_in;
    size_t head = (sizeof(pl_node) + 15) & ~(size_t)15;
    char *block = NULL;
    PL_TRY(pl_alloc(head + n * (sizeof(pl_edge) + sizeof(pl_in_meta)), (void **)&block));
    pl_node *node = (pl_node *)(void *)block;
    *node = (pl_node){.refs = 1, .op = call->op, .attrs = call->attrs, .n_in = call->n_in};
    node->seq = __atomic_add_fetch(&next_seq, 1, __ATOMIC_RELAXED);
    node->edges = (pl_edge *)(void *)(block + head);
    node->in = (pl_in_meta *)(void *)(block + head + n * sizeof(pl_edge));
    meta_of(call->out, &node->out);
    for (int i = 0; i < call->n_in; i++) {
        pl_tensor *t = edges[i];
        node->edges[i] = (pl_edge){NULL, NULL};
        if (!t) continue;
        meta_of(t, &node->in[i]);
        if (!pl_requires_grad(t)) continue;
        if (t->meta->node) {
            node->edges[i].node = t->meta->node;
            pl__node_retain(t->meta->node);
        } else {
            node->edges[i].leaf = pl_tensor_retain(t);
        }
    }
    for (int i = 0; i < PL_OP_MAX_SAVED; i++) {
        node->saved[i] = call->saved[i];
        if (call->saved[i]) node->versions[i] = pl_storage_version(call->saved[i]->storage);
    }
    pl_live_add(PL_KIND_NODE, 1);
    memset(call->saved, 0, sizeof call->saved);  // the node's now
    pl_status st = pl__again_record(node, call->in, edges);
    if (st != PL_OK) {
        pl__node_release(node);
        return st;
    }
    *out = node;
    return PL_OK;
}

static void call_drop(pl_op_call *call) {
    for (int i = 0; i < PL_OP_MAX_SAVED; i++) pl_tensor_release(call->saved[i]);
    pl_tensor_release(call->out);
}

// "[64, 784] [784, 10]", as far as there is room.
static void shapes_text(int n_in, pl_tensor *const *in, char *out, size_t size) {
    size_t at = 0;
    for (int i = 0; i < n_in; i++) {
        char one[128];
        if (!in[i]) continue;
        const char *text = pl_shape_text(in[i]->ndim, in[i]->shape, one, sizeof one);
        if (at + strlen(text) + 2 > size) return;
        if (at) out[at++] = ' ';
        memcpy(out + at, text, strlen(text) + 1);
        at += strlen(text);
    }
}

static pl_status forward(const pl_op *op, pl_op_call *call) {
    int64_t since = pl_trace_begin();
    pl_status st = op->forward(call);
    if (PL_LIKELY(since == 0)) return st;
    pl_trace_event e = {.start_ns = since, .number = -1, .kind = PL_TRACE_OP};
    e.end_ns = pl_now_ns();
    strncpy(e.name, op->name, sizeof e.name - 1);
    if (pl_trace_shapes()) shapes_text(call->n_in, call->in, e.detail, sizeof e.detail);
    pl_trace_put(&e);
    return st;
}

// Runs the call; *node is set where it is to be recorded. On failure nothing is left behind.
static pl_status run(const pl_op *op, int n_in, pl_tensor *const *in, pl_tensor *const *edges,
                     const pl_attrs *attrs, pl_tensor **out, pl_node **node) {
    pl_op_call call = {.op = op, .n_in = n_in, .in = in, .wants = wanted(op, n_in, edges)};
    call.edges = edges;
    call.track = call.wants != 0;
    if (attrs) call.attrs = *attrs;
    *node = NULL;
    pl_status st = forward(op, &call);
    if (st == PL_OK && call.track) st = node_new(&call, edges, node);
    if (st != PL_OK) {
        call_drop(&call);
        return st;
    }
    *out = call.out;
    return PL_OK;
}

static void set_history(pl_tensor *t, pl_node *node, bool is_view) {
    pl_node *old = t->meta->node;
    t->meta->node = node;  // takes the reference over
    t->meta->requires_grad = true;
    t->meta->is_view = is_view;
    pl__node_release(old);
}

// A result with its history (NULL: none), both taken over.
static pl_status attach(const pl_op *op, pl_tensor *t, pl_node *node, pl_tensor **out) {
    if (node && t->meta) {
        // The operator gave an input back (to_dtype to the dtype it has): record on an alias.
        pl_tensor *alias = NULL;
        pl_status st = pl_detach(t, &alias);
        pl_tensor_release(t);
        t = alias;
        if (st != PL_OK) {
            pl__node_release(node);
            return st;
        }
    }
    if (node) {
        pl_status st = pl__meta_ensure(t);
        if (st != PL_OK) {
            pl__node_release(node);
            pl_tensor_release(t);
            return st;
        }
        set_history(t, node, op->is_view);
    }
    *out = t;
    return PL_OK;
}

static pl_status apply(const pl_op *op, int n_in, pl_tensor *const *in, pl_tensor *const *edges,
                       const pl_attrs *attrs, pl_tensor **out) {
    pl_tensor *t = NULL;
    pl_node *node = NULL;
    PL_TRY(run(op, n_in, in, edges ? edges : in, attrs, &t, &node));
    return attach(op, t, node, out);
}

// The two calls, made already, as they are recorded: the second's first input is the sum.
static pl_status record_added(pl_op_call *add, pl_op_call *norm, pl_tensor *of[3],
                              pl_tensor **out) {
    pl_node *node = NULL;
    pl_tensor *sum = NULL, *normed = NULL;
    pl_status st = add->track ? node_new(add, add->in, &node) : PL_OK;
    if (st == PL_OK) {
        st = attach(add->op, add->out, node, &sum);
        add->out = NULL;
    }
    of[0] = sum;
    node = NULL;
    if (st == PL_OK && norm->track) st = node_new(norm, of, &node);
    if (st == PL_OK) {
        st = attach(norm->op, norm->out, node, &normed);
        norm->out = NULL;
    }
    if (st != PL_OK) {
        pl_tensor_release(sum);
        return st;
    }
    out[0] = normed;
    out[1] = sum;
    return PL_OK;
}

pl_status pl_autograd_apply_added(const pl_op *op, pl_tensor *const in[4], const pl_attrs *attrs,
                                  pl_tensor *out[2]) {
    pl_tensor *pair[2] = {in[1], in[0]}, *of[3] = {in[1], in[2], in[3]};
    int n_in = op == &pl_op_layer_norm ? 3 : 2;
    pl_op_call add = {.op = &pl_op_add, .n_in = 2, .in = pair};
    pl_op_call norm = {.op = op, .n_in = n_in, .in = of, .attrs = *attrs};
    add.track = wanted(add.op, 2, pair);
    norm.track = add.track || wanted(op, n_in - 1, of + 1);
    int64_t since = pl_trace_begin();
    pl_status st = pl_norm_forward_added(&add, &norm);
    pl_trace_end(since, PL_TRACE_OP, n_in == 3 ? "add_layer_norm" : "add_rms_norm");
    if (st == PL_OK) st = record_added(&add, &norm, of, out);
    call_drop(&add);
    call_drop(&norm);
    return st;
}

#define FEW 8  // inputs whose bookkeeping fits on the stack; cat may have more

// With the inputs as they meet on one device; the graph connects to those that were given.
__attribute__((noinline, cold)) static pl_status apply_met(const pl_op *op, int n_in,
                                                           pl_tensor *const *in,
                                                           pl_tensor *const *edges,
                                                           const pl_attrs *attrs, pl_tensor **out) {
    pl_tensor *few[2 * FEW], **met = few;
    void *block = NULL;
    if (n_in > FEW) PL_TRY(pl_alloc(2 * (size_t)n_in * sizeof *met, &block));
    if (block) met = block;
    pl_tensor **args = met + n_in;
    pl_status st = pl_tensors_used_here(n_in, in);
    if (st == PL_OK) {
        st = pl_meet(op->name, pl_op_takes_numbers(op), n_in, in, met);
    } else {
        memset(met, 0, (size_t)n_in * sizeof *met);
    }
    for (int i = 0; st == PL_OK && i < n_in; i++) args[i] = met[i] ? met[i] : in[i];
    if (st == PL_OK) {
        st = apply(op, n_in, args, edges ? edges : in, attrs, out);
        for (int i = 0; i < n_in; i++) pl_tensor_release(met[i]);
    }
    pl_free(block);
    return st;
}

pl_status pl_autograd_apply(const pl_op *op, int n_in, pl_tensor *const *in,
                            pl_tensor *const *edges, const pl_attrs *attrs, pl_tensor **out) {
    if (PL_LIKELY(pl_all_cpu(n_in, in))) return apply(op, n_in, in, edges, attrs, out);
    return apply_met(op, n_in, in, edges, attrs, out);
}

pl_status pl_autograd_will_write(const char *op, pl_tensor *x, const pl_tensor *src) {
    if (pl_grad_enabled()) {
        if (pl_is_leaf(x) && pl_requires_grad(x)) {
            return pl_fail(PL_ERUNTIME,
                           "[%s] a leaf that requires grad cannot be changed in place: wrap the "
                           "change in no_grad(), or write to x.data",
                           op);
        }
        bool tracked = pl_requires_grad(x) || (src && pl_requires_grad(src));
        bool shared = __atomic_load_n(&x->storage->refs, __ATOMIC_RELAXED) > 1;
        if (tracked && (shared || (x->meta && x->meta->is_view))) {
            return pl_fail(PL_ENOSUP,
                           "[%s] in-place change of a view is not tracked by autograd here: use "
                           "the operator that gives a new tensor, or detach() first",
                           op);
        }
    }
    pl_storage_bump(x->storage);
    return PL_OK;
}

// Without history: straight into x where the kernel can, else through a result that is copied.
static pl_status write_plain(const pl_op *op, int n_in, pl_tensor *const *in,
                             const pl_attrs *attrs) {
    pl_tensor *x = in[0], *r = NULL;
    bool binary =
        n_in == 2 && (op == &pl_op_add || op == &pl_op_sub || op == &pl_op_mul || op == &pl_op_div);
    bool number = binary && in[1]->ndim == 0 && x->dtype != PL_BOOL && in[1]->storage != x->storage;
    if (binary && in[1]->dtype == x->dtype && (pl_dtype_is_float(x->dtype) || op != &pl_op_div) &&
        (number || pl_shape_equal(x->ndim, x->shape, in[1]->ndim, in[1]->shape))) {
        int64_t since = pl_trace_begin();
        pl_tensor wide = *in[1];  // a number for all elements, or as it is
        for (; wide.ndim < x->ndim; wide.ndim++) wide.shape[wide.ndim] = x->shape[wide.ndim];
        if (number) memset(wide.strides, 0, sizeof wide.strides);
        wide.numel = x->numel;
        pl_status st = pl_k(x)->binary((pl_binary)op->kind, x, &wide, x);
        pl_trace_end(since, PL_TRACE_OP, op->name);
        return st;
    }
    pl_op_call call = {.op = op, .n_in = n_in, .in = in};
    if (attrs) call.attrs = *attrs;
    pl_status st = forward(op, &call);
    r = call.out;
    char a[128], b[128];
    if (st == PL_OK && !pl_shape_equal(r->ndim, r->shape, x->ndim, x->shape)) {
        st =
            pl_fail(PL_ERUNTIME, "[%s_] the result has shape %s, which does not fit in place in %s",
                    op->name, pl_shape_text(r->ndim, r->shape, a, sizeof a),
                    pl_shape_text(x->ndim, x->shape, b, sizeof b));
    }
    if (st == PL_OK && pl_dtype_is_float(r->dtype) && !pl_dtype_is_float(x->dtype)) {
        st = pl_fail(PL_ERUNTIME, "[%s_] result type %s cannot be cast to the tensor's type %s",
                     op->name, pl_dtype_name(r->dtype), pl_dtype_name(x->dtype));
    }
    if (st == PL_OK) st = pl_k(r)->copy(r, x);
    call_drop(&call);
    return st;
}

#define MOST_INPLACE 4  // inputs of an operator that may work in place

static pl_status apply_inplace(const pl_op *op, int n_in, pl_tensor *const *in,
                               pl_tensor *const *edges, const pl_attrs *attrs) {
    pl_tensor *x = in[0], *old = NULL, *r = NULL;
    pl_node *node = NULL;
    const pl_tensor *src = n_in > 1 ? edges[1] : NULL;
    PL_TRY(pl_autograd_will_write(op->name, x, src));
    if (!wanted(op, n_in, edges)) return write_plain(op, n_in, in, attrs);
    // The graph keeps the value from before, so the gradient of what follows stays right.
    pl_tensor *args[MOST_INPLACE] = {NULL};
    PL_TRY(pl_copy_new(x, x->dtype, &old));
    for (int i = 1; i < n_in; i++) args[i] = in[i];
    args[0] = old;
    pl_status st = run(op, n_in, args, edges, attrs, &r, &node);
    pl_tensor_release(old);
    PL_TRY(st);
    if (r->dtype != x->dtype || !pl_shape_equal(r->ndim, r->shape, x->ndim, x->shape)) {
        st = pl_fail(PL_ERUNTIME, "[%s_] the result's shape or dtype does not fit in place",
                     op->name);
    }
    if (st == PL_OK) st = pl__meta_ensure(x);
    if (st == PL_OK) st = pl_k(r)->copy(r, x);
    pl_tensor_release(r);
    if (st != PL_OK) {
        pl__node_release(node);
        return st;
    }
    if (node) set_history(x, node, false);
    return PL_OK;
}

pl_status pl_autograd_apply_inplace(const pl_op *op, int n_in, pl_tensor *const *in,
                                    const pl_attrs *attrs) {
    PL_ASSERT(n_in <= MOST_INPLACE);
    if (PL_LIKELY(pl_all_cpu(n_in, in))) return apply_inplace(op, n_in, in, in, attrs);
    pl_tensor *met[MOST_INPLACE], *args[MOST_INPLACE];
    PL_TRY(pl_tensors_used_here(n_in, in));
    PL_TRY(pl_meet(op->name, pl_op_takes_numbers(op), n_in, in, met));
    pl_status st = PL_OK;
    // A result that lies elsewhere than what it is to be written to.
    const pl_tensor *there = met[0];
    for (int i = 1; i < n_in && pl_tensor_is_cpu(in[0]) && !there; i++) {
        if (in[i] && !pl_tensor_is_cpu(in[i])) there = in[i];
    }
    if (there) {
        st = pl_fail(PL_ERUNTIME,
                     "[%s_] the result lies on cuda:%d and does not fit in place in a tensor of "
                     "the CPU: expected one device",
                     op->name, pl_tensor_device(there).index);
    }
    for (int i = 0; i < n_in; i++) args[i] = met[i] ? met[i] : in[i];
    if (st == PL_OK) st = apply_inplace(op, n_in, args, in, attrs);
    for (int i = 0; i < n_in; i++) pl_tensor_release(met[i]);
    return st;
}

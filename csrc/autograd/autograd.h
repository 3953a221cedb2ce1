// SPDX-License-Identifier: Apache-2.0
// autograd: the graph of operator calls, the backward pass, and leaf-ready events.
// Knows operators through pl_op only; knows no Python, no process group.
// Threads: recording is per thread (grad mode is thread-local); one backward pass at a time per
// process (a lock); a tensor's gradient state is written by the thread that uses it.
#ifndef PL_AUTOGRAD_H
#define PL_AUTOGRAD_H

#include "ops/ops.h"

// Grad mode of this thread; gives the mode before.
bool pl_grad_enabled(void);
bool pl_grad_set_enabled(bool on);

// Runs op on `in` and records it if grad mode is on and an input needs a gradient. `edges` are the
// tensors that the graph connects to, where they differ from `in` (autocast computes with casts
// but connects to the originals); NULL: in. Entries may be NULL.
pl_status pl_autograd_apply(const pl_op *op, int n_in, pl_tensor *const *in,
                            pl_tensor *const *edges, const pl_attrs *attrs,
                            pl_tensor **out) PL_MUST_USE;
// sum = residual + x and its norm (layer_norm or rms_norm) by one kernel: for two tensors that
// pl_norm_adds, with a weight and a bias (NULL: none) where they lie. in: x, residual, weight,
// bias; out: the norm and the sum. The graph has the two calls; the norm's gradient is added to
// what came along the residual in one pass, since that is then a sum under way (pl_op_back.into).
pl_status pl_autograd_apply_added(const pl_op *norm, pl_tensor *const in[4], const pl_attrs *attrs,
                                  pl_tensor *out[2]) PL_MUST_USE;
// x = op(x, ...) in x's own memory. in[0] is x. Fails on a leaf that requires grad, and where the
// graph cannot follow (a view).
pl_status pl_autograd_apply_inplace(const pl_op *op, int n_in, pl_tensor *const *in,
                                    const pl_attrs *attrs) PL_MUST_USE;
// Guards a write to x's memory by other means, and counts it.
pl_status pl_autograd_will_write(const char *op, pl_tensor *x, const pl_tensor *src) PL_MUST_USE;

// State of a tensor.
bool pl_requires_grad(const pl_tensor *t);
pl_status pl_set_requires_grad(pl_tensor *t, bool on) PL_MUST_USE;
bool pl_is_leaf(const pl_tensor *t);
const char *pl_grad_fn_name(const pl_tensor *t);                   // NULL for a leaf
pl_tensor *pl_grad_of(const pl_tensor *t);                         // borrowed, or NULL
pl_status pl_set_grad(pl_tensor *t, pl_tensor *grad) PL_MUST_USE;  // NULL: none
pl_status pl_detach(pl_tensor *t, pl_tensor **out) PL_MUST_USE;    // an alias without history

// backward: adds gradients of sum_i <grads[i], roots[i]> to the leaves' .grad. grads[i] NULL: 1,
// for a root of one element. Calls pl_check_interrupt between nodes.
pl_status pl_backward(int n, pl_tensor *const *roots, pl_tensor *const *grads,
                      bool retain_graph) PL_MUST_USE;
// grad: the gradients of inputs only, given back (owned by the caller; NULL where unused and
// allowed), no .grad is touched and no leaf event fires.
pl_status pl_grad(int n, pl_tensor *const *roots, pl_tensor *const *grads, int n_inputs,
                  pl_tensor *const *inputs, bool retain_graph, bool allow_unused,
                  pl_tensor **out) PL_MUST_USE;

// Note [leaf events]: during pl_backward, `ready` of a leaf is called on the backward thread once
// its gradient has had its last contribution in this pass; `done`, once per pass and ctx for which
// some ready was called, after the last node; `failed` instead, if the pass ends with an error.
typedef struct pl_leaf_hook {
    pl_status (*ready)(void *ctx, int index);
    pl_status (*done)(void *ctx);
    void (*failed)(void *ctx);
    void *ctx;
    int index;
} pl_leaf_hook;
pl_status pl_autograd_set_hook(pl_tensor *leaf,
                               const pl_leaf_hook *hook) PL_MUST_USE;  // NULL: none
// From now on the leaf's gradient lives in `view` (retained; the leaf's shape and dtype,
// contiguous). An existing gradient is copied there. NULL: back to memory of its own.
pl_status pl_autograd_set_grad_view(pl_tensor *leaf, pl_tensor *view) PL_MUST_USE;
bool pl_autograd_has_grad_view(const pl_tensor *leaf);
// Makes the view the gradient (it holds a reduced value), or takes the gradient away.
void pl_autograd_mark_grad(pl_tensor *leaf, bool defined);

// Note [deferred scale]: clipping and unscaling multiply all gradients by one number, which an
// optimizer's step can do on its way through them. So the number may be left with the leaf: it is
// applied by the step, or to the memory before anyone else reads or changes the gradient
// (pl_autograd_settle, which the passes here call themselves). That is right only while nobody
// holds the gradient or a view of it, who would see the memory without the factor:
// pl_autograd_grads_unseen, of fp32 and fp64 only. The sum of squares of the memory is kept by the
// same rule, so that a norm after an unscaling costs no second pass.
bool pl_autograd_grads_unseen(int n, pl_tensor *const *leaves);
void pl_autograd_defer_scale(pl_tensor *leaf, double factor);  // of unseen gradients
double pl_autograd_due(const pl_tensor *leaf);                 // 1 where nothing is
// The same with a number that only the gradient's device knows: f64, 0-d. There is one at a time,
// beside the other; who leaves a second one settles first.
void pl_autograd_defer_scale_there(pl_tensor *leaf, pl_tensor *factor);
pl_tensor *pl_autograd_due_there(const pl_tensor *leaf);  // borrowed; NULL where none is
void pl_autograd_keep_squares(pl_tensor *leaf, double squares);
bool pl_autograd_squares(const pl_tensor *leaf, double *out);  // false: not known
// Note [early norm]: who clips reads all gradients once more, which costs as much as a third of the
// update. So the sum of squares is taken when a gradient is complete and still in the cache: from
// the second time on, in that backward pass after which the norm was asked for the last time (the
// k-th of k that accumulate). It is the sum that would be taken later, bit for bit, and is
// forgotten like that one where the gradient is seen or changed before it is asked for.
void pl_autograd_norm_asked(pl_tensor *leaf);
bool pl_autograd_norm_is_due(const pl_tensor *leaf);  // will it be asked for after this pass?
pl_status pl_autograd_settle(pl_tensor *leaf) PL_MUST_USE;

// Autocast's copy of t in a lower precision, kept with t until its memory changes.
pl_status pl_autograd_low(pl_tensor *t, pl_dtype dt, pl_tensor **out) PL_MUST_USE;
// Who changes a leaf may know its next copy at once. Whether one was made, of what dtype, since
// this was last kept; and a copy of what the leaf holds now, contiguous.
bool pl_autograd_low_used(const pl_tensor *leaf, pl_dtype *dt);
void pl_autograd_keep_low(pl_tensor *leaf, pl_tensor *low);

#endif

// SPDX-License-Identifier: Apache-2.0
// Norm, clipping and unscaling of leaves' gradients with as few passes over memory as the rule of
// Note [deferred scale] (autograd.h) allows. See optim.h.
//
// Whether a factor waits or is applied changes no bit of a result: one factor is rounded to fp32
// once in either case. Two would be multiplied with each other first, which rounds differently
// unless one is a power of two, as those of a loss scale are: then the first is applied before.
#include <math.h>

#include "optim/optim_internal.h"

pl_status pl__optim_settled_grads(int n, pl_tensor *const *leaves, pl_tensor ***out, int *n_out) {
    *n_out = 0;
    PL_TRY(pl_alloc((size_t)(n + 1) * sizeof **out, (void **)out));
    for (int i = 0; i < n; i++) {
        pl_tensor *g = pl_grad_of(leaves[i]);
        pl_status st = g ? pl_autograd_settle(leaves[i]) : PL_OK;
        if (st != PL_OK) {
            pl_free(*out);
            return st;
        }
        if (g) (*out)[(*n_out)++] = g;
    }
    return PL_OK;
}

static void ask(int n, pl_tensor *const *leaves) {
    for (int i = 0; i < n; i++) pl_autograd_norm_asked(leaves[i]);
}

bool pl__optim_is_power_of_two(double x) {
    int exponent;
    return frexp(x, &exponent) == 0.5;
}

// Whether a second factor changes no bit more than it would alone.
static bool due_is_exact(const pl_tensor *leaf) {
    return !pl_autograd_due_there(leaf) && pl__optim_is_power_of_two(pl_autograd_due(leaf));
}

// Keeps with each leaf the sum of squares of its gradient's memory, where it is not known.
static pl_status look(int n, pl_tensor *const *leaves) {
    pl_tensor **grads = NULL, **owners;
    double *squares, known;
    int count = 0;
    PL_TRY(pl_alloc((size_t)(n + 1) * (2 * sizeof *grads + sizeof *squares), (void **)&grads));
    owners = grads + n + 1;
    squares = (double *)(void *)(owners + n + 1);
    for (int i = 0; i < n; i++) {
        pl_tensor *g = pl_grad_of(leaves[i]);
        if (!g || pl_autograd_squares(leaves[i], &known)) continue;
        owners[count] = leaves[i];
        grads[count++] = g;
    }
    pl_status st = pl__optim_squares(count, grads, squares);
    for (int i = 0; st == PL_OK && i < count; i++) pl_autograd_keep_squares(owners[i], squares[i]);
    pl_free(grads);
    return st;
}

// Sum of squares of what stands in memory, leaf by leaf as listed, each kept with its leaf; and
// with the squares of what is due. The gradients are unseen.
static pl_status sum_squares(int n, pl_tensor *const *leaves, double *out) {
    *out = 0;
    for (int i = 0; i < n; i++) {
        if (!pl_grad_of(leaves[i]) || due_is_exact(leaves[i])) continue;
        PL_TRY(pl_autograd_settle(leaves[i]));
    }
    PL_TRY(look(n, leaves));
    for (int i = 0; i < n; i++) {
        double squares = 0, due = pl_autograd_due(leaves[i]);
        if (!pl_grad_of(leaves[i]) || !pl_autograd_squares(leaves[i], &squares)) continue;
        *out += due == 1.0 ? squares : squares * due * due;
    }
    return PL_OK;
}

pl_status pl_optim_leaf_norm(int n, pl_tensor *const *leaves, double *out) {
    ask(n, leaves);
    if (pl_autograd_grads_unseen(n, leaves)) {
        PL_TRY(sum_squares(n, leaves, out));
        *out = sqrt(*out);
        return PL_OK;
    }
    pl_tensor **grads;
    int count;
    PL_TRY(pl__optim_settled_grads(n, leaves, &grads, &count));
    pl_status st = pl_optim_norm(count, grads, false, out);
    pl_free(grads);
    return st;
}

static pl_status defer(int n, pl_tensor *const *leaves, double factor) {
    for (int i = 0; i < n; i++) {
        bool exact = pl__optim_is_power_of_two(factor) || due_is_exact(leaves[i]);
        if (!exact) PL_TRY(pl_autograd_settle(leaves[i]));
        pl_autograd_defer_scale(leaves[i], factor);
    }
    return PL_OK;
}

pl_status pl_optim_leaf_scale(int n, pl_tensor *const *leaves, double factor) {
    // NaN and 0 (of an infinite norm) spread over gradients at once, as PyTorch does.
    if (isfinite(factor) && factor != 0 && pl_autograd_grads_unseen(n, leaves)) {
        return defer(n, leaves, factor);
    }
    pl_tensor **grads;
    int count;
    PL_TRY(pl__optim_settled_grads(n, leaves, &grads, &count));
    pl_status st = pl_optim_scale(count, grads, factor);
    pl_free(grads);
    return st;
}

// The squares of fp64 may overflow where the elements do not.
static bool squares_tell(int n, pl_tensor *const *leaves) {
    for (int i = 0; i < n; i++) {
        const pl_tensor *g = pl_grad_of(leaves[i]);
        if (g && g->dtype != PL_F32) return false;
    }
    return pl_autograd_grads_unseen(n, leaves);
}

pl_status pl_optim_leaf_unscale(int n, pl_tensor *const *leaves, double factor, bool *nonfinite) {
    ask(n, leaves);
    double squares;
    if (isfinite(factor) && factor != 0 && squares_tell(n, leaves)) {
        PL_TRY(sum_squares(n, leaves, &squares));
        *nonfinite = !isfinite(squares);
        return factor == 1.0 ? PL_OK : defer(n, leaves, factor);
    }
    pl_tensor **grads;
    int count;
    PL_TRY(pl__optim_settled_grads(n, leaves, &grads, &count));
    pl_status st = pl_optim_unscale(count, grads, factor, nonfinite);
    pl_free(grads);
    return st;
}

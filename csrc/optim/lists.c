// SPDX-License-Identifier: Apache-2.0
// Steps, norms and scaling by kernels that take many runs at once, and what they need not tell the
// host: Note [lists] of kernels.h. See optim.h. Each tensor is a run of its own: where it lies is
// the kernels' business. Knows no device.
#include <math.h>

#include "optim/optim_internal.h"

static pl_run run_of(int i, const pl_tensor *t) {
    return (pl_run){.dtype = t->dtype, .index = i, .n = t->numel, .at = {t->data}};
}

static pl_status runs_new(int n, pl_run **out) {
    return pl_alloc((size_t)(n + 1) * sizeof **out, (void **)out);
}

// The runs of n tensors in `count` lists, of which a NULL one has no addresses.
static pl_status runs_of(int n, int count, pl_tensor *const *const *lists, pl_run **out) {
    PL_TRY(runs_new(n, out));
    for (int i = 0; i < n; i++) {
        (*out)[i] = run_of(i, lists[0][i]);
        for (int k = 1; k < count; k++) (*out)[i].at[k] = lists[k] ? lists[k][i]->data : NULL;
    }
    return PL_OK;
}

static void bump(int n, pl_tensor *const *t) {
    for (int i = 0; i < n; i++) pl_storage_bump(t[i]->storage);
}

// Whether all lie on one device whose kernels take lists.
static bool listed(int n, pl_tensor *const *t) {
    for (int i = 0; i < n; i++) {
        if (pl_tensor_is_cpu(t[i])) return false;
        if (!pl_device_equal(pl_tensor_device(t[i]), pl_tensor_device(t[0]))) return false;
    }
    return n > 0 && pl_k(t[0])->lists != NULL;
}

static bool all_dense(int n, pl_tensor *const *t) {
    for (int i = 0; i < n; i++) {
        if (!pl_dtype_is_float(t[i]->dtype) || !pl_tensor_is_contiguous(t[i])) return false;
    }
    return true;
}

// ---- Steps --------------------------------------------------------------------------------------

// How many from i on are due the same, which is one call; and what.
typedef struct due {
    double here;
    pl_tensor *there;  // NULL: none
} due;

static int same_due(int i, int n, pl_tensor *const *params, bool own, due *d) {
    int end = i + 1;
    *d = (due){1.0, NULL};
    if (!own) return n;
    *d = (due){pl_autograd_due(params[i]), pl_autograd_due_there(params[i])};
    while (end < n && pl_autograd_due(params[end]) == d->here &&
           pl_autograd_due_there(params[end]) == d->there) {
        end++;
    }
    return end;
}

// The copies in a half type that autocast made of these parameters in the last forward pass: the
// step writes the next ones, which it needs no more reading for. All of one dtype; a NULL list
// where there are none.
typedef struct lows {
    pl_dtype dtype;
    pl_tensor **t;  // [n], NULL where a parameter has none
} lows;

static void lows_free(lows *l, int n) {
    for (int i = 0; l->t && i < n; i++) pl_tensor_release(l->t[i]);
    pl_free(l->t);
    l->t = NULL;
}

static pl_status lows_of(int n, pl_tensor *const *params, pl_run *runs, lows *l) {
    pl_status st = PL_OK;
    *l = (lows){.t = NULL};
    for (int i = 0; i < n && st == PL_OK; i++) {
        pl_dtype dt;
        if (params[i]->dtype != PL_F32 || !pl_autograd_low_used(params[i], &dt)) continue;
        if (!l->t) st = pl_calloc((size_t)n * sizeof(pl_tensor *), (void **)&l->t), l->dtype = dt;
        if (st != PL_OK || dt != l->dtype) continue;
        st = pl_tensor_empty_like(params[i], dt, &l->t[i]);
        if (st == PL_OK) runs[i].low = l->t[i]->data;
    }
    if (st != PL_OK) lows_free(l, n);
    return st;
}

// After all versions were counted: parameters may share memory.
static void lows_keep(int n, pl_tensor *const *params, lows *l) {
    for (int i = 0; l->t && i < n; i++) {
        if (l->t[i]) pl_autograd_keep_low(params[i], l->t[i]);
    }
    lows_free(l, n);
}

pl_status pl__optim_list_adam(const pl_adam_args *args, int n, pl_tensor *const *const lists[4],
                              bool own) {
    pl_run *runs;
    lows low = {.t = NULL};
    PL_TRY(runs_of(n, 4, lists, &runs));
    pl_status st = lows_of(n, lists[0], runs, &low);
    for (int i = 0, end; st == PL_OK && i < n; i = end) {
        due d;
        pl_adam_args here = *args;
        end = same_due(i, n, lists[0], own, &d);
        here.grad_scale *= d.here;
        here.scale = d.there ? d.there->data : NULL;
        here.low = low.dtype;
        st = pl_k(lists[0][i])->lists->adam(&here, end - i, runs + i);
        if (st == PL_OK) bump(end - i, lists[0] + i);
    }
    if (st == PL_OK) lows_keep(n, lists[0], &low);
    lows_free(&low, n);
    pl_free(runs);
    return st;
}

pl_status pl__optim_list_sgd(const pl_sgd_args *args, int n, pl_tensor *const *const lists[3],
                             bool own) {
    pl_run *runs;
    lows low = {.t = NULL};
    PL_TRY(runs_of(n, 3, lists, &runs));
    pl_status st = lows_of(n, lists[0], runs, &low);
    for (int i = 0, end; st == PL_OK && i < n; i = end) {
        due d;
        pl_sgd_args here = *args;
        end = same_due(i, n, lists[0], own, &d);
        here.grad_scale *= d.here;
        here.scale = d.there ? d.there->data : NULL;
        here.low = low.dtype;
        st = pl_k(lists[0][i])->lists->sgd(&here, end - i, runs + i);
        if (st == PL_OK) bump(end - i, lists[0] + i);
    }
    if (st == PL_OK) lows_keep(n, lists[0], &low);
    lows_free(&low, n);
    pl_free(runs);
    return st;
}

// ---- Norms --------------------------------------------------------------------------------------

// Contiguous ones of those of t that lie on a device, as runs with the tensors' numbers. `dense`
// holds what was made for that, NULL where t[i] itself serves.
static pl_status dense_runs(int n, pl_tensor *const *t, pl_tensor **dense, pl_run *runs,
                            int *count) {
    *count = 0;
    for (int i = 0; i < n; i++) {
        if (pl_tensor_is_cpu(t[i])) continue;
        if (!pl_dtype_is_float(t[i]->dtype)) {
            return pl_fail(PL_ETYPE, "[norm] tensor %d: got dtype %s, expected a floating one", i,
                           pl_dtype_name(t[i]->dtype));
        }
        if (!pl_tensor_is_contiguous(t[i])) PL_TRY(pl_contiguous(t[i], &dense[i]));
        runs[(*count)++] = run_of(i, dense[i] ? dense[i] : t[i]);
    }
    return PL_OK;
}

// The norm of those of t that lie on a device, which is that of `device`.
static pl_status norm(const pl_norm_args *args, const pl_tensor *device, int n,
                      pl_tensor *const *t) {
    pl_tensor **dense = NULL;
    pl_run *runs = NULL;
    int count = 0;
    PL_TRY(pl_calloc((size_t)(n + 1) * sizeof *dense, (void **)&dense));
    pl_status st = runs_new(n, &runs);
    if (st == PL_OK) st = dense_runs(n, t, dense, runs, &count);
    if (st == PL_OK && count > 0) st = pl_k(device)->lists->norm(args, count, runs);
    for (int i = 0; i < n; i++) pl_tensor_release(dense[i]);
    pl_free(runs);
    pl_free(dense);
    return st;
}

pl_status pl__optim_list_numbers(bool inf, int n, pl_tensor *const *t, double *out) {
    const pl_tensor *first = NULL;
    pl_numbers numbers;
    double *all = NULL;
    for (int i = 0; i < n && !first; i++) first = pl_tensor_is_cpu(t[i]) ? NULL : t[i];
    PL_TRY(pl_alloc((size_t)n * sizeof *all, (void **)&all));
    size_t nbytes = (size_t)n * sizeof *all;
    pl_status st = pl_numbers_open(pl_tensor_device(first), nbytes, all, &numbers);
    if (st == PL_OK) {
        pl_norm_args args = {.inf = inf, .due = 1.0, .each = numbers.at};
        st = pl_numbers_close(&numbers, norm(&args, first, n, t));
    }
    for (int i = 0; st == PL_OK && i < n; i++) {
        if (!pl_tensor_is_cpu(t[i])) out[i] = all[i];
    }
    pl_free(all);
    return st;
}

// Two 0-d numbers beside t.
static pl_status numbers_beside(const pl_tensor *t, pl_tensor **norm_f32, pl_tensor **factor) {
    PL_TRY(pl_tensor_empty_beside(t, PL_F32, 0, NULL, norm_f32));
    pl_status st = factor ? pl_tensor_empty_beside(t, PL_F64, 0, NULL, factor) : PL_OK;
    if (st == PL_OK) return PL_OK;
    pl_tensor_release(*norm_f32);
    *norm_f32 = NULL;
    return st;
}

pl_status pl_optim_norm_there(int n, pl_tensor *const *grads, bool inf, pl_tensor **out) {
    pl_tensor *found = NULL;
    *out = NULL;
    if (!listed(n, grads)) return PL_OK;
    PL_TRY(numbers_beside(grads[0], &found, NULL));
    pl_norm_args args = {.inf = inf, .due = 1.0, .norm_f32 = found->data};
    pl_status st = norm(&args, grads[0], n, grads);
    if (st != PL_OK) {
        pl_tensor_release(found);
        return st;
    }
    *out = found;
    return PL_OK;
}

// ---- Scaling ------------------------------------------------------------------------------------

static pl_status unscale(int n, pl_tensor *const *grads, const pl_unscale_args *args) {
    pl_run *runs;
    PL_TRY(runs_of(n, 1, &grads, &runs));
    pl_status st = pl_k(grads[0])->lists->unscale(args, n, runs);
    if (st == PL_OK && (args->factor != 1.0 || args->scale)) bump(n, grads);
    pl_free(runs);
    return st;
}

// One flag of all: every run's place is the same.
static pl_status look(int n, pl_tensor *const *grads, double factor, int *nonfinite) {
    pl_run *runs;
    pl_unscale_args args = {.factor = factor, .nonfinite = nonfinite};
    PL_TRY(runs_of(n, 1, &grads, &runs));
    for (int i = 0; i < n; i++) runs[i].index = 0;
    pl_status st = pl_k(grads[0])->lists->unscale(&args, n, runs);
    if (st == PL_OK && factor != 1.0) bump(n, grads);
    pl_free(runs);
    return st;
}

pl_status pl__optim_list_unscale(int n, pl_tensor *const *grads, double factor, bool *nonfinite) {
    pl_numbers flag;
    int bad = 0;
    PL_TRY(pl_numbers_open(pl_tensor_device(grads[0]), sizeof bad, &bad, &flag));
    PL_TRY(pl_numbers_close(&flag, look(n, grads, factor, flag.at)));
    *nonfinite = bad != 0;
    return PL_OK;
}

bool pl__optim_list_scales(int n, pl_tensor *const *t) { return listed(n, t) && all_dense(n, t); }

pl_status pl__optim_list_scale(int n, pl_tensor *const *t, double factor) {
    return unscale(n, t, &(pl_unscale_args){.factor = factor});
}

// t *= factor, where a list cannot: strided, or an integer that makes no sense and is refused.
static pl_status times(pl_tensor *t, pl_tensor *factor) {
    pl_tensor *wide = NULL;
    PL_TRY(pl_cast_expand(factor, t->dtype, t->ndim, t->shape, &wide));
    pl_status st = pl_k(t)->binary(PL_BINARY_MUL, t, wide, t);
    if (st == PL_OK) pl_storage_bump(t->storage);
    pl_tensor_release(wide);
    return st;
}

static pl_status scale_there(int n, pl_tensor *const *grads, pl_tensor *factor) {
    if (n == 0) return PL_OK;
    if (pl__optim_list_scales(n, grads)) {
        return unscale(n, grads, &(pl_unscale_args){.factor = 1.0, .scale = factor->data});
    }
    for (int i = 0; i < n; i++) PL_TRY(times(grads[i], factor));
    return PL_OK;
}

// ---- Leaves -------------------------------------------------------------------------------------

// What is due to all of them alike, a power of two: a norm can count it in, and a second factor
// changes no bit more than it would alone. Else it is applied here, and 1.
static pl_status common_due(int n, pl_tensor *const *leaves, double *out) {
    bool alike = true;
    *out = n > 0 ? pl_autograd_due(leaves[0]) : 1.0;
    for (int i = 0; i < n; i++) {
        alike = alike && !pl_autograd_due_there(leaves[i]) && pl_autograd_due(leaves[i]) == *out;
    }
    if (alike && pl__optim_is_power_of_two(*out)) return PL_OK;
    *out = 1.0;
    for (int i = 0; i < n; i++) PL_TRY(pl_autograd_settle(leaves[i]));
    return PL_OK;
}

// Leaves with a gradient, and their gradients, in new lists; of none NULL.
typedef struct with_grads {
    int n;
    pl_tensor **leaves, **grads;  // one allocation
    bool unseen;
} with_grads;

static pl_status with_grads_of(int n, pl_tensor *const *leaves, with_grads *w) {
    *w = (with_grads){.unseen = pl_autograd_grads_unseen(n, leaves)};
    PL_TRY(pl_alloc((size_t)(2 * n + 1) * sizeof *w->leaves, (void **)&w->leaves));
    w->grads = w->leaves + n;
    for (int i = 0; i < n; i++) {
        pl_tensor *g = pl_grad_of(leaves[i]);
        if (!g) continue;
        w->leaves[w->n] = leaves[i];
        w->grads[w->n++] = g;
    }
    return PL_OK;
}

static pl_status scale_leaves(const with_grads *w, pl_tensor *factor) {
    if (!w->unseen) return scale_there(w->n, w->grads, factor);
    for (int i = 0; i < w->n; i++) pl_autograd_defer_scale_there(w->leaves[i], factor);
    return PL_OK;
}

static pl_status clip_there(const pl_clip *clip, const with_grads *w, pl_tensor **out) {
    pl_tensor *found = NULL, *factor = NULL;
    pl_norm_args args = {.max_norm = clip->max_norm, .keep_nonfinite = clip->keep_nonfinite};
    bool clips = !isinf(clip->max_norm);
    if (w->unseen) {
        PL_TRY(common_due(w->n, w->leaves, &args.due));
    } else {
        args.due = 1.0;
        for (int i = 0; i < w->n; i++) PL_TRY(pl_autograd_settle(w->leaves[i]));
    }
    PL_TRY(numbers_beside(w->grads[0], &found, clips ? &factor : NULL));
    args.norm_f32 = found->data;
    args.factor = clips ? factor->data : NULL;
    pl_status st = norm(&args, w->grads[0], w->n, w->grads);
    if (st == PL_OK && clips) st = scale_leaves(w, factor);
    pl_tensor_release(factor);
    if (st != PL_OK) {
        pl_tensor_release(found);
        return st;
    }
    *out = found;
    return PL_OK;
}

pl_status pl_optim_leaf_clip_there(const pl_clip *clip, int n, pl_tensor *const *leaves,
                                   pl_tensor **out) {
    with_grads w;
    *out = NULL;
    PL_TRY(with_grads_of(n, leaves, &w));
    pl_status st = listed(w.n, w.grads) ? clip_there(clip, &w, out) : PL_OK;
    pl_free(w.leaves);
    return st;
}

pl_status pl_optim_leaf_scale_there(int n, pl_tensor *const *leaves, pl_tensor *factor) {
    with_grads w;
    double applied;
    if (factor->dtype != PL_F64 || factor->ndim != 0) {
        return pl_fail(PL_EINVAL,
                       "[leaf_scale_] factor: got %s of %d dimensions, expected f64, 0-d",
                       pl_dtype_name(factor->dtype), factor->ndim);
    }
    PL_TRY(with_grads_of(n, leaves, &w));
    pl_status st = PL_OK;
    for (int i = 0; i < w.n && !w.unseen && st == PL_OK; i++) st = pl_autograd_settle(w.leaves[i]);
    if (w.unseen) st = common_due(w.n, w.leaves, &applied);
    if (st == PL_OK) st = scale_leaves(&w, factor);
    pl_free(w.leaves);
    return st;
}

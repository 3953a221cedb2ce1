// SPDX-License-Identifier: Apache-2.0
// See optim.h. A "run" is a stretch of consecutive tensors whose memory is consecutive in every
// list, so that one kernel call passes over all of them. Where a device has kernels for lists the
// rest of the way is lists.c's.
#include <math.h>

#include "optim/optim_internal.h"

static pl_status check_pair(const char *op, const char *what, int i, const pl_tensor *p,
                            const pl_tensor *t) {
    char a[128], b[128];
    if (p->dtype != t->dtype || !pl_shape_equal(p->ndim, p->shape, t->ndim, t->shape)) {
        return pl_fail(
            PL_ERUNTIME, "[%s] %s %d does not fit its parameter: got %s of %s, expected %s of %s",
            op, what, i, pl_shape_text(t->ndim, t->shape, a, sizeof a), pl_dtype_name(t->dtype),
            pl_shape_text(p->ndim, p->shape, b, sizeof b), pl_dtype_name(p->dtype));
    }
    if (!pl_tensor_is_contiguous(t) || !pl_tensor_is_contiguous(p)) {
        return pl_fail(PL_ERUNTIME, "[%s] parameter %d or its %s is not contiguous", op, i, what);
    }
    return PL_OK;
}

// All tensors of one call lie on one device.
static pl_status check_device(const char *op, const pl_tensor *first, int n,
                              pl_tensor *const *list) {
    for (int i = 0; i < n; i++) {
        if (pl_device_equal(pl_tensor_device(first), pl_tensor_device(list[i]))) continue;
        return pl_fail(PL_ERUNTIME,
                       "[%s] tensor %d lies on another device than parameter 0: expected "
                       "parameters, gradients and state of one call on one device",
                       op, i);
    }
    return PL_OK;
}

static bool follows(const pl_tensor *a, const pl_tensor *b) {
    return a->storage == b->storage && (char *)a->data + pl_tensor_nbytes(a) == (char *)b->data;
}

// How many tensors from i on make one run in all lists (NULL lists are ignored).
static int run_length(int i, int n, int n_lists, pl_tensor *const *const *lists, int64_t *numel) {
    int len = 1;
    *numel = lists[0][i]->numel;
    for (; i + len < n; len++) {
        for (int k = 0; k < n_lists; k++) {
            if (!lists[k]) continue;
            const pl_tensor *a = lists[k][i + len - 1], *b = lists[k][i + len];
            if (a->dtype != b->dtype || !follows(a, b)) return len;
        }
        *numel += lists[0][i + len]->numel;
    }
    return len;
}

// How many of the len tensors from i on are due the same factor; 1 for gradients that are given.
static int same_due(int i, int len, pl_tensor *const *params, bool own, double *due) {
    int k = 1;
    *due = own ? pl_autograd_due(params[i]) : 1.0;
    if (!own) return len;
    // An unequal NaN ends the run, which is then shorter than it could be.
    while (k < len && pl_autograd_due(params[i + k]) == *due) k++;
    return k;
}

static int64_t numel_of(int len, pl_tensor *const *t) {
    int64_t n = 0;
    for (int k = 0; k < len; k++) n += t[k]->numel;
    return n;
}

// The gradients of n leaves in a new list, to be freed with pl_free.
static pl_status own_grads(const char *op, int n, pl_tensor *const *params, pl_tensor ***out) {
    PL_TRY(pl_alloc((size_t)(n + 1) * sizeof **out, (void **)out));
    for (int i = 0; i < n; i++) {
        (*out)[i] = pl_grad_of(params[i]);
        if ((*out)[i]) continue;
        pl_free(*out);
        return pl_fail(PL_ERUNTIME, "[%s] parameter %d has no gradient", op, i);
    }
    return PL_OK;
}

static pl_status adam_runs(const pl_adam_args *args, int n, pl_tensor *const *const lists[4],
                           bool own) {
    pl_tensor *const *params = lists[0], *const *grads = lists[1];
    for (int i = 0; i < n;) {
        int64_t numel;
        int len = run_length(i, n, 4, lists, &numel);
        pl_adam_args here = *args;
        double due;
        len = same_due(i, len, params, own, &due);
        numel = numel_of(len, params + i);
        here.grad_scale *= due;
        PL_TRY(pl_k(params[i])->adam(&here, params[i]->dtype, numel, params[i]->data,
                                     grads[i]->data, lists[2][i]->data, lists[3][i]->data));
        for (int k = i; k < i + len; k++) pl_storage_bump(params[k]->storage);
        i += len;
    }
    return PL_OK;
}

static pl_status adam(const pl_adam_args *args, int n, pl_tensor *const *const lists[4], bool own) {
    static const char *const names[] = {"parameter", "gradient", "exp_avg", "exp_avg_sq"};
    for (int k = 0; k < 4 && n > 0; k++) {
        PL_TRY(check_device("adam", lists[0][0], n, lists[k]));
        for (int i = 0; k > 0 && i < n; i++) {
            PL_TRY(check_pair("adam", names[k], i, lists[0][i], lists[k][i]));
        }
    }
    if (n > 0 && pl_k(lists[0][0])->lists) return pl__optim_list_adam(args, n, lists, own);
    return adam_runs(args, n, lists, own);
}

pl_status pl_optim_adam(const pl_adam_args *args, int n, pl_tensor *const *params,
                        pl_tensor *const *grads, pl_tensor *const *exp_avgs,
                        pl_tensor *const *exp_avg_sqs) {
    pl_tensor **own;
    if (grads) {
        return adam(args, n, (pl_tensor *const *[]){params, grads, exp_avgs, exp_avg_sqs}, false);
    }
    PL_TRY(own_grads("adam", n, params, &own));
    pl_status st = adam(args, n, (pl_tensor *const *[]){params, own, exp_avgs, exp_avg_sqs}, true);
    pl_free(own);
    return st;
}

static pl_status sgd_runs(const pl_sgd_args *args, int n, pl_tensor *const *const lists[3],
                          bool own) {
    pl_tensor *const *params = lists[0], *const *grads = lists[1], *const *momenta = lists[2];
    for (int i = 0; i < n;) {
        int64_t numel;
        int len = run_length(i, n, 3, lists, &numel);
        pl_sgd_args here = *args;
        double due;
        len = same_due(i, len, params, own, &due);
        numel = numel_of(len, params + i);
        here.grad_scale *= due;
        PL_TRY(pl_k(params[i])->sgd(&here, params[i]->dtype, numel, params[i]->data, grads[i]->data,
                                    momenta ? momenta[i]->data : NULL));
        for (int k = i; k < i + len; k++) pl_storage_bump(params[k]->storage);
        i += len;
    }
    return PL_OK;
}

static pl_status sgd(const pl_sgd_args *args, int n, pl_tensor *const *const lists[3], bool own) {
    static const char *const names[] = {"parameter", "gradient", "momentum buffer"};
    for (int k = 0; k < 3 && n > 0; k++) {
        if (!lists[k]) continue;
        PL_TRY(check_device("sgd", lists[0][0], n, lists[k]));
        for (int i = 0; k > 0 && i < n; i++) {
            PL_TRY(check_pair("sgd", names[k], i, lists[0][i], lists[k][i]));
        }
    }
    if (n > 0 && pl_k(lists[0][0])->lists) return pl__optim_list_sgd(args, n, lists, own);
    return sgd_runs(args, n, lists, own);
}

pl_status pl_optim_sgd(const pl_sgd_args *args, int n, pl_tensor *const *params,
                       pl_tensor *const *grads, pl_tensor *const *momenta) {
    pl_tensor **own;
    if (grads) return sgd(args, n, (pl_tensor *const *[]){params, grads, momenta}, false);
    PL_TRY(own_grads("sgd", n, params, &own));
    pl_status st = sgd(args, n, (pl_tensor *const *[]){params, own, momenta}, true);
    pl_free(own);
    return st;
}

// One number of t, which lies on the CPU.
typedef pl_status (*number_fn)(pl_tensor *t, double *out);

static pl_status squares(pl_tensor *t, double *out) {
    pl_tensor *c = NULL;
    PL_TRY(pl_contiguous(t, &c));
    pl_status st = pl_k(c)->sum_squares(c, out);
    pl_tensor_release(c);
    return st;
}

// Largest magnitude; NaN wins, as in every reduction.
static pl_status max_abs(pl_tensor *t, double *out) {
    pl_tensor *a = NULL, *m = NULL, *wide = NULL;
    *out = 0;
    if (t->numel == 0) return PL_OK;
    PL_TRY(pl_unary_new(PL_UNARY_ABS, t, &a));
    pl_status st = pl_reduce_new(PL_REDUCE_MAX, a, (1u << t->ndim) - 1u, false, &m);
    if (st == PL_OK) st = pl_cast(m, PL_F64, &wide);
    if (st == PL_OK) *out = *(const double *)wide->data;
    pl_tensor_release(a);
    pl_tensor_release(m);
    pl_tensor_release(wide);
    return st;
}

// One number of each; those of a device are read with one synchronisation.
static pl_status numbers_of(bool inf, int n, pl_tensor *const *t, double *out) {
    number_fn of = inf ? max_abs : squares;
    bool elsewhere = false;
    for (int i = 0; i < n; i++) {
        if (pl_tensor_is_cpu(t[i])) {
            PL_TRY(of(t[i], &out[i]));
        } else {
            elsewhere = true;
        }
    }
    return elsewhere ? pl__optim_list_numbers(inf, n, t, out) : PL_OK;
}

pl_status pl__optim_squares(int n, pl_tensor *const *t, double *out) {
    return numbers_of(false, n, t, out);
}

pl_status pl_optim_norm(int n, pl_tensor *const *grads, bool inf, double *out) {
    double total = 0, *one = NULL;
    PL_TRY(pl_alloc((size_t)(n + 1) * sizeof *one, (void **)&one));
    pl_status st = numbers_of(inf, n, grads, one);
    for (int i = 0; st == PL_OK && i < n; i++) {
        if (!inf) total += one[i];
        if (inf && (one[i] > total || isnan(one[i])) && !isnan(total)) total = one[i];
    }
    pl_free(one);
    if (st == PL_OK) *out = inf ? total : sqrt(total);
    return st;
}

pl_status pl_optim_scale(int n, pl_tensor *const *tensors, double factor) {
    if (pl__optim_list_scales(n, tensors)) return pl__optim_list_scale(n, tensors, factor);
    for (int i = 0; i < n; i++) {
        pl_tensor *t = tensors[i], *k = NULL, *wide = NULL;
        PL_TRY(pl_scalar(t, t->dtype, factor, &k));
        pl_status st = pl_tensor_expand(k, t->ndim, t->shape, &wide);
        if (st == PL_OK) st = pl_k(t)->binary(PL_BINARY_MUL, t, wide, t);
        pl_storage_bump(t->storage);
        pl_tensor_release(k);
        pl_tensor_release(wide);
        PL_TRY(st);
    }
    return PL_OK;
}

static pl_status unscale_runs(int n, pl_tensor *const *grads, double factor, int *bad) {
    pl_tensor *const *lists[] = {grads};
    for (int i = 0; i < n;) {
        int64_t numel;
        int len = run_length(i, n, 1, lists, &numel);
        PL_TRY(pl_k(grads[i])->unscale(grads[i]->dtype, numel, grads[i]->data, factor, bad));
        if (factor != 1.0) {
            for (int k = i; k < i + len; k++) pl_storage_bump(grads[k]->storage);
        }
        i += len;
    }
    return PL_OK;
}

pl_status pl__optim_check_unscale(int n, pl_tensor *const *grads) {
    for (int i = 0; i < n; i++) {
        if (!pl_dtype_is_float(grads[i]->dtype) || !pl_tensor_is_contiguous(grads[i])) {
            return pl_fail(PL_ERUNTIME,
                           "[unscale] gradient %d: got %s, %scontiguous, expected a contiguous "
                           "tensor of floating dtype",
                           i, pl_dtype_name(grads[i]->dtype),
                           pl_tensor_is_contiguous(grads[i]) ? "" : "not ");
        }
    }
    return n > 0 ? check_device("unscale", grads[0], n, grads) : PL_OK;
}

pl_status pl_optim_unscale(int n, pl_tensor *const *grads, double factor, bool *nonfinite) {
    int bad = 0;
    PL_TRY(pl__optim_check_unscale(n, grads));
    *nonfinite = false;
    if (n == 0) return PL_OK;
    if (pl_k(grads[0])->lists) return pl__optim_list_unscale(n, grads, factor, nonfinite);
    PL_TRY(unscale_runs(n, grads, factor, &bad));
    *nonfinite = bad != 0;
    return PL_OK;
}

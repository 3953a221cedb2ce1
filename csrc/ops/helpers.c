// SPDX-License-Identifier: Apache-2.0
// What the operators share: new tensors from kernels, promotion, casts, gradient destinations.
#include <string.h>

#include "ops/ops.h"

pl_status pl_op_save(pl_op_call *call, int slot, pl_tensor *t) {
    if (!call->track || !t) return PL_OK;
    if (t != call->out) {
        call->saved[slot] = pl_tensor_retain(t);
        return PL_OK;
    }
    return pl_tensor_as_strided(t, t->ndim, t->shape, t->strides, 0, &call->saved[slot]);
}

pl_status pl_back_dest(const pl_op_back *b, int i, pl_tensor **out, bool *accumulate) {
    const pl_in_meta *m = &b->in[i];
    pl_tensor *into = b->into[i];
    // Who calls backward with a leaf's .grad as the gradient reads and adds to the same memory.
    if (into && into->storage != b->grad->storage && into->dtype == m->dtype &&
        pl_device_equal(pl_tensor_device(into), pl_tensor_device(b->grad)) &&
        pl_tensor_is_contiguous(into) &&
        pl_shape_equal(into->ndim, into->shape, m->ndim, m->shape)) {
        *accumulate = b->accumulate[i];
        *out = pl_tensor_retain(into);
        return PL_OK;
    }
    *accumulate = false;
    return pl_tensor_empty_beside(b->grad, m->dtype, m->ndim, m->shape, out);
}

pl_status pl_copy_new(const pl_tensor *t, pl_dtype dt, pl_tensor **out) {
    pl_tensor *r = NULL;
    PL_TRY(pl_tensor_empty_like(t, dt, &r));
    pl_status st = pl_k(t)->copy(t, r);
    if (st != PL_OK) {
        pl_tensor_release(r);
        return st;
    }
    *out = r;
    return PL_OK;
}

pl_status pl_contiguous(pl_tensor *t, pl_tensor **out) {
    if (!pl_tensor_is_contiguous(t)) return pl_copy_new(t, t->dtype, out);
    *out = pl_tensor_retain(t);
    return PL_OK;
}

pl_status pl_cast(pl_tensor *t, pl_dtype dt, pl_tensor **out) {
    if (t->dtype != dt) return pl_copy_new(t, dt, out);
    *out = pl_tensor_retain(t);
    return PL_OK;
}

pl_status pl_fill_any(pl_tensor *t, double value) {
    if (pl_dtype_is_float(t->dtype)) return pl_k(t)->fill(t, value);
    return pl_k(t)->fill_int(t, (int64_t)value);
}

pl_status pl_scalar(const pl_tensor *beside, pl_dtype dt, double value, pl_tensor **out) {
    pl_tensor *t = NULL;
    PL_TRY(pl_tensor_empty_beside(beside, dt, 0, NULL, &t));
    pl_status st = pl_fill_any(t, value);
    if (st != PL_OK) {
        pl_tensor_release(t);
        return st;
    }
    *out = t;
    return PL_OK;
}

pl_status pl_scalar_int(const pl_tensor *beside, pl_dtype dt, int64_t value, pl_tensor **out) {
    pl_tensor *t = NULL;
    PL_TRY(pl_tensor_empty_beside(beside, dt, 0, NULL, &t));
    pl_status st =
        pl_dtype_is_float(dt) ? pl_k(t)->fill(t, (double)value) : pl_k(t)->fill_int(t, value);
    if (st != PL_OK) {
        pl_tensor_release(t);
        return st;
    }
    *out = t;
    return PL_OK;
}

pl_status pl_number(pl_dtype dt, double value, pl_tensor **out) {
    pl_tensor *t = NULL;
    PL_TRY(pl_tensor_empty(dt, 0, NULL, &t));
    pl_status st = pl_fill_any(t, value);
    if (st != PL_OK) {
        pl_tensor_release(t);
        return st;
    }
    *out = t;
    return PL_OK;
}

static int category(pl_dtype dt) { return dt == PL_BOOL ? 0 : pl_dtype_is_float(dt) ? 2 : 1; }

pl_dtype pl_promote_tensors(const pl_tensor *a, const pl_tensor *b) {
    if ((a->ndim == 0) != (b->ndim == 0)) {
        const pl_tensor *full = a->ndim ? a : b, *zero = a->ndim ? b : a;
        if (category(full->dtype) >= category(zero->dtype)) return full->dtype;
    }
    return pl_dtype_promote(a->dtype, b->dtype);
}

pl_status pl_unary_new(pl_unary op, pl_tensor *x, pl_tensor **out) {
    bool predicate = op == PL_UNARY_LOGICAL_NOT || op == PL_UNARY_ISNAN || op == PL_UNARY_ISFINITE;
    pl_tensor *r = NULL;
    PL_TRY(pl_tensor_empty_like(x, predicate ? PL_BOOL : x->dtype, &r));
    pl_status st = pl_k(x)->unary(op, x, r);
    if (st != PL_OK) {
        pl_tensor_release(r);
        return st;
    }
    *out = r;
    return PL_OK;
}

static bool gives_bool(pl_binary op) { return op >= PL_BINARY_EQ && op <= PL_BINARY_LOGICAL_XOR; }

pl_status pl_cast_expand(pl_tensor *t, pl_dtype dt, int nd, const int64_t *shape, pl_tensor **out) {
    pl_tensor *cast = NULL;
    PL_TRY(pl_cast(t, dt, &cast));
    pl_status st = pl_tensor_expand(cast, nd, shape, out);
    pl_tensor_release(cast);
    return st;
}

// The dtype of t where it meets another of dtype dt: kernels take equal dtypes, or f32 with a half
// type.
static pl_dtype meeting(const pl_tensor *t, pl_dtype dt, bool allow_half) {
    bool half = t->dtype == PL_BF16 || t->dtype == PL_F16;
    return allow_half && dt == PL_F32 && half ? t->dtype : dt;
}

// t in dtype dt, seen over a wider shape that it broadcasts to: *view borrows its memory for as
// long as t and *owned (a cast, or NULL) live. No allocation where no cast is needed.
static pl_status broadcast_view(const pl_tensor *t, pl_dtype dt, int nd, const int64_t *shape,
                                pl_tensor *view, pl_tensor **owned) {
    if (t->dtype != dt) {
        PL_TRY(pl_copy_new(t, dt, owned));
        t = *owned;
    }
    *view = *t;
    view->ndim = nd;
    view->numel = 1;
    for (int d = 0; d < nd; d++) {
        int from = d - (nd - t->ndim);
        bool repeated = from < 0 || t->shape[from] != shape[d];
        view->shape[d] = shape[d];
        view->strides[d] = repeated ? 0 : t->strides[from];
        view->numel *= shape[d];
    }
    return PL_OK;
}

pl_status pl_binary_new(pl_binary op, const char *name, pl_tensor *a, pl_tensor *b,
                        pl_tensor **out) {
    int nd;
    int64_t shape[PL_MAX_DIMS];
    pl_tensor va, vb, *cast_a = NULL, *cast_b = NULL, *r = NULL;
    PL_TRY(pl_shape_broadcast(name, a->ndim, a->shape, b->ndim, b->shape, &nd, shape));
    pl_dtype dt = pl_promote_tensors(a, b);
    if (op == PL_BINARY_DIV && !pl_dtype_is_float(dt)) dt = PL_F32;
    if (op == PL_BINARY_SUB && dt == PL_BOOL) {
        return pl_fail(PL_ERUNTIME, "[sub] two bool tensors cannot be subtracted: use logical_xor");
    }
    bool half = !gives_bool(op) && a->dtype != b->dtype;
    pl_dtype da = meeting(a, dt, half), db = meeting(b, dt, half && da == PL_F32);
    pl_status st = broadcast_view(a, da, nd, shape, &va, &cast_a);
    if (st == PL_OK) st = broadcast_view(b, db, nd, shape, &vb, &cast_b);
    const pl_tensor *place = PL_LIKELY(pl_tensor_is_cpu(b)) ? a : b;  // Note [numbers]
    if (st == PL_OK) {
        st = pl_tensor_empty_beside(place, gives_bool(op) ? PL_BOOL : dt, nd, shape, &r);
    }
    if (st == PL_OK) st = pl_k(place)->binary(op, &va, &vb, r);
    pl_tensor_release(cast_a);
    pl_tensor_release(cast_b);
    if (st != PL_OK) {
        pl_tensor_release(r);
        return st;
    }
    *out = r;
    return PL_OK;
}

static pl_dtype reduce_dtype(pl_reduce op, pl_dtype dt) {
    if (op == PL_REDUCE_ANY || op == PL_REDUCE_ALL) return PL_BOOL;
    bool adds = op == PL_REDUCE_SUM || op == PL_REDUCE_PROD;
    return adds && !pl_dtype_is_float(dt) ? PL_I64 : dt;
}

pl_status pl_reduce_new(pl_reduce op, pl_tensor *x, uint32_t dims, bool keepdim, pl_tensor **out) {
    int64_t kept[PL_MAX_DIMS], sizes[PL_MAX_DIMS];
    int n = 0;
    for (int d = 0; d < x->ndim; d++) {
        bool reduced = dims >> d & 1u;
        kept[d] = reduced ? 1 : x->shape[d];
        if (!reduced || keepdim) sizes[n++] = kept[d];
    }
    pl_dtype dt = reduce_dtype(op, x->dtype);
    pl_tensor *in = NULL, *r = NULL;
    bool compares = op == PL_REDUCE_ANY || op == PL_REDUCE_ALL;
    PL_TRY(pl_cast(x, compares ? x->dtype : dt, &in));
    pl_status st = pl_tensor_empty_beside(x, dt, x->ndim, kept, &r);
    if (st == PL_OK) st = pl_k(in)->reduce(op, in, dims, r);
    pl_tensor_release(in);
    if (st == PL_OK) st = pl_tensor_view(r, n, sizes, out);
    pl_tensor_release(r);
    return st;
}

pl_status pl_sum_to(pl_tensor *t, int ndim, const int64_t *shape, pl_tensor **out) {
    if (pl_shape_equal(t->ndim, t->shape, ndim, shape)) {
        *out = pl_tensor_retain(t);
        return PL_OK;
    }
    uint32_t dims = 0;
    int lead = t->ndim - ndim;
    for (int d = 0; d < t->ndim; d++) {
        if (d < lead || (shape[d - lead] == 1 && t->shape[d] != 1)) dims |= 1u << d;
    }
    pl_tensor *r = NULL;
    PL_TRY(pl_reduce_new(PL_REDUCE_SUM, t, dims, true, &r));
    pl_status st = pl_tensor_view(r, ndim, shape, out);
    pl_tensor_release(r);
    return st;
}

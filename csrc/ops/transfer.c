// SPDX-License-Identifier: Apache-2.0
// Tensors between devices. What is strided or of another dtype is packed where it lies, then bytes
// are copied: a device's copies know nothing of layouts.
#include <stdio.h>
#include <string.h>

#include "ops/ops.h"

// Contiguous bytes of one dtype.
static pl_status copy_bytes(const pl_tensor *src, pl_tensor *dst, bool non_blocking) {
    pl_device from = pl_tensor_device(src), to = pl_tensor_device(dst);
    size_t nbytes = pl_tensor_nbytes(src);
    bool late = non_blocking && from.type == PL_CPU && pl_storage_is_pinned(src->storage);
    if (!late || nbytes == 0) return pl_bytes_copy(to, dst->data, from, src->data, nbytes);
    const pl_device_services *s = pl_device_find(to);
    PL_TRY(s->runtime->copy(s->runtime, pl_device_current(s), PL_COPY_TO_DEVICE, dst->data,
                            src->data, nbytes));
    return pl_storage_pinned_used(src->storage);
}

static pl_status used_here(const pl_tensor *t) {
    const pl_device_services *s = pl_device_find(pl_tensor_device(t));
    return s == NULL ? PL_OK : pl_storage_used_on(t->storage, pl_device_current(s));
}

pl_status pl_copy_across(const pl_tensor *src, pl_tensor *dst, bool non_blocking) {
    pl_tensor *packed = NULL, *landing = NULL;
    if (!pl_tensor_is_cpu(src)) PL_TRY(used_here(src));
    if (!pl_tensor_is_cpu(dst)) PL_TRY(used_here(dst));
    if (pl_device_equal(pl_tensor_device(src), pl_tensor_device(dst))) {
        return pl_k(src)->copy(src, dst);
    }
    bool pack = src->dtype != dst->dtype || !pl_tensor_is_contiguous(src);
    pl_status st = pack ? pl_copy_new(src, dst->dtype, &packed) : PL_OK;
    if (st == PL_OK && !pl_tensor_is_contiguous(dst)) {
        st = pl_tensor_empty_like(dst, dst->dtype, &landing);
    }
    if (st == PL_OK) st = copy_bytes(pack ? packed : src, landing ? landing : dst, non_blocking);
    if (st == PL_OK && landing) st = pl_k(dst)->copy(landing, dst);
    pl_tensor_release(packed);
    pl_tensor_release(landing);
    return st;
}

// Note [uploads], base/device.h: such as the next batch while this one is computed with.
static pl_status upload(const pl_tensor *t, pl_device to, pl_tensor **out) {
    pl_storage *s = NULL;
    pl_tensor *r = NULL;
    size_t nbytes = pl_tensor_nbytes(t);
    PL_TRY(pl_storage_new_ahead(to, nbytes, &s));
    pl_status st = pl_tensor_from_storage(s, t->dtype, t->ndim, t->shape, t->strides, 0, &r);
    pl_storage_release(s);
    if (st == PL_OK) st = pl_device_find(to)->upload(r->data, t->data, nbytes);
    if (st == PL_OK) st = pl_storage_pinned_used(t->storage);
    if (st != PL_OK) {
        pl_tensor_release(r);
        return st;
    }
    *out = r;
    return PL_OK;
}

pl_status pl_to_device(pl_tensor *t, pl_device to, bool non_blocking, pl_tensor **out) {
    pl_tensor *r = NULL;
    if (pl_device_equal(pl_tensor_device(t), to)) {
        *out = pl_tensor_retain(t);
        return PL_OK;
    }
    if (non_blocking && pl_tensor_is_cpu(t) && t->numel > 0 && pl_tensor_is_contiguous(t) &&
        pl_storage_is_pinned(t->storage)) {
        return upload(t, to, out);
    }
    PL_TRY(pl_tensor_empty_on(to, t->dtype, t->ndim, t->shape, &r));
    pl_status st = pl_copy_across(t, r, non_blocking);
    if (st != PL_OK) {
        pl_tensor_release(r);
        return st;
    }
    *out = r;
    return PL_OK;
}

pl_status pl_to_host_later(pl_tensor *t, pl_tensor **out) {
    pl_storage *s = NULL;
    pl_tensor *packed = NULL, *r = NULL;
    const pl_device_services *d = pl_device_find(pl_tensor_device(t));
    if (d == NULL) return pl_fail(PL_EINVAL, "[to_host_later] got a tensor on the CPU");
    PL_TRY(pl_storage_new_pinned(pl_tensor_nbytes(t), &s));
    pl_status st = pl_tensor_from_storage(s, t->dtype, t->ndim, t->shape, NULL, 0, &r);
    if (st == PL_OK) st = used_here(t);
    if (st == PL_OK) st = pl_contiguous(t, &packed);
    if (st == PL_OK && t->numel > 0) {
        st = d->runtime->copy(d->runtime, pl_device_current(d), PL_COPY_TO_HOST, r->data,
                              packed->data, pl_tensor_nbytes(t));
        if (st == PL_OK) st = pl_storage_pinned_used(s);
    }
    pl_storage_release(s);
    pl_tensor_release(packed);
    if (st != PL_OK) {
        pl_tensor_release(r);
        return st;
    }
    *out = r;
    return PL_OK;
}

static pl_status to_device_forward(pl_op_call *c) {
    const int64_t *i = c->attrs.i;
    pl_device to = {(pl_device_type)i[0], (int)i[1]};
    return pl_to_device(c->in[0], to, i[2] != 0, &c->out);
}

static pl_status to_device_backward(const pl_op_back *b) {
    return pl_to_device(b->grad, b->in[0].device, false, &b->out[0]);
}

const pl_op pl_op_to_device = {"to_device",       PL_AMP_KEEP,        0,
                               to_device_forward, to_device_backward, false};

// ---- Inputs of one call -------------------------------------------------------------------------

static const char *device_text(pl_device d, char *buf, size_t cap) {
    if (d.type == PL_CPU) return "cpu";
    snprintf(buf, cap, "cuda:%d", d.index);
    return buf;
}

// The number of a 0-d tensor of the CPU, filled in beside another tensor: no copy, no waiting.
static pl_status again_beside(const pl_tensor *beside, pl_tensor *t, pl_tensor **out) {
    pl_tensor *wide = NULL;
    bool is_float = pl_dtype_is_float(t->dtype);
    PL_TRY(pl_copy_new(t, is_float ? PL_F64 : PL_I64, &wide));
    pl_status st = is_float ? pl_scalar(beside, t->dtype, *(const double *)wide->data, out)
                            : pl_scalar_int(beside, t->dtype, *(const int64_t *)wide->data, out);
    pl_tensor_release(wide);
    return st;
}

pl_status pl_meet(const char *op, bool numbers, int n, pl_tensor *const *in, pl_tensor **met) {
    const pl_tensor *first = NULL;
    memset(met, 0, (size_t)n * sizeof *met);
    for (int i = 0; i < n && !first; i++) {
        if (in[i] && !pl_tensor_is_cpu(in[i])) first = in[i];
    }
    for (int i = 0; i < n && first; i++) {
        pl_status st = PL_OK;
        char a[32], b[32];
        if (!in[i] || pl_device_equal(pl_tensor_device(in[i]), pl_tensor_device(first))) continue;
        if (pl_tensor_is_cpu(in[i]) && in[i]->ndim == 0 && numbers) {
            continue;
        } else if (pl_tensor_is_cpu(in[i]) && in[i]->ndim == 0) {
            st = again_beside(first, in[i], &met[i]);
        } else {
            st = pl_fail(PL_ERUNTIME,
                         "[%s] tensors lie on two devices: got %s and %s, expected one; move one "
                         "of them with .to(device)",
                         op, device_text(pl_tensor_device(first), a, sizeof a),
                         device_text(pl_tensor_device(in[i]), b, sizeof b));
        }
        if (st == PL_OK) continue;
        for (int k = 0; k < i; k++) pl_tensor_release(met[k]);
        memset(met, 0, (size_t)n * sizeof *met);
        return st;
    }
    return PL_OK;
}

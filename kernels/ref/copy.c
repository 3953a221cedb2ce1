// SPDX-License-Identifier: Apache-2.0
// The oracle's copies, scaled ones and fills: any dtype to any dtype, any strides, one element at a
// time.

#include "ref/ref.h"

pl_status pl_ref_copy(const pl_tensor *src, pl_tensor *dst) {
    if (dst->numel == 0) return PL_OK;
    int64_t at[PL_MAX_DIMS] = {0};
    do {
        int64_t i = ref_offset(src, at), o = ref_offset(dst, at);
        if (ref_is_int(src)) {
            ref_set_int(dst, o, ref_get_int(src, i));
        } else {
            ref_set(dst, o, ref_get(src, i));
        }
    } while (ref_next(dst->ndim, dst->shape, at));
    return PL_OK;
}

pl_status pl_ref_scale(const pl_tensor *x, const pl_tensor *factor, bool accumulate,
                       pl_tensor *out) {
    for (int64_t i = 0; i < x->numel; i++) {
        double v = ref_get(factor, 0) * ref_get(x, i);
        ref_set(out, i, accumulate ? ref_get(out, i) + v : v);
    }
    return PL_OK;
}

pl_status pl_ref_fill(pl_tensor *dst, double value) {
    if (dst->numel == 0) return PL_OK;
    int64_t at[PL_MAX_DIMS] = {0};
    do {
        ref_set(dst, ref_offset(dst, at), value);
    } while (ref_next(dst->ndim, dst->shape, at));
    return PL_OK;
}

pl_status pl_ref_fill_int(pl_tensor *dst, int64_t value) {
    if (dst->numel == 0) return PL_OK;
    int64_t at[PL_MAX_DIMS] = {0};
    do {
        ref_set_int(dst, ref_offset(dst, at), value);
    } while (ref_next(dst->ndim, dst->shape, at));
    return PL_OK;
}

// Element i is start + i * step in double, so that no error builds up along the way.
pl_status pl_ref_arange(pl_tensor *out, double start, double step) {
    for (int64_t i = 0; i < out->numel; i++) ref_set(out, i, start + (double)i * step);
    return PL_OK;
}

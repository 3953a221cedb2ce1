// SPDX-License-Identifier: Apache-2.0
// The oracle's rotary embedding of (B, T, H, D), one pair (i, i + D/2) at a time, in double.

#include "ref/ref.h"

pl_status pl_ref_rotary(const pl_tensor *x, const pl_tensor *cosine, const pl_tensor *sine,
                        int64_t first, bool back, pl_tensor *out) {
    int64_t half = x->shape[3] / 2, pairs[4] = {x->shape[0], x->shape[1], x->shape[2], half};
    int64_t at[PL_MAX_DIMS] = {0};
    if (x->numel == 0) return PL_OK;
    do {
        int64_t angle = (first + at[1]) * half + at[3];
        double c = ref_get(cosine, angle), s = ref_get(sine, angle) * (back ? -1.0 : 1.0);
        double low = ref_get(x, ref_offset(x, at));
        double high = ref_get(x, ref_offset(x, at) + half * x->strides[3]);
        ref_set(out, ref_offset(out, at), low * c - high * s);
        ref_set(out, ref_offset(out, at) + half * out->strides[3], high * c + low * s);
    } while (ref_next(4, pairs, at));
    return PL_OK;
}

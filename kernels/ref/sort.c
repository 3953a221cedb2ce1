// SPDX-License-Identifier: Apache-2.0
// The oracle's stable sort along the last dimension: insertion of each element behind its equals.
// NaN counts as larger than every number, so it is last when ascending and first when descending.

#include "ref/ref.h"

// -1, 0 or 1 as element i is below, equal to or above element j.
static int compare(const pl_tensor *x, int64_t i, int64_t j) {
    if (ref_is_int(x)) {
        int64_t a = ref_get_int(x, i), b = ref_get_int(x, j);
        return (a > b) - (a < b);
    }
    double a = ref_get(x, i), b = ref_get(x, j);
    if (isnan(a) || isnan(b)) return (isnan(a) != 0) - (isnan(b) != 0);
    return (a > b) - (a < b);
}

pl_status pl_ref_sort(const pl_tensor *x, bool descending, pl_tensor *values, pl_tensor *indices) {
    if (x->numel == 0) return PL_OK;
    int64_t n = ref_last(x), row = 0, at[PL_MAX_DIMS] = {0};
    int64_t *order = indices->data;
    do {
        int64_t start = ref_offset(x, at);
        for (int64_t i = 0; i < n; i++) {
            int64_t j = i;
            for (; j > 0; j--) {
                int c = compare(x, start + order[j - 1], start + i);
                if (descending ? c >= 0 : c <= 0) break;
                order[j] = order[j - 1];
            }
            order[j] = i;
        }
        for (int64_t i = 0; i < n; i++) {
            if (ref_is_int(x)) {
                ref_set_int(values, row * n + i, ref_get_int(x, start + order[i]));
            } else {
                ref_set(values, row * n + i, ref_get(x, start + order[i]));
            }
        }
        row++;
        order += n;
    } while (ref_next(x->ndim - 1, x->shape, at));
    return PL_OK;
}

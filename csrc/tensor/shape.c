// SPDX-License-Identifier: Apache-2.0
// Shape arithmetic: broadcasting, the -1 of a reshape, dimension numbers, text for messages.
// Pure functions; any thread.
#include <stdio.h>

#include "tensor/tensor.h"

const char *pl_shape_text(int ndim, const int64_t *shape, char *buf, size_t cap) {
    size_t at = (size_t)snprintf(buf, cap, "[");
    for (int d = 0; d < ndim && at < cap; d++) {
        at += (size_t)snprintf(buf + at, cap - at, d ? ", %lld" : "%lld", (long long)shape[d]);
    }
    if (at < cap) snprintf(buf + at, cap - at, "]");
    return buf;
}

bool pl_shape_equal(int na, const int64_t *a, int nb, const int64_t *b) {
    if (na != nb) return false;
    for (int d = 0; d < na; d++) {
        if (a[d] != b[d]) return false;
    }
    return true;
}

pl_status pl_dim_wrap(const char *op, int dim, int ndim, int *out) {
    int n = ndim > 0 ? ndim : 1;
    if (dim < -n || dim >= n) {
        return pl_fail(PL_EINDEX,
                       "[%s] dimension out of range: got %d, expected a value in [%d, %d]", op, dim,
                       -n, n - 1);
    }
    *out = dim < 0 ? dim + n : dim;
    return PL_OK;
}

pl_status pl_shape_resolve(const char *op, int64_t numel, int ndim, int64_t *shape) {
    char text[128];
    int rest = -1;
    int64_t known = 1;
    for (int d = 0; d < ndim; d++) {
        if (shape[d] == -1 && rest < 0) {
            rest = d;
        } else if (shape[d] < 0) {
            return pl_fail(PL_EINVAL, "[%s] shape %s has an invalid size: only one size can be -1",
                           op, pl_shape_text(ndim, shape, text, sizeof text));
        } else if (__builtin_mul_overflow(known, shape[d], &known)) {
            return pl_fail(PL_EINVAL, "[%s] shape has more elements than can be counted", op);
        }
    }
    if (rest >= 0) {
        if (known == 0 || numel % known != 0) {
            return pl_fail(PL_ERUNTIME, "[%s] shape %s is invalid for input of size %lld", op,
                           pl_shape_text(ndim, shape, text, sizeof text), (long long)numel);
        }
        shape[rest] = numel / known;
    } else if (known != numel) {
        return pl_fail(PL_ERUNTIME, "[%s] shape %s is invalid for input of size %lld", op,
                       pl_shape_text(ndim, shape, text, sizeof text), (long long)numel);
    }
    return PL_OK;
}

pl_status pl_shape_broadcast(const char *op, int na, const int64_t *a, int nb, const int64_t *b,
                             int *n_out, int64_t *out) {
    int n = na > nb ? na : nb;
    for (int i = 1; i <= n; i++) {
        int64_t x = i <= na ? a[na - i] : 1;
        int64_t y = i <= nb ? b[nb - i] : 1;
        if (x != y && x != 1 && y != 1) {
            char ta[128], tb[128];
            return pl_fail(PL_ERUNTIME,
                           "[%s] shapes do not broadcast: got %s and %s, which differ at "
                           "dimension %d from the end (%lld and %lld; equal sizes or 1 expected)",
                           op, pl_shape_text(na, a, ta, sizeof ta),
                           pl_shape_text(nb, b, tb, sizeof tb), i, (long long)x, (long long)y);
        }
        out[n - i] = x == 1 ? y : x;
    }
    *n_out = n;
    return PL_OK;
}

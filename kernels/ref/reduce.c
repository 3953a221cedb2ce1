// SPDX-License-Identifier: Apache-2.0
// The oracle's reductions: for each output element, a plain loop over the reduced dimensions, in
// double (floats) or wrapping int64 (integers).

#include "ref/ref.h"

typedef struct accumulator {
    double f;
    int64_t i;
    int64_t count;
    bool any, all;
} accumulator;

static void add_float(pl_reduce op, accumulator *acc, double v) {
    bool first = acc->count == 0;
    switch (op) {
        case PL_REDUCE_SUM:
        case PL_REDUCE_MEAN:
            acc->f = first ? v : acc->f + v;
            break;
        case PL_REDUCE_PROD:
            acc->f = first ? v : acc->f * v;
            break;
        case PL_REDUCE_MAX:
            if (first || v > acc->f || (isnan(v) && !isnan(acc->f))) acc->f = v;
            break;
        case PL_REDUCE_MIN:
            if (first || v < acc->f || (isnan(v) && !isnan(acc->f))) acc->f = v;
            break;
        default:
            break;
    }
    acc->any = acc->any || v != 0.0;
    acc->all = acc->all && v != 0.0;
    acc->count++;
}

static void add_int(pl_reduce op, accumulator *acc, int64_t v) {
    bool first = acc->count == 0;
    switch (op) {
        case PL_REDUCE_SUM:
        case PL_REDUCE_MEAN:
            acc->i = (int64_t)((uint64_t)acc->i + (uint64_t)v);
            break;
        case PL_REDUCE_PROD:
            acc->i = first ? v : (int64_t)((uint64_t)acc->i * (uint64_t)v);
            break;
        case PL_REDUCE_MAX:
            acc->i = first || v > acc->i ? v : acc->i;
            break;
        case PL_REDUCE_MIN:
            acc->i = first || v < acc->i ? v : acc->i;
            break;
        default:
            break;
    }
    acc->any = acc->any || v != 0;
    acc->all = acc->all && v != 0;
    acc->count++;
}

static void store(pl_reduce op, const accumulator *acc, bool integer, pl_tensor *out, int64_t o) {
    if (op == PL_REDUCE_ANY) {
        ref_set_int(out, o, acc->any);
    } else if (op == PL_REDUCE_ALL) {
        ref_set_int(out, o, acc->all);
    } else if (op == PL_REDUCE_PROD && acc->count == 0) {
        ref_set(out, o, 1.0);
    } else if (integer) {
        ref_set_int(out, o, acc->i);
    } else {
        ref_set(out, o, op == PL_REDUCE_MEAN ? acc->f / (double)acc->count : acc->f);
    }
}

pl_status pl_ref_reduce(pl_reduce op, const pl_tensor *x, uint32_t dims, pl_tensor *out) {
    if (out->numel == 0) return PL_OK;
    int64_t inner[PL_MAX_DIMS], base[PL_MAX_DIMS] = {0};
    for (int d = 0; d < x->ndim; d++) inner[d] = dims >> d & 1 ? x->shape[d] : 1;
    do {
        accumulator acc = {.all = true};
        int64_t at[PL_MAX_DIMS] = {0}, start = ref_offset(x, base);
        if (x->numel != 0) {
            do {
                int64_t i = start + ref_offset(x, at);
                if (ref_is_int(x)) {
                    add_int(op, &acc, ref_get_int(x, i));
                } else {
                    add_float(op, &acc, ref_get(x, i));
                }
            } while (ref_next(x->ndim, inner, at));
        }
        store(op, &acc, ref_is_int(x), out, ref_offset(out, base));
    } while (ref_next(out->ndim, out->shape, base));
    return PL_OK;
}

// Whether v comes before the best so far: strictly better, or the first NaN.
static bool better(bool max, double v, double best) {
    if (isnan(best)) return false;
    return isnan(v) || (max ? v > best : v < best);
}

pl_status pl_ref_argreduce(bool max, const pl_tensor *x, int dim, pl_tensor *out) {
    if (out->numel == 0) return PL_OK;
    int64_t n = x->ndim == 0 ? 1 : x->shape[dim], step = x->ndim == 0 ? 0 : x->strides[dim];
    int64_t base[PL_MAX_DIMS] = {0};
    do {
        int64_t start = ref_offset(x, base), best = 0;
        for (int64_t j = 1; j < n; j++) {
            int64_t at = start + j * step, top = start + best * step;
            bool wins;
            if (ref_is_int(x)) {
                int64_t v = ref_get_int(x, at), b = ref_get_int(x, top);
                wins = max ? v > b : v < b;
            } else {
                wins = better(max, ref_get(x, at), ref_get(x, top));
            }
            if (wins) best = j;
        }
        ref_set_int(out, ref_offset(out, base), best);
    } while (ref_next(out->ndim, out->shape, base));
    return PL_OK;
}

pl_status pl_ref_cumsum(const pl_tensor *x, int dim, pl_tensor *out) {
    if (out->numel == 0) return PL_OK;
    int64_t lines[PL_MAX_DIMS], base[PL_MAX_DIMS] = {0};
    for (int d = 0; d < x->ndim; d++) lines[d] = d == dim ? 1 : x->shape[d];
    int64_t n = x->ndim == 0 ? 1 : x->shape[dim];
    do {
        double f = 0.0;
        uint64_t u = 0;
        for (int64_t j = 0; j < n; j++) {
            if (x->ndim != 0) base[dim] = j;
            if (ref_is_int(x)) {
                u += (uint64_t)ref_get_int(x, ref_offset(x, base));
                ref_set_int(out, ref_offset(out, base), (int64_t)u);
            } else {
                f += ref_get(x, ref_offset(x, base));
                ref_set(out, ref_offset(out, base), f);
            }
        }
        if (x->ndim != 0) base[dim] = 0;
    } while (ref_next(x->ndim, lines, base));
    return PL_OK;
}

pl_status pl_ref_sum_squares(const pl_tensor *x, double *out) {
    double sum = 0.0;
    for (int64_t i = 0; i < x->numel; i++) sum += ref_get(x, i) * ref_get(x, i);
    *out = sum;
    return PL_OK;
}

// SPDX-License-Identifier: Apache-2.0
// The oracle's attention: the whole row of scores at once, one (batch, head, query) at a time.
// With s = scale * q.k + mask, p = exp(s - lse) and keep the dropout's factor (0 or 1/(1-p)):
// out = (p * keep) v; ds = p * (dp - sum(dp * p)) where dp = (g.v) * keep.

#include "ref/ref.h"

typedef struct row {
    int64_t b, h, i, keys;
    double *p;     // (S) probabilities before dropout
    double *keep;  // (S) 0 or 1 / (1 - dropout_p)
    double lse;
} row;

static double at4(const pl_tensor *t, int64_t b, int64_t h, int64_t i, int64_t j) {
    return ref_get(t, ref_offset(t, (const int64_t[]){b, h, i, j}));
}

// The head of keys or values t that serves head h of x's.
static int64_t head_of(const pl_tensor *t, const pl_tensor *x, int64_t h) {
    return h / (x->shape[1] / t->shape[1]);
}

static double dot4(const pl_tensor *x, const pl_tensor *y, const row *r, int64_t j) {
    double sum = 0.0;
    for (int64_t d = 0; d < x->shape[3]; d++) {
        sum += at4(x, r->b, r->h, r->i, d) * at4(y, r->b, head_of(y, x, r->h), j, d);
    }
    return sum;
}

static double score(const pl_tensor *q, const pl_tensor *k, const pl_attention_args *args,
                    const row *r, int64_t j) {
    if (args->causal && j > r->i) return -INFINITY;
    double s = args->scale * dot4(q, k, r, j);
    if (args->mask == NULL) return s;
    double m = at4(args->mask, r->b, r->h, r->i, j);
    if (args->mask->dtype == PL_BOOL) return m != 0.0 ? s : -INFINITY;
    return s + m;
}

// Fills p, keep and lse; a row that sees nothing has p = 0 and lse = -inf.
static void fill_row(const pl_tensor *q, const pl_tensor *k, const pl_attention_args *args,
                     row *r) {
    double top = -INFINITY, sum = 0.0;
    for (int64_t j = 0; j < r->keys; j++) {
        r->p[j] = score(q, k, args, r, j);
        if (r->p[j] > top || isnan(r->p[j])) top = r->p[j];
    }
    for (int64_t j = 0; j < r->keys; j++) sum += top == -INFINITY ? 0.0 : exp(r->p[j] - top);
    r->lse = top == -INFINITY ? top : top + log(sum);
    int64_t line = (r->b * q->shape[1] + r->h) * q->shape[2] + r->i;
    for (int64_t j = 0; j < r->keys; j++) {
        r->p[j] = top == -INFINITY ? 0.0 : exp(r->p[j] - top) / sum;
        bool kept =
            args->dropout_p <= 0.0 ||
            pl_ref_keep(args->seed, args->offset, (uint64_t)(line * r->keys + j), args->dropout_p);
        r->keep[j] = !kept ? 0.0 : args->dropout_p > 0.0 ? 1.0 / (1.0 - args->dropout_p) : 1.0;
    }
}

pl_status pl_ref_attention(const pl_tensor *q, const pl_tensor *k, const pl_tensor *v,
                           const pl_attention_args *args, pl_tensor *out, pl_tensor *lse) {
    if (lse->numel == 0) return PL_OK;
    int64_t keys = k->shape[2], at[PL_MAX_DIMS] = {0};
    void *scratch;
    PL_TRY(pl_alloc((size_t)(2 * keys + 1) * sizeof(double), &scratch));
    do {
        row r = {at[0], at[1], at[2], keys, scratch, (double *)scratch + keys, 0.0};
        fill_row(q, k, args, &r);
        ref_set(lse, ref_offset(lse, at), r.lse);
        for (int64_t d = 0; d < v->shape[3]; d++) {
            double sum = 0.0;
            for (int64_t j = 0; j < keys; j++) {
                if (r.p[j] == 0.0) continue;
                sum += r.p[j] * r.keep[j] * at4(v, r.b, head_of(v, q, r.h), j, d);
            }
            ref_set(out, ref_offset(out, (const int64_t[]){r.b, r.h, r.i, d}), sum);
        }
    } while (ref_next(3, lse->shape, at));
    pl_free(scratch);
    return PL_OK;
}

static void add4(double *sums, const pl_tensor *shape, int64_t j, int64_t d, double v) {
    sums[j * shape->shape[3] + d] += v;
}

// One query's part: its row of dq, and what it adds to this head's dk and dv.
static void grad_row(const pl_tensor *g, const pl_tensor *q, const pl_tensor *k, const pl_tensor *v,
                     const pl_attention_args *args, const row *r, pl_tensor *dq, double *dk,
                     double *dv) {
    double dot = 0.0;
    for (int64_t j = 0; j < r->keys; j++) dot += r->p[j] * r->keep[j] * dot4(g, v, r, j);
    for (int64_t d = 0; d < q->shape[3]; d++) {
        double sum = 0.0;
        for (int64_t j = 0; j < r->keys; j++) {
            if (r->p[j] == 0.0) continue;
            double ds = r->p[j] * (r->keep[j] * dot4(g, v, r, j) - dot);
            sum += ds * args->scale * at4(k, r->b, head_of(k, q, r->h), j, d);
            add4(dk, k, j, d, ds * args->scale * at4(q, r->b, r->h, r->i, d));
        }
        ref_set(dq, ref_offset(dq, (const int64_t[]){r->b, r->h, r->i, d}), sum);
    }
    for (int64_t j = 0; j < r->keys; j++) {
        for (int64_t d = 0; d < v->shape[3]; d++) {
            add4(dv, v, j, d, r->p[j] * r->keep[j] * at4(g, r->b, r->h, r->i, d));
        }
    }
}

static void store_head(const double *sums, int64_t b, int64_t h, pl_tensor *t) {
    for (int64_t j = 0; j < t->shape[2]; j++) {
        for (int64_t d = 0; d < t->shape[3]; d++) {
            ref_set(t, ref_offset(t, (const int64_t[]){b, h, j, d}), sums[j * t->shape[3] + d]);
        }
    }
}

pl_status pl_ref_attention_grad(const pl_tensor *g, const pl_tensor *q, const pl_tensor *k,
                                const pl_tensor *v, const pl_tensor *out, const pl_tensor *lse,
                                const pl_attention_args *args, pl_tensor *dq, pl_tensor *dk,
                                pl_tensor *dv) {
    (void)out;  // the oracle recomputes what the fast ones take from out and lse
    (void)lse;
    int64_t keys = k->shape[2], width = q->shape[3], vwidth = v->shape[3];
    void *scratch;
    PL_TRY(pl_alloc((size_t)(keys * (2 + width + vwidth) + 1) * sizeof(double), &scratch));
    double *p = scratch, *keep = p + keys, *sum_k = keep + keys, *sum_v = sum_k + keys * width;
    for (int64_t b = 0; b < q->shape[0]; b++) {
        for (int64_t h = 0; h < q->shape[1]; h++) {
            memset(sum_k, 0, (size_t)(keys * (width + vwidth)) * sizeof(double));
            for (int64_t i = 0; i < q->shape[2]; i++) {
                row r = {b, h, i, keys, p, keep, 0.0};
                fill_row(q, k, args, &r);
                grad_row(g, q, k, v, args, &r, dq, sum_k, sum_v);
            }
            store_head(sum_k, b, h, dk);
            store_head(sum_v, b, h, dv);
        }
    }
    pl_free(scratch);
    return PL_OK;
}

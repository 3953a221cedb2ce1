// SPDX-License-Identifier: Apache-2.0
// attention_cases: calls of attention and its gradient, compared with the oracle.
#ifndef PL_ATTENTION_CASES_H
#define PL_ATTENTION_CASES_H

#include "kernels_check.h"

// What rounding probabilities to fp16 costs, where that is done.
#ifndef F16_WEIGHTS
#define F16_WEIGHTS 0.0
#endif

static const pl_dtype FLOATS[] = {PL_F32, PL_BF16, PL_F16, PL_F64};

typedef enum mask_kind { MASK_NONE, MASK_BOOL, MASK_FLOAT, MASK_KEYS } mask_kind;

typedef struct att_case {
    pl_dtype dt;
    int64_t b, h, t, s, d;
    bool causal;
    mask_kind mask;
    double dropout;
    bool packed;    // q, k, v are views of one (B, T, 3, H, D); s == t then
    int64_t group;  // of query heads that share a head of keys and values
} att_case;

typedef struct att_data {
    pl_tensor *base, *q, *k, *v, *g, *mask;
    pl_tensor *out, *lse, *dq, *dk, *dv;
    pl_tensor *want, *want_lse, *want_dq, *want_dk, *want_dv;
} att_data;

// (B, H, rows, D) out of t (B, rows, 3, H, D).
static pl_tensor *part_of(pl_tensor *t, int64_t which) {
    pl_tensor *one, *view;
    CHECK_OK(pl_tensor_select(t, 2, which, &one));
    CHECK_OK(pl_tensor_transpose(one, 1, 2, &view));
    pl_tensor_release(one);
    return view;
}

static pl_tensor *make_mask(const att_case *c) {
    int64_t shape[] = {c->b, c->h, c->t, c->s}, keys[] = {c->b, 1, 1, c->s};
    if (c->mask == MASK_NONE) return NULL;
    if (c->mask == MASK_FLOAT) return check_tensor(c->dt, 4, shape, 1.0);
    if (c->mask == MASK_KEYS) {  // padding: the last keys of each batch element are not seen
        pl_tensor *t = check_tensor(PL_BOOL, 4, keys, 1.0), *view;
        for (int64_t i = 0; i < t->numel; i++) check_set(t, i, i % c->s <= c->s / 2 + i / c->s);
        CHECK_OK(pl_tensor_expand(t, 4, shape, &view));
        pl_tensor_release(t);
        return view;
    }
    pl_tensor *t = check_tensor(PL_BOOL, 4, shape, 1.0);
    for (int64_t i = 0; i < t->numel; i++) {  // every seventh query sees nothing
        check_set(t, i, i / c->s % 7 != 3 && check_random() < 0.5);
    }
    return t;
}

static void make_data(const att_case *c, att_data *x) {
    int64_t qs[] = {c->b, c->h, c->t, c->d}, each[] = {c->b, c->h, c->s, c->d};
    int64_t ks[] = {c->b, c->h / c->group, c->s, c->d};
    pl_dtype real = c->dt == PL_F64 ? PL_F64 : PL_F32;
    memset(x, 0, sizeof *x);
    if (c->packed) {
        x->base = check_tensor(c->dt, 5, (int64_t[]){c->b, c->t, 3, c->h, c->d}, 1.0);
        x->q = part_of(x->base, 0), x->k = part_of(x->base, 1), x->v = part_of(x->base, 2);
    } else {
        x->q = check_tensor(c->dt, 4, qs, 1.0);
        x->k = check_tensor(c->dt, 4, ks, 1.0);
        x->v = check_tensor(c->dt, 4, ks, 1.0);
    }
    x->g = check_tensor(c->dt, 4, qs, 1.0);
    x->mask = make_mask(c);
    CHECK_OK(pl_tensor_empty(c->dt, 4, qs, &x->out));
    CHECK_OK(pl_tensor_empty(c->dt, 4, qs, &x->dq));
    CHECK_OK(pl_tensor_empty(c->dt, 4, each, &x->dk));
    CHECK_OK(pl_tensor_empty(c->dt, 4, each, &x->dv));
    CHECK_OK(pl_tensor_empty(real, 3, qs, &x->lse));
    CHECK_OK(pl_tensor_empty(PL_F64, 4, qs, &x->want));
    CHECK_OK(pl_tensor_empty(PL_F64, 4, qs, &x->want_dq));
    CHECK_OK(pl_tensor_empty(PL_F64, 4, each, &x->want_dk));
    CHECK_OK(pl_tensor_empty(PL_F64, 4, each, &x->want_dv));
    CHECK_OK(pl_tensor_empty(PL_F64, 3, qs, &x->want_lse));
}

static void free_data(att_data *x) {
    pl_tensor **all[] = {&x->base,     &x->q,       &x->k,       &x->v,      &x->g,  &x->mask,
                         &x->out,      &x->lse,     &x->dq,      &x->dk,     &x->dv, &x->want,
                         &x->want_lse, &x->want_dq, &x->want_dk, &x->want_dv};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) pl_tensor_release(*all[i]);
}

// Inputs are below 1. A score is a sum of d products, good to d eps in fp32, so a probability is
// good to about 2 d eps; with bf16 dot products probabilities and ds are rounded to bf16 on top:
// each of a sum's terms is off by 2^-9 of itself at most. Of the outputs, out and lse are averages;
// dq, dk and dv sum terms whose sizes add up to a few units (dk, dv: to t / s of that, since a key
// serves t queries, each with a probability of about 1 / s), and dropout multiplies by 1 / (1 - p).
static void check_case(const att_case *c) {
    att_data x;
    make_data(c, &x);
    pl_attention_args args = {.scale = 1.0 / sqrt((double)c->d),
                              .causal = c->causal,
                              .mask = x.mask,
                              .dropout_p = c->dropout,
                              .seed = 77,
                              .offset = (1ull << 32) - 3};
    const pl_kernels *ref = pl_kernels_ref(), *cpu = pl_kernels_cpu();
    CHECK_OK(ref->attention(x.q, x.k, x.v, &args, x.want, x.want_lse));
    CHECK_OK(cpu->attention(x.q, x.k, x.v, &args, x.out, x.lse));
    double base = check_sum_eps(c->dt) * (double)(c->d + c->s + 16) * 4.0;
    double inner = base + (c->dt == PL_BF16 ? 0x1p-8 : c->dt == PL_F16 ? F16_WEIGHTS : 0.0);
    double grow = 1.0 / (1.0 - c->dropout);
    check_close("lse", x.lse, x.want_lse, base, base * 4.0);
    check_close("out", x.out, x.want, check_eps(c->dt), inner * grow);
    CHECK_OK(ref->attention_grad(x.g, x.q, x.k, x.v, x.out, x.lse, &args, x.want_dq, x.want_dk,
                                 x.want_dv));
    CHECK_OK(cpu->attention_grad(x.g, x.q, x.k, x.v, x.out, x.lse, &args, x.dq, x.dk, x.dv));
    // delta = sum(g * out) carries out's rounding: d terms of eps each.
    double grad =
        (inner + check_eps(c->dt) * sqrt((double)c->d)) * grow * grow * (2.0 + sqrt((double)c->d));
    double load = 4.0 + 4.0 * (double)c->t / (double)(c->s + 1) + (c->causal ? 8.0 : 0.0);
    check_close("dq", x.dq, x.want_dq, check_eps(c->dt), grad);
    check_close("dk", x.dk, x.want_dk, check_eps(c->dt), grad * load);
    check_close("dv", x.dv, x.want_dv, check_eps(c->dt), inner * grow * load);
    free_data(&x);
}

#endif

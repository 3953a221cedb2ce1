// SPDX-License-Identifier: Apache-2.0
// Scaled dot-product attention: q (B, H, T, D), k and v (B, H, S, D), or with fewer heads where
// groups of query heads share one (Ainslie et al., 2023). Views of a packed projection are taken as
// they are; only the output and one number a row are kept beside them.
#include "ops/ops.h"

// grouped: k and v may have fewer heads.
static pl_status check(const pl_tensor *q, const pl_tensor *k, const pl_tensor *v, bool grouped) {
    char a[128], b[128], c[128];
    bool fits = q->ndim == 4 && k->ndim == 4 && v->ndim == 4 && q->shape[0] == k->shape[0] &&
                q->shape[3] == k->shape[3] && pl_shape_equal(4, k->shape, 4, v->shape);
    int64_t heads = fits ? q->shape[1] : 0, key_heads = fits ? k->shape[1] : 0;
    if (fits && grouped && (key_heads == 0 ? heads != 0 : heads % key_heads != 0)) {
        return pl_fail(PL_ERUNTIME,
                       "[attention] enable_gqa: got %lld heads of key and value, expected a number "
                       "that divides the %lld heads of query",
                       (long long)key_heads, (long long)heads);
    }
    if (!fits || (!grouped && heads != key_heads)) {
        return pl_fail(PL_ERUNTIME,
                       "[attention] expected query (B, H, T, D), key and value (B, H, S, D): got "
                       "%s, %s and %s%s",
                       pl_shape_text(q->ndim, q->shape, a, sizeof a),
                       pl_shape_text(k->ndim, k->shape, b, sizeof b),
                       pl_shape_text(v->ndim, v->shape, c, sizeof c),
                       fits ? "; fewer heads of key and value need enable_gqa=True" : "");
    }
    if (q->dtype != k->dtype || q->dtype != v->dtype || !pl_dtype_is_float(q->dtype)) {
        return pl_fail(PL_ERUNTIME,
                       "[attention] query, key and value must have one floating dtype: got %s, %s "
                       "and %s",
                       pl_dtype_name(q->dtype), pl_dtype_name(k->dtype), pl_dtype_name(v->dtype));
    }
    return PL_OK;
}

// Kernels want the head dimension dense.
static pl_status dense(pl_tensor *t, pl_tensor **out) {
    if (t->strides[3] == 1 || t->shape[3] == 1) {
        *out = pl_tensor_retain(t);
        return PL_OK;
    }
    return pl_contiguous(t, out);
}

static pl_attention_args args_of(const pl_attrs *a, const pl_tensor *mask) {
    return (pl_attention_args){.scale = a->f[0],
                               .causal = a->i[0] != 0,
                               .mask = mask,
                               .dropout_p = a->f[1],
                               .seed = (uint64_t)a->i[1],
                               .offset = (uint64_t)a->i[2]};
}

// Like a tensor (B, H, T, D) but of so many heads, in memory of (B, T, H, D): merging the heads
// afterwards is then a view.
static pl_status heads_last(const pl_tensor *like, int64_t heads, pl_tensor **out) {
    const int64_t *shape = like->shape;
    int64_t memory[4] = {shape[0], shape[2], heads, shape[3]};
    pl_tensor *t = NULL;
    PL_TRY(pl_tensor_empty_beside(like, like->dtype, 4, memory, &t));
    pl_status st = pl_tensor_transpose(t, 1, 2, out);
    pl_tensor_release(t);
    return st;
}

static pl_status attention_forward(pl_op_call *c) {
    pl_tensor *q = NULL, *k = NULL, *v = NULL, *mask = NULL, *lse = NULL;
    PL_TRY(check(c->in[0], c->in[1], c->in[2], c->attrs.i[3] != 0));
    const int64_t *qs = c->in[0]->shape;
    int64_t mask_shape[4] = {qs[0], qs[1], qs[2], c->in[1]->shape[2]};
    pl_status st = dense(c->in[0], &q);
    if (st == PL_OK) st = dense(c->in[1], &k);
    if (st == PL_OK) st = dense(c->in[2], &v);
    if (st == PL_OK && c->in[3]) st = pl_tensor_expand(c->in[3], 4, mask_shape, &mask);
    if (st == PL_OK) st = heads_last(q, q->shape[1], &c->out);
    if (st == PL_OK)
        st = pl_tensor_empty_beside(q, q->dtype == PL_F64 ? PL_F64 : PL_F32, 3, qs, &lse);
    if (st == PL_OK) {
        pl_attention_args args = args_of(&c->attrs, mask);
        st = pl_k(q)->attention(q, k, v, &args, c->out, lse);
    }
    pl_tensor *keep[] = {q, k, v, c->out, lse, mask};
    for (int i = 0; i < 6; i++) {
        if (st == PL_OK) st = pl_op_save(c, i, keep[i]);
        if (keep[i] != c->out) pl_tensor_release(keep[i]);
    }
    return st;
}

// *d (B, H, S, D), a gradient of each query head's own keys or values, becomes (B, H / G, S, D):
// the sum of each group, in the order of its heads.
static pl_status add_groups(int64_t key_heads, pl_tensor **d) {
    pl_tensor *t = *d, *view = NULL, *sum = NULL;
    if (t->shape[1] == key_heads) return PL_OK;
    int64_t group = t->shape[1] / key_heads;
    int64_t shape[5] = {t->shape[0], t->shape[2], key_heads, group, t->shape[3]};
    int64_t strides[5] = {t->strides[0], t->strides[2], group * t->strides[1], t->strides[1],
                          t->strides[3]};
    PL_TRY(pl_tensor_as_strided(t, 5, shape, strides, 0, &view));
    pl_status st = pl_reduce_new(PL_REDUCE_SUM, view, 1u << 3, false, &sum);
    pl_tensor_release(view);
    PL_TRY(st);
    pl_tensor_release(t);
    *d = NULL;
    st = pl_tensor_transpose(sum, 1, 2, d);
    pl_tensor_release(sum);
    return st;
}

static pl_status attention_backward(const pl_op_back *b) {
    pl_tensor *const *s = b->saved;
    pl_tensor *g = NULL, *cast = NULL, *d[3] = {0};
    pl_status st = pl_cast(b->grad, s[0]->dtype, &cast);
    if (st == PL_OK) st = dense(cast, &g);
    for (int i = 0; i < 3; i++) {
        if (st == PL_OK) st = heads_last(s[i], s[0]->shape[1], &d[i]);
    }
    if (st == PL_OK) {
        pl_attention_args args = args_of(b->attrs, s[5]);
        st = pl_k(g)->attention_grad(g, s[0], s[1], s[2], s[3], s[4], &args, d[0], d[1], d[2]);
    }
    pl_tensor_release(cast);
    pl_tensor_release(g);
    for (int i = 1; i < 3; i++) {
        if (st == PL_OK && b->needs[i]) st = add_groups(s[1]->shape[1], &d[i]);
    }
    for (int i = 0; i < 3; i++) {
        if (st == PL_OK && b->needs[i]) {
            b->out[i] = d[i];
        } else {
            pl_tensor_release(d[i]);
        }
    }
    if (st == PL_OK && b->n_in > 3 && b->needs[3]) {
        return pl_fail(PL_ENOSUP, "[attention] no gradient for attn_mask yet: pass mask.detach()");
    }
    return st;
}

const pl_op pl_op_attention = {"attention",       PL_AMP_LOW,         0,
                               attention_forward, attention_backward, false};

// SPDX-License-Identifier: Apache-2.0
// linear: x w^T + bias with its activation. The bias rides on the product; the activation is one
// more pass, since its gradient wants the sum before it kept (GELU), and since oneDNN's ReLU turns
// NaN into 0. The bias' gradient is gathered while the weight's reads the same numbers, where the
// product does that (Note [products by panels], panels.h). Knows no library.
#include "cpu.h"
#include "dnnl.h"
#include "panels.h"
#include "product.h"

static pl_unary activation_op(pl_activation act) {
    return act == PL_ACT_RELU   ? PL_UNARY_RELU
           : act == PL_ACT_GELU ? PL_UNARY_GELU
                                : PL_UNARY_GELU_TANH;
}

pl_status pl_cpu_linear(const pl_tensor *x, const pl_tensor *w, const pl_tensor *bias,
                        pl_activation act, pl_tensor *preact, pl_tensor *out) {
    if (out->numel == 0) return PL_OK;
    pl_tensor wt = *w;  // (K, N): w's strides exchanged; lives for this call only
    wt.shape[0] = w->shape[1];
    wt.shape[1] = w->shape[0];
    wt.strides[0] = w->strides[1];
    wt.strides[1] = w->strides[0];
    pl_tensor *sum = preact ? preact : out;
    pl_tensor *own_bias = NULL;
    if (bias && bias->strides[0] != 1 && bias->numel > 1) {
        PL_TRY(pl_tensor_empty(bias->dtype, 1, bias->shape, &own_bias));
        PL_TRY(pl_cpu_copy(bias, own_bias));
    }
    const pl_tensor *use = own_bias ? own_bias : bias;
    pl_epilogue e = {.bias = use ? use->data : NULL,
                     .bias_dtype = use ? use->dtype : PL_DTYPE_COUNT};
    pl_status st = pl__product_tensors(x, &wt, &e, sum);
    pl_tensor_release(own_bias);
    PL_TRY(st);
    if (act != PL_ACT_NONE) return pl_cpu_unary(activation_op(act), sum, out);
    return sum != out ? pl_cpu_copy(sum, out) : PL_OK;
}

bool pl_cpu_linear_rounds(const pl_tensor *x, const pl_tensor *w) {
    // With fewer rows packing is not paid for. Zen 5, bf16, forward and both gradients, against the
    // copy and oneDNN: 64 rows 4 % behind, 512 rows 2 to 3 % ahead, 2048 rows 1 % behind on one
    // thread and 3 % ahead on two; with the memory of all copies saved.
    enum { FEWEST = 256 };
    int64_t n = w->shape[0], k = w->shape[1], m = k ? x->numel / k : 0;
    if (m < FEWEST || !pl__dnnl_built()) return false;
    pl_product p = {.ab = PL_BF16, .out = PL_BF16, .m = m, .n = n, .k = k, .b_wide = true};
    p.a_row = p.b_col = k;
    p.a_col = p.b_row = p.out_row = 1;
    bool forward = pl__product_by_panels(&p);
    p.n = k;
    p.k = n;
    return forward && pl__product_by_panels(&p);  // and the gradient of x
}

// t (N) as (1, N), for this call only.
static pl_tensor as_row(const pl_tensor *t) {
    pl_tensor row = *t;
    row.ndim = 2;
    row.shape[0] = 1;
    row.shape[1] = t->shape[0];
    row.strides[0] = t->shape[0];
    row.strides[1] = 1;
    return row;
}

// pl_cpu_reduce, more than kernels.h asks, stores sums in whatever floating dtype `out` has.
static pl_status sum_rows(const pl_tensor *g, bool accumulate, pl_tensor *db) {
    pl_tensor row = as_row(db), *sums = NULL;
    if (!accumulate) return pl_cpu_reduce(PL_REDUCE_SUM, g, 1u, &row);
    PL_TRY(pl_tensor_empty(db->dtype, 2, row.shape, &sums));
    pl_status st = pl_cpu_reduce(PL_REDUCE_SUM, g, 1u, sums);
    if (st == PL_OK) st = pl_cpu_binary(PL_BINARY_ADD, &row, sums, &row);
    pl_tensor_release(sums);
    return st;
}

pl_status pl_cpu_linear_grad(const pl_tensor *g, const pl_tensor *x, pl_tensor *dw,
                             bool accumulate_w, pl_tensor *db, bool accumulate_b) {
    pl_tensor gt = *g;  // (N, M)
    gt.shape[0] = g->shape[1];
    gt.shape[1] = g->shape[0];
    gt.strides[0] = g->strides[1];
    gt.strides[1] = g->strides[0];
    bool summed = false;
    pl_epilogue e = {.accumulate = accumulate_w,
                     .bias_dtype = PL_DTYPE_COUNT,
                     .row_sums = db->dtype == PL_F32 ? db->data : NULL,
                     .add_row_sums = accumulate_b,
                     .summed = &summed};
    PL_TRY(pl__product_tensors(&gt, x, &e, dw));
    return summed || db->numel == 0 ? PL_OK : sum_rows(g, accumulate_b, db);
}

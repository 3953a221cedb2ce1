// SPDX-License-Identifier: Apache-2.0
// linear: x w^T + bias with its activation. The bias rides on the product; the activation is one
// more pass, since its gradient wants the sum before it kept (GELU), and since oneDNN's ReLU turns
// NaN into 0. Knows no library.
#include "cpu.h"
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

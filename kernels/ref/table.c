// SPDX-License-Identifier: Apache-2.0
// The oracle's table: every member, one family per file beside this one.

#include "ref/ref.h"

const pl_kernels *pl_kernels_ref(void) {
    static const pl_kernels table = {
        .name = "ref",
        .unary = pl_ref_unary,
        .binary = pl_ref_binary,
        .where = pl_ref_where,
        .copy = pl_ref_copy,
        .scale = pl_ref_scale,
        .fill = pl_ref_fill,
        .fill_int = pl_ref_fill_int,
        .arange = pl_ref_arange,
        .reduce = pl_ref_reduce,
        .argreduce = pl_ref_argreduce,
        .cumsum = pl_ref_cumsum,
        .sort = pl_ref_sort,
        .sum_squares = pl_ref_sum_squares,
        .matmul = pl_ref_matmul,
        .linear = pl_ref_linear,
        .linear_grad = pl_ref_linear_grad,
        .linear_grad_gelu = pl_ref_linear_grad_gelu,
        .norm = pl_ref_norm,
        .norm_grad = pl_ref_norm_grad,
        .softmax = pl_ref_softmax,
        .softmax_grad = pl_ref_softmax_grad,
        .cross_entropy = pl_ref_cross_entropy,
        .cross_entropy_grad = pl_ref_cross_entropy_grad,
        .cross_entropy_fused = pl_ref_cross_entropy_fused,
        .take = pl_ref_take,
        .take_grad = pl_ref_take_grad,
        .gather = pl_ref_gather,
        .scatter_add = pl_ref_scatter_add,
        .count_nonzero = pl_ref_count_nonzero,
        .nonzero = pl_ref_nonzero,
        .uniform = pl_ref_uniform,
        .normal = pl_ref_normal,
        .randint = pl_ref_randint,
        .dropout = pl_ref_dropout,
        .swiglu = pl_ref_swiglu,
        .swiglu_grad = pl_ref_swiglu_grad,
        .rotary = pl_ref_rotary,
        .attention = pl_ref_attention,
        .attention_grad = pl_ref_attention_grad,
        .adam = pl_ref_adam,
        .sgd = pl_ref_sgd,
        .unscale = pl_ref_unscale,
    };
    return &table;
}

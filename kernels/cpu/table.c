// SPDX-License-Identifier: Apache-2.0
// The CPU's table: every member, one family per file beside this one.

#include "cpu/cpu.h"

const pl_kernels *pl_kernels_cpu(void) {
    static const pl_kernels table = {
        .name = "cpu",
        .unary = pl_cpu_unary,
        .binary = pl_cpu_binary,
        .where = pl_cpu_where,
        .copy = pl_cpu_copy,
        .scale = pl_cpu_scale,
        .fill = pl_cpu_fill,
        .fill_int = pl_cpu_fill_int,
        .arange = pl_cpu_arange,
        .reduce = pl_cpu_reduce,
        .argreduce = pl_cpu_argreduce,
        .cumsum = pl_cpu_cumsum,
        .sort = pl_cpu_sort,
        .sum_squares = pl_cpu_sum_squares,
        .matmul = pl_cpu_matmul,
        .linear = pl_cpu_linear,
        .linear_rounds = pl_cpu_linear_rounds,
        .linear_grad = pl_cpu_linear_grad,
        .norm = pl_cpu_norm,
        .norm_grad = pl_cpu_norm_grad,
        .softmax = pl_cpu_softmax,
        .softmax_grad = pl_cpu_softmax_grad,
        .cross_entropy = pl_cpu_cross_entropy,
        .cross_entropy_grad = pl_cpu_cross_entropy_grad,
        .cross_entropy_fused = pl_cpu_cross_entropy_fused,
        .take = pl_cpu_take,
        .take_grad = pl_cpu_take_grad,
        .gather = pl_cpu_gather,
        .scatter_add = pl_cpu_scatter_add,
        .count_nonzero = pl_cpu_count_nonzero,
        .nonzero = pl_cpu_nonzero,
        .uniform = pl_cpu_uniform,
        .normal = pl_cpu_normal,
        .randint = pl_cpu_randint,
        .dropout = pl_cpu_dropout,
        .swiglu = pl_cpu_swiglu,
        .swiglu_grad = pl_cpu_swiglu_grad,
        .rotary = pl_cpu_rotary,
        .attention = pl_cpu_attention,
        .attention_grad = pl_cpu_attention_grad,
        .adam = pl_cpu_adam,
        .sgd = pl_cpu_sgd,
        .unscale = pl_cpu_unscale,
    };
    return &table;
}

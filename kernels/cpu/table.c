// SPDX-License-Identifier: Apache-2.0
// The CPU's table. TEMPORARY while the families land one by one: a member that is not linked yet
// is served by the oracle (weak reference); the final table names pl_cpu_* only.

#include <pthread.h>

#include "cpu/cpu.h"

#pragma weak pl_cpu_unary
#pragma weak pl_cpu_binary
#pragma weak pl_cpu_where
#pragma weak pl_cpu_copy
#pragma weak pl_cpu_fill
#pragma weak pl_cpu_fill_int
#pragma weak pl_cpu_arange
#pragma weak pl_cpu_reduce
#pragma weak pl_cpu_argreduce
#pragma weak pl_cpu_cumsum
#pragma weak pl_cpu_sort
#pragma weak pl_cpu_sum_squares
#pragma weak pl_cpu_matmul
#pragma weak pl_cpu_linear
#pragma weak pl_cpu_layer_norm
#pragma weak pl_cpu_layer_norm_grad
#pragma weak pl_cpu_softmax
#pragma weak pl_cpu_softmax_grad
#pragma weak pl_cpu_cross_entropy
#pragma weak pl_cpu_cross_entropy_grad
#pragma weak pl_cpu_take
#pragma weak pl_cpu_take_grad
#pragma weak pl_cpu_gather
#pragma weak pl_cpu_scatter_add
#pragma weak pl_cpu_count_nonzero
#pragma weak pl_cpu_nonzero
#pragma weak pl_cpu_uniform
#pragma weak pl_cpu_normal
#pragma weak pl_cpu_randint
#pragma weak pl_cpu_dropout
#pragma weak pl_cpu_attention
#pragma weak pl_cpu_attention_grad
#pragma weak pl_cpu_adam
#pragma weak pl_cpu_sgd

static pl_kernels table;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void fill_table(void) {
    table = *pl_kernels_ref();
    table.name = "cpu";
    if (pl_cpu_unary) table.unary = pl_cpu_unary;
    if (pl_cpu_binary) table.binary = pl_cpu_binary;
    if (pl_cpu_where) table.where = pl_cpu_where;
    if (pl_cpu_copy) table.copy = pl_cpu_copy;
    if (pl_cpu_fill) table.fill = pl_cpu_fill;
    if (pl_cpu_fill_int) table.fill_int = pl_cpu_fill_int;
    if (pl_cpu_arange) table.arange = pl_cpu_arange;
    if (pl_cpu_reduce) table.reduce = pl_cpu_reduce;
    if (pl_cpu_argreduce) table.argreduce = pl_cpu_argreduce;
    if (pl_cpu_cumsum) table.cumsum = pl_cpu_cumsum;
    if (pl_cpu_sort) table.sort = pl_cpu_sort;
    if (pl_cpu_sum_squares) table.sum_squares = pl_cpu_sum_squares;
    if (pl_cpu_matmul) table.matmul = pl_cpu_matmul;
    if (pl_cpu_linear) table.linear = pl_cpu_linear;
    if (pl_cpu_layer_norm) table.layer_norm = pl_cpu_layer_norm;
    if (pl_cpu_layer_norm_grad) table.layer_norm_grad = pl_cpu_layer_norm_grad;
    if (pl_cpu_softmax) table.softmax = pl_cpu_softmax;
    if (pl_cpu_softmax_grad) table.softmax_grad = pl_cpu_softmax_grad;
    if (pl_cpu_cross_entropy) table.cross_entropy = pl_cpu_cross_entropy;
    if (pl_cpu_cross_entropy_grad) table.cross_entropy_grad = pl_cpu_cross_entropy_grad;
    if (pl_cpu_take) table.take = pl_cpu_take;
    if (pl_cpu_take_grad) table.take_grad = pl_cpu_take_grad;
    if (pl_cpu_gather) table.gather = pl_cpu_gather;
    if (pl_cpu_scatter_add) table.scatter_add = pl_cpu_scatter_add;
    if (pl_cpu_count_nonzero) table.count_nonzero = pl_cpu_count_nonzero;
    if (pl_cpu_nonzero) table.nonzero = pl_cpu_nonzero;
    if (pl_cpu_uniform) table.uniform = pl_cpu_uniform;
    if (pl_cpu_normal) table.normal = pl_cpu_normal;
    if (pl_cpu_randint) table.randint = pl_cpu_randint;
    if (pl_cpu_dropout) table.dropout = pl_cpu_dropout;
    if (pl_cpu_attention) table.attention = pl_cpu_attention;
    if (pl_cpu_attention_grad) table.attention_grad = pl_cpu_attention_grad;
    if (pl_cpu_adam) table.adam = pl_cpu_adam;
    if (pl_cpu_sgd) table.sgd = pl_cpu_sgd;
}

const pl_kernels *pl_kernels_cpu(void) {
    (void)pthread_once(&once, fill_table);
    return &table;
}

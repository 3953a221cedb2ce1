// SPDX-License-Identifier: Apache-2.0
// cpu: what the files of this folder show one another: the members of the table (table.c; their
// contracts are in kernels.h) and a few shared helpers. May not be included outside kernels/cpu.
// Every function is safe from any thread that may enter OpenMP.
#ifndef PL_KERNELS_CPU_H
#define PL_KERNELS_CPU_H

#include "kernels.h"

// ---- loops: elementwise.c copy.c reduce.c sort.c index.c random.c optimizer.c
pl_status pl_cpu_unary(pl_unary op, const pl_tensor *x, pl_tensor *out);
pl_status pl_cpu_binary(pl_binary op, const pl_tensor *a, const pl_tensor *b, pl_tensor *out);
pl_status pl_cpu_where(const pl_tensor *cond, const pl_tensor *a, const pl_tensor *b,
                       pl_tensor *out);
pl_status pl_cpu_copy(const pl_tensor *src, pl_tensor *dst);
pl_status pl_cpu_scale(const pl_tensor *x, const pl_tensor *factor, bool accumulate,
                       pl_tensor *out);
pl_status pl_cpu_fill(pl_tensor *dst, double value);
pl_status pl_cpu_fill_int(pl_tensor *dst, int64_t value);
pl_status pl_cpu_arange(pl_tensor *out, double start, double step);
pl_status pl_cpu_reduce(pl_reduce op, const pl_tensor *x, uint32_t dims, pl_tensor *out);
pl_status pl_cpu_argreduce(bool max, const pl_tensor *x, int dim, pl_tensor *out);
pl_status pl_cpu_cumsum(const pl_tensor *x, int dim, pl_tensor *out);
pl_status pl_cpu_sort(const pl_tensor *x, bool descending, pl_tensor *values, pl_tensor *indices);
pl_status pl_cpu_sum_squares(const pl_tensor *x, double *out);
pl_status pl_cpu_take(const pl_tensor *x, const pl_tensor *index, pl_tensor *out);
pl_status pl_cpu_take_grad(const pl_tensor *g, const pl_tensor *index, int64_t skip,
                           bool accumulate, pl_tensor *dx);
pl_status pl_cpu_gather(const pl_tensor *x, int dim, const pl_tensor *index, pl_tensor *out);
pl_status pl_cpu_scatter_add(const pl_tensor *g, int dim, const pl_tensor *index, pl_tensor *dx);
pl_status pl_cpu_count_nonzero(const pl_tensor *x, int64_t *out);
pl_status pl_cpu_nonzero(const pl_tensor *x, pl_tensor *out);
pl_status pl_cpu_uniform(pl_tensor *out, double lo, double hi, uint64_t seed, uint64_t offset);
pl_status pl_cpu_normal(pl_tensor *out, double mean, double std, uint64_t seed, uint64_t offset);
pl_status pl_cpu_randint(pl_tensor *out, int64_t lo, int64_t hi, uint64_t seed, uint64_t offset);
pl_status pl_cpu_adam(const pl_adam_args *args, pl_dtype dt, int64_t n, void *p, const void *g,
                      void *m, void *v);
pl_status pl_cpu_sgd(const pl_sgd_args *args, pl_dtype dt, int64_t n, void *p, const void *g,
                     void *momentum);
pl_status pl_cpu_unscale(pl_dtype dt, int64_t n, void *g, double factor, int *nonfinite);

// ---- products and rows: matmul.c linear.c norm.c softmax.c loss.c dropout.c swiglu.c
// rotary.c attention.c
pl_status pl_cpu_matmul(const pl_tensor *a, const pl_tensor *b, bool accumulate, pl_tensor *out);
pl_status pl_cpu_linear(const pl_tensor *x, const pl_tensor *w, const pl_tensor *bias,
                        pl_activation act, pl_tensor *preact, pl_tensor *out);
bool pl_cpu_linear_rounds(const pl_tensor *x, const pl_tensor *w);
pl_status pl_cpu_linear_grad(const pl_tensor *g, const pl_tensor *x, pl_tensor *dw,
                             bool accumulate_w, pl_tensor *db, bool accumulate_b);
pl_status pl_cpu_norm(const pl_row_norm_args *args);
pl_status pl_cpu_norm_grad(const pl_row_norm_grad_args *args);
pl_status pl_cpu_softmax(bool log, const pl_tensor *x, pl_tensor *out);
pl_status pl_cpu_softmax_grad(bool log, const pl_tensor *g, const pl_tensor *y, pl_tensor *dx);
pl_status pl_cpu_cross_entropy(const pl_tensor *logits, const pl_tensor *target,
                               const pl_tensor *weight, int64_t ignore_index,
                               double label_smoothing, pl_tensor *losses, pl_tensor *lse);
pl_status pl_cpu_cross_entropy_grad(const pl_tensor *g, const pl_tensor *logits,
                                    const pl_tensor *target, const pl_tensor *weight,
                                    const pl_tensor *lse, int64_t ignore_index,
                                    double label_smoothing, pl_tensor *dlogits);
pl_status pl_cpu_cross_entropy_fused(const pl_tensor *g, pl_tensor *logits, const pl_tensor *target,
                                     const pl_tensor *weight, int64_t ignore_index,
                                     double label_smoothing, pl_tensor *losses);
pl_status pl_cpu_dropout(const pl_tensor *x, double p, uint64_t seed, uint64_t offset,
                         pl_tensor *out);
pl_status pl_cpu_swiglu(const pl_tensor *x, pl_tensor *out);
pl_status pl_cpu_swiglu_grad(const pl_tensor *g, const pl_tensor *x, pl_tensor *dx);
pl_status pl_cpu_rotary(const pl_tensor *x, const pl_tensor *cosine, const pl_tensor *sine,
                        int64_t first, bool back, pl_tensor *out);
pl_status pl_cpu_attention(const pl_tensor *q, const pl_tensor *k, const pl_tensor *v,
                           const pl_attention_args *args, pl_tensor *out, pl_tensor *lse);
pl_status pl_cpu_attention_grad(const pl_tensor *g, const pl_tensor *q, const pl_tensor *k,
                                const pl_tensor *v, const pl_tensor *out, const pl_tensor *lse,
                                const pl_attention_args *args, pl_tensor *dq, pl_tensor *dk,
                                pl_tensor *dv);

#endif

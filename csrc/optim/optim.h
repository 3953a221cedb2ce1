// SPDX-License-Identifier: Apache-2.0
// optim: optimizer updates over lists of tensors. Runs that lie behind one another in memory (in
// parameters, gradients and moments alike: flat buffers) are joined into one kernel call.
// Threads: one step of one optimizer at a time; parameters must not be in use elsewhere.
#ifndef PL_OPTIM_H
#define PL_OPTIM_H

#include "kernels.h"

// All four lists have n tensors, pairwise of one shape, contiguous, of one floating dtype per i.
pl_status pl_optim_adam(const pl_adam_args *args, int n, pl_tensor *const *params,
                        pl_tensor *const *grads, pl_tensor *const *exp_avgs,
                        pl_tensor *const *exp_avg_sqs) PL_MUST_USE;
pl_status pl_optim_sgd(const pl_sgd_args *args, int n, pl_tensor *const *params,
                       pl_tensor *const *grads, pl_tensor *const *momenta) PL_MUST_USE;
// Norm of all gradients together: 2-norm, or largest magnitude when `inf`. The order of the sum is
// fixed: tensor by tensor as listed.
pl_status pl_optim_norm(int n, pl_tensor *const *grads, bool inf, double *out) PL_MUST_USE;
pl_status pl_optim_scale(int n, pl_tensor *const *tensors, double factor) PL_MUST_USE;
// Multiplies all gradients (contiguous, floating) by a factor in one pass, and tells whether one of
// them was NaN or infinite before. A factor of 1 only looks.
pl_status pl_optim_unscale(int n, pl_tensor *const *grads, double factor,
                           bool *nonfinite) PL_MUST_USE;

#endif

// SPDX-License-Identifier: Apache-2.0
// optim: optimizer updates over lists of tensors. Runs that lie behind one another in memory (in
// parameters, gradients and moments alike: flat buffers) are joined into one kernel call.
// Threads: one step of one optimizer at a time; parameters must not be in use elsewhere.
#ifndef PL_OPTIM_H
#define PL_OPTIM_H

#include "autograd/autograd.h"
#include "kernels.h"

// All four lists have n tensors, pairwise of one shape, contiguous, of one floating dtype per i,
// all on one device; args->nonfinite lies there too, so that nobody waits for it here: on the CPU
// one flag, where a device has kernels for lists n of them, one for each tensor. grads NULL:
// the parameters' own, which all must have; what is due to them (Note [deferred scale], autograd.h)
// is multiplied in on the way, and stays due to the memory.
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

// The same three for the gradients of leaves; leaves without one are passed over. The norm is
// kept, and scaling is left with the leaves, where nobody else holds the gradients: then unscaling
// is one reading pass, and the norm after it none.
pl_status pl_optim_leaf_norm(int n, pl_tensor *const *leaves, double *out) PL_MUST_USE;  // 2-norm
pl_status pl_optim_leaf_scale(int n, pl_tensor *const *leaves, double factor) PL_MUST_USE;
pl_status pl_optim_leaf_unscale(int n, pl_tensor *const *leaves, double factor,
                                bool *nonfinite) PL_MUST_USE;

// What a device need not tell the host (Note [lists], kernels.h): these enqueue and come back. Of
// gradients that all lie on one device with such kernels; else *out is NULL, and the functions
// above serve. A norm is f32 and 0-d.
pl_status pl_optim_norm_there(int n, pl_tensor *const *grads, bool inf,
                              pl_tensor **out) PL_MUST_USE;
// The 2-norm of leaves' gradients, which are then multiplied by min(1, max_norm / (norm + 1e-6)):
// left with the leaves where nobody else holds them. max_norm infinite: only the norm.
typedef struct pl_clip {
    double max_norm;
    bool keep_nonfinite;  // leave the gradients alone where the norm is not finite
} pl_clip;
pl_status pl_optim_leaf_clip_there(const pl_clip *clip, int n, pl_tensor *const *leaves,
                                   pl_tensor **out) PL_MUST_USE;
// By a number on the device of the gradients (f64, 0-d): of all leaves that have one.
pl_status pl_optim_leaf_scale_there(int n, pl_tensor *const *leaves, pl_tensor *factor) PL_MUST_USE;

#endif

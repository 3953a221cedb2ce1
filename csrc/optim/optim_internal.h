// SPDX-License-Identifier: Apache-2.0
// Private to optim: what its files share. Knows kernels by their table only.
#ifndef PL_OPTIM_INTERNAL_H
#define PL_OPTIM_INTERNAL_H

#include "ops/ops.h"
#include "optim/optim.h"

// Sums of squares of tensors of any devices; those of a device are read with one synchronisation.
pl_status pl__optim_squares(int n, pl_tensor *const *t, double *out) PL_MUST_USE;
// Gradients that are unscaled are contiguous, floating and on one device.
pl_status pl__optim_check_unscale(int n, pl_tensor *const *grads) PL_MUST_USE;
// The gradients that there are, in a new list, to be freed with pl_free; what is due to them has
// been applied.
pl_status pl__optim_settled_grads(int n, pl_tensor *const *leaves, pl_tensor ***out,
                                  int *n_out) PL_MUST_USE;
bool pl__optim_is_power_of_two(double x);

// By kernels for lists: of tensors that were checked, on a device that has them (Note [lists]).
pl_status pl__optim_list_adam(const pl_adam_args *args, int n, pl_tensor *const *const lists[4],
                              bool own) PL_MUST_USE;
pl_status pl__optim_list_sgd(const pl_sgd_args *args, int n, pl_tensor *const *const lists[3],
                             bool own) PL_MUST_USE;
pl_status pl__optim_list_unscale(int n, pl_tensor *const *grads, double factor,
                                 bool *nonfinite) PL_MUST_USE;
// Whether the next one can: contiguous, floating, all on such a device.
bool pl__optim_list_scales(int n, pl_tensor *const *t);
pl_status pl__optim_list_scale(int n, pl_tensor *const *t, double factor) PL_MUST_USE;
// Of those of the tensors that lie on a device: out[i] of tensor i.
pl_status pl__optim_list_numbers(bool inf, int n, pl_tensor *const *t, double *out) PL_MUST_USE;

#endif

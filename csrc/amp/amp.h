// SPDX-License-Identifier: Apache-2.0
// amp: autocast. Matrix products and attention compute in the low dtype, sums, norms and softmax
// in fp32, everything else as its inputs come. The graph connects to the tensors that were given,
// not to their casts: a weight's gradient is accumulated in fp32 straight into its own dtype, and
// a cast is made once per change of the weight (once per step), not once per use.
// Threads: the mode is thread-local.
#ifndef PL_AMP_H
#define PL_AMP_H

#include "autograd/autograd.h"

// The autocast dtype of this thread, or -1: off. Gives the mode before. PL_BF16 or
// PL_F16; the latter needs its losses scaled (paceline.amp.GradScaler).
int pl_amp_get(void);
pl_status pl_amp_set(int dtype, int *before) PL_MUST_USE;

// pl_autograd_apply under this thread's autocast mode.
pl_status pl_amp_apply(const pl_op *op, int n_in, pl_tensor *const *in, const pl_attrs *attrs,
                       pl_tensor **out) PL_MUST_USE;

// pl_autograd_apply_added under this thread's autocast mode; where the kernel does not fit (the sum
// would be cast before its norm, two devices), two calls. x and residual have one shape.
pl_status pl_amp_apply_added(const pl_op *norm, pl_tensor *const in[4], const pl_attrs *attrs,
                             pl_tensor *out[2]) PL_MUST_USE;

#endif

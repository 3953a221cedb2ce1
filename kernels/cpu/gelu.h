// SPDX-License-Identifier: Apache-2.0
// gelu: GELU and its gradient with AVX-512, in one pass over memory and in an order of instructions
// that a compiler does not find (gelu_body.h). Everywhere else, and for what is not contiguous, the
// general loops serve (elementwise.c). In fp32 within 9 ulp from -3 up, as those within 8, and 1e-7
// below; in bf16 good to 2e-5, a hundredth of what rounding takes away. Private to kernels/cpu.
#ifndef PL_KERNELS_CPU_GELU_H
#define PL_KERNELS_CPU_GELU_H

#include "kernels.h"

// out[i] = gelu(x[i]), or g[i] * gelu'(x[i]) where g is not NULL; n adjacent elements of one dtype;
// out may be x or g.
typedef void (*pl_gelu_fn)(int64_t n, const void *g, const void *x, void *out);
// NULL where this build or processor has none.
pl_gelu_fn pl__gelu_f32(bool gradient, bool by_tanh);
pl_gelu_fn pl__gelu_dot(bool gradient, bool by_tanh);  // bf16
// Does it over whole tensors of one shape, g NULL for the function itself. False, and nothing is
// done, where they are not contiguous, not of one dtype, or there are no such loops.
bool pl__gelu(bool by_tanh, const pl_tensor *g, const pl_tensor *x, pl_tensor *out);

#endif

// SPDX-License-Identifier: Apache-2.0
// Attention on bf16 with AVX512-BF16's dot products: the loops of attention_body.h and
// attention_grad_body.h over operands that stay bf16. Elsewhere an empty getter.
#include "attention.h"

#if defined(__x86_64__)
#define PL_SIMD_LEVEL 3
#define PL_SIMD_BF16
#include "simd.h"

#define PL_REAL_IS_DOUBLE 0
#include "simd_real.h"
#undef FN
#define FN(name) name##_dot
#undef PL_EACH_DTYPE
#define PL_EACH_DTYPE(dtype, fn, ...) ((void)(dtype), fn(PL_BF16, __VA_ARGS__))
#include "simd_part.h"
#include "attention_forms_dot.h"
#include "attention_tile_body.h"
#include "attention_body.h"
#include "attention_grad_body.h"
PL_SIMD_END

pl_range_fn pl__attention_dot(bool backward) {
    if (!pl_cpu()->avx512_bf16) return NULL;
    return backward ? attention_grad_dot : attention_dot;
}
#else
pl_range_fn pl__attention_dot(bool backward) {
    (void)backward;
    return NULL;
}
#endif

// SPDX-License-Identifier: Apache-2.0
// All inner loops at one PL_SIMD_LEVEL, for float and for double, and the table of them. Included
// once by each rows_*.c.
#include "attention.h"
#include "rows.h"
#include "simd.h"

#define PL_REAL_IS_DOUBLE 0
#include "simd_real.h"
#include "tile_body.h"
#include "norm_body.h"
#include "softmax_body.h"
#include "loss_body.h"
#include "dropout_body.h"
#include "scale_body.h"
#include "simd_part.h"
#include "swiglu_body.h"
#include "rotary_body.h"
#include "attention_forms_real.h"
#include "attention_tile_body.h"
#include "attention_body.h"
#include "attention_grad_body.h"
#undef PL_REAL_IS_DOUBLE
#define PL_REAL_IS_DOUBLE 1
#include "simd_real.h"
#include "tile_body.h"
#include "norm_body.h"
#include "softmax_body.h"
#include "loss_body.h"
#include "dropout_body.h"
#include "scale_body.h"
#include "simd_part.h"
#include "swiglu_body.h"
#include "rotary_body.h"
#include "attention_forms_real.h"
#include "attention_tile_body.h"
#include "attention_body.h"
#include "attention_grad_body.h"

PL_SIMD_END

static const pl_rows table = {
    .name = PL_SIMD_LEVEL == 3   ? "avx512"
            : PL_SIMD_LEVEL == 2 ? "avx2"
                                 : "any",
    .tile_cols = {2 * VF, 2 * VD},
    .tile = {tile_f32, tile_f64},
    .norm = {norm_f32, norm_f64},
    .norm_grad = {norm_grad_f32, norm_grad_f64},
    .sum_columns = {sum_columns_f32, sum_columns_f64},
    .softmax = {softmax_f32, softmax_f64},
    .softmax_grad = {softmax_grad_f32, softmax_grad_f64},
    .cross_entropy = {cross_entropy_f32, cross_entropy_f64},
    .cross_entropy_grad = {cross_entropy_grad_f32, cross_entropy_grad_f64},
    .cross_entropy_fused = {cross_entropy_fused_f32, cross_entropy_fused_f64},
    .swiglu = {swiglu_f32, swiglu_f64},
    .swiglu_grad = {swiglu_grad_f32, swiglu_grad_f64},
    .rotary = {rotary_f32, rotary_f64},
    .attention = {attention_f32, attention_f64},
    .attention_grad = {attention_grad_f32, attention_grad_f64},
    .dropout = {dropout_f32, dropout_f64},
    .scale = {scale_f32, scale_f64},
};

// SPDX-License-Identifier: Apache-2.0
// half: the one function of base/dtype.h that kernels call on the host alone; the others that the
// library needs are in kernels/cuda/backend.cu.
extern "C" {
#include "base/base.h"  // C
}

float pl_f16_to_f32(pl_f16 h) {
    union {
        pl_f16 bits;
        _Float16 half;
    } v = {h};
    return (float)v.half;
}

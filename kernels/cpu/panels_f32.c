// SPDX-License-Identifier: Apache-2.0
// Products by panels of fp32 with AVX-512; elsewhere an empty getter.
#include "panels.h"

#if defined(__x86_64__)
#define PL_SIMD_LEVEL 3
#include "simd.h"

#define TFN(name) name##_f32
#define E float
#define PANEL_DEPTH 1

PL_INLINE vf run_f32(const void *p, int64_t n) {
    return n == 16 ? vf_load(p) : vf_get_n(p, 0, n, PL_F32, 0);
}

PL_INLINE vf pair_f32(const void *p, int64_t step, int64_t rows, int64_t n) {
    (void)step;
    (void)rows;
    return run_f32(p, n);
}

PL_INLINE vf wide_run_f32(const void *p, int64_t n) { return run_f32(p, n); }

PL_INLINE vf wide_pair_f32(const void *p, int64_t step, int64_t rows, int64_t n) {
    return pair_f32(p, step, rows, n);
}

PL_INLINE vf fold_f32(vf sum, vf a, vf b) { return vf_fma(a, b, sum); }

PL_INLINE vf add_f32(vf sum, vf u) { return sum + u; }

#include "panels_body.h"
PL_SIMD_END

pl_range_fn pl__panels_f32(void) { return panels_f32; }
#else
pl_range_fn pl__panels_f32(void) { return NULL; }
#endif

// SPDX-License-Identifier: Apache-2.0
// One load of VN elements where fewer may be left; for float and for double (simd_real.h).

// VN elements at i of which the first n exist; zeros beyond.
PL_INLINE VR FN(get_part)(pl_dtype dt, const void *p, int64_t i, int64_t n) {
    if (n >= VN) return V(get)(p, i, dt);
    return n > 0 ? V(get_n)(p, i, n, dt, 0) : V(set1)(0);
}

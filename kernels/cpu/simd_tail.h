// SPDX-License-Identifier: Apache-2.0
// simd: partial loads and stores and transposes by way of a small buffer, for the levels without
// lane masks, and all of vd's memory functions there. Included by simd_any.h and simd_avx2.h only.

PL_INLINE vf vf_get_n(const void *p, int64_t i, int64_t n, pl_dtype dt, float fill) {
    size_t size = dt == PL_F32 ? 4 : 2;
    char raw[VF * 4] = {0};
    memcpy(raw, (const char *)p + (size_t)i * size, (size_t)n * size);
    float t[VF];
    vf_store(t, vf_get(raw, 0, dt));
    for (int64_t l = n; l < VF; l++) t[l] = fill;
    return vf_load(t);
}

PL_INLINE void vf_put_n(void *p, int64_t i, int64_t n, pl_dtype dt, vf v) {
    size_t size = dt == PL_F32 ? 4 : 2;
    char raw[VF * 4];
    vf_put(raw, 0, dt, v);
    memcpy((char *)p + (size_t)i * size, raw, (size_t)n * size);
}

PL_INLINE vd vd_get(const void *p, int64_t i, pl_dtype dt) {
    (void)dt;
    return vd_load((const double *)p + i);
}
PL_INLINE vd vd_get_n(const void *p, int64_t i, int64_t n, pl_dtype dt, double fill) {
    (void)dt;
    double t[VD];
    for (int64_t l = 0; l < VD; l++) t[l] = l < n ? ((const double *)p)[i + l] : fill;
    return vd_load(t);
}
PL_INLINE void vd_put(void *p, int64_t i, pl_dtype dt, vd v) {
    (void)dt;
    vd_store((double *)p + i, v);
}
PL_INLINE void vd_put_n(void *p, int64_t i, int64_t n, pl_dtype dt, vd v) {
    (void)dt;
    double t[VD];
    vd_store(t, v);
    memcpy((double *)p + i, t, (size_t)n * sizeof(double));
}

PL_INLINE void vf_transpose(vf r[VF]) {
    float t[VF][VF], u[VF];
    for (int i = 0; i < VF; i++) vf_store(t[i], r[i]);
    for (int i = 0; i < VF; i++) {
        for (int j = 0; j < VF; j++) u[j] = t[j][i];
        r[i] = vf_load(u);
    }
}
PL_INLINE void vd_transpose(vd r[VD]) {
    double t[VD][VD], u[VD];
    for (int i = 0; i < VD; i++) vd_store(t[i], r[i]);
    for (int i = 0; i < VD; i++) {
        for (int j = 0; j < VD; j++) u[j] = t[j][i];
        r[i] = vd_load(u);
    }
}

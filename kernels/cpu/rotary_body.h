// SPDX-License-Identifier: Apache-2.0
// Rotary embedding, one head of one position at a time: the pairs (i, i + half) turned by the
// angles of that position. For float and for double (simd_real.h).

// Where a head lies: first elements in x and out, and its position's row of the tables.
typedef struct FN(rotary_place) {
    int64_t x, out, angle;
} FN(rotary_place);

// `lanes` numbers at a time; both of a pair are read before either is written: out may be x.
PL_INLINE void FN(rotary_head)(pl_dtype dt, const pl_rotary_job *job, FN(rotary_place) p,
                               int64_t lanes) {
    const R *cosine = job->cosine, *sine = job->sine;
    pl_dtype dr = sizeof(R) == 8 ? PL_F64 : PL_F32;
    int64_t half = job->half;
    VR sign = V(set1)((R)(job->back ? -1 : 1));
    for (int64_t d = 0; d < half; d += lanes) {
        int64_t n = half - d < lanes ? half - d : lanes;
        int64_t from = p.x + d * job->x_step, to = p.out + d * job->out_step;
        VR c = FN(get_part)(dr, cosine, p.angle + d, n);
        VR s = FN(get_part)(dr, sine, p.angle + d, n) * sign;
        VR low = FN(get_part)(dt, job->x, from, n);
        VR high = FN(get_part)(dt, job->x, from + half * job->x_step, n);
        VR turned = V(set1)(0) - high * s;
        FN(put_part)(dt, job->out, to, n, V(fma)(low, c, turned));
        FN(put_part)(dt, job->out, to + half * job->out_step, n, V(fma)(low, s, high * c));
    }
}

PL_INLINE void FN(rotary_heads)(pl_dtype dt, const pl_rotary_job *job, int64_t begin, int64_t end) {
    int64_t lanes = job->x_step == 1 && job->out_step == 1 ? VN : 1;
    int64_t at[3] = {begin / job->size[2] / job->size[1], begin / job->size[2] % job->size[1],
                     begin % job->size[2]};
    for (int64_t i = begin; i < end; i++) {
        FN(rotary_place) p = {0, 0, job->first * job->half};
        for (int d = 0; d < 3; d++) {
            p.x += at[d] * job->x_strides[d];
            p.out += at[d] * job->out_strides[d];
            p.angle += at[d] * job->angle_strides[d];
        }
        FN(rotary_head)(dt, job, p, lanes);
        for (int d = 2; d >= 0 && ++at[d] == job->size[d]; d--) at[d] = 0;
    }
}

static void FN(rotary)(int64_t begin, int64_t end, void *ctx) {
    const pl_rotary_job *job = ctx;
    PL_EACH_DTYPE(job->dt, FN(rotary_heads), job, begin, end);
}

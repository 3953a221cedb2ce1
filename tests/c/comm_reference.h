// SPDX-License-Identifier: Apache-2.0
// comm_reference: what a reduction over ranks must give, bit for bit: the tree of
// Note [the tree] (comm/reduce.h) written as plain recursion over scalars. Inputs are a function
// of (rank, index), so that every rank can work out what the others hold.
#ifndef PL_TEST_COMM_REFERENCE_H
#define PL_TEST_COMM_REFERENCE_H

#include <math.h>

#include "comm/comm.h"

typedef union scalar {
    float f;
    double d;
    int64_t i;
} scalar;

static inline uint64_t ref_mix(uint64_t x) {
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

// Values of both signs over some orders of magnitude, so that the order of a sum shows.
static inline scalar ref_input(pl_dtype dt, int rank, int64_t i) {
    uint64_t h = ref_mix((uint64_t)i * 1000003 + (uint64_t)rank * 7919 + 12345);
    double x = ((double)(h >> 11) / 9007199254740992.0 - 0.5) * (double)(1 << (h % 8));
    scalar s = {.i = 0};
    switch (dt) {
        case PL_F64:
            s.d = x;
            break;
        case PL_F32:
            s.f = (float)x;
            break;
        case PL_BF16:
            s.f = pl_bf16_to_f32(pl_f32_to_bf16((float)x));
            break;
        case PL_F16:
            s.f = pl_f16_to_f32(pl_f32_to_f16((float)x));
            break;
        case PL_BOOL:
            s.i = (int64_t)(h & 1);
            break;
        case PL_U8:
            s.i = (int64_t)(h & 255);
            break;
        case PL_I32:
            s.i = (int32_t)(uint32_t)h;
            break;
        default:
            s.i = (int64_t)h;
            break;
    }
    return s;
}

static inline void ref_store(pl_dtype dt, void *buf, int64_t i, scalar s) {
    switch (dt) {
        case PL_F64:
            ((double *)buf)[i] = s.d;
            break;
        case PL_F32:
            ((float *)buf)[i] = s.f;
            break;
        case PL_BF16:
            ((pl_bf16 *)buf)[i] = pl_f32_to_bf16(s.f);
            break;
        case PL_F16:
            ((pl_f16 *)buf)[i] = pl_f32_to_f16(s.f);
            break;
        case PL_I64:
            ((int64_t *)buf)[i] = s.i;
            break;
        case PL_I32:
            ((int32_t *)buf)[i] = (int32_t)s.i;
            break;
        default:
            ((uint8_t *)buf)[i] = (uint8_t)s.i;
            break;
    }
}

static inline void ref_fill(pl_dtype dt, void *buf, int rank, int64_t at, int64_t n) {
    for (int64_t i = 0; i < n; i++) ref_store(dt, buf, i, ref_input(dt, rank, at + i));
}

static inline scalar ref_combine(pl_dtype dt, pl_redop op, scalar a, scalar b) {
    bool sum = op == PL_RED_SUM || op == PL_RED_MEAN, max = op == PL_RED_MAX;
    scalar r = a;
    if (dt == PL_F64) {
        r.d = sum ? a.d + b.d : isnan(a.d) || (max ? a.d > b.d : a.d < b.d) ? a.d : b.d;
    } else if (pl_dtype_is_float(dt)) {
        r.f = sum ? a.f + b.f : isnan(a.f) || (max ? a.f > b.f : a.f < b.f) ? a.f : b.f;
    } else if (dt == PL_BOOL) {
        r.i = sum || max ? a.i | b.i : a.i & b.i;
    } else if (sum) {
        r.i = (int64_t)((uint64_t)a.i + (uint64_t)b.i);
        if (dt == PL_I32) r.i = (int32_t)(uint32_t)r.i;
        if (dt == PL_U8) r.i &= 255;
    } else {
        r.i = (max ? a.i > b.i : a.i < b.i) ? a.i : b.i;
    }
    return r;
}

// Over ranks [lo, hi): split at the largest power of two below their number.
static inline scalar ref_tree(pl_dtype dt, pl_redop op, int lo, int hi, int64_t i) {
    if (hi - lo == 1) return ref_input(dt, lo, i);
    int half = 1;
    while (half * 2 < hi - lo) half *= 2;
    return ref_combine(dt, op, ref_tree(dt, op, lo, lo + half, i),
                       ref_tree(dt, op, lo + half, hi, i));
}

// Elements [at, at + n) of the result, in dt.
static inline void ref_result(pl_dtype dt, pl_redop op, int world, int64_t at, int64_t n,
                              void *buf) {
    for (int64_t i = 0; i < n; i++) {
        scalar s = ref_tree(dt, op, 0, world, at + i);
        if (op == PL_RED_MEAN && dt == PL_F64) s.d /= world;
        if (op == PL_RED_MEAN && dt != PL_F64) s.f /= (float)world;
        ref_store(dt, buf, i, s);
    }
}

#endif

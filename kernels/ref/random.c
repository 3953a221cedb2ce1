// SPDX-License-Identifier: Apache-2.0
// The definition of the random streams; every device must give these values. Element i depends on
// (seed, offset, i) alone, never on the number of threads. Block b is pl_philox(seed, b, 0), four
// 32-bit words.
//
// Note [random streams]
//   uniform   w = word i % 4 of block offset + i / 4; u = (w >> 8) * 2^-24, in [0, 1).
//             f64: two words, words 2(i % 2) and 2(i % 2) + 1 of block offset + i / 2, give
//             u = ((w0 << 32 | w1) >> 11) * 2^-53.
//             The value is lo + u * (hi - lo) in double, rounded to the dtype (bf16 and f16 by way
//             of f32). One that rounding brought to hi or above is the largest below hi instead.
//   normal    elements 2j and 2j + 1 are a pair (Box-Muller): r cos(2 pi u2), r sin(2 pi u2) with
//             r = sqrt(-2 ln u1), in double (normal.h), then mean + std * z, rounded as above.
//             Words 2(j % 2) and the next, of block offset + j / 2: u1 = (w0 + 1) * 2^-32, u2 = w1
//             * 2^-32. f64: block offset + j: u1 = ((w0 << 32 | w1) >> 11) + 1) * 2^-53, u2 from
//             w2, w3 without the + 1. u1 is in (0, 1], so no logarithm of zero.
//   randint   lo + floor(w * n / 2^32), n = hi - lo, w the uniform's word. n <= 2^32; a value's
//             probability is off by less than 2^-32, so relatively by n * 2^-32 at most.
//             i64: the uniform f64's two words: lo + floor(w64 * n / 2^64), off by < 2^-64.
//   dropout   kept when the uniform's u (one word per element, whatever the dtype) is >= p.

#include "normal.h"
#include "ref/ref.h"

uint64_t pl_random_blocks(pl_dtype dt, int64_t n, bool normal) {
    (void)normal;  // a pair of normals draws as many words as two uniforms
    uint64_t count = (uint64_t)n;
    return pl_dtype_size(dt) == 8 ? (count + 1) / 2 : (count + 3) / 4;
}

static uint32_t word(uint64_t seed, uint64_t offset, uint64_t i) {
    uint32_t w[4];
    pl_philox(seed, offset + i / 4, 0, w);
    return w[i % 4];
}

static uint64_t word64(uint64_t seed, uint64_t offset, uint64_t i) {
    uint32_t w[4];
    pl_philox(seed, offset + i / 2, 0, w);
    return (uint64_t)w[i % 2 * 2] << 32 | w[i % 2 * 2 + 1];
}

static double unit(uint64_t seed, uint64_t offset, uint64_t i) {
    return (double)(word(seed, offset, i) >> 8) * 0x1p-24;
}

bool pl_ref_keep(uint64_t seed, uint64_t offset, uint64_t element, double p) {
    return unit(seed, offset, element) >= p;
}

// The value of element 0 of t, one step of its floating dtype further down.
static void step_down(pl_tensor *t, int64_t i) {
    double v = ref_get(t, i);
    if (t->dtype == PL_F64) {
        ref_set(t, i, nextafter(v, -INFINITY));
    } else if (t->dtype == PL_F32) {
        ref_set(t, i, (double)nextafterf((float)v, -INFINITY));
    } else if (v == 0.0) {
        ((uint16_t *)t->data)[i] = 0x8001;
    } else {
        ((uint16_t *)t->data)[i] += v > 0.0 ? -1 : 1;
    }
}

pl_status pl_ref_uniform(pl_tensor *out, double lo, double hi, uint64_t seed, uint64_t offset) {
    for (int64_t i = 0; i < out->numel; i++) {
        double u = out->dtype == PL_F64
                       ? (double)(word64(seed, offset, (uint64_t)i) >> 11) * 0x1p-53
                       : unit(seed, offset, (uint64_t)i);
        ref_set(out, i, lo + u * (hi - lo));
        if (ref_get(out, i) >= hi && hi > lo) {
            ref_set(out, i, hi);
            if (ref_get(out, i) >= hi) step_down(out, i);
        }
    }
    return PL_OK;
}

static double normal_element(pl_dtype dt, uint64_t seed, uint64_t offset, uint64_t i) {
    uint64_t pair = i / 2;
    double u1, u2;
    if (dt == PL_F64) {
        u1 = ((double)(word64(seed, offset, 2 * pair) >> 11) + 1.0) * 0x1p-53;
        u2 = (double)(word64(seed, offset, 2 * pair + 1) >> 11) * 0x1p-53;
    } else {
        u1 = ((double)word(seed, offset, 2 * pair) + 1.0) * 0x1p-32;
        u2 = (double)word(seed, offset, 2 * pair + 1) * 0x1p-32;
    }
    double z[2];
    pl_normal_pair(u1, u2, &z[0], &z[1]);
    return z[i % 2];
}

pl_status pl_ref_normal(pl_tensor *out, double mean, double std, uint64_t seed, uint64_t offset) {
    for (int64_t i = 0; i < out->numel; i++) {
        ref_set(out, i, mean + std * normal_element(out->dtype, seed, offset, (uint64_t)i));
    }
    return PL_OK;
}

pl_status pl_ref_randint(pl_tensor *out, int64_t lo, int64_t hi, uint64_t seed, uint64_t offset) {
    uint64_t n = (uint64_t)hi - (uint64_t)lo;
    for (int64_t i = 0; i < out->numel; i++) {
        uint64_t draw;
        if (pl_dtype_size(out->dtype) == 8) {
            draw = (uint64_t)((unsigned __int128)word64(seed, offset, (uint64_t)i) * n >> 64);
        } else {
            draw = (word(seed, offset, (uint64_t)i) * n) >> 32;
        }
        ref_set_int(out, i, (int64_t)((uint64_t)lo + draw));
    }
    return PL_OK;
}

pl_status pl_ref_dropout(const pl_tensor *x, double p, uint64_t seed, uint64_t offset,
                         pl_tensor *out) {
    for (int64_t i = 0; i < x->numel; i++) {
        ref_set(out, i,
                pl_ref_keep(seed, offset, (uint64_t)i, p) ? ref_get(x, i) / (1.0 - p) : 0.0);
    }
    return PL_OK;
}

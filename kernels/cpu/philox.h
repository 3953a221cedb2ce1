// SPDX-License-Identifier: Apache-2.0
// philox: pl_philox (base/random.c) for several blocks at a time, the same bits. Included after
// simd.h; PHILOX_LANES blocks at once.
#ifndef PL_KERNELS_CPU_PHILOX_H
#define PL_KERNELS_CPU_PHILOX_H

#define PHILOX_M0 0xD2511F53u
#define PHILOX_M1 0xCD9E8D57u
#define PHILOX_W0 0x9E3779B9u
#define PHILOX_W1 0xBB67AE85u

#if PL_SIMD_LEVEL == 3
#define PHILOX_LANES 16

// Both halves of 16 products of 32 bits each: even lanes, then odd ones, then put together.
PL_INLINE void philox_product(__m512i x, __m512i m, __m512i *high, __m512i *low) {
    __m512i even = _mm512_mul_epu32(x, m);
    __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), m);
    *high = _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
    *low = _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
}

PL_INLINE void philox_rounds(uint64_t seed, __m512i c[4]) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    __m512i m0 = _mm512_set1_epi32((int)PHILOX_M0), m1 = _mm512_set1_epi32((int)PHILOX_M1);
    for (int round = 0; round < 10; round++) {
        __m512i h0, l0, h1, l1;
        philox_product(c[0], m0, &h0, &l0);
        philox_product(c[2], m1, &h1, &l1);
        c[0] = _mm512_ternarylogic_epi32(h1, c[1], _mm512_set1_epi32((int)k0), 0x96);  // xor
        c[1] = l1;
        c[2] = _mm512_ternarylogic_epi32(h0, c[3], _mm512_set1_epi32((int)k1), 0x96);
        c[3] = l0;
        k0 += PHILOX_W0;
        k1 += PHILOX_W1;
    }
}

// The counters of lanes 0-7 and of lanes 8-15.
PL_INLINE void philox_start(__m512i a, __m512i b, __m512i c[4]) {
    c[0] = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi64_epi32(a)),
                              _mm512_cvtepi64_epi32(b), 1);
    a = _mm512_srli_epi64(a, 32);
    b = _mm512_srli_epi64(b, 32);
    c[1] = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi64_epi32(a)),
                              _mm512_cvtepi64_epi32(b), 1);
    c[2] = c[3] = _mm512_setzero_si512();
}

// words[w][l]: word w of block first + l * step.
PL_INLINE void philox_strided(uint64_t seed, uint64_t first, uint64_t step,
                              uint32_t words[4][PHILOX_LANES]) {
    __m512i c[4], lane = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
    __m512i a = _mm512_mullo_epi64(lane, _mm512_set1_epi64((int64_t)step));
    a = _mm512_add_epi64(a, _mm512_set1_epi64((int64_t)first));
    philox_start(a, _mm512_add_epi64(a, _mm512_set1_epi64((int64_t)(8 * step))), c);
    philox_rounds(seed, c);
    for (int w = 0; w < 4; w++) _mm512_storeu_si512(words[w], c[w]);
}

// The 64 words of blocks first .. first + 15 in order. Lane 4q + r computes block 4r + q, so that a
// transpose inside each 128-bit quarter brings them into order.
PL_INLINE void philox_run(uint64_t seed, uint64_t first, uint32_t words[4 * PHILOX_LANES]) {
    __m512i c[4], base = _mm512_set1_epi64((int64_t)first);
    philox_start(_mm512_add_epi64(base, _mm512_setr_epi64(0, 4, 8, 12, 1, 5, 9, 13)),
                 _mm512_add_epi64(base, _mm512_setr_epi64(2, 6, 10, 14, 3, 7, 11, 15)), c);
    philox_rounds(seed, c);
    __m512i a = _mm512_unpacklo_epi32(c[0], c[1]), b = _mm512_unpackhi_epi32(c[0], c[1]);
    __m512i d = _mm512_unpacklo_epi32(c[2], c[3]), e = _mm512_unpackhi_epi32(c[2], c[3]);
    _mm512_storeu_si512(words, _mm512_unpacklo_epi64(a, d));
    _mm512_storeu_si512(words + 16, _mm512_unpackhi_epi64(a, d));
    _mm512_storeu_si512(words + 32, _mm512_unpacklo_epi64(b, e));
    _mm512_storeu_si512(words + 48, _mm512_unpackhi_epi64(b, e));
}

#else
#define PHILOX_LANES 8

PL_INLINE void philox_strided(uint64_t seed, uint64_t first, uint64_t step,
                              uint32_t words[4][PHILOX_LANES]) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (uint64_t l = 0; l < PHILOX_LANES; l++) {
        words[0][l] = (uint32_t)(first + l * step);
        words[1][l] = (uint32_t)((first + l * step) >> 32);
        words[2][l] = words[3][l] = 0;
    }
    for (int round = 0; round < 10; round++) {
        for (int l = 0; l < PHILOX_LANES; l++) {
            uint64_t p0 = (uint64_t)PHILOX_M0 * words[0][l];
            uint64_t p1 = (uint64_t)PHILOX_M1 * words[2][l];
            words[0][l] = (uint32_t)(p1 >> 32) ^ words[1][l] ^ k0;
            words[1][l] = (uint32_t)p1;
            words[2][l] = (uint32_t)(p0 >> 32) ^ words[3][l] ^ k1;
            words[3][l] = (uint32_t)p0;
        }
        k0 += PHILOX_W0;
        k1 += PHILOX_W1;
    }
}

PL_INLINE void philox_run(uint64_t seed, uint64_t first, uint32_t words[4 * PHILOX_LANES]) {
    uint32_t w[4][PHILOX_LANES];
    philox_strided(seed, first, 1, w);
    for (int l = 0; l < PHILOX_LANES; l++) {
        for (int i = 0; i < 4; i++) words[4 * l + i] = w[i][l];
    }
}
#endif

// u = (word >> 8) * 2^-24 >= p as integers: word >> 8 >= threshold.
PL_INLINE uint32_t philox_threshold(double p) {
    double t = ceil(p * 0x1p24);
    return t <= 0 ? 0 : t >= 0x1p24 ? 1u << 24 : (uint32_t)t;
}

#endif

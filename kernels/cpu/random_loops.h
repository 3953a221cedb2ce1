// SPDX-License-Identifier: Apache-2.0
// The loops of random.c; included by each_isa.h only. Philox for several blocks side by side: the
// same words as pl_philox (base/random.c), which the tests compare.

#if ISA_LEVEL == 2
#define V __m512i
#define MM(op) _mm512_##op
#define STORE(p, v) _mm512_storeu_si512(p, v)
#define XOR(a, b) _mm512_xor_si512(a, b)
#define OR(a, b) _mm512_or_si512(a, b)
#define SET1(x) _mm512_set1_epi64((int64_t)(x))
#define AND(a, b) _mm512_and_si512(a, b)
#define LANES 8
#elif ISA_LEVEL == 1
#define V __m256i
#define MM(op) _mm256_##op
#define STORE(p, v) _mm256_storeu_si256((__m256i *)(void *)(p), v)
#define XOR(a, b) _mm256_xor_si256(a, b)
#define OR(a, b) _mm256_or_si256(a, b)
#define SET1(x) _mm256_set1_epi64x((int64_t)(x))
#define AND(a, b) _mm256_and_si256(a, b)
#define LANES 4
#endif

#if ISA_LEVEL > 0
// A word in the lower half of each 64-bit lane, whatever in the upper one: products and the last
// step look at the lower half only. Even lanes hold the first half of the blocks, odd lanes the
// second, so that the last unpacking brings them into order.
ISA_TARGET static inline void ISA(philox_lanes)(uint64_t seed, uint64_t offset, uint32_t *out) {
    uint64_t block[LANES];
    for (int l = 0; l < LANES; l++) {
        block[l] = offset + (uint64_t)(l / 2 + (l % 2) * (LANES / 2));
    }
    V c0, c1, c2 = SET1(0), c3 = c2, low = SET1(0xffffffff);
    memcpy(&c0, block, sizeof(c0));
    c1 = MM(srli_epi64)(c0, 32);
    V m0 = SET1(PHILOX_M0), m1 = SET1(PHILOX_M1);
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int round = 0; round < 10; round++, k0 += PHILOX_W0, k1 += PHILOX_W1) {
        V p0 = MM(mul_epu32)(c0, m0), p1 = MM(mul_epu32)(c2, m1);
        c0 = XOR(XOR(MM(srli_epi64)(p1, 32), c1), SET1(k0));
        c2 = XOR(XOR(MM(srli_epi64)(p0, 32), c3), SET1(k1));
        c1 = p1;
        c3 = p0;
    }
    c0 = AND(c0, low);
    c2 = AND(c2, low);
    V first = OR(c0, MM(slli_epi64)(c1, 32)), second = OR(c2, MM(slli_epi64)(c3, 32));
    STORE(out, MM(unpacklo_epi64)(first, second));
    STORE(out + 2 * LANES, MM(unpackhi_epi64)(first, second));
}

// The 64 words of blocks offset .. offset + 15, in order.
ISA_TARGET static void ISA(philox16)(uint64_t seed, uint64_t offset, uint32_t *out) {
    for (uint64_t b = 0; b < 16; b += LANES) ISA(philox_lanes)(seed, offset + b, out + 4 * b);
}
#undef V
#undef MM
#undef STORE
#undef XOR
#undef OR
#undef AND
#undef SET1
#undef LANES
#else
static void ISA(philox16)(uint64_t seed, uint64_t offset, uint32_t *out) {
    for (uint64_t b = 0; b < 16; b++) pl_philox(seed, offset + b, 0, out + 4 * b);
}
#endif

ISA_TARGET static void ISA(uniform_words)(int64_t n, const uint32_t *restrict w, double lo,
                                          double width, double *restrict out) {
    for (int64_t i = 0; i < n; i++) {
        out[i] = lo + (double)(int32_t)(w[i] >> 8) * 0x1p-24 * width;
    }
}

ISA_TARGET static void ISA(normals)(int64_t pairs, const double *restrict u1,
                                    const double *restrict u2, double mean, double std,
                                    double *restrict out) {
    for (int64_t k = 0; k < pairs; k++) {
        double z0, z1;
        pl_normal_pair(u1[k], u2[k], &z0, &z1);
        out[2 * k] = mean + std * z0;
        out[2 * k + 1] = mean + std * z1;
    }
}

static const random_loops ISA(loops) = {ISA(philox16), ISA(uniform_words), ISA(normals)};

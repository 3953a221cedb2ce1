// SPDX-License-Identifier: Apache-2.0
// The loops of random.c; included by each_isa.h only. Philox for 16 blocks side by side: the same
// words as pl_philox (base/random.c), which the tests compare.

// The 64 words of blocks offset .. offset + 15, in order.
ISA_TARGET static void ISA(philox16)(uint64_t seed, uint64_t offset, uint32_t *restrict out) {
    uint32_t c0[16], c1[16], c2[16], c3[16];
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int l = 0; l < 16; l++) {
        uint64_t block = offset + (uint64_t)l;
        c0[l] = (uint32_t)block;
        c1[l] = (uint32_t)(block >> 32);
        c2[l] = 0;
        c3[l] = 0;
    }
    for (int round = 0; round < 10; round++) {
        for (int l = 0; l < 16; l++) {
            uint64_t p0 = (uint64_t)PHILOX_M0 * c0[l], p1 = (uint64_t)PHILOX_M1 * c2[l];
            c0[l] = (uint32_t)(p1 >> 32) ^ c1[l] ^ k0;
            c1[l] = (uint32_t)p1;
            c2[l] = (uint32_t)(p0 >> 32) ^ c3[l] ^ k1;
            c3[l] = (uint32_t)p0;
        }
        k0 += PHILOX_W0;
        k1 += PHILOX_W1;
    }
    for (int l = 0; l < 16; l++) {
        out[4 * l] = c0[l];
        out[4 * l + 1] = c1[l];
        out[4 * l + 2] = c2[l];
        out[4 * l + 3] = c3[l];
    }
}

ISA_TARGET static void ISA(uniform_words)(int64_t n, const uint32_t *restrict w, double lo,
                                          double width, double *restrict out) {
    for (int64_t i = 0; i < n; i++) {
        out[i] = lo + (double)(int32_t)(w[i] >> 8) * 0x1p-24 * width;
    }
}

static const random_loops ISA(loops) = {ISA(philox16), ISA(uniform_words)};

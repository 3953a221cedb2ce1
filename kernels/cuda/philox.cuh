// SPDX-License-Identifier: Apache-2.0
// philox: pl_philox (base/random.c, which the tests compare) on the device: the same words.
#ifndef PL_CUDA_PHILOX_CUH
#define PL_CUDA_PHILOX_CUH

#include "cuda/device.cuh"

// The four words of block `block` of the stream `seed`, subsequence 0.
static PL_DEVICE void pl_philox_block(uint64_t seed, uint64_t block, uint32_t out[4]) {
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    uint32_t c0 = (uint32_t)block, c1 = (uint32_t)(block >> 32), c2 = 0, c3 = 0;
    PL_UNROLL
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)p1;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

// Kept when (word >> 8) * 2^-24 >= p, as integers: word >> 8 >= threshold.
static inline uint32_t pl_keep_threshold(double p) {
    double t = ceil(p * 16777216.0);
    return t <= 0 ? 0 : t >= 16777216.0 ? 1u << 24 : (uint32_t)t;
}

// Whether dropout keeps element i of a stream.
static PL_DEVICE bool pl_keep(uint64_t seed, uint64_t offset, uint64_t i, uint32_t threshold) {
    uint32_t w[4];
    pl_philox_block(seed, offset + i / 4, w);
    uint32_t low = i & 1 ? w[1] : w[0], high = i & 1 ? w[3] : w[2];  // no indexed registers
    return (i & 2 ? high : low) >> 8 >= threshold;
}

#endif

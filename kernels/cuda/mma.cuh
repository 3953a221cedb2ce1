// SPDX-License-Identifier: Apache-2.0
// mma: a warp's matrix product on tensor cores, and its fragments in shared memory. One
// instruction, mma.m16n8k16 with bf16 or f16 inputs (T) and fp32 sums (sm_80 and later); on the
// host the same fragments are put together and multiplied (PTX ISA, "Matrix fragments for
// mma.m16n8k16"). With g = lane / 4 and t = lane % 4 a lane holds: of A (16 x 16) rows g and g + 8,
// columns 2t, 2t+1, 2t+8, 2t+9; of B (16 x 8) column g, rows 2t, 2t+1, 2t+8, 2t+9; of C (16 x 8)
// rows g, g + 8, columns 2t, 2t+1.
#ifndef PL_CUDA_MMA_CUH
#define PL_CUDA_MMA_CUH

#include "cuda/device.cuh"

// As an input of a product: T's bits.
template <typename T>
static PL_DEVICE T pl_rounded(float x) {
    T rounded;
    pl_put(&rounded, x);
    return rounded;
}
template <typename T>
static PL_DEVICE uint32_t pl_pair(T low, T high) {
    return (uint32_t)high.bits << 16 | low.bits;
}

// c += a b
template <typename T>
static PL_DEVICE void pl_mma(float c[4], const uint32_t a[4], const uint32_t b[2]);
#ifdef __CUDACC__
#define PL_MMA(T, name)                                                                     \
    template <>                                                                             \
    PL_DEVICE void pl_mma<T>(float c[4], const uint32_t a[4], const uint32_t b[2]) {        \
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." name "." name                 \
                     ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                       \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));   \
    }
PL_MMA(bf16, "bf16")
PL_MMA(f16, "f16")
#undef PL_MMA
#else
template <typename T>
static inline float pl_half_of(uint32_t word, int high) {
    return pl_get(T{(uint16_t)(high ? word >> 16 : word)});
}

template <typename T>
static inline void pl_mma(float c[4], const uint32_t a[4], const uint32_t b[2]) {
    uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    const simt_values *all = simt_exchange(SIMT_SITE("mma"), 0xffffffffu, mine, sizeof(mine));
    int g = (int)simt_lane() / 4, t = (int)simt_lane() % 4;
    for (int e = 0; e < 4; e++) {
        int row = g + e / 2 * 8, column = 2 * t + e % 2;
        for (int k = 0; k < 16; k++) {
            int owner = k % 8 / 2, word = k / 8 * 2 + row / 8;
            uint32_t from_a[6], from_b[6];
            memcpy(from_a, (*all)[row % 8 * 4 + owner], sizeof(from_a));
            memcpy(from_b, (*all)[column * 4 + owner], sizeof(from_b));
            c[e] += pl_half_of<T>(from_a[word], k % 2) * pl_half_of<T>(from_b[4 + k / 8], k % 2);
        }
    }
}
#endif

// Four 8 x 8 matrices from shared memory, 16-byte rows: lane l gives the address of row l % 8 of
// matrix l / 8. A lane gets of each matrix columns 2t, 2t+1 of row g; turned: rows 2t, 2t+1 of
// column g.
template <bool TURNED, typename T>
static PL_DEVICE void pl_matrices(uint32_t out[4], const T *row) {
#ifdef __CUDACC__
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    if (TURNED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                     : "r"(at));
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                     : "r"(at));
    }
#else
    const T *mine = simt_aligned(SIMT_SITE("ldmatrix"), row, 16);
    const simt_values *all = simt_exchange(SIMT_SITE("ldmatrix"), 0xffffffffu, &mine, sizeof(mine));
    int g = (int)simt_lane() / 4, t = (int)simt_lane() % 4;
    for (int i = 0; i < 4; i++) {
        T two[2];
        for (int e = 0; e < 2; e++) {
            const T *from;
            memcpy(&from, (*all)[i * 8 + (TURNED ? 2 * t + e : g)], sizeof(from));
            two[e] = from[TURNED ? g : 2 * t + e];
        }
        out[i] = pl_pair(two[0], two[1]);
    }
#endif
}

// Where this lane's row begins, for the fragments below: of a tile with rows of `stride` elements,
// a multiple of 8. A fragment lies a constant further.
template <typename T>
static PL_DEVICE const T *pl_lane_of_a(const T *tile, int stride) {  // also of B as it lies
    int lane = (int)(threadIdx.x % PL_LANES);
    return tile + lane % 16 * stride + lane / 16 * 8;
}
template <typename T>
static PL_DEVICE const T *pl_lane_of_rows(const T *tile, int stride) {
    int lane = (int)(threadIdx.x % PL_LANES);
    return tile + (lane / 16 * 8 + lane % 8) * stride + lane / 8 % 2 * 8;
}

// A: 16 x 16 of a tile.
template <typename T>
static PL_DEVICE void pl_frag_a(uint32_t a[4], const T *lane) {
    pl_matrices<false>(a, lane);
}
// Two B side by side, the transposes of 16 rows of a tile: B[k][n] = tile[n][k].
template <typename T>
static PL_DEVICE void pl_frag_b_rows(uint32_t b[2][2], const T *lane) {
    pl_matrices<false>(b[0], lane);
}
// Two B side by side, 16 rows of a tile as they lie: B[k][n] = tile[k][n].
template <typename T>
static PL_DEVICE void pl_frag_b(uint32_t b[2][2], const T *lane) {
    pl_matrices<true>(b[0], lane);
}

// Two neighbouring 16 x 8 results, rounded, as the 16 x 16 A of the next product.
template <typename T>
static PL_DEVICE void pl_frag_of_results(uint32_t a[4], const float left[4], const float right[4]) {
    const float *sides[2] = {left, right};
    PL_UNROLL
    for (int i = 0; i < 4; i++) {
        const float *two = sides[i / 2] + i % 2 * 2;
        a[i] = pl_pair(pl_rounded<T>(two[0]), pl_rounded<T>(two[1]));
    }
}

#endif

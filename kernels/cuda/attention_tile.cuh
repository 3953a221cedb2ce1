// SPDX-License-Identifier: Apache-2.0
// attention_tile: tiles of a head in shared memory and their products on tensor cores. A block of
// four warps; a warp has 16 rows of a tile of 64. Rows are padded by 8 elements, so that the
// fragments' accesses fall into different banks; what lies past the tensor is 0.
#ifndef PL_CUDA_ATTENTION_TILE_CUH
#define PL_CUDA_ATTENTION_TILE_CUH

#include "cuda/attention.cuh"
#include "cuda/mma.cuh"

enum { PL_TILE = 64, PL_TILE_BLOCK = 128, PL_TILE_PAD = 8 };

struct pl_tile_place {
    int64_t b, h, first;  // first: row of the tile
    int warp;
};
static PL_DEVICE pl_tile_place pl_tile_of(const pl_attention_job &job, int64_t block,
                                          int64_t rows) {
    int64_t tiles = (rows + PL_TILE - 1) / PL_TILE, head = block / tiles;
    return {head / job.heads, head % job.heads, block % tiles * PL_TILE,
            (int)(threadIdx.x / PL_LANES)};
}
// The row of this lane's results: half 0 or 1.
static PL_DEVICE int64_t pl_tile_row(const pl_tile_place &p, int half) {
    return p.first + p.warp * 16 + (int)(threadIdx.x % PL_LANES) / 4 + half * 8;
}

static inline pl_status pl_tile_blocks(const pl_attention_job *job, int64_t rows, unsigned *out) {
    int64_t blocks = (rows + PL_TILE - 1) / PL_TILE * job->batch * job->heads;
    if (blocks > 0x7fffffff) {
        return pl_fail(PL_ENOSUP, "[attention] too many tiles for one call: got %lld",
                       (long long)blocks);
    }
    *out = (unsigned)blocks;
    return PL_OK;
}

// `count` rows of a head from row `first`, D columns of which `width` exist.
template <int D>
static PL_DEVICE void pl_tile_load(bf16 *tile, int count, const pl_heads &t, const pl_tile_place &p,
                                   int64_t first, int64_t rows, int64_t width) {
    enum { P = 8 };
    const bf16 *base = pl_row<bf16>(t, p.b, p.h, 0);
    bool packed = t.column == 1 && width % P == 0 && t.row % P == 0 && (uintptr_t)base % 16 == 0;
    for (int i = (int)threadIdx.x; i < count * (D / P); i += PL_TILE_BLOCK) {
        int row = i / (D / P), column = i % (D / P) * P;
        const bf16 *from = base + (first + row) * t.row + column * t.column;
        pl_pack<bf16, P> pack = {};
        if (first + row < rows) {
            if (packed && column < width) {
                pack = pl_load<P>(from);
            } else {
                for (int c = 0; c < P; c++) {
                    if (column + c < width) pack.v[c] = from[c * t.column];
                }
            }
        }
        pl_store(tile + row * (D + PL_TILE_PAD) + column, pack);
    }
}

// s (16 x N) = A (16 x D) times the transpose of a tile of N rows.
template <int D, int N>
static PL_DEVICE void pl_tile_product_rows(float (*s)[4], const uint32_t (*a)[4],
                                           const bf16 *tile) {
    PL_UNROLL
    for (int n = 0; n < N / 8; n++) {
        PL_UNROLL
        for (int k = 0; k < D / 16; k++) {
            uint32_t b[2];
            pl_frag_b_rows(b, tile, D + PL_TILE_PAD, n * 8, k * 16);
            pl_mma(s[n], a[k], b);
        }
    }
}

// The same with A in shared memory too, from its row `row`.
template <int D, int N>
static PL_DEVICE void pl_tile_product_tiles(float (*s)[4], const bf16 *a_tile, int row,
                                            const bf16 *tile) {
    PL_UNROLL
    for (int k = 0; k < D / 16; k++) {
        uint32_t a[4], b[2];
        pl_frag_a(a, a_tile, D + PL_TILE_PAD, row, k * 16);
        PL_UNROLL
        for (int n = 0; n < N / 8; n++) {
            pl_frag_b_rows(b, tile, D + PL_TILE_PAD, n * 8, k * 16);
            pl_mma(s[n], a, b);
        }
    }
}

// out (16 x D) += w (16 x N, rounded) times a tile of N rows.
template <int D, int N>
static PL_DEVICE void pl_tile_add_product(float (*out)[4], const float (*w)[4], const bf16 *tile) {
    PL_UNROLL
    for (int k = 0; k < N / 16; k++) {
        uint32_t a[4];
        pl_frag_of_results(a, w[2 * k], w[2 * k + 1]);
        PL_UNROLL
        for (int n = 0; n < D / 8; n++) {
            uint32_t b[2];
            pl_frag_b(b, tile, D + PL_TILE_PAD, k * 16, n * 8);
            pl_mma(out[n], a, b);
        }
    }
}

// A warp's 16 x D results times a factor per row.
template <int D>
static PL_DEVICE void pl_tile_store(const pl_heads &to, const pl_tile_place &p, const float (*v)[4],
                                    const float factor[2], int64_t rows, int64_t width) {
    int t = (int)(threadIdx.x % PL_LANES) % 4;
    PL_UNROLL
    for (int n = 0; n < D / 8; n++) {
        PL_UNROLL
        for (int e = 0; e < 4; e++) {
            int64_t i = pl_tile_row(p, e / 2), d = n * 8 + 2 * t + e % 2;
            if (i < rows && d < width) {
                pl_put(&pl_row<bf16>(to, p.b, p.h, i)[d * to.column], v[n][e] * factor[e / 2]);
            }
        }
    }
}

// attention_grad.cu
pl_status pl_attention_tile_grad(const pl_attention_job *job, pl_cuda_queue *q);

#endif

// SPDX-License-Identifier: Apache-2.0
// attention_tile: tiles of a head in shared memory and their products on tensor cores. A block of
// four warps; a warp has 16 rows of a tile of 64. Rows are padded by 8 elements, so that the
// fragments' accesses fall into different banks; what lies past the tensor is 0. T: bf16 or f16.
//
// Note [what is not seen]: a hidden key has weight 0, and 0 times NaN or infinity would be NaN. A
// tile that is to be multiplied by weights is therefore looked over as it is loaded, and where it
// has such a value the product leaves out what has weight 0, one element after another, slowly.
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

static PL_DEVICE bool pl_is_finite(bf16 x) { return (x.bits & 0x7f80) != 0x7f80; }
static PL_DEVICE bool pl_is_finite(f16 x) { return (x.bits & 0x7c00) != 0x7c00; }

// `count` rows of a head from row `first`, D columns of which `width` exist. Whether this thread's
// part has NaN or infinity.
template <int D, typename T>
static PL_DEVICE bool pl_tile_load(T *tile, int count, const pl_heads &t, const pl_tile_place &p,
                                   int64_t first, int64_t rows, int64_t width) {
    enum { P = 8 };
    const T *base = pl_row<T>(t, p.b, p.h, 0);
    bool odd = false;
    bool packed = t.column == 1 && width % P == 0 && t.row % P == 0 && (uintptr_t)base % 16 == 0;
    for (int i = (int)threadIdx.x; i < count * (D / P); i += PL_TILE_BLOCK) {
        int row = i / (D / P), column = i % (D / P) * P;
        const T *from = base + (first + row) * t.row + column * t.column;
        pl_pack<T, P> pack = {};
        if (first + row < rows) {
            if (packed && column < width) {
                pack = pl_load<P>(from);
            } else {
                for (int c = 0; c < P; c++) {
                    if (column + c < width) pack.v[c] = from[c * t.column];
                }
            }
        }
        PL_UNROLL
        for (int c = 0; c < P; c++) odd = odd || !pl_is_finite(pack.v[c]);
        pl_store(tile + row * (D + PL_TILE_PAD) + column, pack);
    }
    return odd;
}

// s (16 x N) = A (16 x D) times the transpose of a tile of N rows.
template <int D, int N, typename T>
static PL_DEVICE void pl_tile_product_rows(float (*s)[4], const uint32_t (*a)[4], const T *tile) {
    PL_UNROLL
    for (int n = 0; n < N / 8; n++) {
        PL_UNROLL
        for (int k = 0; k < D / 16; k++) {
            uint32_t b[2];
            pl_frag_b_rows(b, tile, D + PL_TILE_PAD, n * 8, k * 16);
            pl_mma<T>(s[n], a[k], b);
        }
    }
}

// The same with A in shared memory too, from its row `row`.
template <int D, int N, typename T>
static PL_DEVICE void pl_tile_product_tiles(float (*s)[4], const T *a_tile, int row,
                                            const T *tile) {
    PL_UNROLL
    for (int k = 0; k < D / 16; k++) {
        uint32_t a[4], b[2];
        pl_frag_a(a, a_tile, D + PL_TILE_PAD, row, k * 16);
        PL_UNROLL
        for (int n = 0; n < N / 8; n++) {
            pl_frag_b_rows(b, tile, D + PL_TILE_PAD, n * 8, k * 16);
            pl_mma<T>(s[n], a, b);
        }
    }
}

// Note [what is not seen]: out (16 x D) += w times a tile, an element at a time. Registers cannot
// be indexed: eight columns of w at a time move to its front.
template <int D, int N, typename T>
static PL_DEVICE void pl_tile_add_seen(float (*out)[4], const float (*w)[4], const T *tile) {
    int lane = (int)(threadIdx.x % PL_LANES);
    float rest[N / 8][4];
    PL_UNROLL
    for (int i = 0; i < N / 2; i++) rest[i / 4][i % 4] = w[i / 4][i % 4];
    PL_NO_UNROLL
    for (int j = 0; j < N; j++) {
        int owner = lane / 4 * 4 + j % 8 / 2;
        float weight[2];
        PL_UNROLL
        for (int r = 0; r < 2; r++) {
            float mine = j % 2 ? rest[0][2 * r + 1] : rest[0][2 * r];
            weight[r] = __shfl_sync(PL_ALL_LANES, mine, owner);
        }
        const T *row = tile + j * (D + PL_TILE_PAD) + 2 * (lane % 4);
        PL_UNROLL
        for (int i = 0; i < D / 8 * 4; i++) {
            float by = weight[i % 4 / 2];
            if (by == 0) continue;
            out[i / 4][i % 4] += pl_get(pl_rounded<T>(by)) * pl_get(row[i / 4 * 8 + i % 2]);
        }
        if (j % 8 < 7) continue;
        PL_UNROLL
        for (int i = 4; i < N / 2; i++) rest[i / 4 - 1][i % 4] = rest[i / 4][i % 4];
    }
}

// out (16 x D) += w (16 x N, rounded) times a tile of N rows, some of which are odd.
template <int D, int N, typename T>
static PL_DEVICE void pl_tile_add_product(float (*out)[4], const float (*w)[4], const T *tile,
                                          bool odd) {
    if (odd) {
        pl_tile_add_seen<D, N>(out, w, tile);
        return;
    }
    PL_UNROLL
    for (int k = 0; k < N / 16; k++) {
        uint32_t a[4];
        pl_frag_of_results<T>(a, w[2 * k], w[2 * k + 1]);
        PL_UNROLL
        for (int n = 0; n < D / 8; n++) {
            uint32_t b[2];
            pl_frag_b(b, tile, D + PL_TILE_PAD, k * 16, n * 8);
            pl_mma<T>(out[n], a, b);
        }
    }
}

// A warp's 16 x D results times a factor per row.
template <typename T, int D>
static PL_DEVICE void pl_tile_store(const pl_heads &to, const pl_tile_place &p, const float (*v)[4],
                                    const float factor[2], int64_t rows, int64_t width) {
    int t = (int)(threadIdx.x % PL_LANES) % 4;
    PL_UNROLL
    for (int n = 0; n < D / 8; n++) {
        PL_UNROLL
        for (int e = 0; e < 4; e++) {
            int64_t i = pl_tile_row(p, e / 2), d = n * 8 + 2 * t + e % 2;
            if (i < rows && d < width) {
                pl_put(&pl_row<T>(to, p.b, p.h, i)[d * to.column], v[n][e] * factor[e / 2]);
            }
        }
    }
}

// Calls CALL(T, D) for the dtype and the number of columns that hold the job's.
#define PL_TILE_CASES(job, dt, CALL)                 \
    do {                                             \
        if ((dt) == PL_BF16 && (job)->width <= 64) { \
            CALL(bf16, 64);                          \
        } else if ((dt) == PL_BF16) {                \
            CALL(bf16, 128);                         \
        } else if ((job)->width <= 64) {             \
            CALL(f16, 64);                           \
        } else {                                     \
            CALL(f16, 128);                          \
        }                                            \
    } while (0)

// attention_grad.cu
pl_status pl_attention_tile_grad(const pl_attention_job *job, pl_dtype dt, pl_cuda_queue *q);

#endif

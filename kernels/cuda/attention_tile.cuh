// SPDX-License-Identifier: Apache-2.0
// attention_tile: tiles of a head in shared memory and their products on tensor cores. A block of
// four warps; each has M times 16 rows of the block's tile, and so uses what it reads of the other
// side M times. Rows are padded by 8 elements, so that the eight rows of a matrix lie in different
// banks; what lies past the tensor is 0. T: bf16 or f16.
//
// Note [what is not seen]: a hidden key has weight 0, and 0 times NaN or infinity would be NaN.
// Such values are therefore taken out of a tile with hidden elements (the diagonal, a mask,
// dropout) before it is multiplied by weights, and a row that has a weight for one of them becomes
// NaN.
#ifndef PL_CUDA_ATTENTION_TILE_CUH
#define PL_CUDA_ATTENTION_TILE_CUH

#include "cuda/attention.cuh"
#include "cuda/fetch.cuh"
#include "cuda/mma.cuh"

enum { PL_TILE = 64, PL_TILE_BLOCK = 128, PL_TILE_PAD = 8, PL_TILE_WARPS = 4 };
#define PL_LOG2_E 1.4426950408889634f
#define PL_LN_2 0.6931471805599453f

// Rows that a block has: M of 16 in each warp.
template <int M>
struct pl_tile_rows {
    enum { ROWS = PL_TILE_WARPS * M * 16 };
};

struct pl_tile_place {
    int b, h;
    int first, warp, rows;  // first row of the tile, this warp's first of it; rows of a warp
};
template <int M>
static PL_DEVICE pl_tile_place pl_tile_of(const pl_attention_job &job, unsigned block,
                                          int64_t rows) {
    enum { ROWS = pl_tile_rows<M>::ROWS };
    unsigned tiles = ((unsigned)rows + ROWS - 1) / ROWS, head = block / tiles;
    unsigned heads = (unsigned)job.heads;
    return {(int)(head / heads), (int)(head % heads), (int)(block % tiles * ROWS),
            (int)(threadIdx.x / PL_LANES) * M * 16, M * 16};
}
// This lane's results of 16 rows `m` of its warp are in two rows: half 0 or 1.
static PL_DEVICE int pl_tile_row(const pl_tile_place &p, int m, int half) {
    return p.first + p.warp + m * 16 + (int)(threadIdx.x % PL_LANES) / 4 + half * 8;
}
// Column of a 16 x N result that element e of n has in this lane.
static PL_DEVICE int pl_tile_column(int n, int e) {
    return n * 8 + (int)(threadIdx.x % PL_LANES) % 4 * 2 + e % 2;
}

static inline pl_status pl_tile_blocks(const pl_attention_job *job, int64_t rows, int tile_rows,
                                       unsigned *out) {
    int64_t blocks = (rows + tile_rows - 1) / tile_rows * job->batch * job->heads;
    if (blocks > 0x7fffffff || job->queries > 0x7fff0000 || job->keys > 0x7fff0000) {
        return pl_fail(
            PL_ENOSUP,
            "[attention] too large for one call: got %lld queries, %lld keys, %lld tiles",
            (long long)job->queries, (long long)job->keys, (long long)blocks);
    }
    *out = (unsigned)blocks;
    return PL_OK;
}

// ---- Tiles --------------------------------------------------------------------------------------

// A head's rows. packed: 16 bytes may be copied at once.
template <typename T>
struct pl_lines {
    const T *base;
    int64_t row, column;
    int rows, width;
    bool packed;
};
template <typename T>
static PL_DEVICE pl_lines<T> pl_lines_of(const pl_heads &t, const pl_tile_place &p, int64_t rows,
                                         int64_t width) {
    const T *base = pl_row<T>(t, p.b, p.h, 0);
    bool packed = t.column == 1 && width % 8 == 0 && t.row % 8 == 0 && (uintptr_t)base % 16 == 0;
    return {base, t.row, t.column, (int)rows, (int)width, packed};
}

// COUNT rows of a head from row `first`, D columns, on their way to a tile (fetch.cuh).
template <int D, int COUNT, typename T>
static PL_DEVICE void pl_tile_fetch(T *tile, const pl_lines<T> &from, int first) {
    enum { P = 8, EACH = D / P, STEP = PL_TILE_BLOCK / EACH };
    int row = (int)threadIdx.x / EACH, column = (int)threadIdx.x % EACH * P;
    const T *at = from.base + (int64_t)(first + row) * from.row + column * from.column;
    T *to = tile + row * (D + PL_TILE_PAD) + column;
    PL_UNROLL
    for (int i = 0; i < COUNT; i += STEP) {
        bool present = first + row + i < from.rows && column < from.width;
        if (from.packed) {
            pl_fetch<16>(to, present ? at : from.base, present);
        } else {
            pl_pack<T, P> pack = {};
            for (int c = 0; c < P; c++) {
                if (present && column + c < from.width) pack.v[c] = at[c * from.column];
            }
            pl_store(to, pack);
        }
        at += STEP * from.row;
        to += STEP * (D + PL_TILE_PAD);
    }
}

static PL_DEVICE bool pl_is_finite(bf16 x) { return (x.bits & 0x7f80) != 0x7f80; }
static PL_DEVICE bool pl_is_finite(f16 x) { return (x.bits & 0x7c00) != 0x7c00; }

// Note [what is not seen]: the rows of a tile that had values that are not finite, as bits, alike
// in all threads; 0 stands in their place then. `bits` is shared memory. Every thread of a block
// calls.
template <int D, int COUNT, typename T>
static PL_DEVICE uint64_t pl_tile_clean(T *tile, unsigned long long *bits) {
    enum { P = 8, EACH = D / P };
    const int column = (int)threadIdx.x % EACH * P;
    unsigned long long mine = 0;
    PL_UNROLL
    for (int i = 0; i < COUNT; i += PL_TILE_BLOCK / EACH) {
        int row = (int)threadIdx.x / EACH + i;
        pl_pack<T, P> pack = pl_load<P>(tile + row * (D + PL_TILE_PAD) + column);
        bool odd = false;
        PL_UNROLL
        for (int c = 0; c < P; c++) odd = odd || !pl_is_finite(pack.v[c]);
        if (odd) mine |= 1ull << row;
    }
    if (!__syncthreads_or(mine != 0)) return 0;
    if (threadIdx.x == 0) *bits = 0;
    PL_NO_UNROLL
    for (int row = (int)threadIdx.x / EACH; row < COUNT; row += PL_TILE_BLOCK / EACH) {
        T *at = tile + row * (D + PL_TILE_PAD) + column;
        for (int c = 0; c < P; c++) {
            if (!pl_is_finite(at[c])) at[c] = T{0};
        }
    }
    __syncthreads();
    if (mine != 0) atomicOr(bits, mine);
    __syncthreads();
    return *bits;
}

// ---- Products -----------------------------------------------------------------------------------

// s (M times 16 x N) = A times the transpose of a tile of N rows; A in registers.
template <int D, int N, int M, typename T>
static PL_DEVICE void pl_tile_product_rows(float (*s)[N / 8][4], const uint32_t (*a)[D / 16][4],
                                           const T *tile) {
    enum { STRIDE = D + PL_TILE_PAD };
    const T *lane = pl_lane_of_rows(tile, STRIDE);
    PL_UNROLL
    for (int n = 0; n < N / 16; n++) {
        PL_UNROLL
        for (int k = 0; k < D / 16; k++) {
            uint32_t b[2][2];
            pl_frag_b_rows(b, lane + n * 16 * STRIDE + k * 16);
            PL_UNROLL
            for (int m = 0; m < M; m++) {
                pl_mma<T>(s[m][2 * n], a[m][k], b[0]);
                pl_mma<T>(s[m][2 * n + 1], a[m][k], b[1]);
            }
        }
    }
}

// The same with A in shared memory too, this warp's first row at `a_rows`.
template <int D, int N, int M, typename T>
static PL_DEVICE void pl_tile_product_tiles(float (*s)[N / 8][4], const T *a_rows, const T *tile) {
    enum { STRIDE = D + PL_TILE_PAD };
    const T *a_lane = pl_lane_of_a(a_rows, STRIDE), *lane = pl_lane_of_rows(tile, STRIDE);
    PL_UNROLL_TWICE  // unrolled as a whole, the gradient by keys has no registers left
        for (int k = 0; k < D / 16; k++) {
        uint32_t a[M][4];
        PL_UNROLL
        for (int m = 0; m < M; m++) pl_frag_a(a[m], a_lane + m * 16 * STRIDE + k * 16);
        PL_UNROLL
        for (int n = 0; n < N / 16; n++) {
            uint32_t b[2][2];
            pl_frag_b_rows(b, lane + n * 16 * STRIDE + k * 16);
            PL_UNROLL
            for (int m = 0; m < M; m++) {
                pl_mma<T>(s[m][2 * n], a[m], b[0]);
                pl_mma<T>(s[m][2 * n + 1], a[m], b[1]);
            }
        }
    }
}

// Note [what is not seen]: a row of w that has a weight for a row of the tile among `odd`.
template <int D, int N, int M>
static PL_DEVICE void pl_tile_spoil(float (*out)[D / 8][4], const float (*w)[N / 8][4],
                                    uint64_t odd) {
    PL_UNROLL
    for (int i = 0; i < 2 * M; i++) {
        int m = i / 2, half = i % 2, seen = 0;
        PL_UNROLL
        for (int j = 0; j < N / 4; j++) {
            int n = j / 2, e = 2 * half + j % 2;
            if (w[m][n][e] != 0 && odd >> pl_tile_column(n, e) & 1) seen = 1;
        }
        seen |= __shfl_xor_sync(PL_ALL_LANES, seen, 1);  // a row's 4 lanes
        seen |= __shfl_xor_sync(PL_ALL_LANES, seen, 2);
        PL_UNROLL
        for (int j = 0; j < D / 4; j++) {
            if (seen) out[m][j / 2][2 * half + j % 2] = NAN;
        }
    }
}

// out (M times 16 x D) += w (M times 16 x N, rounded) times a tile of N rows.
template <int D, int N, int M, typename T>
static PL_DEVICE void pl_tile_add_product(float (*out)[D / 8][4], const float (*w)[N / 8][4],
                                          const T *tile, uint64_t odd) {
    enum { STRIDE = D + PL_TILE_PAD };
    const T *lane = pl_lane_of_a(tile, STRIDE);
    PL_UNROLL
    for (int k = 0; k < N / 16; k++) {
        uint32_t a[M][4];
        PL_UNROLL
        for (int m = 0; m < M; m++) pl_frag_of_results<T>(a[m], w[m][2 * k], w[m][2 * k + 1]);
        PL_UNROLL
        for (int n = 0; n < D / 16; n++) {
            uint32_t b[2][2];
            pl_frag_b(b, lane + k * 16 * STRIDE + n * 16);
            PL_UNROLL
            for (int m = 0; m < M; m++) {
                pl_mma<T>(out[m][2 * n], a[m], b[0]);
                pl_mma<T>(out[m][2 * n + 1], a[m], b[1]);
            }
        }
    }
    if (odd != 0) pl_tile_spoil<D, N, M>(out, w, odd);
}

// A warp's results times a factor per row.
template <typename T, int D, int M>
static PL_DEVICE void pl_tile_store(const pl_heads &to, const pl_tile_place &p,
                                    const float (*v)[D / 8][4], const float (*factor)[2],
                                    int64_t rows, int64_t width) {
    int t = (int)(threadIdx.x % PL_LANES) % 4;
    T *base = pl_row<T>(to, p.b, p.h, 0);
    bool packed = to.column == 1 && to.row % 2 == 0 && width % 2 == 0 && (uintptr_t)base % 4 == 0;
    PL_UNROLL
    for (int m = 0; m < M; m++) {
        PL_UNROLL
        for (int half = 0; half < 2; half++) {
            int i = pl_tile_row(p, m, half);
            if (i >= rows) continue;
            T *row = base + (int64_t)i * to.row;
            PL_UNROLL
            for (int n = 0; n < D / 8; n++) {
                int d = n * 8 + 2 * t;
                pl_pack<T, 2> two = {{pl_rounded<T>(v[m][n][2 * half] * factor[m][half]),
                                      pl_rounded<T>(v[m][n][2 * half + 1] * factor[m][half])}};
                if (packed && d < width) {
                    pl_store(row + d, two);
                } else {
                    if (d < width) row[d * to.column] = two.v[0];
                    if (d + 1 < width) row[(d + 1) * to.column] = two.v[1];
                }
            }
        }
    }
}

// The same with one factor for all.
template <typename T, int D, int M>
static PL_DEVICE void pl_tile_store_scaled(const pl_heads &to, const pl_tile_place &p,
                                           const float (*v)[D / 8][4], float factor, int64_t rows,
                                           int64_t width) {
    float factors[M][2];
    PL_UNROLL
    for (int i = 0; i < 2 * M; i++) factors[i / 2][i % 2] = factor;
    pl_tile_store<T, D, M>(to, p, v, factors, rows, width);
}

// ---- Which kernel -------------------------------------------------------------------------------

// A job with a mask, dropout or a scale that is not above 0: every score is looked at on its own.
static inline bool pl_is_special(const pl_attention_job *job) {
    return job->mask != NULL || job->drops || !(job->scale > 0);
}

// Calls CALL(T, D, M, SPECIAL) for the dtype, the number of columns that hold the job's, and the
// rows for which there are registers then.
#define PL_TILE_CASES_OF(T, job, CALL)                   \
    do {                                                 \
        if ((job)->width <= 64 && !pl_is_special(job)) { \
            CALL(T, 64, 2, false);                       \
        } else if ((job)->width <= 64) {                 \
            CALL(T, 64, 1, true);                        \
        } else if (!pl_is_special(job)) {                \
            CALL(T, 128, 1, false);                      \
        } else {                                         \
            CALL(T, 128, 1, true);                       \
        }                                                \
    } while (0)
#define PL_TILE_CASES(job, dt, CALL)           \
    do {                                       \
        if ((dt) == PL_BF16) {                 \
            PL_TILE_CASES_OF(bf16, job, CALL); \
        } else {                               \
            PL_TILE_CASES_OF(f16, job, CALL);  \
        }                                      \
    } while (0)

// attention_grad.cu
pl_status pl_attention_tile_grad(const pl_attention_job *job, pl_dtype dt, pl_cuda_queue *q);

#endif

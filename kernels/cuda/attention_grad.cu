// SPDX-License-Identifier: Apache-2.0
// attention_grad: the gradient on tensor cores, without atomics: one kernel goes over the keys for
// each tile of queries (dq), another over the queries for each tile of keys (dk, dv), so that every
// sum has one order; both recompute the scores. delta, the sum of g * out of a row, comes first.
// With p the probability and keep the dropout's factor: ds = p * (keep * g.v - delta),
// dq = scale * ds k, dk = scale * ds^T q, dv = (p * keep)^T g; ds and p are rounded to the inputs'
// dtype for the products, and what the loop goes over comes one step ahead.
// In fp16 a ds past 65,504 is infinite, which a scaler of gradients sees and answers.
// Not measured on a GPU yet: seven products where an atomic dq would need five.
#include "cuda/attention_tile.cuh"

namespace {

enum { STEP = 32 };  // rows of the other side at a time

// D / 8 lanes per row, eight columns each.
template <typename T, int D>
__global__ void delta_kernel(pl_attention_job job, float *delta) {
    enum { LANES = D / 8, EACH = PL_BLOCK / LANES };
    int column = (int)threadIdx.x % LANES * 8;
    int64_t lines = job.batch * job.heads * job.queries;
    // As many turns for every thread: all lanes of a warp fold.
    for (int64_t first = (int64_t)blockIdx.x * EACH; first < lines;
         first += (int64_t)gridDim.x * EACH) {
        int64_t i = first + (int)threadIdx.x / LANES, head = i / job.queries, row = i % job.queries;
        float sum = 0;
        if (i < lines) {
            pl_tile_place p = {(int)(head / job.heads), (int)(head % job.heads), 0, 0, 0};
            pl_lines<T> g = pl_lines_of<T>(job.g, p, job.queries, job.width);
            pl_lines<T> out = pl_lines_of<T>(job.out, p, job.queries, job.width);
            const T *a = g.base + row * g.row, *b = out.base + row * out.row;
            if (g.packed && out.packed && column < g.width) {
                pl_pack<T, 8> x = pl_load<8>(a + column), y = pl_load<8>(b + column);
                PL_UNROLL
                for (int c = 0; c < 8; c++) sum = fmaf(pl_get(x.v[c]), pl_get(y.v[c]), sum);
            } else {
                for (int c = column; c < column + 8 && c < g.width; c++) {
                    sum = fmaf(pl_get(a[c * g.column]), pl_get(b[c * out.column]), sum);
                }
            }
        }
        PL_UNROLL
        for (int step = LANES / 2; step > 0; step /= 2) {
            sum += __shfl_xor_sync(PL_ALL_LANES, sum, step);
        }
        if (i < lines && column == 0) delta[i] = sum;
    }
}

// What a query's row brings along: lse times log2 e, and delta.
struct query_line {
    float lse, delta;
};
PL_DEVICE query_line line_of(float lse, float delta) { return {lse * PL_LOG2_E, delta}; }

// One element of a job that is not special: what the products s = q.k and dp = g.v become, p and
// ds. factor: scale * log2 e.
PL_DEVICE void plain_element(float factor, const query_line &line, float *s, float *dp) {
    *s = pl_exp2(fmaf(*s, factor, -line.lse));
    *dp = *s * (*dp - line.delta);
}

// The same of any job: p * keep and ds.
PL_DEVICE void element(const pl_attention_job &job, const pl_tile_place &p, const query_line &line,
                       int i, int j, float *s, float *dp) {
    float score = pl_score(job, p.b, p.h, i, j, *s), kept = 0, ds = 0;
    if (score != -INFINITY) {
        float prob = pl_exp2(fmaf(score, PL_LOG2_E, -line.lse));
        float keep = pl_kept<float>(job, p.b, p.h, i, j);
        kept = prob * keep;
        ds = prob * (keep * *dp - line.delta);
    }
    *s = kept;
    *dp = ds;
}

// Dynamic shared memory: two tiles of this side's ROWS, two pairs of the other side's STEP rows,
// and of those the lines.
template <typename T, int D, int M>
struct tiles {
    enum { ROWS = pl_tile_rows<M>::ROWS, STRIDE = D + PL_TILE_PAD, PAIR = 2 * STEP * STRIDE };
    enum { ELEMENTS = 2 * ROWS * STRIDE + 2 * PAIR, NBYTES = ELEMENTS * 2 + 2 * 2 * STEP * 4 };
    T *one, *two, *moving;
    float *lines;
    PL_DEVICE explicit tiles(unsigned char *shared)
        : one((T *)shared),
          two(one + ROWS * STRIDE),
          moving(two + ROWS * STRIDE),
          lines((float *)(void *)(moving + 2 * PAIR)) {}
    PL_DEVICE T *first(int turn) const { return moving + turn * PAIR; }
    PL_DEVICE T *second(int turn) const { return moving + turn * PAIR + STEP * STRIDE; }
    PL_DEVICE float *lse(int turn) const { return lines + turn * 2 * STEP; }
    PL_DEVICE float *delta(int turn) const { return lines + turn * 2 * STEP + STEP; }
};

// Whether a query sees a key of a job that is not special, both being there or not.
PL_DEVICE bool sees(const pl_attention_job &job, int query, int key) {
    return query < job.queries && key < job.keys && (!job.causal || key <= query);
}
// Whether each of some queries sees each of some keys: by the first query and the last key, if the
// last query is there.
PL_DEVICE bool all_seen(const pl_attention_job &job, int query, int queries, int key, int keys) {
    return query + queries <= job.queries && sees(job, query, key + keys - 1);
}

// Of 16 x STEP elements, in a tile that is not seen as a whole: p and ds of what is hidden become
// 0, whatever the row's lse and delta are. BY_KEY: rows are keys.
template <bool BY_KEY>
PL_DEVICE void hide(const pl_attention_job &job, const pl_tile_place &p, int m, int other,
                    float (*s)[4], float (*ds)[4]) {
    PL_UNROLL
    for (int i = 0; i < STEP / 2; i++) {
        int row = pl_tile_row(p, m, i % 4 / 2), column = other + pl_tile_column(i / 4, i % 4);
        bool seen = BY_KEY ? sees(job, column, row) : sees(job, row, column);
        if (!seen) s[i / 4][i % 4] = ds[i / 4][i % 4] = 0;
    }
}

// Of the queries whose results this lane has.
template <int M>
PL_DEVICE void read_lines(const pl_attention_job &job, const pl_tile_place &p, const float *delta,
                          query_line (*line)[2]) {
    PL_UNROLL
    for (int i = 0; i < 2 * M; i++) {
        int row = pl_tile_row(p, i / 2, i % 2);
        int64_t place = (p.b * job.heads + p.h) * job.queries + row;
        bool present = row < job.queries;
        line[i / 2][i % 2] = line_of(present ? ((const float *)job.lse)[place] : 0.0f,
                                     present ? delta[place] : 0.0f);
    }
}

// STEP rows of the other side, on their way.
template <typename T, int D, int M>
PL_DEVICE void fetch_step(const tiles<T, D, M> &at, int turn, const pl_lines<T> &first,
                          const pl_lines<T> &second, int row) {
    pl_tile_fetch<D, STEP>(at.first(turn), first, row);
    pl_tile_fetch<D, STEP>(at.second(turn), second, row);
}

template <typename T, int D, int M, bool SPECIAL>
__global__ void __launch_bounds__(PL_TILE_BLOCK)
    query_kernel(pl_attention_job job, const float *delta) {
    enum { ROWS = tiles<T, D, M>::ROWS, STRIDE = D + PL_TILE_PAD };
    PL_DYNAMIC_SHARED(shared);
    PL_SHARED(unsigned long long, odd_rows, 1);
    tiles<T, D, M> at(shared);
    pl_tile_place p = pl_tile_of<M>(job, gridDim.x - 1 - blockIdx.x, job.queries);
    pl_lines<T> k = pl_lines_of<T>(job.k, p, job.keys, job.width);
    pl_lines<T> v = pl_lines_of<T>(job.v, p, job.keys, job.width);
    pl_tile_fetch<D, ROWS>(at.one, pl_lines_of<T>(job.q, p, job.queries, job.width), p.first);
    pl_tile_fetch<D, ROWS>(at.two, pl_lines_of<T>(job.g, p, job.queries, job.width), p.first);
    fetch_step(at, 0, k, v, 0);
    pl_fetch_commit();
    query_line line[M][2];
    read_lines<M>(job, p, delta, line);
    float dq[M][D / 8][4] = {};
    const float factor = (float)job.scale * PL_LOG2_E;
    const int mine = p.first + p.warp;  // this warp's first query
    int end = (int)job.keys, turn = 0;
    if (job.causal && p.first + ROWS < end) end = p.first + ROWS;
    for (int key = 0; key < end; key += STEP, turn ^= 1) {
        if (key + STEP < end) fetch_step(at, turn ^ 1, k, v, key + STEP);
        pl_fetch_commit();
        pl_fetch_wait<1>();
        __syncthreads();
        uint64_t odd = 0;
        if (SPECIAL || (job.causal && key + STEP - 1 > p.first)) {
            odd = pl_tile_clean<D, STEP>(at.first(turn), odd_rows);
        }
        if (!job.causal || key < mine + p.rows) {  // else this warp sees none
            float s[M][STEP / 8][4] = {}, dp[M][STEP / 8][4] = {};
            pl_tile_product_tiles<D, STEP, M>(s, at.one + p.warp * STRIDE, at.first(turn));
            pl_tile_product_tiles<D, STEP, M>(dp, at.two + p.warp * STRIDE, at.second(turn));
            const bool whole = all_seen(job, mine, p.rows, key, STEP);
            PL_UNROLL
            for (int i = 0; i < M * (STEP / 2); i++) {
                int m = i / (STEP / 2), n = i / 4 % (STEP / 8), e = i % 4;
                int row = pl_tile_row(p, m, e / 2), column = key + pl_tile_column(n, e);
                float *x = &s[m][n][e], *y = &dp[m][n][e];
                if (SPECIAL) {
                    element(job, p, line[m][e / 2], row, column, x, y);
                } else {
                    plain_element(factor, line[m][e / 2], x, y);
                }
            }
            PL_UNROLL
            for (int m = 0; m < M && !SPECIAL && !whole; m++) {
                hide<false>(job, p, m, key, s[m], dp[m]);
            }
            pl_tile_add_product<D, STEP, M>(dq, dp, at.first(turn), odd);
        }
        __syncthreads();  // nobody reads what the next turn fetches into
    }
    pl_fetch_wait<0>();
    pl_tile_store_scaled<T, D, M>(job.dq, p, dq, (float)job.scale, job.queries, job.width);
}

// The lines of STEP queries from `first`, on their way.
template <typename T, int D, int M>
PL_DEVICE void fetch_lines(const pl_attention_job &job, const pl_tile_place &p, const float *delta,
                           int first, const tiles<T, D, M> &at, int turn) {
    int i = (int)threadIdx.x % STEP, which = (int)threadIdx.x / STEP;
    if (which > 1) return;
    const float *from = which == 0 ? (const float *)job.lse : delta;
    const float *line = from + (p.b * job.heads + p.h) * job.queries;
    bool present = first + i < job.queries;
    pl_fetch<4>((which == 0 ? at.lse(turn) : at.delta(turn)) + i, present ? line + first + i : from,
                present);
}

// What the products of a warp's keys with STEP queries become, p and ds, transposed.
template <bool SPECIAL, typename T, int D, int M>
PL_DEVICE void key_elements(const pl_attention_job &job, const pl_tile_place &p, int query,
                            const tiles<T, D, M> &at, int turn, float (*s)[STEP / 8][4],
                            float (*dp)[STEP / 8][4]) {
    const float factor = (float)job.scale * PL_LOG2_E;
    const bool whole = all_seen(job, query, STEP, p.first + p.warp, p.rows);
    PL_UNROLL
    for (int i = 0; i < M * (STEP / 2); i++) {  // a column at a time
        int n = i / (4 * M), m = i / 2 % M, e = i % 2 * 2 + i / (2 * M) % 2;
        int row = pl_tile_row(p, m, e / 2), column = pl_tile_column(n, e);
        query_line line = line_of(at.lse(turn)[column], at.delta(turn)[column]);
        float *x = &s[m][n][e], *y = &dp[m][n][e];
        if (SPECIAL) {
            element(job, p, line, query + column, row, x, y);
        } else {
            plain_element(factor, line, x, y);
        }
    }
    PL_UNROLL
    for (int m = 0; m < M && !SPECIAL && !whole; m++) hide<true>(job, p, m, query, s[m], dp[m]);
}

// Rows of a warp are keys here: s and dp are the transposes.
template <typename T, int D, int M, bool SPECIAL>
__global__ void __launch_bounds__(PL_TILE_BLOCK)
    key_kernel(pl_attention_job job, const float *delta) {
    enum { ROWS = tiles<T, D, M>::ROWS, STRIDE = D + PL_TILE_PAD };
    PL_DYNAMIC_SHARED(shared);
    PL_SHARED(unsigned long long, odd_rows, 1);
    tiles<T, D, M> at(shared);
    pl_tile_place p = pl_tile_of<M>(job, blockIdx.x, job.keys);
    pl_lines<T> q = pl_lines_of<T>(job.q, p, job.queries, job.width);
    pl_lines<T> g = pl_lines_of<T>(job.g, p, job.queries, job.width);
    const int mine = p.first + p.warp, queries = (int)job.queries;  // mine: this warp's first key
    const int begin = job.causal ? p.first : 0;
    pl_tile_fetch<D, ROWS>(at.one, pl_lines_of<T>(job.k, p, job.keys, job.width), p.first);
    pl_tile_fetch<D, ROWS>(at.two, pl_lines_of<T>(job.v, p, job.keys, job.width), p.first);
    fetch_step(at, 0, q, g, begin);
    fetch_lines(job, p, delta, begin, at, 0);
    pl_fetch_commit();
    float dk[M][D / 8][4] = {}, dv[M][D / 8][4] = {};
    int turn = 0;
    for (int query = begin; query < queries; query += STEP, turn ^= 1) {
        if (query + STEP < queries) {
            fetch_step(at, turn ^ 1, q, g, query + STEP);
            fetch_lines(job, p, delta, query + STEP, at, turn ^ 1);
        }
        pl_fetch_commit();
        pl_fetch_wait<1>();
        __syncthreads();
        uint32_t odd = 0;  // of STEP queries, by q and by g: both spoil dk and dv
        if (SPECIAL || (job.causal && query < p.first + ROWS)) {
            odd = (uint32_t)pl_tile_clean<D, STEP>(at.first(turn), odd_rows);
            odd |= (uint32_t)pl_tile_clean<D, STEP>(at.second(turn), odd_rows);
        }
        if (!job.causal || query + STEP > mine) {  // else none of these sees this warp's keys
            float s[M][STEP / 8][4] = {}, dp[M][STEP / 8][4] = {};
            pl_tile_product_tiles<D, STEP, M>(s, at.one + p.warp * STRIDE, at.first(turn));
            pl_tile_product_tiles<D, STEP, M>(dp, at.two + p.warp * STRIDE, at.second(turn));
            key_elements<SPECIAL>(job, p, query, at, turn, s, dp);
            pl_tile_add_product<D, STEP, M>(dv, s, at.second(turn), odd);
            pl_tile_add_product<D, STEP, M>(dk, dp, at.first(turn), odd);
        }
        __syncthreads();  // nobody reads what the next turn fetches into
    }
    pl_fetch_wait<0>();
    pl_tile_store_scaled<T, D, M>(job.dk, p, dk, (float)job.scale, job.keys, job.width);
    pl_tile_store_scaled<T, D, M>(job.dv, p, dv, 1.0f, job.keys, job.width);
}

template <typename T, int D, int M, bool SPECIAL>
pl_status launch(const pl_attention_job *job, float *delta, pl_cuda_queue *q) {
    int64_t lines = job->batch * job->heads * job->queries;
    unsigned by_query = 0, by_key = 0, rows = tiles<T, D, M>::ROWS;
    size_t nbytes = tiles<T, D, M>::NBYTES;
    PL_TRY(pl_tile_blocks(job, job->queries, (int)rows, &by_query));
    PL_TRY(pl_tile_blocks(job, job->keys, (int)rows, &by_key));
    unsigned blocks = pl_blocks(lines, PL_BLOCK / (D / 8));
    PL_LAUNCH((delta_kernel<T, D>), blocks, PL_BLOCK, 0, q, *job, delta);
    PL_TRY(pl_launched("attention"));
    const float *sums = delta;
    if (by_query > 0) {
        PL_TRY(pl_allow_shared("attention", query_kernel<T, D, M, SPECIAL>, nbytes));
        PL_LAUNCH((query_kernel<T, D, M, SPECIAL>), by_query, PL_TILE_BLOCK, nbytes, q, *job, sums);
        PL_TRY(pl_launched("attention"));
    }
    if (by_key == 0) return PL_OK;
    PL_TRY(pl_allow_shared("attention", key_kernel<T, D, M, SPECIAL>, nbytes));
    PL_LAUNCH((key_kernel<T, D, M, SPECIAL>), by_key, PL_TILE_BLOCK, nbytes, q, *job, sums);
    return pl_launched("attention");
}

}  // namespace

pl_status pl_attention_tile_grad(const pl_attention_job *job, pl_dtype dt, pl_cuda_queue *q) {
    int64_t lines = job->batch * job->heads * job->queries;
    void *delta;
    PL_TRY(q->scratch(q->owner, (size_t)(lines + 1) * sizeof(float), &delta));
#define CALL(T, D, M, SPECIAL) return launch<T, D, M, SPECIAL>(job, (float *)delta, q)
    PL_TILE_CASES(job, dt, CALL);
#undef CALL
}

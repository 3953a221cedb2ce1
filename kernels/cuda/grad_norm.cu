// SPDX-License-Identifier: Apache-2.0
// grad_norm: the norm of a list of runs taken as one vector, and the factor that clips it, without
// the host. Blocks of PL_SQUARES_BLOCK elements are added up in double, one block of threads for
// each; then one block of threads joins the parts of each run, and the runs in their order. So the
// sum has one order, whatever lies where and however many runs there are. Or the largest magnitude
// instead; NaN wins. Not measured on a GPU yet.
#include "cuda/lists.cuh"
#include "cuda/math.cuh"

namespace {

enum { WARPS = 8, BLOCK = WARPS * PL_LANES, JOIN_WARPS = 16, JOIN_BLOCK = JOIN_WARPS * PL_LANES };

struct join {
    bool inf;
    PL_DEVICE double operator()(double a, double b) const {
        if (!inf) return a + b;
        return b > a || b != b ? (a != a ? a : b) : a;  // the first NaN
    }
    PL_DEVICE double one(double x) const { return inf ? pl_fabs(x) : x * x; }
};

// The parts of the table's runs begin at `parts`, one for each chunk.
template <typename T>
__global__ void part_kernel(const __grid_constant__ pl_list<1> list, join op, double *parts) {
    enum { P = 16 / sizeof(T) };
    for (int k = (int)blockIdx.x; k < list.chunks; k += (int)gridDim.x) {
        pl_chunk c = pl_chunk_of(list, k, PL_SQUARES_BLOCK);
        const T *x = (const T *)list.at[c.run][0];
        bool packed = pl_list_packs(list, c.run);
        double sum = 0;
        for (int64_t i = c.begin + (int64_t)threadIdx.x * P; i < c.end; i += (int64_t)BLOCK * P) {
            // With packs or without: a thread takes the same elements in the same order.
            if (packed && i + P <= c.end) {
                pl_pack<T, P> v = pl_load<P>(x + i);
                PL_UNROLL
                for (int e = 0; e < P; e++) sum = op(sum, op.one((double)pl_get(v.v[e])));
            } else {
                for (int e = 0; e < P && i + e < c.end; e++) {
                    sum = op(sum, op.one((double)pl_get(x[i + e])));
                }
            }
        }
        sum = pl_block_fold<WARPS>(sum, 0.0, op);
        if (threadIdx.x == 0) parts[k] = sum;
    }
}

struct results {
    int count;  // of all runs
    bool last;  // this table is the last one: all of `each` is there after it
    double *each;
    double due, max_norm;
    bool keep_nonfinite;
    double *norm, *factor;
    float *norm_f32;
};

PL_DEVICE void finish(const results &r, join op) {
    double total = 0;
    for (int i = 0; i < r.count; i++) total = op(total, r.each[i]);
    double norm = op.inf ? total : pl_sqrt(total);
    if (r.norm != nullptr) *r.norm = norm;
    if (r.norm_f32 != nullptr) *r.norm_f32 = (float)norm;
    if (r.factor == nullptr) return;
    double factor = r.max_norm / (norm + 1e-6);  // as PyTorch: never more than 1, but NaN
    if (factor >= 1.0 || (r.keep_nonfinite && !pl_finite(norm))) factor = 1.0;
    *r.factor = factor;
}

// One block: a warp for each run.
__global__ void join_kernel(const __grid_constant__ pl_list<1> list, join op, const double *parts,
                            results r) {
    int lane = (int)(threadIdx.x % PL_LANES);
    for (int i = (int)(threadIdx.x / PL_LANES); i < list.count; i += JOIN_WARPS) {
        int end = i + 1 < list.count ? list.first[i + 1] : list.chunks;
        double v = 0;
        for (int p = list.first[i] + lane; p < end; p += PL_LANES) v = op(v, parts[p]);
        v = pl_warp_fold(v, op);
        if (lane == 0) r.each[list.index[i]] = op.inf ? v * pl_fabs(r.due) : v * r.due * r.due;
    }
    __syncthreads();  // each[] is written
    if (r.last && threadIdx.x == 0) finish(r, op);
}

template <typename T>
void part_launch(const pl_list<1> &list, join op, double *parts, pl_cuda_queue *q) {
    PL_LAUNCH(part_kernel<T>, pl_blocks(list.chunks, 1), BLOCK, 0, q, list, op, parts);
}

// Scratch memory: the parts of one table at a time, and `each` where nobody wants it.
pl_status room(int count, const pl_run *runs, bool each, double **out, pl_cuda_queue *q) {
    int64_t most = 0;
    for (int i = 0; i < count; i++) {
        most += (runs[i].n + PL_SQUARES_BLOCK - 1) / PL_SQUARES_BLOCK;
    }
    void *scratch;
    size_t numbers = (size_t)most + (each ? (size_t)count : 0) + 1;
    PL_TRY(q->scratch(q->owner, numbers * sizeof(double), &scratch));
    *out = (double *)scratch;
    return PL_OK;
}

}  // namespace

pl_status pl_cuda_list_norm(const pl_norm_args *args, int count, const pl_run *runs,
                            pl_cuda_queue *q) {
    static const pl_dtype dtypes[] = {PL_F32, PL_BF16, PL_F16, PL_F64};
    double *parts;
    PL_TRY(room(count, runs, args->each == NULL, &parts, q));
    results r = {count,      false,          args->each,
                 args->due,  args->max_norm, args->keep_nonfinite,
                 args->norm, args->factor,   args->norm_f32};
    if (r.each == NULL) {
        r.each = parts;
        parts += count;
    }
    join op = {args->inf};
    int joined = 0;
    pl_list<1> list;
    for (int d = 0; d < 4; d++) {
        int next = 0;
        while (pl_list_fill(&list, dtypes[d], count, runs, PL_SQUARES_BLOCK, &next)) {
#define CALL(T) part_launch<T>(list, op, parts, q)
            if (list.chunks > 0) PL_CUDA_FLOATS(dtypes[d], CALL);
#undef CALL
            joined += list.count;
            r.last = joined == count;
            PL_LAUNCH(join_kernel, 1, JOIN_BLOCK, 0, q, list, op, parts, r);
        }
    }
    return pl_launched("grad_norm");
}

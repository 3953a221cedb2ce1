// SPDX-License-Identifier: Apache-2.0
// lists: many runs of elements in one launch. A model has hundreds of parameters, most of them
// small, and a launch each would cost more than their updates. The table of runs is an argument of
// the kernel (up to 32,764 bytes may be, since CUDA 12.1), so nothing is uploaded or waited for; a
// longer list takes several launches. Blocks take chunks of equal size, whosever they are.
#ifndef PL_CUDA_LISTS_CUH
#define PL_CUDA_LISTS_CUH

#include "cuda/device.cuh"

enum { PL_LIST_BYTES = 10240 };

// LISTS addresses for each run, which are all of one dtype: the run's first ones and, of four,
// `low`.
template <int LISTS>
struct pl_list {
    enum { RUNS = PL_LIST_BYTES / (8 * LISTS + 16) };
    int count, chunks;
    int first[RUNS];  // chunk of each run; one without elements has none
    int index[RUNS];  // the run's own, pl_run
    int64_t n[RUNS];
    void *at[RUNS][LISTS];
};

struct pl_chunk {
    int run;
    int64_t begin, end;
};

template <int LISTS>
static PL_DEVICE pl_chunk pl_chunk_of(const pl_list<LISTS> &list, int chunk, int length) {
    int run = 0;  // the last one that begins there or before
    for (int step = 512; step > 0; step /= 2) {
        if (run + step < list.count && list.first[run + step] <= chunk) run += step;
    }
    int64_t begin = (int64_t)(chunk - list.first[run]) * length, end = begin + length;
    return {run, begin, end < list.n[run] ? end : list.n[run]};
}

template <int LISTS>
static PL_DEVICE bool pl_list_packs(const pl_list<LISTS> &list, int run) {
    uintptr_t all = 0;
    for (int k = 0; k < LISTS; k++) all |= (uintptr_t)list.at[run][k];
    return all % 16 == 0;  // NULL too
}

// Fills the table with the next runs of dtype dt from *next on, and moves *next behind them; says
// whether there were any.
template <int LISTS>
static bool pl_list_fill(pl_list<LISTS> *list, pl_dtype dt, int count, const pl_run *runs,
                         int length, int *next) {
    static_assert((int)pl_list<LISTS>::RUNS <= 1024, "steps of the search");
    int64_t chunks = 0;
    list->count = 0;
    for (; *next < count && list->count < pl_list<LISTS>::RUNS; (*next)++) {
        const pl_run *run = &runs[*next];
        if (run->dtype != dt) continue;
        int i = list->count++;
        list->first[i] = (int)chunks;
        list->index[i] = run->index;
        list->n[i] = run->n;
        for (int k = 0; k < LISTS; k++) list->at[i][k] = k < 4 ? run->at[k] : run->low;
        chunks += (run->n + length - 1) / length;
    }
    list->chunks = (int)chunks;
    return list->count > 0;
}

// One launch or more for each dtype: PER_TABLE(T, list) with the table filled.
#define PL_LIST_DTYPE(T, dt, LISTS, count, runs, length, PER_TABLE)          \
    do {                                                                     \
        pl_list<LISTS> pl_table;                                             \
        int pl_next = 0;                                                     \
        while (pl_list_fill(&pl_table, dt, count, runs, length, &pl_next)) { \
            if (pl_table.chunks > 0) PER_TABLE(T, pl_table);                 \
        }                                                                    \
    } while (0)
#define PL_LIST_LAUNCHES(LISTS, count, runs, length, PER_TABLE)               \
    do {                                                                      \
        PL_LIST_DTYPE(float, PL_F32, LISTS, count, runs, length, PER_TABLE);  \
        PL_LIST_DTYPE(bf16, PL_BF16, LISTS, count, runs, length, PER_TABLE);  \
        PL_LIST_DTYPE(f16, PL_F16, LISTS, count, runs, length, PER_TABLE);    \
        PL_LIST_DTYPE(double, PL_F64, LISTS, count, runs, length, PER_TABLE); \
    } while (0)

#endif

// SPDX-License-Identifier: Apache-2.0
// sort: stable, along the last dimension, by counting: an element's place is the number of those
// that come before it, so every element compares itself with the whole row, n^2 comparisons a row.
// Simple and free of order; right for rows of some thousand elements. Not measured on a GPU yet.
#include "cuda/walk.cuh"

namespace {

// Whether a comes before b; NaN counts as larger than every number.
template <typename A>
PL_DEVICE bool below(A a, A b) {
    if (a != a || b != b) return a == a && b != b;
    return a < b;
}

template <typename T>
__global__ void sort_kernel(const T *x, T *values, int64_t *indices, pl_walk rows, int64_t n,
                            int64_t step, bool descending) {
    PL_GRID_LOOP(i, rows.n * n) {
        int64_t row = i / n, j = i - row * n, base[1], place = 0;
        pl_walk_offsets<1>(rows, row, base);
        pl_acc<T> mine = pl_get(x[base[0] + j * step]);
        for (int64_t k = 0; k < n; k++) {
            pl_acc<T> other = pl_get(x[base[0] + k * step]);
            bool before = descending ? below(mine, other) : below(other, mine);
            bool after = descending ? below(other, mine) : below(mine, other);
            place += before || (!after && k < j);
        }
        values[row * n + place] = x[base[0] + j * step];
        indices[row * n + place] = j;
    }
}

}  // namespace

pl_status pl_cuda_sort(const pl_tensor *x, bool descending, pl_tensor *values, pl_tensor *indices,
                       pl_cuda_queue *q) {
    if (x->numel == 0) return PL_OK;
    int last = x->ndim - 1;
    pl_tensor rest = *x;
    int64_t n = last < 0 ? 1 : x->shape[last], step = last < 0 ? 0 : x->strides[last];
    if (last >= 0) rest.shape[last] = 1;
    rest.numel = x->numel / n;
    const pl_tensor *one[] = {&rest};
    pl_walk rows = pl_walk_over(1, one);
    unsigned blocks = pl_blocks(x->numel, PL_BLOCK);
#define CALL(T)                                                                              \
    PL_LAUNCH(sort_kernel<T>, blocks, PL_BLOCK, 0, q, (const T *)x->data, (T *)values->data, \
              (int64_t *)indices->data, rows, n, step, descending)
    PL_CUDA_TYPES(x->dtype, CALL);
#undef CALL
    return pl_launched("sort");
}

// SPDX-License-Identifier: Apache-2.0
// walk: up to four tensors of one shape visited together, whatever their strides. Dimensions that
// lie behind each other in all of them are merged first, so that most shapes become one dimension.
#ifndef PL_CUDA_WALK_CUH
#define PL_CUDA_WALK_CUH

#include "cuda/device.cuh"

enum { PL_WALK_TENSORS = 4 };

typedef struct pl_walk {
    int ndim, tensors;
    int64_t n;
    int64_t shape[PL_MAX_DIMS];
    int64_t strides[PL_WALK_TENSORS][PL_MAX_DIMS];
} pl_walk;

static inline bool pl_walk_merges(const pl_walk *w, const pl_tensor *const *t, int d) {
    for (int i = 0; i < w->tensors; i++) {
        if (w->strides[i][w->ndim - 1] != t[i]->strides[d] * t[i]->shape[d]) return false;
    }
    return true;
}

// The first tensor's shape is the walk's.
static inline pl_walk pl_walk_over(int tensors, const pl_tensor *const *t) {
    pl_walk w = {};
    w.tensors = tensors;
    w.n = t[0]->numel;
    for (int d = 0; d < t[0]->ndim; d++) {
        if (t[0]->shape[d] == 1) continue;
        if (w.ndim > 0 && pl_walk_merges(&w, t, d)) {
            w.shape[w.ndim - 1] *= t[0]->shape[d];
        } else {
            w.shape[w.ndim++] = t[0]->shape[d];
        }
        for (int i = 0; i < tensors; i++) w.strides[i][w.ndim - 1] = t[i]->strides[d];
    }
    if (w.ndim == 0) {  // one element
        w.ndim = 1;
        w.shape[0] = 1;
    }
    return w;
}

// Whether tensor i lies as the walk goes, element after element.
static inline bool pl_walk_dense(const pl_walk *w, int i) {
    return w->ndim == 1 && (w->strides[i][0] == 1 || w->shape[0] == 1);
}

// Where element i of the walk lies in each tensor, in elements.
template <int TENSORS>
static PL_DEVICE void pl_walk_offsets(const pl_walk &w, int64_t i, int64_t *at) {
    for (int k = 0; k < TENSORS; k++) at[k] = 0;
    if (w.n <= 0x7fffffff) {  // 64-bit division is ten times slower
        uint32_t left = (uint32_t)i;
        for (int d = w.ndim - 1; d >= 0; d--) {
            uint32_t size = (uint32_t)w.shape[d], next = left / size;
            for (int k = 0; k < TENSORS; k++)
                at[k] += (int64_t)(left - next * size) * w.strides[k][d];
            left = next;
        }
        return;
    }
    for (int d = w.ndim - 1; d >= 0; d--) {
        int64_t next = i / w.shape[d];
        for (int k = 0; k < TENSORS; k++) at[k] += (i - next * w.shape[d]) * w.strides[k][d];
        i = next;
    }
}

#endif

// SPDX-License-Identifier: Apache-2.0
// walk: elementwise passes over tensors of one shape and any strides. Dimensions are merged where
// they can be, elements are numbered in the order of the output's memory, and a kernel asks for
// chunks of at most PL_CHUNK of them: a dense operand is used where it lies, any other is copied
// through a small buffer in the first cache. Private to kernels/cpu.
#ifndef PL_KERNELS_CPU_WALK_H
#define PL_KERNELS_CPU_WALK_H

#include "cpu/convert.h"

#define PL_CHUNK 1024
#define PL_WALK_MAX 4
// Below this many elements a second thread costs more than it brings.
#define PL_SERIAL 32768

typedef enum pl_access {
    PL_DENSE,   // element i of the walk is at data + i
    PL_SINGLE,  // every stride is 0
    PL_PIECES   // runs along the innermost dimension
} pl_access;

typedef struct pl_operand {
    char *data;
    size_t size;  // bytes per element
    pl_access access;
    int64_t strides[PL_MAX_DIMS];  // in elements, after merging
} pl_operand;

// Operand 0 is the output; its order of strides decides the order of dimensions.
typedef struct pl_walk {
    int count, ndim;
    int64_t shape[PL_MAX_DIMS];
    int64_t numel;
    pl_operand op[PL_WALK_MAX];
} pl_walk;

void pl__cpu_walk_init(pl_walk *w, int count, const pl_tensor *const *tensors);

// Where in the walk's index space a chunk starts.
typedef struct pl_cursor {
    int64_t index;
    int64_t at[PL_MAX_DIMS];
} pl_cursor;
void pl__cpu_cursor_set(const pl_walk *w, int64_t index, pl_cursor *c);
void pl__cpu_cursor_advance(const pl_walk *w, int64_t n, pl_cursor *c);

// Elements [c->index, +n) of operand k through `load` into buf (n of the loaded type).
void pl__cpu_walk_load(const pl_walk *w, int k, const pl_cursor *c, int64_t n, pl_load_fn load,
                       size_t loaded_size, void *buf);
// n elements from buf to operand 0, through `store`.
void pl__cpu_walk_store(const pl_walk *w, const pl_cursor *c, int64_t n, pl_store_fn store,
                        size_t stored_size, const void *buf);
// The address of n elements of operand k if they lie densely there, else NULL.
void *pl__cpu_walk_dense(const pl_walk *w, int k, const pl_cursor *c, int64_t n);

// The grain for pl_parallel_for over n elements: one piece where n is small.
static inline int64_t pl__cpu_grain(int64_t n) { return n < PL_SERIAL ? n : 8 * PL_CHUNK; }

#endif

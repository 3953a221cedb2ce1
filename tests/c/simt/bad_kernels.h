// SPDX-License-Identifier: Apache-2.0
// bad_kernels: kernels with one mistake each, and what starts them. C and C++.
#ifndef PL_SIMT_BAD_KERNELS_H
#define PL_SIMT_BAD_KERNELS_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum bad_kernel {
    KERNEL_RIGHT,
    MISSING_BARRIER,
    BARRIER_IN_A_BRANCH,
    TWO_BARRIERS,
    LANE_OUTSIDE_ITS_MASK,
    MASKS_THAT_DISAGREE,
    READS_OUTSIDE_THE_MASK,
    LANE_THAT_LEFT,
    PAST_THE_END,
    NOT_ALIGNED,
    KERNEL_FETCHES,  // right too
    FETCH_READ_TOO_EARLY,
    FETCH_UNDER_WAY_AT_THE_END,
} bad_kernel;

void bad_kernel_run(bad_kernel which, int *out);  // one block of 64 threads; out: 64 numbers
// By the way that kernels/cuda launches, without a stream.
void bad_kernel_start(size_t dynamic_bytes, size_t allowed_bytes, int *out);
void bad_kernel_launch(unsigned threads, size_t dynamic_bytes);

#ifdef __cplusplus
}
#endif
#endif

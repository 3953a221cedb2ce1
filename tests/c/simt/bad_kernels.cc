// SPDX-License-Identifier: Apache-2.0
// bad_kernels: one mistake each, for the test of the stand-in (test_simt.c); and one right kernel.
#include "bad_kernels.h"

#include "simt.h"

namespace {

const uint32_t ALL = 0xffffffffu;

template <int N>
int *shared_ints() {
    static const char place = 0;
    return (int *)simt_shared(&place, N * sizeof(int));
}

// out[i] = sum of 0 .. i over a block of 64, by way of shared memory.
void right(int *out) {
    int *all = shared_ints<64>();
    all[threadIdx.x] = (int)threadIdx.x;
    __syncthreads();
    out[threadIdx.x] = 0;
    for (unsigned i = 0; i <= threadIdx.x; i++) out[threadIdx.x] += all[i];
}

void missing_barrier(int *out) {
    int *all = shared_ints<64>();
    all[threadIdx.x] = (int)threadIdx.x;
    out[threadIdx.x] = all[63 - threadIdx.x];
}

void barrier_in_a_branch(int *out) {
    if (threadIdx.x < 40) __syncthreads();
    out[threadIdx.x] = 1;
}

void two_barriers(int *out) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[threadIdx.x] = 1;
}

void lane_outside_its_mask(int *out) {
    out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, (int)threadIdx.x, 1);
}

void masks_that_disagree(int *out) {
    out[threadIdx.x] = __shfl_xor_sync(threadIdx.x == 5 ? ALL - 1 : ALL, 1, 1);
}

void reads_outside_the_mask(int *out) {
    if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_sync(0x0000ffffu, 7, 20);
}

void lane_that_left(int *out) {
    if (threadIdx.x == 3) return;
    out[threadIdx.x] = __shfl_xor_sync(ALL, 1, 1);
}

void past_the_end(int *out) {
    int *all = shared_ints<64>();
    all[threadIdx.x + 1] = 1;
    out[threadIdx.x] = 1;
}

void not_aligned(int *out) {
    char *p = (char *)out + 4;
    out[threadIdx.x] = *simt_aligned(SIMT_SITE("load"), (int *)(void *)p, 16);
}

// Each thread fetches a number, the first four 7, the others 0; waits for all but NEWER groups, of
// which there is one; and at last for the rest.
template <int NEWER, bool REST>
void fetches(int *out) {
    static const int numbers[64] = {7, 7, 7, 7};
    int *all = shared_ints<64>();
    simt_fetch(SIMT_SITE("fetch"), all + threadIdx.x, threadIdx.x < 4 ? numbers : nullptr, 4);
    simt_fetch_commit();
    simt_fetch_wait(NEWER);
    out[threadIdx.x] = all[threadIdx.x];
    if (REST) simt_fetch_wait(0);
}

void (*const kernels[])(int *) = {right,
                                  missing_barrier,
                                  barrier_in_a_branch,
                                  two_barriers,
                                  lane_outside_its_mask,
                                  masks_that_disagree,
                                  reads_outside_the_mask,
                                  lane_that_left,
                                  past_the_end,
                                  not_aligned,
                                  fetches<0, true>,
                                  fetches<1, true>,
                                  fetches<1, false>};

}  // namespace

void bad_kernel_run(bad_kernel which, int *out) {
    simt_run(1, 64, 0, [&] { kernels[which](out); });
}

void bad_kernel_start(size_t dynamic_bytes, size_t allowed_bytes, int *out) {
    if (allowed_bytes > 0) simt_allow_shared((const void *)right, allowed_bytes);
    simt_start(right, 1, 64, dynamic_bytes, nullptr, out);
}

void bad_kernel_launch(unsigned threads, size_t dynamic_bytes) {
    simt_run(1, threads, dynamic_bytes, [] {});
}

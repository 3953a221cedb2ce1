// SPDX-License-Identifier: Apache-2.0
// fetch: copies from device to shared memory that run while the thread goes on (cp.async, sm_80 and
// later). What a thread has fetched is there for itself after pl_fetch_wait, for its block after a
// barrier behind that. On the host a copy is made when it is waited for, and until then the place
// holds NaN, so that a wait left out shows.
#ifndef PL_CUDA_FETCH_CUH
#define PL_CUDA_FETCH_CUH

#include "cuda/device.cuh"

// BYTES (4 or 16) from `from`, or zeros.
template <int BYTES, typename T>
static PL_DEVICE void pl_fetch(T *to, const T *from, bool present) {
    static_assert(BYTES == 4 || BYTES == 16, "what the kernels use");
#ifdef __CUDACC__
    uint32_t at = (uint32_t)__cvta_generic_to_shared(to), nbytes = present ? BYTES : 0;
    if (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                     :
                     : "r"(at), "l"(from), "r"(nbytes)
                     : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                     :
                     : "r"(at), "l"(from), "r"(nbytes)
                     : "memory");
    }
#else
    simt_aligned(SIMT_SITE("cp.async"), to, BYTES);
    if (present) simt_aligned(SIMT_SITE("cp.async"), from, BYTES);
    simt_fetch(SIMT_SITE("cp.async"), to, present ? from : nullptr, BYTES);
#endif
}

// What was fetched since the last one becomes a group, which may be empty.
static PL_DEVICE void pl_fetch_commit(void) {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    simt_fetch_commit();
#endif
}

// Until all groups but the NEWER last ones have come.
template <int NEWER>
static PL_DEVICE void pl_fetch_wait(void) {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(NEWER) : "memory");
#else
    simt_fetch_wait(NEWER);
#endif
}

#endif

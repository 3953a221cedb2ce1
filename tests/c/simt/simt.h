// SPDX-License-Identifier: Apache-2.0
// simt: the words of CUDA C++ that kernels/cuda uses, as host C++, so that the same source runs
// where there is no GPU. kernels/cuda/device.cuh includes it unless nvcc compiles. Every CUDA
// thread is a fiber, one block runs at a time (simt.cc). What it checks: masks of warp operations
// from both sides, __syncthreads that not all threads reach, alignment of wide accesses, shared
// memory that was not written (filled with 0xFF, so NaN) or written past its end. What it cannot
// show: speed, the memory model between blocks, the rounding of the hardware's own functions.
#ifndef PL_SIMT_H
#define PL_SIMT_H

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <tuple>
#include <type_traits>

#include "simt_control.h"

#define __global__
#define __device__
#define __host__
#define __restrict__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

extern dim3 simt_thread, simt_block, simt_block_size, simt_grid_size;
#define threadIdx simt_thread
#define blockIdx simt_block
#define blockDim simt_block_size
#define gridDim simt_grid_size

// ---- Launch, shared memory, complaints ----------------------------------------------------------

typedef struct simt_site {
    const char *file, *what;
    int line;
} simt_site;
#define SIMT_SITE(what) (simt_site{__FILE__, what, __LINE__})

void simt_launch(dim3 grid, dim3 block, size_t dynamic_bytes, void (*body)(void *), void *arg);
void *simt_shared(const void *key, size_t nbytes);  // of this block, one buffer per key
void *simt_dynamic_shared(void);
[[noreturn]] void simt_complain(simt_site site, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void simt_barrier(simt_site site);

template <typename Body>
void simt_run(dim3 grid, dim3 block, size_t dynamic_bytes, Body body) {
    simt_launch(grid, block, dynamic_bytes, [](void *b) { (*static_cast<Body *>(b))(); }, &body);
}

// A launch with its arguments' values of now: at once where stream is NULL, else when whoever set
// simt_stream runs it, with a copy of the context.
extern void (*simt_stream)(void *stream, void (*run)(void *), const void *context, size_t nbytes);

// More than 48 KB of dynamic shared memory must be allowed, kernel by kernel. Any thread.
void simt_allow_shared(const void *kernel, size_t nbytes);
bool simt_may_share(const void *kernel, size_t nbytes);
void simt_refuse_shared(size_t nbytes);  // a complaint

template <typename... P>
struct simt_call {
    void (*kernel)(P...);
    dim3 grid, block;
    size_t dynamic_bytes;
    bool allowed;
    std::tuple<P...> args;
    static void run(void *context) {
        simt_call *c = static_cast<simt_call *>(context);
        if (!c->allowed) return simt_refuse_shared(c->dynamic_bytes);
        simt_run(c->grid, c->block, c->dynamic_bytes, [c] { std::apply(c->kernel, c->args); });
    }
};

template <typename T>
struct simt_same {
    typedef T type;  // so that an argument is converted to the kernel's parameter
};

template <typename... P>
void simt_start(void (*kernel)(P...), dim3 grid, dim3 block, size_t dynamic_bytes, void *stream,
                typename simt_same<P>::type... args) {
    static_assert((std::is_trivially_copyable<P>::value && ...), "a launch copies bytes");
    bool allowed = simt_may_share((const void *)kernel, dynamic_bytes);
    simt_call<P...> call = {kernel, grid, block, dynamic_bytes, allowed, std::tuple<P...>(args...)};
    if (stream == nullptr) {
        simt_call<P...>::run(&call);
    } else {
        simt_stream(stream, simt_call<P...>::run, &call, sizeof(call));
    }
}

#define __syncthreads() simt_barrier(SIMT_SITE("__syncthreads"))
#define __syncthreads_or(predicate) simt_barrier_or(SIMT_SITE("__syncthreads_or"), predicate)

// Whether any thread of the block said so. A block runs on one thread of the host.
static inline int simt_barrier_or(simt_site site, int predicate) {
    static thread_local bool any;
    simt_barrier(site);  // all have read what was there before
    any = false;
    simt_barrier(site);
    if (predicate) any = true;
    simt_barrier(site);
    return any;
}

template <typename P>
P *simt_aligned(simt_site site, P *p, size_t nbytes) {
    if ((uintptr_t)p % nbytes != 0) {
        simt_complain(site, "%zu-byte access at %p is not aligned", nbytes, (const void *)p);
    }
    return p;
}

// ---- Copies that run beside the thread ----------------------------------------------------------

// cp.async: `from` NULL: zeros. They are made when the thread waits; until then `to` holds 0xFF.
void simt_fetch(simt_site site, void *to, const void *from, size_t nbytes);
void simt_fetch_commit(void);
void simt_fetch_wait(int newer);

// ---- Warp operations ----------------------------------------------------------------------------

enum { SIMT_WARP = 32, SIMT_WORDS = 4 };
typedef uint64_t simt_values[SIMT_WARP][SIMT_WORDS];

// Waits for the lanes of `mask`; gives what each of them brought. Valid until the next one.
const simt_values *simt_exchange(simt_site site, uint32_t mask, const void *mine, size_t nbytes);
unsigned simt_lane(void);

template <typename T>
T simt_from_lane(simt_site site, uint32_t mask, T value, unsigned lane) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves up to 8 bytes");
    const simt_values *all = simt_exchange(site, mask, &value, sizeof(T));
    if (!(mask >> (lane & 31) & 1)) {
        simt_complain(site, "reads lane %u, which is not in mask 0x%08x", lane & 31, mask);
    }
    T got;
    memcpy(&got, (*all)[lane & 31], sizeof(T));
    return got;
}

static inline uint32_t simt_ballot(simt_site site, uint32_t mask, bool mine) {
    uint64_t word = mine;
    const simt_values *all = simt_exchange(site, mask, &word, sizeof(word));
    uint32_t votes = 0;
    for (int l = 0; l < SIMT_WARP; l++) {
        if (mask >> l & 1) votes |= (uint32_t)(*all)[l][0] << l;
    }
    return votes;
}

static inline uint32_t simt_match(simt_site site, uint32_t mask, uint32_t mine) {
    uint64_t word = mine;
    const simt_values *all = simt_exchange(site, mask, &word, sizeof(word));
    uint32_t same = 0;
    for (int l = 0; l < SIMT_WARP; l++) {
        if ((mask >> l & 1) && (uint32_t)(*all)[l][0] == mine) same |= 1u << l;
    }
    return same;
}

#define __shfl_sync(mask, value, lane) simt_from_lane(SIMT_SITE("__shfl_sync"), mask, value, lane)
#define __shfl_xor_sync(mask, value, bits) \
    simt_from_lane(SIMT_SITE("__shfl_xor_sync"), mask, value, simt_lane() ^ (unsigned)(bits))
#define __ballot_sync(mask, vote) simt_ballot(SIMT_SITE("__ballot_sync"), mask, vote)
#define __any_sync(mask, vote) (simt_ballot(SIMT_SITE("__any_sync"), mask, vote) != 0)
#define __match_any_sync(mask, value) simt_match(SIMT_SITE("__match_any_sync"), mask, value)
#define __syncwarp() ((void)simt_ballot(SIMT_SITE("__syncwarp"), 0xffffffffu, true))

// ---- Atomics (one thread runs at a time) and arithmetic -----------------------------------------

template <typename T>
T atomicAdd(T *p, T value) {
    T old = *p;
    *p = (T)(old + value);
    return old;
}

template <typename T>
T atomicOr(T *p, T value) {
    T old = *p;
    *p = old | value;
    return old;
}

template <typename T>
T atomicCAS(T *p, T expected, T value) {
    T old = *p;
    if (old == expected) *p = value;
    return old;
}

static inline int __popc(uint32_t x) { return __builtin_popcount(x); }
static inline int __ffs(uint32_t x) { return __builtin_ffs((int)x); }
static inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
    return (uint64_t)((unsigned __int128)a * b >> 64);
}

#endif

// SPDX-License-Identifier: Apache-2.0
// base: what every other module stands on: status and errors, dtypes, memory, threads, random
// numbers, time. Knows nothing of tensors, processes or Python. All functions are thread-safe
// unless their comment says otherwise.
#ifndef PL_BASE_H
#define PL_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define PL_MUST_USE __attribute__((warn_unused_result))
#define PL_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define PL_LIKELY(x) __builtin_expect(!!(x), 1)
#define PL_UNLIKELY(x) __builtin_expect(!!(x), 0)
#else
#define PL_MUST_USE
#define PL_PRINTF(fmt, args)
#define PL_LIKELY(x) (x)
#define PL_UNLIKELY(x) (x)
#endif

// ---------------------------------------------------------------------------------------------
// Status. One table makes the enum, the name and the Python exception class (looked up by name in
// paceline/errors.py, then in builtins).

#define PL_STATUS_MAP(X)                                                \
    X(OK, "", "success")                                                \
    X(EINVAL, "ValueError", "invalid argument")                         \
    X(ETYPE, "TypeError", "invalid type")                               \
    X(EINDEX, "IndexError", "index out of range")                       \
    X(ENOMEM, "MemoryError", "out of host memory")                      \
    X(ERUNTIME, "RuntimeError", "operation not possible in this state") \
    X(ENOSUP, "NotImplementedError", "not built yet")                   \
    X(EDEVICE, "DeviceError", "device or its library failed")           \
    X(ESYS, "OSError", "the operating system refused")                  \
    X(ETIME, "CollectiveTimeoutError", "deadline passed")               \
    X(EPEER, "PeerLostError", "a peer died")                            \
    X(EREMOTE, "RemoteError", "a peer raised")                          \
    X(EMISMATCH, "CollectiveMismatchError", "ranks disagree")           \
    X(EINTR, "KeyboardInterrupt", "interrupted")                        \
    X(EBUG, "InternalError", "a bug in paceline")

typedef enum pl_status {
#define X(name, exc, text) PL_##name,
    PL_STATUS_MAP(X)
#undef X
        PL_STATUS_COUNT
} pl_status;

const char *pl_status_name(pl_status st);       // "PL_EINVAL"
const char *pl_status_exception(pl_status st);  // "ValueError"

// Records a message for this thread and returns `st`. Form of a message:
// "[op] what is wrong: got X, expected Y" and the setting to change if there is one.
#define pl_fail(st, ...) pl_fail_at((st), __FILE__, __LINE__, __VA_ARGS__)
pl_status pl_fail_at(pl_status st, const char *file, int line, const char *fmt, ...)
    PL_PRINTF(4, 5) PL_MUST_USE;

// The message of the last pl_fail on this thread (never NULL; valid until the next pl_fail here).
const char *pl_error_message(void);
// Where the last pl_fail on this thread was, as "file.c:123".
const char *pl_error_where(void);
// Sets this thread's message without touching the text: how a worker's failure crosses threads.
void pl_error_set(const char *message);

#define PL_TRY(expr)                            \
    do {                                        \
        pl_status pl_try_st_ = (expr);          \
        if (PL_UNLIKELY(pl_try_st_ != PL_OK)) { \
            return pl_try_st_;                  \
        }                                       \
    } while (0)

#define PL_TRY_GOTO(st, expr, label)      \
    do {                                  \
        (st) = (expr);                    \
        if (PL_UNLIKELY((st) != PL_OK)) { \
            goto label;                   \
        }                                 \
    } while (0)

// For our own bugs only. Debug builds (PACELINE_DEBUG=1) stop in pl_assert_failed; release builds
// return PL_EBUG with the text.
#ifdef PL_DEBUG
_Noreturn void pl_assert_failed(const char *cond, const char *file, int line);
#define PL_ASSERT(cond)                                                        \
    do {                                                                       \
        if (PL_UNLIKELY(!(cond))) pl_assert_failed(#cond, __FILE__, __LINE__); \
    } while (0)
#else
#define PL_ASSERT(cond)                                                             \
    do {                                                                            \
        if (PL_UNLIKELY(!(cond))) {                                                 \
            return pl_fail(PL_EBUG, "assertion failed: %s (please report)", #cond); \
        }                                                                           \
    } while (0)
#endif

// ---------------------------------------------------------------------------------------------
// Data types. The order is the order of promotion within a kind.

#define PL_DTYPE_MAP(X)         \
    X(BOOL, "bool", 1, 'b')     \
    X(U8, "uint8", 1, 'u')      \
    X(I32, "int32", 4, 'i')     \
    X(I64, "int64", 8, 'i')     \
    X(F16, "float16", 2, 'f')   \
    X(BF16, "bfloat16", 2, 'f') \
    X(F32, "float32", 4, 'f')   \
    X(F64, "float64", 8, 'f')

typedef enum pl_dtype {
#define X(name, text, size, kind) PL_##name,
    PL_DTYPE_MAP(X)
#undef X
        PL_DTYPE_COUNT
} pl_dtype;

typedef uint16_t pl_bf16;  // the upper half of a float's bits
typedef uint16_t pl_f16;   // IEEE binary16

size_t pl_dtype_size(pl_dtype dt);
const char *pl_dtype_name(pl_dtype dt);
char pl_dtype_kind(pl_dtype dt);  // 'b' bool, 'u' unsigned, 'i' signed, 'f' floating
static inline bool pl_dtype_is_float(pl_dtype dt) { return dt >= PL_F16; }
// PyTorch's promotion of two tensors of dimension > 0: f16 with bf16 gives f32, u8 with i32 i32.
pl_dtype pl_dtype_promote(pl_dtype a, pl_dtype b);

static inline float pl_bf16_to_f32(pl_bf16 h) {
    union {
        uint32_t u;
        float f;
    } v = {(uint32_t)h << 16};
    return v.f;
}

// Round to nearest even; NaN stays NaN (quiet, sign kept).
static inline pl_bf16 pl_f32_to_bf16(float f) {
    union {
        float f;
        uint32_t u;
    } v = {f};
    if ((v.u & 0x7fffffffu) > 0x7f800000u) return (pl_bf16)((v.u >> 16) | 0x40u);
    return (pl_bf16)((v.u + 0x7fffu + ((v.u >> 16) & 1u)) >> 16);
}

float pl_f16_to_f32(pl_f16 h);
pl_f16 pl_f32_to_f16(float f);

// ---------------------------------------------------------------------------------------------
// Memory. Blocks are 64-byte aligned. What is freed is kept for the next request instead of going
// back to the system, so that a training loop in its steady state neither maps nor faults pages.

pl_status pl_alloc(size_t nbytes, void **out) PL_MUST_USE;   // contents undefined
pl_status pl_calloc(size_t nbytes, void **out) PL_MUST_USE;  // zeroed
void pl_free(void *p);                                       // NULL is legal
void pl_alloc_trim(void);                                    // cached blocks back to the system
size_t pl_alloc_in_use(void);                                // bytes handed out now
size_t pl_alloc_peak(void);      // the most handed out at once, since the start or the reset
void pl_alloc_reset_peak(void);  // the peak counts from what is in use now
size_t pl_alloc_cached(void);    // bytes free and kept for reuse
size_t pl_alloc_held(void);      // of the system's memory: in use, cached, and lost to rounding
// What this process can have: the machine's memory and swap, or its container's limit.
size_t pl_memory_limit(void);
// Test hook: the n-th allocation from now fails with PL_ENOMEM (0: off). `forever`: all after too.
void pl_alloc_fail_at(uint64_t n, bool forever);

// Live-object counters, asserted zero by the tests.
typedef enum pl_kind {
    PL_KIND_STORAGE,
    PL_KIND_TENSOR,
    PL_KIND_NODE,
    PL_KIND_GROUP,
    PL_KIND_WORK,
    PL_KIND_SEGMENT,
    PL_KIND_REDUCER,
    PL_KIND_OTHER,
    PL_KIND_COUNT
} pl_kind;
void pl_live_add(pl_kind kind, int delta);
int64_t pl_live(pl_kind kind);
const char *pl_kind_name(pl_kind kind);

// ---------------------------------------------------------------------------------------------
// Threads. Loops run through libgomp's own pool (GOMP_parallel, opened at run time), which oneDNN
// shares; without libgomp they run on the caller. Not callable from a thread that must stay out of
// OpenMP (Note [comm thread stays out of OpenMP], comm/comm.h). A forked child runs serially.

typedef void (*pl_range_fn)(int64_t begin, int64_t end, void *ctx);
// Calls fn over [0, n) in contiguous pieces, one per thread, each a multiple of `grain` items but
// the last; serial when n <= grain or inside another parallel loop. The split depends on n, grain
// and the thread count only. fn must not fail.
void pl_parallel_for(int64_t n, int64_t grain, pl_range_fn fn, void *ctx);
int pl_num_threads(void);  // also tells OpenMP (and so oneDNN) on the calling thread
pl_status pl_set_num_threads(int n) PL_MUST_USE;  // >= 1
int pl_cpu_count(void);                           // processors this process may run on

// Called at least every 20 ms by everything that may run long; a host that can be interrupted
// (the binding) sets it. Returns PL_OK to go on, anything else is passed on as the failure.
typedef pl_status (*pl_interrupt_fn)(void);
void pl_set_interrupt(pl_interrupt_fn fn);
pl_status pl_check_interrupt(void) PL_MUST_USE;  // cheap: asks the host at most every 10 ms

// ---------------------------------------------------------------------------------------------
// Random numbers: Philox 4x32-10 (Salmon et al., SC'11), counter-based: the i-th number of a
// stream needs no state but (seed, offset), so that a result does not depend on the thread count.

typedef struct pl_generator {
    uint64_t seed;
    uint64_t offset;  // 4x32-bit blocks drawn so far
} pl_generator;

void pl_philox(uint64_t seed, uint64_t offset, uint64_t subsequence, uint32_t out[4]);
// Reserves `blocks` blocks and gives the offset of the first. Not thread-safe per generator.
static inline uint64_t pl_generator_take(pl_generator *g, uint64_t blocks) {
    uint64_t at = g->offset;
    g->offset += blocks;
    return at;
}

// ---------------------------------------------------------------------------------------------
// Time and processor.

int64_t pl_now_ns(void);  // monotonic

typedef struct pl_cpu_features {
    bool avx2_fma, avx512, avx512_bf16, amx_bf16, avx512_fp16;
} pl_cpu_features;
const pl_cpu_features *pl_cpu(void);
const char *pl_cpu_name(void);  // "AMD EPYC 9575F 64-Core Processor"

#endif

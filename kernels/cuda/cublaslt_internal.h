// SPDX-License-Identifier: Apache-2.0
// cublaslt_internal: what the files cublaslt*.c share. From the bottom: _library opens cuBLASLt,
// _memory keeps choices and their file, _plan has the library's descriptors and proposals, _choice
// measures, _shape turns tensors into calls, _route takes a call's epilogue or own kernels;
// cublaslt.c, _linear and _linear_grad are the products.
#ifndef PL_CUDA_CUBLASLT_INTERNAL_H
#define PL_CUDA_CUBLASLT_INTERNAL_H

#include "cuda/choices.h"
#include "cuda/cublaslt.h"
#include "cuda/cublaslt_abi.h"

// One call of the library in its own terms, which are column-major: D (m, n) = op(A) op(B), with
// k between; A is (k, m) where transposed_a, else (m, k), and so on. A row-major tensor is its
// transpose there, so the tensors' roles are exchanged: A is the product's second factor.
// Only int64 members, each of which counts: the struct is a key, hashed and written as numbers.
typedef struct pl_blas_call {
    int64_t m, n, k, batch;
    int64_t lda, ldb, ldd, stride_a, stride_b, stride_d;  // elements; strides between the batch's
    int64_t transposed_a, transposed_b;
    int64_t type_ab, type_d;  // pl_dtype
    int64_t accumulate;       // D += instead of D =
    int64_t tf32;
    int64_t epilogue;  // PL_LT_EPILOGUE_*
    int64_t aux_ld;    // elements; 0 without
    // Bytes to which the pointers are aligned, powers of two up to 16.
    int64_t align_a, align_b, align_d, align_bias, align_aux;
} pl_blas_call;
enum { PL_BLAS_KEY = sizeof(pl_blas_call) / sizeof(int64_t) };

typedef struct pl_blas_data {
    const void *a, *b;
    void *d;
    void *bias;  // read; written by BGRADB
    void *aux;   // written; read by DGELU
} pl_blas_data;

// How a call is done.
typedef enum pl_blas_route {
    PL_BLAS_UNKNOWN,   // a call with an epilogue: not compared yet; one without: nothing to compare
    PL_BLAS_FUSED,     // the epilogue was faster
    PL_BLAS_SEPARATE,  // own kernels around a plain product were
} pl_blas_route;
typedef struct pl_blas_choice {
    pl_blas_call call;
    bool possible;  // the library can do it; else the rest says nothing
    bool measured;  // worth keeping in the file
    pl_blas_route route;
    pl_lt_algo algo;
    uint64_t workspace;
} pl_blas_choice;

// ---- cublaslt_memory.c: choices, in memory and in a file (choices.h) ---------------------------
extern const pl_choices_form pl__blas_form;

// ---- cublaslt_library.c -------------------------------------------------------------------------
pl_status pl__blas_library(const pl_lt_library **out) PL_MUST_USE;  // opened the first time
pl_status pl__blas_failed(const char *doing, int status) PL_MUST_USE;
// "cuBLASLt 13.1.0 (/path)", or "not loaded".
const char *pl__blas_library_text(void);

// ---- the state ----------------------------------------------------------------------------------
typedef struct pl_blas_plan {
    pl_blas_choice choice;
    void *desc, *a, *b, *d;  // the library's; desc NULL: an empty place
} pl_blas_plan;

enum { PL_BLAS_PLANS = 1024, PL_BLAS_WORKSPACE = 32 << 20 };
struct pl_cuda_blas {
    pl_cuda_blas_args args;
    const pl_lt_library *lib;  // NULL: not open yet
    void *handle;
    void **workspace, *first_workspace;  // of the current queue; where none was given, the own one
    int64_t measured_ns;                 // in all, of the host's time
    pl_event *clock[2];                  // NULL until something is measured
    pl_choices memory;                   // of pl_blas_choice
    pl_blas_plan plans[PL_BLAS_PLANS];
    uint32_t evicted;  // counts
};

// ---- cublaslt_plan.c ----------------------------------------------------------------------------
// The plan of a call, made if need be (its algorithm measured if allowed, writing to data as the
// call does). Valid until the next one is asked for.
pl_status pl__blas_plan(pl_cuda_blas *blas, const pl_blas_call *call, const pl_blas_data *data,
                        pl_blas_plan **out) PL_MUST_USE;
// Enqueues the call. PL_EDEVICE where the library cannot do it.
pl_status pl__blas_run(pl_cuda_blas *blas, const pl_blas_call *call,
                       const pl_blas_data *data) PL_MUST_USE;
// The same by a plan, perhaps with another algorithm than its own. A plan whose epilogue the
// library refuses only now is marked as not possible, besides failing.
pl_status pl__blas_enqueue(pl_cuda_blas *blas, pl_blas_plan *plan, const pl_lt_algo *algo,
                           const pl_blas_data *data) PL_MUST_USE;
void pl__blas_plans_free(pl_cuda_blas *blas);

// ---- cublaslt_choice.c --------------------------------------------------------------------------
bool pl__blas_may_measure(const pl_cuda_blas *blas);
// plan->choice: the fastest of the proposals, which are sorted by the library's expectation, and
// that it was measured; not so where there is no memory for it.
pl_status pl__blas_fastest(pl_cuda_blas *blas, pl_blas_plan *plan, const pl_blas_data *data,
                           const pl_lt_proposal *proposals, int count) PL_MUST_USE;
// Seconds of one run of what `run` enqueues, which it may do several times.
pl_status pl__blas_time(pl_cuda_blas *blas, pl_status (*run)(void *context), void *context,
                        double *out) PL_MUST_USE;

// ---- cublaslt_shape.c ---------------------------------------------------------------------------
// out (M, N) (+)= a (M, K) b (K, N) for every index of the batch, as calls of the library: `call`
// is what they share, without alignments, and they differ by the offsets of the dimensions `outer`,
// which the strided batch could not take. None of the sizes is 0.
typedef struct pl_blas_product {
    pl_blas_call call;
    pl_blas_data data;
    int ndim;
    int64_t outer[PL_MAX_DIMS], a[PL_MAX_DIMS], b[PL_MAX_DIMS], d[PL_MAX_DIMS];  // bytes
} pl_blas_product;
// Whether the library can read t's matrices as they are: rows or columns adjacent, none
// overlapping.
bool pl__blas_readable(const pl_tensor *t);
pl_status pl__blas_product(const pl_tensor *a, const pl_tensor *b, bool accumulate, pl_tensor *out,
                           pl_blas_product *p) PL_MUST_USE;
pl_status pl__blas_product_run(pl_cuda_blas *blas, const pl_blas_product *p) PL_MUST_USE;
// Sets the alignments of call from what data points to.
void pl__blas_align(pl_blas_call *call, const pl_blas_data *data);

// ---- cublaslt_route.c ---------------------------------------------------------------------------
typedef struct pl_blas_routes {
    pl_status (*fused)(void *context);
    pl_status (*separate)(void *context);
    void *context;  // all that they need, and that they may write
} pl_blas_routes;
// Does by the faster route what p, a call with an epilogue, is the fused half of; by the separate
// one also where the library refuses the fused call when it is made. Both routes may run several
// times before, to be measured.
pl_status pl__blas_faster(pl_cuda_blas *blas, const pl_blas_product *p,
                          const pl_blas_routes *r) PL_MUST_USE;
// Its parts, for who measures in other memory: whether that is still to be done, doing it, and the
// work itself.
pl_status pl__blas_undecided(pl_cuda_blas *blas, const pl_blas_product *p, bool *out) PL_MUST_USE;
pl_status pl__blas_compare(pl_cuda_blas *blas, const pl_blas_product *p,
                           const pl_blas_routes *r) PL_MUST_USE;
pl_status pl__blas_take(pl_cuda_blas *blas, const pl_blas_product *p,
                        const pl_blas_routes *r) PL_MUST_USE;
// Whether t (M, N) contiguous can be what GELU keeps or its gradient takes.
bool pl__blas_is_auxiliary(const pl_tensor *t);

// ---- cublaslt.c ---------------------------------------------------------------------------------
// Opens the library, and what else the first product needs.
pl_status pl__blas_ready(pl_cuda_blas *blas) PL_MUST_USE;
// Whether a product of such factors may be computed by TF32.
bool pl__blas_tf32(pl_dtype dt);
// A factor as the library can read it: t itself, or a copy that lives until it is released.
typedef struct pl_blas_factor {
    pl_tensor t;
    void *copy;
} pl_blas_factor;
pl_status pl__blas_factor(pl_cuda_blas *blas, const pl_tensor *t, pl_blas_factor *out) PL_MUST_USE;
void pl__blas_factor_release(pl_cuda_blas *blas, pl_blas_factor *f);
// t (2-d) with its dimensions exchanged, for this call only.
pl_tensor pl__blas_transposed(const pl_tensor *t);
// A contiguous tensor over `data`, for this call only.
pl_tensor pl__blas_over(void *data, pl_dtype dt, int ndim, const int64_t *shape);

#endif

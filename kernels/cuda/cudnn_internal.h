// SPDX-License-Identifier: Apache-2.0
// cudnn_internal: what the files cudnn*.c share. From the bottom: _library opens cuDNN, _graph
// describes attention to it, _plan asks it for a plan and keeps plans, _choice compares with the
// own kernels, cudnn.c turns tensors into calls.
#ifndef PL_CUDA_CUDNN_INTERNAL_H
#define PL_CUDA_CUDNN_INTERNAL_H

#include "cuda/choices.h"
#include "cuda/cublaslt_internal.h"
#include "cuda/cudnn.h"
#include "cuda/cudnn_abi.h"

// The tensors of a call, in the order of pl_dnn_call.strides and pl_dnn_data.at.
typedef enum pl_dnn_operand {
    PL_DNN_Q,
    PL_DNN_K,
    PL_DNN_V,
    PL_DNN_OUT,
    PL_DNN_G,  // from here on: of the gradient alone
    PL_DNN_DQ,
    PL_DNN_DK,
    PL_DNN_DV,
    PL_DNN_OPERANDS,
    PL_DNN_LSE = PL_DNN_OPERANDS,  // (B, H, T) fp32, contiguous
    PL_DNN_SUM,                    // the same, room of the gradient's
    PL_DNN_DATA,
    // By value: fp32 numbers of the host.
    PL_DNN_SCALE = PL_DNN_DATA,
    PL_DNN_HIDDEN,  // -infinity
    PL_DNN_ONE,
    PL_DNN_IDS,
} pl_dnn_operand;

// One call. Only int64 members, each of which counts: the struct is a key, hashed and written as
// numbers. Strides in elements, of (B, H, rows, D); that of D is 1.
typedef struct pl_dnn_call {
    int64_t batch, heads, queries, keys, width;
    int64_t dtype;  // pl_dtype
    int64_t causal, gradient;
    int64_t strides[PL_DNN_OPERANDS][3];
} pl_dnn_call;
enum { PL_DNN_KEY = sizeof(pl_dnn_call) / sizeof(int64_t) };

// Where the tensors of a call are; what is the gradient's alone is NULL without one.
typedef struct pl_dnn_data {
    void *at[PL_DNN_DATA];
    float scale;
} pl_dnn_data;

// ---- cudnn_library.c
pl_status pl__dnn_library(const pl_dnn_library **out) PL_MUST_USE;  // opened the first time
pl_status pl__dnn_failed(const char *doing, int status) PL_MUST_USE;

// ---- cudnn_graph.c
// Descriptors, destroyed together in reverse order.
enum { PL_DNN_MOST = 160 };
typedef struct pl_dnn_bag {
    void *descs[PL_DNN_MOST];
    int count;
} pl_dnn_bag;
// Each is told a status: after the first failure they do nothing (and give NULL).
void *pl__dnn_make(const pl_dnn_library *lib, pl_dnn_bag *bag, int kind, int *status);
void pl__dnn_set(const pl_dnn_library *lib, void *desc, int attribute, int type, int64_t count,
                 const void *values, int *status);
void pl__dnn_finish(const pl_dnn_library *lib, void *desc, int *status);
void pl__dnn_empty(const pl_dnn_library *lib, pl_dnn_bag *bag);
// The finalised graph of operations. handle: NULL where the library is asked without a device.
void *pl__dnn_graph(const pl_dnn_library *lib, pl_dnn_bag *bag, const pl_dnn_call *call,
                    void *handle, int *status);

// ---- cudnn_plan.c
typedef enum pl_dnn_route {
    PL_DNN_UNKNOWN,
    PL_DNN_OWN,      // own kernels
    PL_DNN_LIBRARY,  // cuDNN
    PL_DNN_DIFFERS,  // own kernels: cuDNN's results were not theirs, or not twice the same
} pl_dnn_route;
enum { PL_DNN_STREAMS = 4 };
typedef struct pl_dnn_plan {
    pl_dnn_call call;
    pl_dnn_route route;
    bool asked;      // the library, which gave `plan` or refused
    pl_dnn_bag bag;  // plan's and all it was made of
    void *plan;      // NULL: not possible
    int64_t workspace, pack_ids[PL_DNN_IDS];
    int ids, stream_count;
    pl_stream *streams[PL_DNN_STREAMS];  // where its kernels may still run
} pl_dnn_plan;
// A plan for the call: the first of the library's proposals that it can finalise and whose
// workspace is no larger than PL_DNN_WORKSPACE. `device`: NULL, or a descriptor of properties.
enum { PL_DNN_PROPOSALS = 8 };
#define PL_DNN_WORKSPACE ((int64_t)2 << 30)
int pl__dnn_build(const pl_dnn_library *lib, void *handle, void *device, pl_dnn_plan *plan);

enum { PL_DNN_PLANS = 256 };
struct pl_cuda_dnn {
    pl_cuda_blas *blas;
    int capability;
    enum { PL_DNN_AUTO, PL_DNN_NEVER, PL_DNN_ALWAYS } rule;  // PACELINE_ATTENTION
    bool opened;                                             // or failed to
    const pl_dnn_library *lib;                               // NULL: not there
    void *handle, *stream;                                   // the stream it was told last
    pl_choices choices;                                      // of pl_dnn_choice
    pl_dnn_plan *plans[PL_DNN_PLANS];
    uint32_t evicted;  // counts
};
// The place of a call, perhaps empty of a plan yet. Valid until the next is asked for.
pl_status pl__dnn_place(pl_cuda_dnn *dnn, const pl_dnn_call *call, pl_dnn_plan **out) PL_MUST_USE;
void pl__dnn_plans_free(pl_cuda_dnn *dnn);
pl_status pl__dnn_run(pl_cuda_dnn *dnn, pl_dnn_plan *plan, const pl_dnn_data *data) PL_MUST_USE;

// ---- cudnn_choice.c
typedef struct pl_dnn_choice {
    pl_dnn_call call;
    int64_t route;
    int64_t measured;
} pl_dnn_choice;
extern const pl_choices_form pl__dnn_form;
// What the member of pl_kernels was given; g, dq, dk and dv NULL without a gradient.
typedef struct pl_dnn_work {
    const pl_tensor *q, *k, *v, *g;
    pl_tensor *out, *lse;  // read by a gradient
    pl_tensor *dq, *dk, *dv;
    const pl_attention_args *args;
} pl_dnn_work;
// Sets plan->route, comparing if it must and may; *library: by cuDNN.
pl_status pl__dnn_choose(pl_cuda_dnn *dnn, pl_dnn_plan *plan, const pl_dnn_work *work,
                         bool *library) PL_MUST_USE;
pl_status pl__dnn_own(pl_cuda_dnn *dnn, const pl_dnn_work *work) PL_MUST_USE;  // own kernels
pl_dnn_data pl__dnn_data(const pl_dnn_work *work);

#endif

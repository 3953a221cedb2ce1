// SPDX-License-Identifier: Apache-2.0
// cudnn_plans: the real cuDNN, asked where there is no GPU for plans of attention on an H200: it
// takes the properties of a device as text. It finalises the graphs of kernels/cuda/cudnn_graph.c,
// proposes engines and compiles their kernels; only the driver, which is not there, is made up
// (fake_driver.c, FAKE_DRIVER its path): nothing is run. Part of real_libraries.c.
#ifndef REAL_CUDNN_PLANS_H
#define REAL_CUDNN_PLANS_H

#include <dlfcn.h>

#include "cuda/cudnn_internal.h"
#include "test.h"

static const char H200[] =
    "{\"maxGridSize\":[2147483647,65535,65535],\"maxBlockSize\":[1024,1024,64],"
    "\"regsPerBlock\":65536,\"multiProcessorCount\":132,\"warpSize\":32,"
    "\"maxSharedMemoryPerBlock\":49152,\"maxSharedMemoryPerBlockOptin\":232448,"
    "\"reservedSharedMemoryPerBlock\":1024,\"maxRegistersPerSM\":65536,\"maxCtasPerSM\":32,"
    "\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":2048,\"pciDeviceId\":0,\"isTccDriver\":0,"
    "\"supportCoopLaunch\":1,\"totalGlobalMem\":150121545728,\"smClockRateKHz\":1980000,"
    "\"memClockRateKHz\":3201000,\"l2CacheSize\":62914560,\"cudaDeviceId\":0,"
    "\"deviceVer\":900,\"driverVer\":13000,\"deviceName\":\"NVIDIA H200\"}";

typedef struct probe {
    pl_dtype dtype;
    int64_t batch, heads, queries, keys, width;
    bool causal, gradient, packed;  // packed: q, k, v are views of one (B, T, 3, H, D)
} probe;

// (B, rows, H, D) in memory, of which `parts` lie side by side.
static void stride(pl_dnn_call *c, int which, int64_t rows, int64_t parts) {
    c->strides[which][0] = rows * parts * c->heads * c->width;
    c->strides[which][1] = c->width;
    c->strides[which][2] = parts * c->heads * c->width;
}

static pl_dnn_call call_of(const probe *p) {
    pl_dnn_call c = {.batch = p->batch,
                     .heads = p->heads,
                     .queries = p->queries,
                     .keys = p->keys,
                     .width = p->width,
                     .dtype = p->dtype,
                     .causal = p->causal,
                     .gradient = p->gradient};
    for (int i = 0; i < (p->gradient ? PL_DNN_OPERANDS : PL_DNN_G); i++) {
        bool keys = i == PL_DNN_K || i == PL_DNN_V || i == PL_DNN_DK || i == PL_DNN_DV;
        stride(&c, i, keys ? p->keys : p->queries, p->packed && i <= PL_DNN_V ? 3 : 1);
    }
    return c;
}

static const pl_dnn_library *cudnn(void **device) {
    static pl_dnn_bag bag;
    const pl_dnn_library *lib;
    int st = PL_DNN_SUCCESS;
    CHECK(dlopen(FAKE_DRIVER, RTLD_NOW | RTLD_GLOBAL) != NULL);
    CHECK_OK(pl__dnn_library(&lib));
    CHECK(strncmp(pl_cuda_dnn_library(), "cuDNN 9.", 8) == 0);
    *device = pl__dnn_make(lib, &bag, PL_DNN_DEVICE_PROPERTIES, &st);
    pl__dnn_set(lib, *device, PL_DNN_A_DEVICE_JSON, PL_DNN_T_CHAR, (int64_t)strlen(H200), H200,
                &st);
    pl__dnn_finish(lib, *device, &st);
    CHECK_STR_EQ(lib->status_name(st), "CUDNN_STATUS_SUCCESS");
    return lib;
}

// The workspace of the plan, -1: there is none.
static int64_t planned(const probe *p) {
    static pl_dnn_plan plan;
    void *device;
    const pl_dnn_library *lib = cudnn(&device);
    memset(&plan, 0, sizeof plan);
    plan.call = call_of(p);
    int st = pl__dnn_build(lib, NULL, device, &plan);
    int64_t workspace = plan.plan ? plan.workspace : -1;
    if (!plan.plan) printf("no plan: %s\n", lib->status_name(st));
    pl__dnn_empty(lib, &plan.bag);
    return workspace;
}

TEST(cudnn_plans_attention_of_gpt2) {
    const probe causal = {PL_BF16, 64, 12, 1024, 1024, 64, true, false, true};
    const probe whole = {PL_BF16, 64, 12, 1024, 1024, 64, false, false, false};
    CHECK(planned(&causal) >= 0);
    CHECK(planned(&whole) >= 0);
}

TEST(cudnn_plans_attention_of_other_shapes) {
    const probe odd = {PL_F16, 2, 4, 100, 100, 128, true, false, true};
    const probe keys = {PL_BF16, 2, 4, 70, 333, 72, true, false, false};
    CHECK(planned(&odd) >= 0);
    CHECK(planned(&keys) >= 0);
}

// Without atomics all of ds, 16 bits of each pair of a query and a key, is in the workspace: that
// it is there says that the engine is not the one with atomics.
TEST(cudnn_plans_the_gradient_of_gpt2_without_atomics) {
    const probe causal = {PL_BF16, 64, 12, 1024, 1024, 64, true, true, true};
    const probe whole = {PL_BF16, 8, 12, 1024, 1024, 64, false, true, false};
    CHECK(planned(&causal) >= INT64_C(64) * 12 * 1024 * 1024 * 2);
    CHECK(planned(&whole) >= INT64_C(8) * 12 * 1024 * 1024 * 2);
}

TEST(cudnn_plans_the_gradient_of_other_shapes) {
    const probe odd = {PL_F16, 2, 4, 100, 100, 128, true, true, true};
    const probe keys = {PL_BF16, 2, 4, 70, 333, 72, true, true, false};
    CHECK(planned(&odd) >= INT64_C(2) * 4 * 100 * 100 * 2);
    CHECK(planned(&keys) >= INT64_C(2) * 4 * 70 * 333 * 2);
}

TEST(cudnn_with_too_large_a_workspace_is_not_taken) {
    const probe large = {PL_BF16, 8, 16, 8192, 8192, 64, true, true, true};
    CHECK_EQ(planned(&large), -1);
}

TEST(cudnn_without_a_gpu_is_one_sentence) {
    const pl_dnn_library *lib;
    void *handle;
    CHECK_OK(pl__dnn_library(&lib));
    int st = lib->create(&handle);
    if (st == PL_DNN_SUCCESS) return;  // there is one
    CHECK_FAILS(pl__dnn_failed("starting", st), PL_EDEVICE,
                "[cuDNN] starting failed: got CUDNN_STATUS_");
}

#endif

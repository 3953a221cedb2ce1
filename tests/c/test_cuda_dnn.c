// SPDX-License-Identifier: Apache-2.0
// How kernels/cuda/cudnn*.c give attention to cuDNN or to the own kernels, what they remember, and
// what they say when something is missing. On the stand-in for cuDNN.
#include <dlfcn.h>
#include <sys/stat.h>

#include "base/library.h"
#include "blas_on_host.h"
#include "cuda/cudnn_internal.h"

#define F16_WEIGHTS 0x1p-11
#undef pl_kernels_cpu
#define pl_kernels_cpu pl_kernels_dnn
static const pl_kernels *pl_kernels_dnn(void);
#include "attention_cases.h"

static pl_cuda_queue queue;
static pl_cuda_fault fault;
static host_run scratch_owner;
static pl_cuda_blas *blas;
static pl_cuda_dnn *dnn;

// `way`: PACELINE_ATTENTION, `measure`: PACELINE_BLAS_MEASURE.
static void start_on(int capability, const char *way, const char *measure) {
    queue = (pl_cuda_queue){.fault = &fault, .scratch = host_scratch, .owner = &scratch_owner};
    setenv("PACELINE_ATTENTION", way, 1);
    setenv("PACELINE_BLAS_MEASURE", measure, 1);
    setenv("PACELINE_CUDNN", TEST_CUBLASLT, 0);
    setenv("PACELINE_NVRTC", "/nowhere", 1);
    blas_syncs = 0;
    blas = blas_new(&queue);
    CHECK_OK(pl_cuda_dnn_new(blas, capability, &dnn));
}

static void start(const char *way, const char *measure) { start_on(90, way, measure); }

static void stop(void) {
    pl_cuda_dnn_free(dnn);
    pl_cuda_blas_free(blas);
    pl_free(scratch_owner.scratch);
    scratch_owner.scratch = NULL;
    dnn = NULL;
    CHECK_EQ(blas_allocations, 0);
}

static pl_status attention(const pl_tensor *q, const pl_tensor *k, const pl_tensor *v,
                           const pl_attention_args *args, pl_tensor *out, pl_tensor *lse) {
    return pl_cuda_dnn_attention(q, k, v, args, out, lse, dnn);
}

static pl_status attention_grad(const pl_tensor *g, const pl_tensor *q, const pl_tensor *k,
                                const pl_tensor *v, const pl_tensor *out, const pl_tensor *lse,
                                const pl_attention_args *args, pl_tensor *dq, pl_tensor *dk,
                                pl_tensor *dv) {
    return pl_cuda_dnn_attention_grad(g, q, k, v, out, lse, args, dq, dk, dv, dnn);
}

static const pl_kernels *pl_kernels_dnn(void) {
    static const pl_kernels table = {.attention = attention, .attention_grad = attention_grad};
    return &table;
}

// How often the stand-in has computed.
static int executions(void) {
    void *handle = dlopen(TEST_CUBLASLT, RTLD_NOW | RTLD_NOLOAD);
    if (!handle) return 0;
    int (*ask)(void);
    *(void **)(&ask) = dlsym(handle, "vcuda_cudnn_executions");
    dlclose(handle);
    return ask();
}

static const att_case PLAIN = {PL_BF16, 1, 2, 20, 20, 16, true, MASK_NONE, 0.0, true, 1};

// One case, forward and gradient; returns how often cuDNN computed.
static int attend(const att_case *c) {
    int before = executions();
    check_case(c);
    return executions() - before;
}

// ---- What it computes ---------------------------------------------------------------------------

TEST(cudnn_agrees_with_the_oracle) {
    static const att_case cases[] = {
        {PL_BF16, 2, 3, 20, 20, 16, true, MASK_NONE, 0.0, true, 1},
        {PL_BF16, 1, 2, 33, 33, 8, false, MASK_NONE, 0.0, true, 1},
        {PL_F16, 2, 1, 17, 40, 24, true, MASK_NONE, 0.0, false, 1},
        {PL_F16, 1, 2, 40, 7, 64, false, MASK_NONE, 0.0, false, 1},
        {PL_BF16, 1, 1, 5, 9, 128, true, MASK_NONE, 0.0, false, 1},
        {PL_BF16, 1, 1, 2, 2, 8, true, MASK_NONE, 0.0, true, 1},
    };
    start("cudnn", "0");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) CHECK_EQ(attend(&cases[i]), 2);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) CHECK_EQ(attend(&cases[i]), 2);
    CHECK(strncmp(pl_cuda_dnn_library(), "cuDNN 9.19.0 (", 14) == 0);
    CHECK_EQ(blas_syncs, 0);  // nothing waits
    stop();
}

TEST(what_cudnn_does_not_take_is_the_own_kernels) {
    static const att_case cases[] = {
        {PL_F32, 1, 1, 5, 5, 16, true, MASK_NONE, 0.0, false, 1},
        {PL_BF16, 1, 1, 5, 5, 12, true, MASK_NONE, 0.0, false, 1},
        {PL_BF16, 1, 1, 5, 5, 136, true, MASK_NONE, 0.0, false, 1},
        {PL_BF16, 1, 1, 5, 5, 16, true, MASK_BOOL, 0.0, false, 1},
        {PL_BF16, 1, 1, 5, 5, 16, true, MASK_NONE, 0.3, false, 1},
        {PL_BF16, 1, 1, 1, 5, 16, false, MASK_NONE, 0.0, false, 1},
        {PL_BF16, 1, 1, 5, 1, 16, false, MASK_NONE, 0.0, false, 1},
        {PL_BF16, 1, 1, 0, 5, 16, false, MASK_NONE, 0.0, false, 1},
        {PL_BF16, 1, 4, 5, 5, 16, true, MASK_NONE, 0.0, false, 2},
    };
    start("cudnn", "0");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) CHECK_EQ(attend(&cases[i]), 0);
    stop();
    start("own", "0");
    CHECK_EQ(attend(&PLAIN), 0);
    stop();
}

TEST(views_that_are_not_aligned_are_the_own_kernels) {
    att_data x;
    att_case c = {PL_BF16, 1, 2, 5, 5, 16, true, MASK_NONE, 0.0, false, 1};
    pl_attention_args args = {.scale = 0.25, .causal = true};
    make_data(&c, &x);
    start("cudnn", "0");
    int before = executions();
    pl_tensor shifted = *x.q, expanded = *x.g;
    shifted.data = (char *)shifted.data + 2;
    shifted.shape[1] = x.out->shape[1] = x.k->shape[1] = x.v->shape[1] = 1;
    CHECK_OK(attention(&shifted, x.k, x.v, &args, x.out, x.lse));
    expanded.shape[1] = x.q->shape[1] = x.dq->shape[1] = x.dk->shape[1] = x.dv->shape[1] = 1;
    expanded.strides[2] = 0;
    CHECK_OK(attention_grad(&expanded, x.q, x.k, x.v, x.out, x.lse, &args, x.dq, x.dk, x.dv));
    CHECK_EQ(executions(), before);
    CHECK_OK(attention(x.q, x.k, x.v, &args, x.out, x.lse));
    CHECK_EQ(executions(), before + 1);
    stop();
    free_data(&x);
}

TEST(older_and_newer_gpus_keep_what_is_known_of_them) {
    static const struct {
        int capability, times;
    } gpus[] = {{75, 0}, {80, 1}, {90, 2}, {100, 1}};
    for (size_t i = 0; i < sizeof gpus / sizeof *gpus; i++) {
        start_on(gpus[i].capability, "cudnn", "0");
        CHECK_EQ(attend(&PLAIN), gpus[i].times);
        stop();
    }
}

// ---- How it is chosen ---------------------------------------------------------------------------

static char folder[64], file[256];
static void use_cache(void) {
    snprintf(folder, sizeof folder, "/tmp/test_cuda_dnn.XXXXXX");
    if (!mkdtemp(folder)) TEST_FAIL("no folder");
    setenv("XDG_CACHE_HOME", folder, 1);
    snprintf(file, sizeof file, "%s/paceline/cudnn-91900-Stand-in_GPU.txt", folder);
}

static void remove_cache(void) {
    char inner[128];
    (void)unlink(file);
    snprintf(inner, sizeof inner, "%s/paceline", folder);
    (void)rmdir(inner);
    if (rmdir(folder) != 0) TEST_FAIL("%s is not empty: a file was left beside", folder);
}

static pl_dnn_route route_of(int i) {
    return (pl_dnn_route)((pl_dnn_choice *)dnn->choices.records)[i].route;
}

// The stand-in for cuDNN is plain loops, the own kernels run thread by thread: far slower.
TEST(a_shape_is_measured_once_and_remembered_on_disk) {
    use_cache();
    start("auto", "auto");
    CHECK(attend(&PLAIN) > 2);
    CHECK_EQ(dnn->choices.count, 2);
    CHECK(route_of(0) == PL_DNN_LIBRARY && route_of(1) == PL_DNN_LIBRARY);
    int syncs = blas_syncs;
    CHECK(syncs > 0);
    CHECK_EQ(attend(&PLAIN), 2);
    CHECK_EQ(blas_syncs, syncs);
    stop();
    start("auto", "auto");  // another process
    CHECK_EQ(dnn->choices.count, 0);
    CHECK_EQ(attend(&PLAIN), 2);
    CHECK_EQ(dnn->choices.count, 2);
    CHECK_EQ(blas_syncs, 0);
    stop();
    setenv("WORLD_SIZE", "2", 1);
    setenv("LOCAL_WORLD_SIZE", "2", 1);
    start("auto", "auto");  // ranks of one machine read and never measure
    CHECK_EQ(attend(&PLAIN), 2);
    att_case other = PLAIN;
    other.t = other.s = 21;
    CHECK_EQ(attend(&other), 0);
    CHECK_EQ(blas_syncs, 0);
    stop();
    setenv("WORLD_SIZE", "4", 1);
    start("auto", "auto");  // of several machines, they do not read either
    CHECK_EQ(attend(&PLAIN), 0);
    stop();
    remove_cache();
}

// What VCUDA_CUDNN makes of the forward pass and of the gradient.
static void expect_routes(const char *how, pl_dnn_route forward, pl_dnn_route gradient) {
    use_cache();
    setenv("VCUDA_CUDNN", how, 1);
    start("auto", "auto");
    (void)attend(&PLAIN);
    CHECK_EQ(dnn->choices.count, 2);
    if (route_of(0) != forward || route_of(1) != gradient) {
        TEST_FAIL("%s: got %d and %d, expected %d and %d", how, route_of(0), route_of(1), forward,
                  gradient);
    }
    bool library = forward == PL_DNN_LIBRARY;
    CHECK_EQ(attend(&PLAIN), (int)library + (int)(gradient == PL_DNN_LIBRARY));
    stop();
    remove_cache();
    unsetenv("VCUDA_CUDNN");
}

TEST(slower_is_not_chosen) { expect_routes("slow", PL_DNN_OWN, PL_DNN_OWN); }
TEST(no_plan_is_the_own_kernels) {
    expect_routes("nothing", PL_DNN_OWN, PL_DNN_OWN);
    expect_routes("unplanned", PL_DNN_OWN, PL_DNN_OWN);
    expect_routes("large", PL_DNN_OWN, PL_DNN_OWN);
}
TEST(the_next_proposal_is_taken) { expect_routes("unfit", PL_DNN_LIBRARY, PL_DNN_LIBRARY); }
TEST(other_results_are_not_chosen) {
    expect_routes("wrong", PL_DNN_DIFFERS, PL_DNN_DIFFERS);
    expect_routes("fails", PL_DNN_DIFFERS, PL_DNN_DIFFERS);
}

// The n-th computation is right for even n: the first is the forward pass's, measured on.
TEST(a_gradient_that_varies_is_not_chosen) {
    use_cache();
    start("auto", "auto");
    att_data x;
    pl_attention_args args = {.scale = 0.25, .causal = true};
    make_data(&PLAIN, &x);
    CHECK_OK(attention(x.q, x.k, x.v, &args, x.out, x.lse));
    setenv("VCUDA_CUDNN", "varies", 1);
    CHECK_OK(attention_grad(x.g, x.q, x.k, x.v, x.out, x.lse, &args, x.dq, x.dk, x.dv));
    CHECK(route_of(0) == PL_DNN_LIBRARY && route_of(1) == PL_DNN_DIFFERS);
    stop();
    free_data(&x);
    remove_cache();
    unsetenv("VCUDA_CUDNN");
}

TEST(numbers_that_are_none_decide_nothing) {
    use_cache();
    start("auto", "auto");
    att_data x;
    pl_attention_args args = {.scale = 0.25, .causal = true};
    make_data(&PLAIN, &x);
    check_set(x.q, 3, NAN);
    CHECK_OK(attention(x.q, x.k, x.v, &args, x.out, x.lse));
    CHECK(isnan(check_get(x.out, 0)));
    CHECK_EQ(dnn->choices.count, 0);
    check_set(x.q, 3, 0.5);
    CHECK_OK(attention(x.q, x.k, x.v, &args, x.out, x.lse));
    CHECK_EQ(dnn->choices.count, 1);
    stop();
    free_data(&x);
    remove_cache();
}

TEST(a_damaged_file_counts_as_empty) {
    use_cache();
    start("auto", "auto");
    (void)attend(&PLAIN);
    stop();
    FILE *f = fopen(file, "a");
    CHECK(f != NULL);
    fputs("1 2 3\n", f);
    fclose(f);
    setenv("WORLD_SIZE", "2", 1);
    setenv("LOCAL_WORLD_SIZE", "2", 1);
    start("auto", "auto");
    CHECK_EQ(attend(&PLAIN), 0);
    stop();
    remove_cache();
}

// More shapes than there are places.
TEST(plans_are_forgotten) {
    start("cudnn", "0");
    att_data x;
    att_case c = {PL_BF16, 1, 1, 300, 2, 8, false, MASK_NONE, 0.0, false, 1};
    pl_attention_args args = {.scale = 0.25};
    make_data(&c, &x);
    int before = executions();
    for (int64_t t = 2; t <= 300; t++) {
        x.q->shape[2] = x.out->shape[2] = t;
        x.q->numel = x.out->numel = t * 8;
        CHECK_OK(attention(x.q, x.k, x.v, &args, x.out, x.lse));
    }
    CHECK_EQ(executions(), before + 299);
    CHECK(dnn->evicted > 0 && blas_syncs > 0);
    stop();
    free_data(&x);
}

// ---- What is missing ----------------------------------------------------------------------------

static void refused(pl_status status, const char *part) {
    att_data x;
    pl_attention_args args = {.scale = 0.25, .causal = true};
    make_data(&PLAIN, &x);
    CHECK_FAILS(attention(x.q, x.k, x.v, &args, x.out, x.lse), status, part);
    CHECK(strstr(pl_error_message(), "expected") != NULL);
    CHECK_STR_EQ(pl_cuda_dnn_library(), "not loaded");
    stop();
    free_data(&x);
}

TEST(a_missing_library_matters_only_to_who_asked_for_it) {
    setenv("PACELINE_CUDNN", "/nowhere/libcudnn.so.9", 1);
    start("auto", "0");
    refused(PL_EDEVICE, "cuDNN cannot be opened: got PACELINE_CUDNN=/nowhere/libcudnn.so.9");
    setenv("PACELINE_CUDNN", "", 1);  // as where it is not installed
    pl_library_set_path(PL_LIBRARY_CUDNN, "/nowhere/libcudnn.so.9");
    void *handle;
    if (pl_library_open(PL_LIBRARY_CUDNN, &handle) == PL_OK) return;  // the system's
    start("cudnn", "0");
    refused(PL_EDEVICE, "pip install 'paceline[cudnn]' brings it");
    start("auto", "0");
    check_case(&PLAIN);
    check_case(&PLAIN);
    stop();
}

TEST(another_library_or_version_is_refused) {
    setenv("VCUDA_CUDNN_VERSION", "91002", 1);
    start("cudnn", "0");
    refused(PL_EDEVICE, "got version 9.10 in ");
    setenv("VCUDA_CUDNN_VERSION", "100000", 1);
    start("cudnn", "0");
    refused(PL_EDEVICE, "got version 10.0 in ");
}

TEST(a_library_without_its_functions_is_refused) {
    setenv("PACELINE_CUDNN", "libm.so.6", 1);
    start("cudnn", "0");
    refused(PL_EDEVICE, "got no cudnnGetVersion in libm.so.6");
}

TEST(a_way_that_is_none_is_refused) {
    setenv("PACELINE_ATTENTION", "flash", 1);
    CHECK_FAILS(pl_cuda_dnn_new(NULL, 90, &dnn), PL_EINVAL,
                "got \"flash\", expected auto, own or cudnn");
}

TEST(a_failure_while_running_is_told) {
    start("cudnn", "0");
    check_case(&PLAIN);
    setenv("VCUDA_CUDNN", "fails", 1);
    att_data x;
    pl_attention_args args = {.scale = 0.25, .causal = true};
    make_data(&PLAIN, &x);
    CHECK_FAILS(attention(x.q, x.k, x.v, &args, x.out, x.lse), PL_EDEVICE,
                "[cuDNN] attention failed: got CUDNN_STATUS_EXECUTION_FAILED");
    stop();
    free_data(&x);
}

static int allocations_left;
static pl_status scarce_alloc(size_t nbytes, const char *tag, void **out) {
    if (allocations_left-- <= 0) return pl_fail(PL_ENOMEM, "[%s] no memory", tag);
    return blas_alloc(nbytes, tag, out);
}

// Each of the device's allocations fails once; nothing leaks, and later all is well.
TEST(memory_may_be_missing_anywhere) {
    att_data x;
    pl_attention_args args = {.scale = 0.25, .causal = true};
    make_data(&PLAIN, &x);
    use_cache();
    pl_status forward = PL_ENOMEM, backward = PL_ENOMEM;
    for (int n = 1; forward != PL_OK || backward != PL_OK; n++) {  // 1: products' workspace
        CHECK(n < 20);
        start(n % 2 ? "cudnn" : "auto", "1");
        blas->args.alloc = scarce_alloc;
        allocations_left = n;
        forward = attention(x.q, x.k, x.v, &args, x.out, x.lse);
        if (forward != PL_OK) CHECK_EQ(forward, PL_ENOMEM);
        allocations_left = n;
        backward = attention_grad(x.g, x.q, x.k, x.v, x.out, x.lse, &args, x.dq, x.dk, x.dv);
        if (backward != PL_OK) CHECK_EQ(backward, PL_ENOMEM);
        stop();
    }
    free_data(&x);
    remove_cache();
}

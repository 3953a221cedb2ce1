// SPDX-License-Identifier: Apache-2.0
// NVIDIA's own libraries, opened where there may be no GPU: whatever they do without one. Run by
// tests/gpu/test_declarations.py where they are installed; PACELINE_CUBLASLT, PACELINE_NCCL and
// PACELINE_CUDNN name them. cuDNN's part is cudnn_plans.h.
#include "comm/nccl.h"
#include "cuda/cublaslt_internal.h"
#include "real/cudnn_plans.h"
#include "test.h"

// ---- cuBLASLt -----------------------------------------------------------------------------------

static const pl_lt_library *cublaslt(void) {
    const pl_lt_library *lib;
    CHECK_OK(pl__blas_library(&lib));
    CHECK_EQ(lib->version() / 10000, PL_LT_MAJOR);
    CHECK(strncmp(pl__blas_library_text(), "cuBLASLt 13.", 12) == 0);
    printf("%s\n", pl__blas_library_text());
    return lib;
}

TEST(cublaslt_is_found_and_is_of_our_version) {
    const pl_lt_library *lib = cublaslt();
    CHECK_STR_EQ(lib->status_name(PL_LT_SUCCESS), "CUBLAS_STATUS_SUCCESS");
    CHECK_STR_EQ(lib->status_name(PL_LT_NOT_SUPPORTED), "CUBLAS_STATUS_NOT_SUPPORTED");
}

static const pl_blas_call PLAIN = {.m = 16,
                                   .n = 32,
                                   .k = 64,
                                   .batch = 1,
                                   .lda = 16,
                                   .ldb = 64,
                                   .ldd = 16,
                                   .type_ab = PL_BF16,
                                   .type_d = PL_BF16,
                                   .epilogue = PL_LT_EPILOGUE_DEFAULT,
                                   .align_a = 16,
                                   .align_b = 16,
                                   .align_d = 16,
                                   .align_bias = 16,
                                   .align_aux = 16};

// Describes the call by the library and asks it for algorithms, without a handle: that is what it
// must refuse, and nothing before.
static void described(const pl_lt_library *lib, const pl_blas_call *call) {
    static pl_cuda_blas blas;
    static char bytes[64] __attribute__((aligned(16)));
    const pl_blas_data data = {bytes, bytes, bytes, bytes, bytes};
    pl_blas_plan *plan;
    blas.lib = lib;
    CHECK_FAILS(pl__blas_plan(&blas, call, &data, &plan), PL_EDEVICE,
                "[cuBLASLt] asking for algorithms failed: got CUBLAS_STATUS_NOT_INITIALIZED of "
                "cuBLASLt 13.");
}

TEST(cublaslt_takes_every_description_that_we_give) {
    const pl_lt_library *lib = cublaslt();
    static const int64_t epilogues[] = {
        PL_LT_EPILOGUE_DEFAULT,
        PL_LT_EPILOGUE_BIAS,
        PL_LT_EPILOGUE_GELU,
        PL_LT_EPILOGUE_GELU | PL_LT_EPILOGUE_BIAS,
        PL_LT_EPILOGUE_GELU | PL_LT_EPILOGUE_AUX,
        PL_LT_EPILOGUE_GELU | PL_LT_EPILOGUE_AUX | PL_LT_EPILOGUE_BIAS,
        PL_LT_EPILOGUE_DGELU,
        PL_LT_EPILOGUE_BGRADB,
    };
    for (size_t i = 0; i < sizeof epilogues / sizeof *epilogues; i++) {
        pl_blas_call call = PLAIN;
        call.epilogue = epilogues[i];
        if (call.epilogue & PL_LT_EPILOGUE_AUX) call.aux_ld = 16;
        described(lib, &call);
    }
    static const pl_dtype types[][2] = {{PL_BF16, PL_F32}, {PL_F16, PL_F16}, {PL_F16, PL_F32},
                                        {PL_F32, PL_F32},  {PL_F64, PL_F64}, {PL_BF16, PL_BF16}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        pl_blas_call call = PLAIN;
        call.type_ab = types[i][0];
        call.type_d = types[i][1];
        call.tf32 = types[i][0] == PL_F32;
        call.transposed_a = i & 1;
        call.transposed_b = i & 2;
        call.lda = call.ldb = 64;
        call.batch = 3;
        call.stride_b = 64 * 64;  // a's is 0: one matrix for all of the batch
        call.stride_d = 16 * 32;
        described(lib, &call);
    }
}

// Each attribute has the size and kind that the library expects, since it refuses others.
TEST(cublaslt_refuses_attributes_of_another_size) {
    const pl_lt_library *lib = cublaslt();
    void *desc, *layout, *pref;
    const int64_t value[2] = {0};
    CHECK_EQ(lib->desc_create(&desc, PL_LT_32F, PL_LT_R_32F), PL_LT_SUCCESS);
    CHECK_EQ(lib->layout_create(&layout, PL_LT_R_16BF, 16, 32, 16), PL_LT_SUCCESS);
    CHECK_EQ(lib->pref_create(&pref), PL_LT_SUCCESS);
    static const struct {
        int attribute;
        size_t size;
    } descs[] = {{PL_LT_DESC_TRANSA, 4},      {PL_LT_DESC_TRANSB, 4},
                 {PL_LT_DESC_EPILOGUE, 4},    {PL_LT_DESC_BIAS_POINTER, 8},
                 {PL_LT_DESC_AUX_POINTER, 8}, {PL_LT_DESC_AUX_LD, 8}},
      layouts[] = {{PL_LT_LAYOUT_BATCH_COUNT, 4}, {PL_LT_LAYOUT_BATCH_OFFSET, 8}},
      prefs[] = {{PL_LT_PREF_WORKSPACE, 8}, {PL_LT_PREF_REDUCTION_MASK, 4}};
    for (size_t i = 0; i < sizeof descs / sizeof *descs; i++) {
        CHECK(lib->desc_set(desc, descs[i].attribute, value, 12 - descs[i].size) != PL_LT_SUCCESS);
    }
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        CHECK(lib->layout_set(layout, layouts[i].attribute, value, 12 - layouts[i].size) !=
              PL_LT_SUCCESS);
    }
    for (size_t i = 0; i < sizeof prefs / sizeof *prefs; i++) {
        CHECK(lib->pref_set(pref, prefs[i].attribute, value, 12 - prefs[i].size) != PL_LT_SUCCESS);
    }
    CHECK_EQ(lib->desc_destroy(desc), PL_LT_SUCCESS);
    CHECK_EQ(lib->layout_destroy(layout), PL_LT_SUCCESS);
    CHECK_EQ(lib->pref_destroy(pref), PL_LT_SUCCESS);
}

TEST(cublaslt_without_a_driver_is_one_sentence) {
    const pl_lt_library *lib = cublaslt();
    void *handle = NULL;
    int st = lib->create(&handle);
    if (st == PL_LT_SUCCESS) {  // a machine with a GPU
        CHECK_EQ(lib->destroy(handle), PL_LT_SUCCESS);
        return;
    }
    printf("%s\n", lib->status_name(st));
    CHECK_FAILS(pl__blas_failed("starting", st), PL_EDEVICE,
                "[cuBLASLt] starting failed: got CUBLAS_STATUS_");
}

// ---- NCCL ---------------------------------------------------------------------------------------

TEST(nccl_is_found_and_says_what_it_is) {
    const pl__nccl *n;
    char text[32];
    CHECK_OK(pl__nccl_open(&n));
    CHECK(n->version >= 21800 && n->version < 30000);
    printf("NCCL %s\n", pl__nccl_version_text(n->version, text, sizeof text));
    CHECK_STR_EQ(n->ncclGetErrorString(PL__NCCL_SUCCESS), "no error");
    CHECK(strstr(n->ncclGetErrorString(PL__NCCL_INVALID_ARGUMENT), "invalid argument") != NULL);
    CHECK(strstr(n->ncclGetErrorString(PL__NCCL_IN_PROGRESS), "in progress") != NULL);
}

TEST(nccl_gives_an_id_or_says_why_not) {
    const pl__nccl *n;
    pl__nccl_id id = {{0}}, zero = {{0}};
    CHECK_OK(pl__nccl_open(&n));
    int result = n->ncclGetUniqueId(&id);
    pl_status st = pl__nccl_status(n, "nccl", result, NULL);
    if (st == PL_OK) {
        CHECK(memcmp(&id, &zero, sizeof id) != 0);
        return;
    }
    printf("%s\n", pl_error_message());
    CHECK(strstr(pl_error_message(), "[nccl] NCCL failed: ") != NULL);
}

// As csrc/comm/device.c makes one: our struct, which is shorter than the library's, is accepted.
TEST(nccl_takes_our_configuration) {
    const pl__nccl *n;
    pl__nccl_id id;
    pl__nccl_comm comm = NULL;
    pl__nccl_config config = {sizeof config, PL__NCCL_CONFIG_MAGIC, PL__NCCL_CONFIG_VERSION, 0};
    CHECK_OK(pl__nccl_open(&n));
    if (n->ncclGetUniqueId(&id) != PL__NCCL_SUCCESS) return;  // said by the test before
    int result = n->ncclCommInitRankConfig(&comm, 1, id, 0, &config);
    if (result == PL__NCCL_SUCCESS || result == PL__NCCL_IN_PROGRESS) {  // a machine with a GPU
        CHECK_EQ(n->ncclCommAbort(comm), PL__NCCL_SUCCESS);
        return;
    }
    CHECK_EQ(result, PL__NCCL_CUDA_ERROR);
    CHECK_FAILS(pl__nccl_status(n, "nccl", result, NULL), PL_EDEVICE, "[nccl] NCCL failed: ");
    printf("%s\n", pl_error_message());
}

// SPDX-License-Identifier: Apache-2.0
// Opening a device's libraries: the order of the search, and what is said where it ends.
#include "base/library.h"
#include "test.h"

static void forget(void) {
    CHECK_EQ(unsetenv("PACELINE_CUDA_LIBRARY"), 0);
    CHECK_EQ(unsetenv("PACELINE_CUBLASLT"), 0);
    CHECK_EQ(unsetenv("PACELINE_NCCL"), 0);
    CHECK_EQ(unsetenv("PACELINE_CUDNN"), 0);
}

static void refused(pl_library which, const char *part) {
    void *handle = NULL;
    CHECK_EQ(pl_library_open(which, &handle), PL_EDEVICE);
    CHECK(handle == NULL);
    if (strstr(pl_error_message(), part) == NULL) {
        TEST_FAIL("got \"%s\", expected \"%s\" in it", pl_error_message(), part);
    }
}

TEST(a_build_without_kernels_says_so) {
    forget();
    refused(PL_LIBRARY_CUDA, "this build has no CUDA: got no _cuda.so");
    CHECK_STR_EQ(pl_library_file(PL_LIBRARY_CUDA), "");
}

TEST(the_file_that_python_found_is_opened_once) {
    forget();
    void *first, *second;
    pl_library_set_path(PL_LIBRARY_NCCL, "libm.so.6");  // as good as any
    CHECK_OK(pl_library_open(PL_LIBRARY_NCCL, &first));
    pl_library_set_path(PL_LIBRARY_NCCL, "/nowhere/libnccl.so.2");
    CHECK_OK(pl_library_open(PL_LIBRARY_NCCL, &second));
    CHECK(first == second);
    CHECK_STR_EQ(pl_library_file(PL_LIBRARY_NCCL), "libm.so.6");
}

TEST(a_variable_wins_and_nothing_else_is_tried) {
    forget();
    pl_library_set_path(PL_LIBRARY_CUBLASLT, "libm.so.6");
    CHECK_EQ(setenv("PACELINE_CUBLASLT", "/nowhere/lt.so", 1), 0);
    refused(PL_LIBRARY_CUBLASLT, "got PACELINE_CUBLASLT=/nowhere/lt.so");
    CHECK_EQ(setenv("PACELINE_CUBLASLT", "libdl.so.2", 1), 0);
    void *handle;
    CHECK_OK(pl_library_open(PL_LIBRARY_CUBLASLT, &handle));
    CHECK_STR_EQ(pl_library_file(PL_LIBRARY_CUBLASLT), "libdl.so.2");
}

TEST(a_missing_library_names_what_brings_it) {
    forget();
    pl_library_set_path(PL_LIBRARY_CUDNN, "/dev/null");
    void *handle;
    if (pl_library_open(PL_LIBRARY_CUDNN, &handle) != PL_OK) {  // else the system has one
        refused(PL_LIBRARY_CUDNN, "pip install 'paceline[cudnn]' brings it");
    }
}

TEST(a_damaged_library_is_named) {
    forget();
    pl_library_set_path(PL_LIBRARY_CUDA, "/dev/null");
    refused(PL_LIBRARY_CUDA, "paceline's CUDA kernels cannot be opened: got \"/dev/null");
}

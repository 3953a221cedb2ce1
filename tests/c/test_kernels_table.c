// SPDX-License-Identifier: Apache-2.0
// What is true of the CPU's table alone: that it serves, or "ref" when a test asks; and that a
// sort, which needs scratch memory, tells of the lack of it.
#include "test.h"

#include "kernel_cases.h"

TEST(tables) {
    CHECK_STR_EQ(pl_kernels_active()->name, "cpu");
    CHECK_OK(pl_kernels_use("ref"));
    CHECK_STR_EQ(pl_kernels_active()->name, "ref");
    CHECK_FAILS(pl_kernels_use("gpu"), PL_EINVAL, "gpu");
    CHECK_OK(pl_kernels_use("cpu"));
    CHECK(pl_kernels_active() == pl_kernels_cpu());
}

TEST(sort_out_of_memory) {
    shape s = {2, {6, 60}};
    pl_tensor *x = make_case(PL_F32, s, DENSE, MODERATE), *out = make_raw(PL_F32, s, DENSE);
    pl_tensor *places = make_raw(PL_I64, s, DENSE);
    pl_alloc_fail_at(1, true);
    CHECK_FAILS(pl_kernels_cpu()->sort(x, false, out, places), PL_ENOMEM, "");
    pl_alloc_fail_at(0, false);
    release_all(3, (pl_tensor *[]){x, out, places});
}

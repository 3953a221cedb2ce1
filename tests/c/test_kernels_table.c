// SPDX-License-Identifier: Apache-2.0
// Which table serves: "cpu", or "ref" when a test asks.
#include "test.h"

#include "kernels.h"

TEST(tables) {
    CHECK_STR_EQ(pl_kernels_active()->name, "cpu");
    CHECK_OK(pl_kernels_use("ref"));
    CHECK_STR_EQ(pl_kernels_active()->name, "ref");
    CHECK_FAILS(pl_kernels_use("gpu"), PL_EINVAL, "gpu");
    CHECK_OK(pl_kernels_use("cpu"));
    CHECK(pl_kernels_active() == pl_kernels_cpu());
}

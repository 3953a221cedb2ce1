// SPDX-License-Identifier: Apache-2.0
// The CPU's tests of attention, for kernels/cuda on the host stand-in: bf16 by way of tensor cores.
#include "cuda_on_host.h"

#include "test_kernels_attention.c"

// Widths up to 128, past one tile of queries and keys: beyond what the CPU's sizes reach.
TEST(wide_heads_agree_with_the_oracle) {
    check_case(&(att_case){PL_BF16, 1, 1, 70, 90, 128, false, MASK_NONE, 0.0, false});
    check_case(&(att_case){PL_BF16, 1, 1, 80, 80, 96, true, MASK_NONE, 0.1, true});
    check_case(&(att_case){PL_BF16, 1, 1, 66, 70, 64, true, MASK_BOOL, 0.0, false});
    check_case(&(att_case){PL_BF16, 1, 1, 5, 20, 136, true, MASK_NONE, 0.0, false});
    check_case(&(att_case){PL_F32, 1, 1, 5, 150, 260, true, MASK_NONE, 0.0, false});
}

TEST(a_width_that_no_kernel_takes_is_refused) {
    att_case c = {PL_F32, 1, 1, 2, 2, 513, false, MASK_NONE, 0.0, false};
    att_data x;
    make_data(&c, &x);
    pl_attention_args args = {.scale = 1.0};
    CHECK_FAILS(host_attention(x.q, x.k, x.v, &args, x.out, x.lse), PL_ENOSUP, "got 513");
    free_data(&x);
}

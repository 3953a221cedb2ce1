// SPDX-License-Identifier: Apache-2.0
// The CPU's tests of attention, for kernels/cuda on the host stand-in: bf16 and fp16 by way of
// tensor cores.
#include "cuda_on_host.h"

#define F16_WEIGHTS 0x1p-11
#include "test_kernels_attention.c"

// Widths up to 128, past one tile of queries and keys: beyond what the CPU's sizes reach.
TEST(wide_heads_agree_with_the_oracle) {
    check_case(&(att_case){PL_BF16, 1, 1, 70, 90, 128, false, MASK_NONE, 0.0, false, 1});
    check_case(&(att_case){PL_BF16, 1, 1, 80, 80, 96, true, MASK_NONE, 0.1, true, 1});
    check_case(&(att_case){PL_BF16, 1, 1, 66, 70, 64, true, MASK_BOOL, 0.0, false, 1});
    check_case(&(att_case){PL_F16, 1, 1, 70, 90, 128, true, MASK_NONE, 0.1, false, 1});
    check_case(&(att_case){PL_F16, 1, 1, 66, 66, 64, false, MASK_BOOL, 0.0, true, 1});
    // 128 queries and keys of a block where nothing is special: whole tiles, the diagonal, the
    // rest.
    check_case(&(att_case){PL_BF16, 1, 1, 150, 150, 64, true, MASK_NONE, 0.0, false, 1});
    check_case(&(att_case){PL_F16, 1, 1, 140, 200, 40, true, MASK_NONE, 0.0, false, 1});
    check_case(&(att_case){PL_F16, 1, 1, 200, 130, 36, false, MASK_NONE, 0.0, false, 1});
    check_case(&(att_case){PL_BF16, 1, 1, 5, 20, 136, true, MASK_NONE, 0.0, false, 1});
    check_case(&(att_case){PL_F32, 1, 1, 5, 150, 260, true, MASK_NONE, 0.0, false, 1});
}

static void no_nan(const char *what, const pl_tensor *t, int64_t from_row, int64_t to_row) {
    for (int64_t i = 0; i < t->numel; i++) {
        int64_t row = i / t->shape[3];
        if (row >= from_row && row < to_row && isnan(check_get(t, i))) {
            TEST_FAIL("%s (%s): NaN in row %lld", what, pl_dtype_name(t->dtype), (long long)row);
        }
    }
}

// Queries before 40 do not see key 40, nor later keys query 39: their NaN and infinity stay away,
// though they share tiles.
TEST(what_is_not_seen_does_not_spoil_a_row) {
    for (size_t d = 0; d < sizeof FLOATS / sizeof *FLOATS; d++) {
        for (int way = 0; way < 2; way++) {
            att_case c = {FLOATS[d], 1, 1, 70, 70, 16, true, MASK_NONE, 0.0, false, 1};
            att_data x;
            make_data(&c, &x);
            pl_attention_args args = {.scale = 0.25, .causal = true};
            if (way == 0) {
                check_set(x.k, 40 * 16 + 3, NAN);
                check_set(x.v, 40 * 16 + 5, INFINITY);
                check_set(x.v, 40 * 16 + 6, NAN);
            } else {
                check_set(x.q, 39 * 16 + 3, NAN);
                check_set(x.g, 39 * 16 + 5, NAN);
            }
            CHECK_OK(pl_kernels_cpu()->attention(x.q, x.k, x.v, &args, x.out, x.lse));
            CHECK_OK(pl_kernels_cpu()->attention_grad(x.g, x.q, x.k, x.v, x.out, x.lse, &args, x.dq,
                                                      x.dk, x.dv));
            no_nan("out", x.out, 0, way == 0 ? 40 : 39);
            no_nan("dq", x.dq, 0, way == 0 ? 40 : 39);
            if (way == 1) {
                no_nan("out", x.out, 40, 70);
                no_nan("dq", x.dq, 40, 70);
                no_nan("dk", x.dk, 40, 70);
                no_nan("dv", x.dv, 40, 70);
                CHECK(isnan(check_get(x.out, 39 * 16)) && isnan(check_get(x.dv, 5)));
            } else {
                CHECK(isnan(check_get(x.out, 40 * 16 + 6)));
            }
            free_data(&x);
        }
    }
}

TEST(a_width_that_no_kernel_takes_is_refused) {
    att_case c = {PL_F32, 1, 1, 2, 2, 513, false, MASK_NONE, 0.0, false, 1};
    att_data x;
    make_data(&c, &x);
    pl_attention_args args = {.scale = 1.0};
    CHECK_FAILS(host_attention(x.q, x.k, x.v, &args, x.out, x.lse), PL_ENOSUP, "got 513");
    free_data(&x);
}

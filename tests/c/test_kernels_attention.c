// SPDX-License-Identifier: Apache-2.0
// Tests of kernels/cpu/attention.c against the oracle, forward and gradient: dtypes, causal, masks,
// dropout, views of a packed qkv, sizes around the tiles.
#include "attention_cases.h"

TEST(sizes_around_the_tiles_agree_with_the_oracle) {
    static const int64_t sizes[][3] = {{1, 1, 1},    {1, 5, 8},   {3, 2, 16},    {33, 33, 7},
                                       {64, 64, 32}, {65, 63, 9}, {130, 67, 24}, {70, 140, 40}};
    for (size_t d = 0; d < sizeof FLOATS / sizeof *FLOATS; d++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            for (int causal = 0; causal < 2; causal++) {
                check_case(&(att_case){FLOATS[d], 1, 2, sizes[i][0], sizes[i][1], sizes[i][2],
                                       causal, MASK_NONE, 0.0, false, 1});
            }
        }
    }
}

TEST(masks_agree_with_the_oracle) {
    for (size_t d = 0; d < sizeof FLOATS / sizeof *FLOATS; d++) {
        for (int mask = MASK_BOOL; mask <= MASK_KEYS; mask++) {
            check_case(
                &(att_case){FLOATS[d], 2, 2, 37, 70, 12, false, (mask_kind)mask, 0, false, 1});
            check_case(&(att_case){FLOATS[d], 1, 2, 66, 66, 20, true, (mask_kind)mask, 0, true, 1});
        }
    }
}

TEST(dropout_agrees_with_the_oracle) {
    for (size_t d = 0; d < sizeof FLOATS / sizeof *FLOATS; d++) {
        check_case(&(att_case){FLOATS[d], 1, 2, 40, 68, 12, false, MASK_NONE, 0.3, false, 1});
        check_case(&(att_case){FLOATS[d], 2, 1, 67, 67, 12, true, MASK_NONE, 0.3, true, 1});
        check_case(&(att_case){FLOATS[d], 1, 1, 20, 20, 4, true, MASK_BOOL, 0.5, false, 1});
    }
}

TEST(a_packed_qkv_needs_no_copy) {
    for (size_t d = 0; d < sizeof FLOATS / sizeof *FLOATS; d++) {
        check_case(&(att_case){FLOATS[d], 2, 2, 66, 66, 16, true, MASK_NONE, 0.0, true, 1});
        check_case(&(att_case){FLOATS[d], 1, 2, 66, 66, 33, false, MASK_NONE, 0.0, true, 1});
    }
}

TEST(grouped_queries_share_a_head_of_keys) {
    for (size_t d = 0; d < sizeof FLOATS / sizeof *FLOATS; d++) {
        check_case(&(att_case){FLOATS[d], 2, 6, 20, 70, 8, false, MASK_NONE, 0.0, false, 3});
        check_case(&(att_case){FLOATS[d], 1, 4, 66, 66, 16, true, MASK_NONE, 0.0, false, 2});
        check_case(&(att_case){FLOATS[d], 2, 4, 9, 7, 4, false, MASK_BOOL, 0.3, false, 4});
    }
    check_case(&(att_case){PL_F32, 0, 4, 3, 3, 4, false, MASK_NONE, 0.0, false, 2});
}

TEST(empty_is_legal) {
    check_case(&(att_case){PL_F32, 0, 2, 3, 3, 4, false, MASK_NONE, 0.0, false, 1});
    check_case(&(att_case){PL_F32, 1, 2, 0, 3, 4, false, MASK_NONE, 0.0, false, 1});
    check_case(&(att_case){PL_F32, 1, 2, 3, 0, 4, false, MASK_NONE, 0.0, false, 1});
}

TEST(an_expanded_gradient_is_taken) {
    att_case c = {PL_F32, 1, 2, 9, 9, 8, true, MASK_NONE, 0.0, false, 1};
    att_data x;
    make_data(&c, &x);
    pl_attention_args args = {.scale = 0.5, .causal = true};
    pl_tensor *one = check_tensor(PL_F32, 4, (int64_t[]){1, 1, 1, 1}, 1.0), *g;
    CHECK_OK(pl_tensor_expand(one, 4, x.q->shape, &g));
    CHECK_OK(pl_kernels_cpu()->attention(x.q, x.k, x.v, &args, x.out, x.lse));
    CHECK_OK(pl_kernels_ref()->attention_grad(g, x.q, x.k, x.v, x.out, x.lse, &args, x.want_dq,
                                              x.want_dk, x.want_dv));
    CHECK_OK(
        pl_kernels_cpu()->attention_grad(g, x.q, x.k, x.v, x.out, x.lse, &args, x.dq, x.dk, x.dv));
    check_close("dv", x.dv, x.want_dv, 1e-5, 1e-5);
    check_close("dq", x.dq, x.want_dq, 1e-5, 1e-5);
    pl_tensor_release(g);
    pl_tensor_release(one);
    free_data(&x);
}

// A NaN in a query stays in that query's row; one in a value reaches every query that sees it.
TEST(nan_stays_where_it_belongs) {
    for (size_t d = 0; d < sizeof FLOATS / sizeof *FLOATS; d++) {
        att_case c = {FLOATS[d], 1, 1, 10, 10, 8, false, MASK_NONE, 0.0, false, 1};
        att_data x;
        make_data(&c, &x);
        pl_attention_args args = {.scale = 0.5};
        check_set(x.q, 3 * 8 + 1, NAN);
        check_set(x.v, 5 * 8 + 2, NAN);
        CHECK_OK(pl_kernels_cpu()->attention(x.q, x.k, x.v, &args, x.out, x.lse));
        for (int64_t i = 0; i < 80; i++) {
            CHECK_EQ(isnan(check_get(x.out, i)) != 0, i / 8 == 3 || i % 8 == 2);
        }
        free_data(&x);
    }
}

TEST(the_thread_count_changes_no_bit) {
    for (size_t d = 0; d < sizeof FLOATS / sizeof *FLOATS; d++) {
        att_case c = {FLOATS[d], 1, 3, 130, 130, 16, true, MASK_NONE, 0.2, false, 1};
        att_data x, y;
        check_state = 9;
        make_data(&c, &x);
        check_state = 9;
        make_data(&c, &y);
        pl_attention_args args = {.scale = 0.25, .causal = true, .dropout_p = 0.2, .seed = 3};
        for (int i = 0; i < 2; i++) {
            att_data *z = i ? &y : &x;
            CHECK_OK(pl_set_num_threads(i ? 2 : 1));
            CHECK_OK(pl_kernels_cpu()->attention(z->q, z->k, z->v, &args, z->out, z->lse));
            CHECK_OK(pl_kernels_cpu()->attention_grad(z->g, z->q, z->k, z->v, z->out, z->lse, &args,
                                                      z->dq, z->dk, z->dv));
        }
        check_same_bits("out", x.out, y.out);
        check_same_bits("lse", x.lse, y.lse);
        check_same_bits("dq", x.dq, y.dq);
        check_same_bits("dk", x.dk, y.dk);
        check_same_bits("dv", x.dv, y.dv);
        free_data(&y);
        free_data(&x);
    }
}

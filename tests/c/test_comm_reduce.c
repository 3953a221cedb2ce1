// SPDX-License-Identifier: Apache-2.0
// Tests of csrc/comm/reduce.c: the arithmetic alone, without ranks.
#include "test.h"

#include "comm/reduce.h"
#include "comm_reference.h"

enum { MAX_N = 5000, MAX_W = 17, GUARD = 64 };
static unsigned char source[MAX_W][MAX_N * 8 + GUARD], want[MAX_N * 8], got[3][MAX_N * 8 + GUARD];

// Odd offsets: the loops may not need alignment beyond the element's.
static void check(pl_dtype dt, pl_redop op, int world, int64_t n, int n_dst) {
    size_t size = pl_dtype_size(dt), nbytes = (size_t)n * size;
    const void *src[MAX_W];
    void *dst[3];
    for (int r = 0; r < world; r++) {
        src[r] = source[r] + (size_t)(r % 3) * size;
        ref_fill(dt, source[r] + (size_t)(r % 3) * size, r, 0, n);
    }
    for (int d = 0; d < n_dst; d++) {
        memset(got[d], 0xa5, sizeof got[d]);
        dst[d] = got[d];
    }
    ref_result(dt, op, world, 0, n, want);
    pl__reduce(src, world, dst, n_dst, n, dt, op);
    for (int d = 0; d < n_dst; d++) {
        if (memcmp(got[d], want, nbytes) != 0) {
            TEST_FAIL("%s op %d world %d n %lld dst %d: wrong bits", pl_dtype_name(dt), (int)op,
                      world, (long long)n, d);
        }
        for (int k = 0; k < GUARD; k++) CHECK_EQ(got[d][nbytes + (size_t)k], 0xa5);
    }
}

TEST(the_tree_in_every_dtype_and_operation) {
    const int64_t sizes[] = {0,  1,  2,  7,   15,  16,  17,   31,   33,
                             63, 64, 65, 127, 511, 513, 1024, 1025, 4097};
    for (int dt = 0; dt < PL_DTYPE_COUNT; dt++) {
        for (int op = PL_RED_SUM; op <= PL_RED_MIN; op++) {
            if (op == PL_RED_MEAN && !pl_dtype_is_float((pl_dtype)dt)) continue;
            for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
                for (int w = 1; w <= 8; w++) check((pl_dtype)dt, (pl_redop)op, w, sizes[s], 1);
                check((pl_dtype)dt, (pl_redop)op, 17, sizes[s], 3);
                check((pl_dtype)dt, (pl_redop)op, 2, sizes[s], 2);
            }
        }
    }
}

TEST(every_rank_can_be_a_destination) {
    for (int w = 2; w <= 5; w++) {
        void *parts[5];
        for (int r = 0; r < w; r++) {
            parts[r] = source[r];
            ref_fill(PL_F32, source[r], r, 0, 3000);
        }
        ref_result(PL_F32, PL_RED_MEAN, w, 0, 3000, want);
        pl__reduce((const void *const *)parts, w, parts, w, 3000, PL_F32, PL_RED_MEAN);
        for (int r = 0; r < w; r++) CHECK_EQ(memcmp(source[r], want, 3000 * 4), 0);
    }
}

// |err| <= (w - 1) * ulp/2 * sum |x|, against fp64 (RELIABILITY, T10).
TEST(sums_are_close_to_double_precision) {
    float out[1000];
    const void *src[8];
    void *dst[1] = {out};
    for (int r = 0; r < 8; r++) {
        ref_fill(PL_F32, source[r], r, 0, 1000);
        src[r] = source[r];
    }
    pl__reduce(src, 8, dst, 1, 1000, PL_F32, PL_RED_SUM);
    for (int64_t i = 0; i < 1000; i++) {
        double sum = 0, magnitude = 0;
        for (int r = 0; r < 8; r++) {
            double x = ref_input(PL_F32, r, i).f;
            sum += x;
            magnitude += fabs(x);
        }
        CHECK_NEAR(out[i], sum, 7 * 0x1p-24 * magnitude);
    }
}

TEST(max_and_min_propagate_nan) {
    for (int op = PL_RED_MAX; op <= PL_RED_MIN; op++) {
        for (int at = 0; at < 3; at++) {
            float x[3][40], out[40];
            const void *src[3] = {x[0], x[1], x[2]};
            void *dst[1] = {out};
            for (int i = 0; i < 120; i++) x[i / 40][i % 40] = (float)i;
            x[at][5] = x[at][39] = NAN;
            pl__reduce(src, 3, dst, 1, 40, PL_F32, (pl_redop)op);
            for (int i = 0; i < 40; i++) CHECK_EQ(isnan(out[i]) != 0, i == 5 || i == 39);
        }
    }
}

TEST(a_mean_of_integers_is_refused) {
    CHECK_FAILS(pl__reduce_check("all_reduce", PL_I32, PL_RED_MEAN), PL_ETYPE,
                "[all_reduce] mean needs a floating dtype: got int32");
    CHECK_FAILS(pl__reduce_check("reduce", PL_BOOL, PL_RED_MEAN), PL_ETYPE, "got bool");
    CHECK_FAILS(pl__reduce_check("reduce", PL_F32, (pl_redop)9), PL_EINVAL, "got 9");
    CHECK_FAILS(pl__reduce_check("reduce", (pl_dtype)99, PL_RED_SUM), PL_ETYPE, "got 99");
    CHECK_OK(pl__reduce_check("reduce", PL_BF16, PL_RED_MEAN));
}

// SPDX-License-Identifier: Apache-2.0
// Tests of kernels/cpu/matmul.c and what is under it, against the oracle: dtypes, shapes, layouts,
// accumulation, the thread count. PACELINE_DNNL names the library where it is not on the path.
#include "kernels_check.h"

static const pl_dtype FLOATS[] = {PL_F32, PL_BF16, PL_F16, PL_F64};

// A sum of k products of numbers below 1, of which neighbours differ in sign at random, stays below
// about 2 sqrt(k); each of k additions may round it by one unit.
static double sum_tolerance(pl_dtype dt, int64_t k) {
    return check_sum_eps(dt) * (double)k * 2.0 * sqrt((double)k + 1.0) + 1e-30;
}

typedef struct shape {
    int ndim;
    int64_t batch[3], m, k, n;
} shape;

static void set_shape(const shape *s, int64_t rows, int64_t cols, int64_t *out) {
    for (int d = 0; d < s->ndim - 2; d++) out[d] = s->batch[d];
    out[s->ndim - 2] = rows;
    out[s->ndim - 1] = cols;
}

static void check_case(const shape *s, pl_dtype dt, pl_dtype out_dt, check_layout la,
                       check_layout lb, bool accumulate) {
    int64_t sa[5], sb[5], so[5];
    set_shape(s, s->m, s->k, sa);
    set_shape(s, s->k, s->n, sb);
    set_shape(s, s->m, s->n, so);
    pl_tensor *a = check_strided(dt, s->ndim, sa, la), *b = check_strided(dt, s->ndim, sb, lb);
    pl_tensor *got = check_tensor(out_dt, s->ndim, so, 1.0), *want;
    CHECK_OK(pl_tensor_empty(PL_F64, s->ndim, so, &want));
    for (int64_t i = 0; i < got->numel; i++) check_set(want, i, check_get(got, i));
    CHECK_OK(pl_kernels_ref()->matmul(a, b, accumulate, want));
    CHECK_OK(pl_kernels_cpu()->matmul(a, b, accumulate, got));
    check_close("matmul", got, want, check_eps(out_dt), sum_tolerance(dt, s->k));
    pl_tensor_release(want);
    pl_tensor_release(got);
    pl_tensor_release(b);
    pl_tensor_release(a);
}

static const shape SHAPES[] = {
    {2, {0}, 1, 1, 1},    {2, {0}, 1, 7, 5},    {2, {0}, 7, 1, 5},    {2, {0}, 5, 7, 1},
    {2, {0}, 33, 65, 17}, {2, {0}, 1, 64, 33},  {3, {3}, 5, 6, 7},    {3, {1}, 9, 8, 31},
    {4, {2, 3}, 4, 5, 6}, {3, {4}, 1, 9, 5},    {4, {3, 1}, 6, 2, 1}, {2, {0}, 0, 3, 4},
    {2, {0}, 3, 0, 4},    {2, {0}, 3, 4, 0},    {3, {0}, 3, 4, 2},    {5, {2, 2, 2}, 3, 4, 5},
    {2, {0}, 16, 16, 16}, {2, {0}, 17, 16, 16}, {2, {0}, 2, 16, 64},  {2, {0}, 2, 17, 64},
};

static void sweep(pl_dtype dt, pl_dtype out_dt) {
    check_use_dnnl();
    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++) {
        for (int la = 0; la < CHECK_LAYOUTS; la++) {
            for (int lb = 0; lb < CHECK_LAYOUTS; lb++) {
                check_case(&SHAPES[i], dt, out_dt, (check_layout)la, (check_layout)lb,
                           (la + lb) % 2 == 1);
            }
        }
    }
}

TEST(f32_agrees_with_the_oracle) { sweep(PL_F32, PL_F32); }
TEST(bf16_agrees_with_the_oracle) { sweep(PL_BF16, PL_BF16); }
TEST(f16_agrees_with_the_oracle) { sweep(PL_F16, PL_F16); }
TEST(f64_agrees_with_the_oracle) { sweep(PL_F64, PL_F64); }
TEST(bf16_into_f32_agrees_with_the_oracle) { sweep(PL_BF16, PL_F32); }
TEST(f16_into_f32_agrees_with_the_oracle) { sweep(PL_F16, PL_F32); }

TEST(larger_than_every_block) {
    check_use_dnnl();
    const shape s = {2, {0}, 131, 301, 263};
    for (size_t d = 0; d < sizeof FLOATS / sizeof *FLOATS; d++) {
        check_case(&s, FLOATS[d], FLOATS[d], CHECK_PLAIN, CHECK_PLAIN, false);
        check_case(&s, FLOATS[d], FLOATS[d], CHECK_TRANSPOSED, CHECK_PADDED, true);
    }
}

TEST(out_may_be_rows_of_a_wider_tensor) {
    check_use_dnnl();
    for (size_t d = 0; d < sizeof FLOATS / sizeof *FLOATS; d++) {
        pl_tensor *a = check_tensor(FLOATS[d], 3, (int64_t[]){2, 5, 6}, 1.0);
        pl_tensor *b = check_tensor(FLOATS[d], 3, (int64_t[]){2, 6, 9}, 1.0);
        pl_tensor *got = check_strided(FLOATS[d], 3, (int64_t[]){2, 5, 9}, CHECK_PADDED), *want;
        double beside = check_get(got, -1);
        CHECK_OK(pl_tensor_empty(PL_F64, 3, got->shape, &want));
        CHECK_OK(pl_kernels_ref()->matmul(a, b, false, want));
        CHECK_OK(pl_kernels_cpu()->matmul(a, b, false, got));
        check_close("matmul", got, want, check_eps(FLOATS[d]), sum_tolerance(FLOATS[d], 6));
        CHECK(check_get(got, -1) == beside);
        pl_tensor_release(want);
        pl_tensor_release(got);
        pl_tensor_release(b);
        pl_tensor_release(a);
    }
}

TEST(nan_and_infinity_travel) {
    check_use_dnnl();
    for (size_t d = 0; d < sizeof FLOATS / sizeof *FLOATS; d++) {
        pl_tensor *a = check_tensor(FLOATS[d], 2, (int64_t[]){3, 4}, 1.0), *got, *want;
        pl_tensor *b = check_tensor(FLOATS[d], 2, (int64_t[]){4, 3}, 1.0);
        check_set(a, 0, NAN);
        check_set(a, 5, INFINITY);
        check_set(b, 11, 0.0);
        CHECK_OK(pl_tensor_empty(FLOATS[d], 2, (int64_t[]){3, 3}, &got));
        CHECK_OK(pl_tensor_empty(PL_F64, 2, (int64_t[]){3, 3}, &want));
        CHECK_OK(pl_kernels_ref()->matmul(a, b, false, want));
        CHECK_OK(pl_kernels_cpu()->matmul(a, b, false, got));
        check_close("matmul", got, want, check_eps(FLOATS[d]), sum_tolerance(FLOATS[d], 4));
        pl_tensor_release(want);
        pl_tensor_release(got);
        pl_tensor_release(b);
        pl_tensor_release(a);
    }
}

// Long k beside small m and n is what tempts a library to split the sum between threads.
TEST(the_thread_count_changes_no_bit) {
    check_use_dnnl();
    static const int64_t sizes[][3] = {{48, 2048, 40}, {256, 300, 256}, {16, 4096, 16}, {7, 9, 8}};
    for (size_t d = 0; d < sizeof FLOATS / sizeof *FLOATS; d++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            for (int layout = 0; layout < 2; layout++) {
                int64_t m = sizes[i][0], k = sizes[i][1], n = sizes[i][2];
                pl_tensor *a = check_strided(FLOATS[d], 2, (int64_t[]){m, k},
                                             layout ? CHECK_TRANSPOSED : CHECK_PLAIN);
                pl_tensor *b = check_tensor(FLOATS[d], 2, (int64_t[]){k, n}, 1.0), *one, *two;
                CHECK_OK(pl_tensor_empty(FLOATS[d], 2, (int64_t[]){m, n}, &one));
                CHECK_OK(pl_tensor_empty(FLOATS[d], 2, (int64_t[]){m, n}, &two));
                CHECK_OK(pl_set_num_threads(1));
                CHECK_OK(pl_kernels_cpu()->matmul(a, b, false, one));
                CHECK_OK(pl_set_num_threads(2));
                CHECK_OK(pl_kernels_cpu()->matmul(a, b, false, two));
                check_same_bits("matmul", one, two);
                pl_tensor_release(two);
                pl_tensor_release(one);
                pl_tensor_release(b);
                pl_tensor_release(a);
            }
        }
    }
}

// Tall products have loops of their own (panels.h): every edge of their tiles and blocks, odd
// depths, rows of A or columns of B that stay packed, runs of k.
TEST(tall_products_agree_with_the_oracle) {
    check_use_dnnl();
    static const int64_t sizes[][3] = {{64, 256, 64},  {65, 513, 67},   {97, 600, 49},
                                       {72, 777, 145}, {200, 1025, 96}, {70, 512, 800},
                                       {600, 512, 70}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const shape s = {2, {0}, sizes[i][0], sizes[i][1], sizes[i][2]};
        for (int add = 0; add < 2; add++) {
            check_case(&s, PL_F32, PL_F32, CHECK_TRANSPOSED, CHECK_PLAIN, add);
            check_case(&s, PL_F32, PL_F32, CHECK_TRANSPOSED, CHECK_PADDED, add);
            check_case(&s, PL_BF16, PL_F32, CHECK_TRANSPOSED, CHECK_PLAIN, add);
            check_case(&s, PL_BF16, PL_BF16, CHECK_TRANSPOSED, CHECK_PADDED, add);
        }
    }
}

// Both ways of cutting the work, into fewer and more pieces than there are panels.
TEST(the_thread_count_changes_no_bit_of_a_tall_product) {
    check_use_dnnl();
    static const int64_t sizes[][3] = {
        {65, 600, 130}, {210, 513, 70}, {64, 512, 64}, {600, 520, 64}};
    for (int bf16 = 0; bf16 < 2; bf16++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            int64_t m = sizes[i][0], k = sizes[i][1], n = sizes[i][2];
            pl_dtype dt = bf16 ? PL_BF16 : PL_F32;
            pl_tensor *a = check_strided(dt, 2, (int64_t[]){m, k}, CHECK_TRANSPOSED);
            pl_tensor *b = check_tensor(dt, 2, (int64_t[]){k, n}, 1.0), *one, *more;
            CHECK_OK(pl_tensor_empty(PL_F32, 2, (int64_t[]){m, n}, &one));
            CHECK_OK(pl_tensor_empty(PL_F32, 2, (int64_t[]){m, n}, &more));
            CHECK_OK(pl_set_num_threads(1));
            CHECK_OK(pl_kernels_cpu()->matmul(a, b, false, one));
            for (int threads = 2; threads <= 11; threads += 3) {
                CHECK_OK(pl_set_num_threads(threads));
                CHECK_OK(pl_kernels_cpu()->matmul(a, b, false, more));
                check_same_bits("matmul", one, more);
            }
            pl_tensor_release(more);
            pl_tensor_release(one);
            pl_tensor_release(b);
            pl_tensor_release(a);
        }
    }
}

// More products than the cache of primitives holds, then the first again.
TEST(the_cache_of_products_is_bounded) {
    check_use_dnnl();
    for (int round = 0; round < 2; round++) {
        for (int64_t n = 1; n <= (round ? 8 : 1100); n++) {
            const shape s = {2, {0}, 2, 600, n};  // not small: those never ask for a primitive
            check_case(&s, PL_F32, PL_F32, CHECK_PLAIN, CHECK_PLAIN, false);
        }
    }
}

TEST(a_missing_library_is_one_sentence_with_the_remedy) {
    if (strcmp(pl_cpu_matmul_library(), "blocked loops") == 0) return;  // nothing can be missing
    CHECK_STR_EQ(pl_cpu_matmul_library(), "not loaded");
    pl_cpu_set_dnnl_path("/nowhere/libdnnl.so.3");
    pl_tensor *a = check_tensor(PL_F32, 2, (int64_t[]){64, 64}, 1.0), *out;
    CHECK_OK(pl_tensor_empty(PL_F32, 2, (int64_t[]){64, 64}, &out));
    CHECK_FAILS(pl_kernels_cpu()->matmul(a, a, false, out), PL_EDEVICE,
                "pip install onednn-cpu-gomp");
    CHECK_FAILS(pl_kernels_cpu()->matmul(a, a, false, out), PL_EDEVICE, "/nowhere/libdnnl.so.3");
    check_use_dnnl();  // a failure is not for ever
    CHECK_OK(pl_kernels_cpu()->matmul(a, a, false, out));
    pl_tensor_release(out);
    pl_tensor_release(a);
}

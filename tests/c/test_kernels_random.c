// SPDX-License-Identifier: Apache-2.0
// Random streams: "cpu" gives the bits that "ref" defines, whatever the thread count; the bits of
// the definition are pinned; and the numbers are distributed as they should be.
#include "test.h"

#include "kernel_cases.h"
#include "normal.h"

enum { UNIFORM, NORMAL, RANDINT };

static void draw(const pl_kernels *k, int kind, pl_tensor *t, double a, double b, uint64_t offset) {
    if (kind == UNIFORM) CHECK_OK(k->uniform(t, a, b, 12345, offset));
    if (kind == NORMAL) CHECK_OK(k->normal(t, a, b, 12345, offset));
    if (kind == RANDINT) CHECK_OK(k->randint(t, (int64_t)a, (int64_t)b, 12345, offset));
}

static void one_stream(int kind, pl_dtype dt, int64_t n, double a, double b) {
    shape s = {1, {n}};
    pl_tensor *got = make_raw(dt, s, DENSE), *want = make_raw(dt, s, DENSE);
    for (uint64_t offset = 0; offset < 3; offset++) {
        uint64_t from = offset == 2 ? UINT32_MAX - 3 : offset;  // the carry into the second word
        draw(pl_kernels_cpu(), kind, got, a, b, from);
        draw(pl_kernels_ref(), kind, want, a, b, from);
        check_close("stream", got, want, 0.0, 0.0);
    }
    release_all(2, (pl_tensor *[]){got, want});
}

TEST(cpu_gives_the_bits_of_ref) {
    static const int64_t sizes[] = {0, 1, 3, 5, 511, 1026, 20001};
    for (int i = 0; i < 7; i++) {
        for (int dt = PL_F16; dt < PL_DTYPE_COUNT; dt++) {
            one_stream(UNIFORM, dt, sizes[i], 0.0, 1.0);
            one_stream(UNIFORM, dt, sizes[i], -0.3, 0.1);
            one_stream(UNIFORM, dt, sizes[i], -2.0, 0.0);
            one_stream(NORMAL, dt, sizes[i], 1.0, 0.02);
        }
        for (int dt = PL_U8; dt <= PL_I64; dt++) one_stream(RANDINT, dt, sizes[i], 3, 107);
        one_stream(RANDINT, PL_F32, sizes[i], -5, 5);
        one_stream(RANDINT, PL_I64, sizes[i], -9e18, 9e18);
    }
}

TEST(thread_count_does_not_matter) {
    shape s = {1, {30011}};
    for (int kind = UNIFORM; kind <= NORMAL; kind++) {
        pl_tensor *one = make_raw(PL_F32, s, DENSE), *many = make_raw(PL_F32, s, DENSE);
        CHECK_OK(pl_set_num_threads(1));
        draw(pl_kernels_cpu(), kind, one, 0, 1, 7);
        CHECK_OK(pl_set_num_threads(5));
        draw(pl_kernels_cpu(), kind, many, 0, 1, 7);
        check_close("stream", many, one, 0.0, 0.0);
        release_all(2, (pl_tensor *[]){one, many});
    }
}

// Element i is word i % 4 of block offset + i / 4: written out once more.
TEST(definition) {
    pl_tensor *t = make_raw(PL_F32, (shape){1, {9}}, DENSE),
              *d = make_raw(PL_F64, (shape){1, {5}}, DENSE);
    CHECK_OK(pl_kernels_cpu()->uniform(t, 0, 1, 99, 40));
    CHECK_OK(pl_kernels_cpu()->uniform(d, 0, 1, 99, 40));
    for (int i = 0; i < 9; i++) {
        uint32_t w[4];
        pl_philox(99, 40 + (uint64_t)i / 4, 0, w);
        CHECK(((float *)t->data)[i] == (float)(w[i % 4] >> 8) * 0x1p-24f);
    }
    for (int i = 0; i < 5; i++) {
        uint32_t w[4];
        pl_philox(99, 40 + (uint64_t)i / 2, 0, w);
        uint64_t both = (uint64_t)w[i % 2 * 2] << 32 | w[i % 2 * 2 + 1];
        CHECK(((double *)d->data)[i] == (double)(both >> 11) * 0x1p-53);
    }
    CHECK_EQ(pl_random_blocks(PL_F32, 9, false), 3);
    CHECK_EQ(pl_random_blocks(PL_BF16, 8, true), 2);
    CHECK_EQ(pl_random_blocks(PL_F64, 5, true), 3);
    CHECK_EQ(pl_random_blocks(PL_I64, 4, false), 2);
    CHECK_EQ(pl_random_blocks(PL_F32, 0, false), 0);
    release_all(2, (pl_tensor *[]){t, d});
}

// What a draw reserves is what it uses: two draws in a row are one draw of both.
TEST(streams_continue) {
    static const pl_dtype dtypes[] = {PL_F32, PL_F64, PL_BF16};
    for (int i = 0; i < 3; i++) {
        for (int kind = UNIFORM; kind <= NORMAL; kind++) {
            pl_tensor *all = make_raw(dtypes[i], (shape){1, {64}}, DENSE), *rest = NULL;
            pl_tensor *next = make_raw(dtypes[i], (shape){1, {32}}, DENSE);
            draw(pl_kernels_cpu(), kind, all, 0, 1, 5);
            draw(pl_kernels_cpu(), kind, next, 0, 1,
                 5 + pl_random_blocks(dtypes[i], 32, kind == NORMAL));
            CHECK_OK(pl_tensor_slice(all, 0, 32, 64, 1, &rest));
            check_close("continued", next, rest, 0.0, 0.0);
            release_all(3, (pl_tensor *[]){all, rest, next});
        }
    }
}

// hi itself never comes, not even where the dtype has too few bits to stay below it.
TEST(uniform_stays_below_hi) {
    static const double bounds[][2] = {{0, 1}, {1, 2}, {-1, 0}, {0, 0.1}, {-3, -2.999}};
    for (int dt = PL_F16; dt < PL_DTYPE_COUNT; dt++) {
        for (int i = 0; i < 4 + (dt >= PL_F32); i++) {
            pl_tensor *t = make_raw(dt, (shape){1, {20000}}, DENSE);
            draw(pl_kernels_cpu(), UNIFORM, t, bounds[i][0], bounds[i][1], 0);
            for (int64_t k = 0; k < t->numel; k++) {
                double v = ref_get(t, k);
                CHECK(v < bounds[i][1]);
                CHECK(v >= bounds[i][0] - 1e-3);  // lo is rounded to the dtype
            }
            pl_tensor_release(t);
        }
    }
}

// Moments of n = 100000 draws, within 5 standard errors (one seed: nothing can flake).
TEST(moments) {
    enum { N = 100000 };
    for (int dt = PL_F32; dt <= PL_F64; dt++) {
        pl_tensor *t = make_raw(dt, (shape){1, {N}}, DENSE);
        double m1 = 0, m2 = 0, m4 = 0, lag = 0;
        draw(pl_kernels_cpu(), NORMAL, t, 0, 1, 1);
        for (int64_t i = 0; i < N; i++) {
            double z = ref_get(t, i);
            m1 += z;
            m2 += z * z;
            m4 += z * z * z * z;
            if (i > 0) lag += z * ref_get(t, i - 1);
        }
        CHECK_NEAR(m1 / N, 0.0, 5 / sqrt(N));
        CHECK_NEAR(m2 / N, 1.0, 5 * sqrt(2.0 / N));
        CHECK_NEAR(m4 / N, 3.0, 5 * sqrt(96.0 / N));
        CHECK_NEAR(lag / N, 0.0, 5 / sqrt(N));
        draw(pl_kernels_cpu(), UNIFORM, t, 0, 1, 1);
        m1 = m2 = 0;
        for (int64_t i = 0; i < N; i++) {
            m1 += ref_get(t, i);
            m2 += ref_get(t, i) * ref_get(t, i);
        }
        CHECK_NEAR(m1 / N, 0.5, 5 * sqrt(1.0 / 12 / N));
        CHECK_NEAR(m2 / N, 1.0 / 3, 5 * sqrt(4.0 / 45 / N));
        pl_tensor_release(t);
    }
}

// Every value comes, none outside the range, each about equally often.
TEST(randint_covers_its_range) {
    for (int dt = PL_I32; dt <= PL_I64; dt++) {
        pl_tensor *t = make_raw(dt, (shape){1, {70000}}, DENSE);
        int64_t seen[7] = {0};
        draw(pl_kernels_cpu(), RANDINT, t, -3, 4, 9);
        for (int64_t i = 0; i < t->numel; i++) {
            int64_t v = ref_get_int(t, i);
            CHECK(v >= -3 && v < 4);
            seen[v + 3]++;
        }
        for (int k = 0; k < 7; k++) CHECK_NEAR(seen[k], 10000, 500);  // 5 standard deviations
        pl_tensor_release(t);
    }
}

// The arithmetic of normal.h against libm, over the whole range of both uniforms.
TEST(normal_pairs_against_libm) {
    for (int i = 0; i < 200000; i++) {
        double u1 = ((double)(next_random() >> 11) + 1.0) * 0x1p-53, c, s;
        double u2 = (double)(next_random() >> 11) * 0x1p-53;
        if (i < 53) u1 = ldexp(1.0, -i);
        if (i < 64) u2 = i / 64.0;
        CHECK_NEAR(pl_normal_log(u1), log(u1), 4e-16 * fabs(log(u1)));
        pl_normal_turn(u2, &c, &s);
        double angle = 2 * (u2 < 0.5 ? u2 : u2 - 1.0) * 3.14159265358979323846;
        CHECK_NEAR(c, cos(angle), 8e-16);  // the angle itself is rounded here: 4.4e-16
        CHECK_NEAR(s, sin(angle), 8e-16);
    }
}

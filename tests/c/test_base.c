// SPDX-License-Identifier: Apache-2.0
// Tests of csrc/base but memory and threads (test_base_memory.c, test_base_threads.c).
#include "test.h"

#include <math.h>

TEST(status_names_and_exceptions) {
    CHECK_STR_EQ(pl_status_name(PL_OK), "PL_OK");
    CHECK_STR_EQ(pl_status_name(PL_EPEER), "PL_EPEER");
    CHECK_STR_EQ(pl_status_exception(PL_EINVAL), "ValueError");
    CHECK_STR_EQ(pl_status_exception(PL_EMISMATCH), "CollectiveMismatchError");
    CHECK_STR_EQ(pl_status_name((pl_status)99), "PL_?");
}

TEST(fail_keeps_the_message_and_the_place) {
    CHECK_EQ(pl_fail(PL_EINDEX, "[take] index %d", 7), PL_EINDEX);
    CHECK_STR_EQ(pl_error_message(), "[take] index 7");
    CHECK(strncmp(pl_error_where(), "test_base.c:", 12) == 0);
    // One message may wrap the one before it.
    CHECK_EQ(pl_fail(PL_ERUNTIME, "[step] %s", pl_error_message()), PL_ERUNTIME);
    CHECK_STR_EQ(pl_error_message(), "[step] [take] index 7");
}

TEST(fail_cuts_a_long_message) {
    char text[4000];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    CHECK_EQ(pl_fail(PL_EINVAL, "%s", text), PL_EINVAL);
    size_t kept = strlen(pl_error_message());
    CHECK(kept > 500 && kept < sizeof text - 1);
    pl_error_set(text);
    CHECK_EQ(strlen(pl_error_message()), kept);
    pl_error_set("100 % plain");
    CHECK_STR_EQ(pl_error_message(), "100 % plain");
}

TEST(dtype_table) {
    CHECK_EQ(pl_dtype_size(PL_BOOL), 1);
    CHECK_EQ(pl_dtype_size(PL_BF16), 2);
    CHECK_EQ(pl_dtype_size(PL_F64), 8);
    CHECK_STR_EQ(pl_dtype_name(PL_U8), "uint8");
    CHECK_STR_EQ(pl_dtype_name(PL_BF16), "bfloat16");
    CHECK_EQ(pl_dtype_kind(PL_U8), 'u');
    CHECK_EQ(pl_dtype_kind(PL_I32), 'i');
    CHECK(pl_dtype_is_float(PL_F16) && !pl_dtype_is_float(PL_I64));
}

// torch.promote_types, PyTorch 2.13, in the order of the enum.
TEST(promotion_is_pytorchs) {
    enum {
        B = PL_BOOL,
        U = PL_U8,
        I = PL_I32,
        L = PL_I64,
        H = PL_F16,
        G = PL_BF16,
        F = PL_F32,
        D = PL_F64
    };
    static const int want[PL_DTYPE_COUNT][PL_DTYPE_COUNT] = {
        {B, U, I, L, H, G, F, D}, {U, U, I, L, H, G, F, D}, {I, I, I, L, H, G, F, D},
        {L, L, L, L, H, G, F, D}, {H, H, H, H, H, F, F, D}, {G, G, G, G, F, G, F, D},
        {F, F, F, F, F, F, F, D}, {D, D, D, D, D, D, D, D},
    };
    for (int a = 0; a < PL_DTYPE_COUNT; a++) {
        for (int b = 0; b < PL_DTYPE_COUNT; b++) {
            CHECK_EQ(pl_dtype_promote((pl_dtype)a, (pl_dtype)b), want[a][b]);
        }
    }
}

static uint32_t bits(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

// The value of a finite f16 from its definition, in double, where it is exact.
static double f16_value(uint32_t h) {
    int exponent = (int)(h >> 10 & 31), fraction = (int)(h & 1023);
    double v = exponent == 0 ? ldexp(fraction, -24) : ldexp(1024 + fraction, exponent - 25);
    return h & 0x8000 ? -v : v;
}

TEST(f16_to_f32_all_values) {
    for (uint32_t h = 0; h < 0x10000; h++) {
        float f = pl_f16_to_f32((pl_f16)h);
        if ((h & 0x7c00) == 0x7c00) {
            CHECK((h & 0x3ff) ? isnan(f) : isinf(f));
            CHECK_EQ(signbit(f) != 0, h >> 15);
        } else {
            CHECK(f == f16_value(h));
            CHECK_EQ(bits(f) >> 31, h >> 15);
        }
        // And back; a signalling NaN becomes quiet.
        pl_f16 back = pl_f32_to_f16(f);
        CHECK_EQ(back, isnan(f) ? h | 0x200 : h);
    }
}

TEST(f32_to_f16_rounds_to_nearest_even) {
    // Between each two neighbours: below, at and above the midpoint.
    for (uint32_t h = 0; h < 0x7bff; h++) {
        float lo = pl_f16_to_f32((pl_f16)h), hi = pl_f16_to_f32((pl_f16)(h + 1));
        float mid = (float)(((double)lo + hi) / 2);  // exact: 12 significant bits
        CHECK_EQ(pl_f32_to_f16(mid), h + (h & 1));
        CHECK_EQ(pl_f32_to_f16(nextafterf(mid, 0)), h);
        CHECK_EQ(pl_f32_to_f16(nextafterf(mid, INFINITY)), h + 1);
        CHECK_EQ(pl_f32_to_f16(-mid), 0x8000 | (h + (h & 1)));
    }
    CHECK_EQ(pl_f32_to_f16(65519.996f), 0x7bff);
    CHECK_EQ(pl_f32_to_f16(65520.0f), 0x7c00);
    CHECK_EQ(pl_f32_to_f16(-1e30f), 0xfc00);
    CHECK_EQ(pl_f32_to_f16(INFINITY), 0x7c00);
    CHECK_EQ(pl_f32_to_f16(1e-30f), 0);
    CHECK_EQ(pl_f32_to_f16(-0.0f), 0x8000);
}

TEST(bf16_rounds_to_nearest_even) {
    for (uint32_t h = 0; h < 0x7f7f; h++) {
        double lo = pl_bf16_to_f32((pl_bf16)h), hi = pl_bf16_to_f32((pl_bf16)(h + 1));
        float mid = (float)((lo + hi) / 2);
        CHECK_EQ(pl_f32_to_bf16(mid), h + (h & 1));
        CHECK_EQ(pl_f32_to_bf16(nextafterf(mid, INFINITY)), h + 1);
        CHECK_EQ(pl_f32_to_bf16((float)lo), h);
    }
    CHECK_EQ(pl_f32_to_bf16(INFINITY), 0x7f80);
    CHECK_EQ(pl_f32_to_bf16(3.4e38f), 0x7f80);
    CHECK(isnan(pl_bf16_to_f32(pl_f32_to_bf16(NAN))));
    union {
        uint32_t u;
        float f;
    } signalling = {0xff800001u};  // its payload is lost in the cut; it must not become infinity
    CHECK_EQ(pl_f32_to_bf16(signalling.f), 0xffc0);
}

// Known answers of Random123 (kat_vectors, philox4x32 10).
TEST(philox_known_answers) {
    static const struct {
        uint64_t seed, offset, subsequence;
        uint32_t want[4];
    } cases[] = {
        {0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {~0ull, ~0ull, ~0ull, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {0x299f31d0a4093822,
         0x85a308d3243f6a88,
         0x0370734413198a2e,
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint32_t got[4];
        pl_philox(cases[i].seed, cases[i].offset, cases[i].subsequence, got);
        for (int j = 0; j < 4; j++) CHECK_EQ(got[j], cases[i].want[j]);
    }
}

TEST(generator_hands_out_blocks_once) {
    pl_generator g = {42, 0};
    CHECK_EQ(pl_generator_take(&g, 10), 0);
    CHECK_EQ(pl_generator_take(&g, 1), 10);
    CHECK_EQ(g.offset, 11);
}

TEST(live_counters) {
    pl_live_add(PL_KIND_NODE, 3);
    CHECK_EQ(pl_live(PL_KIND_NODE), 3);
    CHECK_EQ(pl_live(PL_KIND_TENSOR), 0);
    pl_live_add(PL_KIND_NODE, -3);
    CHECK_STR_EQ(pl_kind_name(PL_KIND_OTHER), "other");
}

TEST(clock_goes_forward) {
    int64_t a = pl_now_ns(), b = a;
    while (b == a) b = pl_now_ns();
    CHECK(b > a);
}

static int asked;
static pl_status host_stops(void) {
    asked++;
    return pl_fail(PL_EINTR, "interrupted");
}

TEST(interrupt_asks_the_host_at_most_every_10_ms) {
    CHECK_OK(pl_check_interrupt());
    pl_set_interrupt(host_stops);
    CHECK_FAILS(pl_check_interrupt(), PL_EINTR, "interrupted");
    CHECK_OK(pl_check_interrupt());  // asked a moment ago
    CHECK_EQ(asked, 1);
    usleep(12000);
    CHECK_EQ(pl_check_interrupt(), PL_EINTR);
    pl_set_interrupt(NULL);
    usleep(12000);
    CHECK_OK(pl_check_interrupt());
    CHECK_EQ(asked, 2);
}

TEST(cpu_features_imply_each_other) {
    const pl_cpu_features *f = pl_cpu();
    CHECK(!f->avx512 || f->avx2_fma);
    CHECK(!f->avx512_bf16 || f->avx512);
    CHECK(!f->amx_bf16 || f->avx512);
    CHECK(strlen(pl_cpu_name()) > 0);
#if defined(__x86_64__)
    CHECK(!f->avx2_fma || (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")));
    CHECK(!f->avx512 || __builtin_cpu_supports("avx512f"));
#endif
}

TEST(cpu_features_can_be_hidden) {
    CHECK_EQ(setenv("PACELINE_CPU_ISA", "baseline", 1), 0);
    const pl_cpu_features *f = pl_cpu();
    CHECK(!f->avx2_fma && !f->avx512 && !f->avx512_bf16 && !f->avx512_fp16 && !f->amx_bf16);
}

// SPDX-License-Identifier: Apache-2.0
// The host stand-in for a GPU (simt/): that it runs a right kernel and finds each mistake.
#include "simt/bad_kernels.h"
#include "simt/simt_control.h"
#include "test.h"

static void run(bad_kernel which, simt_schedule schedule, uint64_t seed, int *out) {
    memset(out, 0xFF, 64 * sizeof *out);
    simt_clear_error();
    simt_set_schedule(schedule, seed);
    bad_kernel_run(which, out);
}

// Every schedule finds it: what is wrong does not depend on the order.
static void complains(bad_kernel which, const char *part) {
    int out[64];
    for (int s = 0; s < SIMT_SCHEDULES; s++) {
        run(which, (simt_schedule)s, 7, out);
        if (strstr(simt_error(), part) == NULL) {
            TEST_FAIL("schedule %d: got \"%s\", expected \"%s\" in it", s, simt_error(), part);
        }
    }
}

TEST(a_right_kernel_gives_the_same_in_every_order) {
    int out[64];
    for (int i = 0; i < 20; i++) {
        uint64_t before = simt_switches();
        run(KERNEL_RIGHT, (simt_schedule)(i % SIMT_SCHEDULES), (uint64_t)i, out);
        CHECK_STR_EQ(simt_error(), "");
        for (int j = 0; j < 64; j++) CHECK_EQ(out[j], j * (j + 1) / 2);
        CHECK_EQ(simt_switches() - before, 128);  // each thread waits once and ends
    }
}

TEST(a_missing_barrier_shows_as_another_result) {
    int forward[64], reverse[64], shuffled[64], again[64];
    run(MISSING_BARRIER, SIMT_FORWARD, 1, forward);
    run(MISSING_BARRIER, SIMT_REVERSE, 1, reverse);
    run(MISSING_BARRIER, SIMT_RANDOM, 1, shuffled);
    run(MISSING_BARRIER, SIMT_RANDOM, 1, again);
    CHECK_STR_EQ(simt_error(), "");
    CHECK(memcmp(forward, reverse, sizeof forward) != 0);
    CHECK(memcmp(forward, shuffled, sizeof forward) != 0);
    CHECK(memcmp(again, shuffled, sizeof again) == 0);  // a seed repeats its order
    CHECK_EQ(forward[0], -1);                           // memory that nobody wrote yet is 0xFF
}

TEST(barriers_that_not_all_reach) {
    complains(BARRIER_IN_A_BRANCH, "has left the kernel while thread");
    complains(TWO_BARRIERS, "waits at line");
}

TEST(masks_of_warp_operations) {
    complains(LANE_OUTSIDE_ITS_MASK, "is not in its own mask 0x0000ffff");
    complains(MASKS_THAT_DISAGREE, "lanes disagree on the mask");
    complains(READS_OUTSIDE_THE_MASK, "reads lane 20, which is not in mask 0x0000ffff");
    complains(LANE_THAT_LEFT, "lane 3 of mask 0xffffffff has left");
}

TEST(memory) {
    complains(PAST_THE_END, "past the end of a buffer of 256");
    complains(NOT_ALIGNED, "is not aligned");
}

TEST(copies_beside_the_thread) {
    int out[64];
    run(KERNEL_FETCHES, SIMT_RANDOM, 1, out);
    CHECK_STR_EQ(simt_error(), "");
    CHECK(out[0] == 7 && out[3] == 7 && out[4] == 0 && out[63] == 0);
    run(FETCH_READ_TOO_EARLY, SIMT_RANDOM, 1, out);
    CHECK_STR_EQ(simt_error(), "");
    CHECK(out[0] == -1 && out[63] == -1);
    complains(FETCH_UNDER_WAY_AT_THE_END, "left the kernel with 1 copies under way");
}

TEST(launches_that_the_hardware_refuses) {
    simt_clear_error();
    bad_kernel_launch(1025, 0);
    CHECK(strstr(simt_error(), "1025 threads") != NULL);
    simt_clear_error();
    bad_kernel_launch(32, (227 << 10) + 1);
    CHECK(strstr(simt_error(), "bytes shared") != NULL);
    // After a complaint nothing runs until somebody has read it.
    int out[64] = {0};
    bad_kernel_run(KERNEL_RIGHT, out);
    CHECK_EQ(out[63], 0);
    simt_clear_error();
    bad_kernel_run(KERNEL_RIGHT, out);
    CHECK_EQ(out[63], 2016);
}

TEST(more_shared_memory_than_a_kernel_was_allowed) {
    int out[64] = {0};
    simt_clear_error();
    bad_kernel_start(48 << 10, 0, out);
    CHECK_STR_EQ(simt_error(), "");
    bad_kernel_start(50 << 10, 0, out);
    CHECK(strstr(simt_error(), "51200 bytes of dynamic shared memory were not allowed") != NULL);
    simt_clear_error();
    bad_kernel_start(50 << 10, 49 << 10, out);
    CHECK(strstr(simt_error(), "not allowed") != NULL);
    simt_clear_error();
    bad_kernel_start(50 << 10, 50 << 10, out);
    CHECK_STR_EQ(simt_error(), "");
    CHECK_EQ(out[63], 2016);
}

// SPDX-License-Identifier: Apache-2.0
// Tests of send and recv.
#include "test.h"

#include "comm_reference.h"
#include "ranks.h"

static const int64_t sizes[] = {0, 1, 100, 4000, 4096, 33000, 200001};
enum { N_SIZES = sizeof sizes / sizeof *sizes };

// Every rank sends to its right neighbour, several messages ahead of the receiver.
static void ring(pl_group *g, void *ctx) {
    (void)ctx;
    int rank = pl_group_rank(g), world = pl_group_world(g);
    int right = (rank + 1) % world, left = (rank + world - 1) % world;
    void *x, *want;
    CHECK_OK(pl_alloc(200001 * 4, &x));
    CHECK_OK(pl_alloc(200001 * 4, &want));
    for (int round = 0; round < 3; round++) {
        for (int s = 0; s < N_SIZES; s++) {
            ref_fill(PL_F32, want, left, round, sizes[s]);
            if (rank % 2) {  // a large message needs its receiver
                CHECK_OK(pl_group_recv(g, x, sizes[s], PL_F32, left, s, SITE("ring:1")));
                CHECK_EQ(memcmp(x, want, (size_t)sizes[s] * 4), 0);
            }
            ref_fill(PL_F32, x, rank, round, sizes[s]);
            CHECK_OK(pl_group_send(g, x, sizes[s], PL_F32, right, s, SITE("ring:2")));
            if (rank % 2 == 0) {
                CHECK_OK(pl_group_recv(g, x, sizes[s], PL_F32, left, s, SITE("ring:1")));
                CHECK_EQ(memcmp(x, want, (size_t)sizes[s] * 4), 0);
            }
        }
    }
    pl_free(x);
    pl_free(want);
}

TEST(a_ring_of_messages) {
    run_spread(2, ring, NULL);
    run_spread(4, ring, NULL);
    run_spread(6, ring, NULL);
}

// Short messages do not wait for their receiver: both may send first.
static void exchange(pl_group *g, void *ctx) {
    (void)ctx;
    int rank = pl_group_rank(g), other = 1 - rank;
    int64_t x = rank, y = -1;
    for (int i = 0; i < 1000; i++) {
        CHECK_OK(pl_group_send(g, &x, 1, PL_I64, other, 0, SITE("x:1")));
        CHECK_OK(pl_group_recv(g, &y, 1, PL_I64, other, 0, SITE("x:2")));
        CHECK_EQ(y, other);
    }
}

TEST(both_may_send_first) { run_spread(2, exchange, NULL); }

static void disagree(pl_group *g, void *ctx) {
    const char *field = ctx;
    float x[8] = {0};
    bool dtype = strcmp(field, "dtype") == 0, tag = strcmp(field, "tag") == 0;
    pl_site from = SITE("s.py:1"), to = SITE("r.py:1");
    if (strcmp(field, "shape") == 0) {
        from.shape = pl_site_shape(2, (int64_t[]){1, 4});
        to.shape = pl_site_shape(2, (int64_t[]){4, 1});
    }
    if (pl_group_rank(g) == 0) {
        CHECK_OK(pl_group_send(g, x, 4, PL_F32, 1, 5, from));
        pl_status st = pl_group_barrier(g, SITE("s.py:2"));
        CHECK_EQ(st, PL_EMISMATCH);
    } else {
        pl_status st = pl_group_recv(g, x, strcmp(field, "count") == 0 ? 3 : 4,
                                     dtype ? PL_I32 : PL_F32, 0, tag ? 6 : 5, to);
        CHECK_EQ(st, PL_EMISMATCH);
    }
    char want[64];
    snprintf(want, sizeof want, "ranks disagree on %s of a message", field);
    CHECK(strstr(pl_error_message(), want));
    CHECK(
        strstr(pl_error_message(), "rank=0, op=send, to=1, tag=5, dtype=float32, count=4, shape="));
    CHECK(strstr(pl_error_message(), "rank=1, op=recv, from=0"));
}

TEST(a_mismatch_fails_on_both) {
    run_spread(2, disagree, (void *)(uintptr_t)"count");
    run_spread(2, disagree, (void *)(uintptr_t)"dtype");
    run_spread(2, disagree, (void *)(uintptr_t)"tag");
    run_spread(2, disagree, (void *)(uintptr_t)"shape");
}

// A message may pass while the comm thread waits in a collective.
static void beside_the_queue(pl_group *g, void *ctx) {
    (void)ctx;
    int rank = pl_group_rank(g);
    float sum = 1;
    int32_t token = 7;
    pl_work *w;
    if (rank == 0) {
        CHECK_OK(pl_group_all_reduce_async(g, &sum, 1, PL_F32, PL_RED_SUM, SITE("q:1"), &w));
        CHECK_OK(pl_group_send(g, &token, 1, PL_I32, 1, 0, SITE("q:2")));
    } else {
        CHECK_OK(pl_group_recv(g, &token, 1, PL_I32, 0, 0, SITE("q:3")));
        CHECK_OK(pl_group_all_reduce_async(g, &sum, 1, PL_F32, PL_RED_SUM, SITE("q:1"), &w));
    }
    CHECK_OK(pl_work_wait(w));
    pl_work_free(w);
    CHECK(sum == 2);
}

TEST(a_message_passes_a_queued_collective) { run_spread(2, beside_the_queue, NULL); }

// SPDX-License-Identifier: Apache-2.0
// Tests of the birth of a group: wrong options, a control block that cannot be used, ranks that
// disagree, memory that runs out. After each the descriptors are the caller's and nothing is lost.
#include "test.h"

#include "ranks.h"

static pl_group_options options(int fd) {
    return (pl_group_options){.name = "g", .world = 1, .control_fd = fd, .timeout_ms = 1000};
}

static int control(size_t nbytes, unsigned flags) {
    int fd = memfd_create("control", MFD_CLOEXEC | flags);
    CHECK(fd >= 0);
    CHECK_EQ(ftruncate(fd, (off_t)nbytes), 0);
    return fd;
}

TEST(wrong_options_are_refused) {
    int fd = control(pl_group_control_bytes(1, 1), MFD_ALLOW_SEALING);
    pl_group *g = NULL;
    pl_group_options o = options(fd);
    o.world = 0;
    CHECK_FAILS(pl_group_new(&o, &g), PL_EINVAL, "wrong world size: got 0, expected 1 to 256");
    o.world = 257;
    CHECK_FAILS(pl_group_new(&o, &g), PL_EINVAL, "got 257");
    o.world = 2;
    o.rank = 2;
    CHECK_FAILS(pl_group_new(&o, &g), PL_EINVAL, "wrong rank: got 2, expected 0 to 1");
    o = options(fd);
    o.timeout_ms = 0;
    CHECK_FAILS(pl_group_new(&o, &g), PL_EINVAL, "wrong timeout");
    CHECK(!g);
    CHECK_EQ(pl_group_control_bytes(0, 0), 0);
    CHECK_EQ(pl_group_control_bytes(257, 257), 0);
    CHECK(pl_group_control_bytes(256, 256) < (size_t)8 << 20);
    close(fd);
}

TEST(a_bad_control_block_is_refused) {
    pl_group *g = NULL;
    int fd = control(4096, MFD_ALLOW_SEALING);
    pl_group_options o = options(fd);
    o.world = 200;
    CHECK_FAILS(pl_group_new(&o, &g), PL_EINVAL, "control block too small: got 4096 bytes");
    close(fd);
    fd = control(pl_group_control_bytes(1, 1), 0);
    o = options(fd);
    CHECK_FAILS(pl_group_new(&o, &g), PL_EINVAL, "MFD_ALLOW_SEALING");
    close(fd);
    o = options(-1);
    CHECK_FAILS(pl_group_new(&o, &g), PL_ESYS, "control block");
}

TEST(a_group_of_one) {
    int fd = control(pl_group_control_bytes(1, 1), MFD_ALLOW_SEALING);
    pl_group_options o = options(fd);
    pl_group *g;
    CHECK_OK(pl_group_new(&o, &g));
    close(fd);
    CHECK_EQ(pl_group_rank(g), 0);
    CHECK_EQ(pl_group_world(g), 1);
    double x[2000] = {3, 4};
    pl_work *w;
    CHECK_OK(pl_group_all_reduce(g, x, 2000, PL_F64, PL_RED_MEAN, SITE("one:1")));
    CHECK_OK(pl_group_all_reduce_async(g, x, 2, PL_F64, PL_RED_SUM, SITE("one:2"), &w));
    CHECK_OK(pl_work_wait(w));
    pl_work_free(w);
    CHECK(x[0] == 3 && x[1] == 4);
    pl_group_failure f;
    pl_group_failure_get(g, &f);
    CHECK_EQ(f.status, PL_OK);
    CHECK_OK(pl_group_check(g));
    pl_group_free(g);
    pl_group_free(NULL);
}

// ---------------------------------------------------------------------------------------------
// Two ranks that are born together, as threads.

typedef struct birth {
    const ranks *rs;
    int rank, world;
    pl_status st;
    char message[512];
    pthread_t thread;
} birth;

static pl_status use(pl_group *g) {
    float x[3] = {1, 2, 3};
    uint64_t used = 1;
    pl_segment *seg = NULL;
    pl_work *w = NULL;
    PL_TRY(pl_segment_new(g, 4096, SITE("use:1"), &seg));
    pl_bucket_call c = {.seg = seg, .count = 10, .dtype = PL_F32, .n_params = 1, .used = &used};
    pl_status st = pl_group_reduce_bucket(g, &c, SITE("use:2"), &w);
    if (st == PL_OK) st = pl_work_wait(w);
    pl_work_free(w);
    if (st == PL_OK) st = pl_group_all_reduce(g, x, 3, PL_F32, PL_RED_SUM, SITE("use:3"));
    pl_segment_release(seg);
    return st;
}

static void *birth_main(void *arg) {
    birth *b = arg;
    pl_group *g = NULL;
    ranks rs = *b->rs;
    rs.world = b->world;
    b->st = ranks_join(&rs, b->rank, NULL, NULL, &g);
    if (b->st == PL_OK) {
        b->st = use(g);
    } else {
        CHECK(!g);
        for (int r = 0; r < b->rs->world; r++) {
            if (r != b->rank) close(b->rs->fds[b->rank][r]);  // fails if they were closed already
        }
    }
    snprintf(b->message, sizeof b->message, "%s", pl_error_message());
    if (g && b->st == PL_ENOMEM) pl_group_announce_failed(g, "MemoryError: as Python would say");
    pl_group_free(g);
    return NULL;
}

static void be_born(birth *b, int world) {
    ranks rs;
    ranks_open(&rs, 2, NULL, NULL);
    for (int r = 0; r < 2; r++) {
        b[r] = (birth){.rs = &rs, .rank = r, .world = r == 1 ? world : 2};
        CHECK_EQ(pthread_create(&b[r].thread, NULL, birth_main, &b[r]), 0);
    }
    for (int r = 0; r < 2; r++) CHECK_EQ(pthread_join(b[r].thread, NULL), 0);
    ranks_close_control(&rs);
}

static int descriptors(void) {
    int n = 0;
    for (int fd = 0; fd < 256; fd++) n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

// The n-th allocation fails, for n = 1, 2, ... until nothing fails any more: whoever it hits says
// so, the other is told, and everything is given back.
TEST(memory_that_runs_out_is_an_error_on_both) {
    birth b[2];
    int failures = 0, before = descriptors();
    for (uint64_t n = 1;; n++) {
        CHECK(n < 60);
        pl_alloc_fail_at(n, false);
        be_born(b, 2);
        pl_alloc_fail_at(0, false);
        CHECK_EQ(descriptors(), before);
        if (b[0].st == PL_OK && b[1].st == PL_OK) break;
        failures++;
        int hit = b[0].st == PL_ENOMEM ? 0 : 1;
        CHECK_EQ(b[hit].st, PL_ENOMEM);
        if (b[1 - hit].st != PL_EREMOTE) {
            TEST_FAIL("n = %d: got %s \"%s\", expected PL_EREMOTE", (int)n,
                      pl_status_name(b[1 - hit].st), b[1 - hit].message);
        }
        CHECK(strstr(b[1 - hit].message, "MemoryError"));
    }
    CHECK(failures >= 6);  // group, tables, arena, segment and work, on two ranks
}

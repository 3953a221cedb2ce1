// SPDX-License-Identifier: Apache-2.0
// Faults while a device computes (RELIABILITY A1, A4, A5, A6): the fake NCCL never notices that a
// rank is gone, so whoever ends these waits is comm. Times are bounded far above the promises,
// since the machine may be busy.
#include "test.h"
#include "vcuda_ranks.h"

enum { COUNT = 4096 };
#define SOON_NS INT64_C(3000000000)

static pid_t pids[RANKS_MAX];

static pl_status sum(pl_group *g, void *at) {
    pl_collective c = {.kind = PL_COLL_ALL_REDUCE, .in = at, .out = at, .count = COUNT};
    c.dtype = PL_F32;
    c.device = gpu;
    return pl_group_collective(g, &c, SITE("train.py:31"), NULL);
}

static pl_status wait_for_gpu(void) { return pl_device_wait_all(&gpu_services); }

static float *buffer(pl_group *g) {
    static float x[COUNT];
    float *at = gpu_alloc(sizeof x);
    gpu_write(at, x, sizeof x);
    for (int i = 0; i < 3; i++) CHECK_OK(sum(g, at));  // the communicator is made by the first
    CHECK_OK(wait_for_gpu());
    return at;
}

static void check_blame(pl_group *g, pl_status want, int rank) {
    pl_group_failure f;
    pl_group_failure_get(g, &f);
    CHECK_EQ(f.status, want);
    CHECK_EQ(f.n_dead, 1);
    CHECK_EQ(f.dead_ranks[0], rank);
    CHECK_EQ(strcmp(f.op, "all_reduce"), 0);
    CHECK_EQ(strcmp(f.site, "train.py:31"), 0);
}

static void check_ends(int world, int victim, int code) {
    for (int r = 0; r < world; r++) CHECK_EQ(wait_fork(pids[r]), r == victim ? code : 0);
}

// A task that keeps a stream busy for ever, as a rank does that died after it had met the others:
// its part never comes.
static bool never(void *context) {
    (void)context;
    return false;
}

static void block_stream(void) {
    void (*enqueue_poll)(void *, bool (*)(void *), const void *, size_t);
    void *library = dlopen(VCUDA_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    *(void **)&enqueue_poll = dlsym(library, "vcuda_enqueue_poll");
    enqueue_poll(gpu_services.runtime->native(gpu_services.runtime, gpu_services.compute), never,
                 "", 1);
}

// Rank 1 takes part on the host, so all have met, but never on the device; then it goes.
static void gone_on_the_device(pl_group *g, void *ctx) {
    int how = *(int *)ctx;
    void *at = buffer(g);
    if (pl_group_rank(g) == 1) {
        block_stream();
        CHECK_OK(sum(g, at));
        usleep(100000);
        if (how == 0) raise(SIGKILL);
        if (how == 1) pl_group_announce_failed(g, "ValueError: bad batch");
        if (how == 2) pl_group_announce_finished(g);
        _exit(5);
    }
    CHECK_OK(sum(g, at));
    int64_t since = pl_now_ns();
    pl_status want = how == 1 ? PL_EREMOTE : PL_EPEER;
    CHECK_FAILS(wait_for_gpu(), want, how == 1 ? "rank 1 raised ValueError: bad batch" : "rank 1");
    CHECK(pl_now_ns() - since < SOON_NS);
    CHECK(strstr(pl_error_message(), "called at train.py:31"));
    check_blame(g, want, 1);
    CHECK_FAILS(wait_for_gpu(), want, "rank 1");  // what was computed stays worthless
    CHECK_FAILS(sum(g, at), want, "rank 1");
}

TEST(a_rank_that_goes_while_the_device_computes_is_named) {
    for (int how = 0; how < 3; how++) {
        for (int world = 2; world <= 4; world += 2) {
            start_forks(world, gone_on_the_device, &how, pids);
            check_ends(world, 1, how == 0 ? -SIGKILL : 5);
        }
    }
}

// ---- Others -------------------------------------------------------------------------------------

static void until_killed(pl_group *g, void *ctx) {
    (void)ctx;
    void *at = buffer(g);
    pl_status st = PL_OK;
    int64_t end = pl_now_ns() + 2 * SOON_NS;
    for (int i = 0; st == PL_OK && pl_now_ns() < end; i++) {
        if (i == 20 && pl_group_rank(g) == 0) raise(SIGKILL);
        st = sum(g, at);
        if (st == PL_OK && i % 4 == 0) st = wait_for_gpu();
    }
    CHECK_EQ(st, PL_EPEER);
    check_blame(g, PL_EPEER, 0);
}

TEST(a_killed_rank_is_named_wherever_the_others_are) {
    start_forks(2, until_killed, NULL, pids);
    check_ends(2, 0, -SIGKILL);
    start_forks(4, until_killed, NULL, pids);
    check_ends(4, 0, -SIGKILL);
    ranks_machines = 2;
    start_forks(4, until_killed, NULL, pids);
    check_ends(4, 0, -SIGKILL);
    ranks_machines = 1;
}

// Said by all ranks, with the reason of the one that it is about.
static void without_nccl(pl_group *g, void *ctx) {
    (void)ctx;
    void *at = gpu_alloc(COUNT * sizeof(float));
    if (pl_group_rank(g) == 1) {
        setenv("PACELINE_NCCL", *(const char *const *)ctx, 1);
    }
    pl_status st = sum(g, at);
    if (pl_group_rank(g) != 1) CHECK(st == PL_EDEVICE || st == PL_EPEER);
    CHECK(strstr(pl_error_message(), "rank 1"));
    CHECK(strstr(pl_error_message(), "tensors on a GPU cannot go between the ranks"));
    CHECK_OK(pl_group_check(g));
    CHECK_OK(pl_group_barrier(g, SITE("still whole")));
}

TEST(a_rank_without_nccl_is_named_and_the_group_stays_whole) {
    const char *missing = "/nowhere/libnccl.so.2";
    start_forks(2, without_nccl, &missing, pids);
    check_ends(2, -1, 0);
}

static pl_status interrupt(void) { return pl_fail(PL_EINTR, "interrupted"); }

static void interrupted(pl_group *g, void *ctx) {
    (void)ctx;
    void *at = buffer(g);
    if (pl_group_rank(g) == 1) {
        block_stream();
        CHECK_OK(sum(g, at));
        CHECK_FAILS(pl_group_barrier(g, SITE("train.py:31")), PL_EREMOTE, "KeyboardInterrupt");
        _exit(0);
    }
    CHECK_OK(sum(g, at));
    pl_set_interrupt(interrupt);
    int64_t since = pl_now_ns();
    CHECK_EQ(wait_for_gpu(), PL_EINTR);
    CHECK(pl_now_ns() - since < SOON_NS);
    pl_set_interrupt(NULL);
    pl_group_announce_failed(g, "KeyboardInterrupt: ");
}

TEST(an_interrupt_ends_a_wait_for_the_device) {
    start_forks(2, interrupted, NULL, pids);
    check_ends(2, -1, 0);
}

static void never_done(pl_group *g, void *ctx) {
    (void)ctx;
    void *at = buffer(g);
    if (pl_group_rank(g) == 1) block_stream();
    CHECK_OK(sum(g, at));
    pl_status st = pl_group_rank(g) == 0 ? wait_for_gpu() : pl_group_barrier(g, SITE("b"));
    CHECK_EQ(st, PL_ETIME);
    CHECK(strstr(pl_error_message(), "timed out"));
    if (pl_group_rank(g) == 1) _exit(0);
}

TEST(a_device_that_never_ends_is_a_timeout) {
    ranks_timeout_ms = 1500;
    start_forks(2, never_done, NULL, pids);
    check_ends(2, -1, 0);
}

static void leaves_at_once(pl_group *g, void *ctx) {
    (void)ctx;
    void *at = buffer(g);
    CHECK_OK(sum(g, at));
}

TEST(a_group_that_ends_lets_its_last_collective_end) {
    start_forks(4, leaves_at_once, NULL, pids);
    check_ends(4, -1, 0);
}

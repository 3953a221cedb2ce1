// SPDX-License-Identifier: Apache-2.0
// Tests of what is only between machines: frames that are none, ranks of machines of any size, and
// that nothing is left behind.
#include "test.h"

#include <dirent.h>

#include "comm_reference.h"
#include "comm/net.h"
#include "ranks.h"

// ThreadSanitizer would report what the noise does to memory that others read, which is its
// purpose.
#ifndef __SANITIZE_THREAD__
#define WORLD 3  // one rank on machine 0, two on machine 1

static uint64_t state = 12345;

static uint64_t next(void) { return state = ref_mix(state + 0x9e3779b97f4a7c15u); }

// Rank 1 writes a frame that nobody asked for into its stream to machine 0; none of them may do
// more than end the group. A third is noise, a third has a good head and noise behind, a third is a
// good frame with one field changed.
static void send_noise(int fd) {
    unsigned char noise[8192];
    for (size_t i = 0; i < sizeof noise; i += 8) {
        uint64_t word = next();
        memcpy(noise + i, &word, 8);
    }
    pl__frame f = {.magic = PL__CONTROL_MAGIC,
                   .kind = (uint16_t)(next() % (PL__FRAME_KINDS + 1)),
                   .rank = 1,
                   .value = (uint32_t)(next() % 5),
                   .nbytes = (uint32_t)(next() % 6000),
                   .at = next() % 4};
    switch (next() % 6) {
        case 0:
            f.at = next();
            break;
        case 1:
            f.nbytes = (uint32_t)next();
            break;
        case 2:
            f.rank = (uint16_t)(next() % 5);
            break;
        case 3:
            f.value = (uint32_t)next();
            break;
        case 4:
            f.kind = (uint16_t)next();
            break;
        default:
            f.nbytes =
                f.kind == PL__FRAME_STATE ? PL__TEXT_BYTES : (uint32_t)sizeof(pl__frame_proposal);
            break;
    }
    if (next() % 3) memcpy(noise, &f, sizeof f);
    (void)!send(fd, noise, sizeof noise, MSG_NOSIGNAL | MSG_DONTWAIT);
}

typedef struct setting {
    int noisy;  // the rank that sends noise
    int seed;
    pthread_barrier_t joined;
} setting;

static const ranks *running;  // of the test that runs now

static void hear_noise(pl_group *g, void *ctx) {
    setting *s = ctx;
    float x[2000] = {1};
    pthread_barrier_wait(&s->joined);
    if (pl_group_rank(g) == s->noisy) {
        state = (uint64_t)s->seed;
        send_noise(running->links[s->noisy][0]);
    }
    pl_status st = PL_OK;
    for (int i = 0; i < 4 && st == PL_OK; i++) {
        st = pl_group_all_reduce(g, x, 2000, PL_F32, PL_RED_MAX, SITE("noise:1"));
    }
    // Whatever it was: an error of the group, or (a frame that happened to be one) a result.
    CHECK(st == PL_OK || st == PL_EPEER || st == PL_EREMOTE || st == PL_EMISMATCH ||
          st == PL_ETIME || st == PL_EBUG);
}

TEST(noise_between_machines_ends_the_group_and_nothing_else) {
    ranks_machines = 2;
    ranks_timeout_ms = 1500;
    for (int seed = 1; seed <= 60; seed++) {
        setting s = {.noisy = 1, .seed = seed};
        pthread_barrier_init(&s.joined, NULL, WORLD);
        ranks rs;
        rank_thread t[WORLD];
        ranks_open(&rs, WORLD, hear_noise, &s);
        running = &rs;
        for (int r = 0; r < WORLD; r++) {
            t[r] = (rank_thread){.rs = &rs, .rank = r};
            CHECK_EQ(pthread_create(&t[r].thread, NULL, ranks_thread_main, &t[r]), 0);
        }
        for (int r = 0; r < WORLD; r++) CHECK_EQ(pthread_join(t[r].thread, NULL), 0);
        ranks_close_control(&rs);
        pthread_barrier_destroy(&s.joined);
    }
    ranks_machines = 1;
}

#endif

// Many pieces in a row, so that every area of a rank is used again while its link is busy.
static void reduce_many_pieces(pl_group *g, void *ctx) {
    (void)ctx;
    int rank = pl_group_rank(g), world = pl_group_world(g);
    const int64_t counts[] = {49152, 49153, 98304, 196608, 500000, 700001};
    char *got = malloc(700001 * 4), *want = malloc(700001 * 4);
    for (int round = 0; round < 3; round++) {
        for (int k = 0; k < 6; k++) {
            int64_t n = counts[k];
            pl_dtype dt = round == 1 ? PL_BF16 : PL_F32;
            size_t nbytes = (size_t)n * pl_dtype_size(dt);
            ref_fill(dt, got, rank, round, n);
            if (round == 2) {
                CHECK_OK(pl_group_reduce(g, got, n, dt, PL_RED_SUM, k % world, SITE("p:1")));
            } else {
                CHECK_OK(pl_group_all_reduce(g, got, n, dt, PL_RED_MEAN, SITE("p:2")));
            }
            if (round == 2 && k % world != rank) {
                ref_fill(dt, want, rank, round, n);
            } else {
                ref_result(dt, round == 2 ? PL_RED_SUM : PL_RED_MEAN, world, round, n, want);
            }
            CHECK_EQ(memcmp(got, want, nbytes), 0);
        }
    }
    free(got);
    free(want);
}

TEST(many_pieces_between_machines) {
    for (int world = 2; world <= 4; world++) {
        ranks_machines = world;
        run_threads(world, reduce_many_pieces, NULL);
    }
    ranks_machines = 1;
}

static void nothing(pl_group *g, void *ctx) {
    (void)ctx;
    CHECK_OK(pl_group_barrier(g, SITE("n:1")));
}

static int count_fds(void) {
    int n = 0;
    for (int fd = 0; fd < 256; fd++) n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static int count_threads(void) {
    int n = 0;
    DIR *d = opendir("/proc/self/task");
    CHECK(d);
    while (readdir(d)) n++;
    closedir(d);
    return n;
}

TEST(groups_over_machines_leave_nothing) {
    ranks_machines = 4;
    run_threads(4, nothing, NULL);
    int fds = count_fds(), threads = count_threads();
    for (int i = 0; i < 20; i++) run_threads(4, nothing, NULL);
    CHECK_EQ(count_fds(), fds);
    CHECK_EQ(count_threads(), threads);
    ranks_machines = 1;
}

static pl_status make(const int *first, int n, pl_group **g) {
    int links[4] = {-1, -1, -1, -1};
    pl_group_options o = {.rank = 0, .world = 4, .control_fd = -1, .timeout_ms = 1000};
    o.n_machines = n;
    o.machine_first = first;
    o.link_fds = links;
    return pl_group_new(&o, g);
}

TEST(machines_that_do_not_follow_one_another_are_refused) {
    pl_group *g = NULL;
    CHECK_FAILS(make((int[]){0, 0}, 2, &g), PL_EINVAL, "machine 1 begins with rank 0");
    CHECK_FAILS(make((int[]){1, 2}, 2, &g), PL_EINVAL, "machine 0 begins with rank 1");
    CHECK_FAILS(make((int[]){0, 4}, 2, &g), PL_EINVAL, "machine 1 begins with rank 4");
    CHECK_FAILS(make((int[]){0, 3, 2}, 3, &g), PL_EINVAL, "machine 2 begins with rank 2");
    CHECK_EQ(pl_group_control_bytes(4, 5), 0);
    CHECK_EQ(pl_group_control_bytes(4, 0), 0);
    CHECK(pl_group_control_bytes(4, 2) > pl_group_control_bytes(4, 4));
}

// SPDX-License-Identifier: Apache-2.0
// Tests of csrc/base/threads.c.
#include "test.h"

#include <stdatomic.h>

// Under ThreadSanitizer loops are serial (see threads.c).
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define SERIAL 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define SERIAL 1
#endif
#ifndef SERIAL
#define SERIAL 0
#endif

enum { N = 1000 };
static unsigned char hits[N];
static atomic_int calls;
static int64_t grain_seen;

static void mark(int64_t begin, int64_t end, void *ctx) {
    CHECK(begin < end && end <= N);
    CHECK_EQ(begin % grain_seen, 0);
    CHECK(ctx == hits);
    for (int64_t i = begin; i < end; i++) hits[i]++;
    atomic_fetch_add(&calls, 1);
}

static void run(int64_t n, int64_t grain) {
    memset(hits, 0, sizeof hits);
    atomic_store(&calls, 0);
    grain_seen = grain;
    pl_parallel_for(n, grain, mark, hits);
    for (int64_t i = 0; i < N; i++) CHECK_EQ(hits[i], i < n);
}

TEST(each_index_exactly_once_in_whole_grains) {
    for (int threads = 1; threads <= 5; threads++) {
        CHECK_OK(pl_set_num_threads(threads));
        CHECK_EQ(pl_num_threads(), threads);
        for (int64_t n = 0; n <= N; n += n < 40 ? 1 : 97) {
            for (int64_t grain = 1; grain < 2000; grain = grain * 3 + 1) run(n, grain);
        }
    }
}

TEST(the_number_of_pieces_is_the_number_of_threads) {
    CHECK_OK(pl_set_num_threads(4));
    run(1000, 10);
    CHECK_EQ(atomic_load(&calls), SERIAL ? 1 : 4);
    run(25, 10);  // only three grains
    CHECK_EQ(atomic_load(&calls), SERIAL ? 1 : 3);
    run(10, 10);
    CHECK_EQ(atomic_load(&calls), 1);
    run(0, 10);
    CHECK_EQ(atomic_load(&calls), 0);
}

static void inner(int64_t begin, int64_t end, void *ctx) {
    (void)begin, (void)end;
    atomic_fetch_add((atomic_int *)ctx, 1);
}
static void outer(int64_t begin, int64_t end, void *ctx) {
    for (int64_t i = begin; i < end; i++) pl_parallel_for(100, 1, inner, ctx);
}

TEST(a_loop_inside_a_loop_is_serial) {
    atomic_int n = 0;
    CHECK_OK(pl_set_num_threads(2));
    pl_parallel_for(8, 1, outer, &n);
    CHECK_EQ(atomic_load(&n), 8);
}

TEST(a_wrong_number_of_threads_is_refused) {
    CHECK_FAILS(pl_set_num_threads(0), PL_EINVAL, "got 0, expected 1 or more");
    CHECK_FAILS(pl_set_num_threads(-3), PL_EINVAL, "got -3");
}

TEST(the_default_follows_the_environment) {
    CHECK_EQ(setenv("OMP_NUM_THREADS", "3,1", 1), 0);
    CHECK_EQ(pl_num_threads(), 3);
}

TEST(the_default_is_what_affinity_allows) {
    CHECK_EQ(unsetenv("OMP_NUM_THREADS"), 0);
    CHECK(pl_cpu_count() >= 1 && pl_cpu_count() <= sysconf(_SC_NPROCESSORS_CONF));
    CHECK_EQ(pl_num_threads(), pl_cpu_count());
}

// The child of a process that has a pool must not enter OpenMP: it would wait for threads that
// were not forked.
TEST(a_forked_child_is_serial) {
    CHECK_OK(pl_set_num_threads(2));
    run(1000, 1);
    pid_t pid = fork();
    if (pid == 0) {
        alarm(10);
        run(1000, 1);
        _exit(atomic_load(&calls) == 1 && pl_num_threads() == 1 ? 0 : 1);
    }
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(status, 0);
    run(1000, 1);
    CHECK_EQ(atomic_load(&calls), SERIAL ? 1 : 2);
}

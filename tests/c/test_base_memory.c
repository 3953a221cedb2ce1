// SPDX-License-Identifier: Apache-2.0
// Tests of csrc/base/alloc.c. Where a sanitizer is on nothing is cached; the tests that count
// cached bytes then check exactly that.
#include "base/alloc_internal.h"
#include "test.h"

#include <stdatomic.h>

#include <pthread.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define UNCACHED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(PL_DEBUG)
#undef UNCACHED
#define UNCACHED 1
#endif
#ifndef UNCACHED
#define UNCACHED 0
#endif

TEST(blocks_are_aligned_counted_and_apart) {
    enum { N = 300 };
    static unsigned char *p[N];
    size_t total = 0;
    for (int i = 0; i < N; i++) {
        size_t n = (size_t)i * 41;  // 0 to 12 KiB, over many class edges
        void *v;
        CHECK_OK(pl_alloc(n, &v));
        CHECK(v != NULL);
        CHECK_EQ((uintptr_t)v % 64, 0);
        p[i] = v;
        memset(p[i], i, n);
        total += n;
        CHECK_EQ(pl_alloc_in_use(), total);
    }
    for (int i = 0; i < N; i++) {
        for (size_t j = 0; j < (size_t)i * 41; j++) CHECK_EQ(p[i][j], i & 255);
        pl_free(p[i]);
    }
    CHECK_EQ(pl_alloc_in_use(), 0);
    CHECK_EQ(pl_alloc_peak(), total);
    pl_free(NULL);
}

// Every size around each class edge fits its block: a write of all bytes is seen by ASan, and by
// the header of the next block otherwise.
TEST(sizes_around_powers_of_two) {
    for (int k = 0; k <= 24; k++) {
        for (int d = -1; d <= 1; d++) {
            size_t n = ((size_t)1 << k) + (size_t)d;
            void *a, *b;
            CHECK_OK(pl_alloc(n, &a));
            CHECK_OK(pl_alloc(n, &b));
            memset(a, 1, n);
            memset(b, 2, n);
            if (n) CHECK_EQ(((unsigned char *)a)[n - 1], 1);
            pl_free(a);
            pl_free(b);
        }
    }
}

TEST(freed_blocks_are_used_again) {
    size_t sizes[] = {24, 1000, 40000, 1 << 20, 5 << 20};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        void *a, *b;
        CHECK_OK(pl_alloc(sizes[i], &a));
        pl_free(a);
        CHECK_OK(pl_alloc(sizes[i] - 3, &b));  // same class
        if (!UNCACHED) CHECK(a == b);
        pl_free(b);
    }
    CHECK(UNCACHED ? pl_alloc_cached() == 0 : pl_alloc_cached() >= (5 << 20));
    pl_alloc_trim();
    CHECK_EQ(pl_alloc_cached(), 0);
}

TEST(a_class_wastes_at_most_an_eighth) {
    if (UNCACHED) return;
    for (size_t n = 100000; n < 3000000; n += 97777) {
        void *p;
        CHECK_OK(pl_alloc(n, &p));
        pl_free(p);
        CHECK(pl_alloc_cached() >= n && pl_alloc_cached() <= n + n / 8 + 64);
        pl_alloc_trim();
    }
}

TEST(calloc_clears_a_used_block) {
    for (size_t n = 100; n <= 1000000; n *= 100) {
        void *p;
        CHECK_OK(pl_alloc(n, &p));
        memset(p, 0xff, n);
        pl_free(p);
        CHECK_OK(pl_calloc(n, &p));
        for (size_t i = 0; i < n; i++) CHECK_EQ(((unsigned char *)p)[i], 0);
        pl_free(p);
    }
}

TEST(impossible_sizes_are_out_of_memory) {
    void *p = &p;
    CHECK_FAILS(pl_alloc(SIZE_MAX, &p), PL_ENOMEM, "out of host memory");
    CHECK(p == NULL);
    CHECK_FAILS(pl_alloc(SIZE_MAX - 32, &p), PL_ENOMEM, "expected less");
    CHECK_FAILS(pl_alloc((size_t)1 << 60, &p), PL_ENOMEM, "1152921504606846976 bytes");
}

TEST(fault_hook_fails_once_or_for_ever) {
    void *a, *b;
    pl_alloc_fail_at(2, false);
    CHECK_OK(pl_alloc(8, &a));
    CHECK_EQ(pl_alloc(8, &b), PL_ENOMEM);
    CHECK(b == NULL);
    CHECK_OK(pl_alloc(8, &b));
    pl_free(a);
    pl_free(b);
    pl_alloc_fail_at(1, true);
    CHECK_EQ(pl_alloc(8, &a), PL_ENOMEM);
    CHECK_EQ(pl_calloc(8, &a), PL_ENOMEM);
    pl_alloc_fail_at(0, false);
    CHECK_OK(pl_alloc(8, &a));
    pl_free(a);
}

// Blocks travel between threads: one allocates, another frees; nothing is lost or handed out twice.
enum { THREADS = 4, ROUNDS = 3000, SLOTS = 64 };
static _Atomic(void *) slots[SLOTS];

static void *trade(void *arg) {
    uint32_t id = (uint32_t)(uintptr_t)arg;
    for (uint32_t i = 0; i < ROUNDS; i++) {
        uint32_t r[4];
        pl_philox(id, i, 0, r);
        uint32_t *p;
        void *v;
        size_t n = 8 + (r[0] % 16 == 0 ? r[1] % 300000 : r[1] % 2000);
        if (pl_alloc(n, &v) != PL_OK) return "no memory";
        p = v;
        p[0] = id;
        p[n / 4 - 1] = id;
        if (p[0] != id) return "block shared";
        pl_free(atomic_exchange(&slots[r[2] % SLOTS], v));
    }
    return NULL;
}

TEST(blocks_may_be_freed_by_another_thread) {
    pthread_t t[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++) {
        CHECK_EQ(pthread_create(&t[i], NULL, trade, (void *)i), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        void *error;
        CHECK_EQ(pthread_join(t[i], &error), 0);
        if (error) TEST_FAIL("thread %d: %s", i, (char *)error);
    }
    for (int i = 0; i < SLOTS; i++) pl_free(atomic_load(&slots[i]));
    CHECK_EQ(pl_alloc_in_use(), 0);
}

TEST(a_forked_child_can_allocate) {
    void *p;
    CHECK_OK(pl_alloc(1 << 20, &p));
    pid_t pid = fork();
    if (pid == 0) {
        void *q;
        if (pl_alloc(1 << 20, &q) != PL_OK) _exit(1);
        pl_free(q);
        pl_free(p);
        _exit(0);
    }
    int status;
    CHECK_EQ(waitpid(pid, &status, 0), pid);
    CHECK_EQ(status, 0);
    pl_free(p);
}

// What was freed in pieces serves as a whole: neighbours are joined, whatever the order.
TEST(free_neighbours_are_joined) {
    if (UNCACHED) return;
    enum { N = 16, PIECE = 1 << 20 };
    static const int order[N] = {3, 7, 0, 12, 4, 1, 15, 9, 2, 14, 8, 5, 13, 6, 11, 10};
    void *p[N], *whole;
    for (int i = 0; i < N; i++) CHECK_OK(pl_alloc(PIECE, &p[i]));
    size_t held = pl_alloc_held();
    for (int i = 0; i < N; i++) pl_free(p[order[i]]);
    CHECK_OK(pl_alloc(N * PIECE, &whole));
    CHECK_EQ(pl_alloc_held(), held);
    pl_free(whole);
}

static size_t resident(void) {
    long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    if (!f || fscanf(f, "%*d %ld", &pages) != 1) pages = 0;
    if (f) (void)fclose(f);
    return (size_t)pages * 4096;
}

TEST(trim_gives_pages_back_and_they_come_again) {
    if (UNCACHED) return;
    enum { BIG = 64 << 20 };
    void *a, *b, *small;
    CHECK_OK(pl_alloc(BIG, &a));
    CHECK_OK(pl_alloc(1000, &small));  // a slab above a, so that a cannot simply be cut off
    CHECK_OK(pl_alloc(BIG, &b));
    memset(a, 1, BIG);
    memset(b, 2, BIG);
    size_t full = resident();
    pl_free(a);
    pl_alloc_trim();
    CHECK_EQ(pl_alloc_cached(), 0);
    CHECK(resident() <= full - BIG + (4 << 20));
    CHECK_EQ(((unsigned char *)b)[BIG - 1], 2);
    CHECK_OK(pl_alloc(BIG, &a));
    memset(a, 3, BIG);
    CHECK_EQ(((unsigned char *)b)[0], 2);
    pl_free(a);
    pl_free(b);
    pl_free(small);
    pl_alloc_trim();
    CHECK(pl_alloc_held() <= (1 << 20));
}

// Small blocks go back too: a slab whose blocks are all free is a large block again.
TEST(trim_empties_slabs) {
    if (UNCACHED) return;
    enum { N = 5000 };
    static void *p[N];
    size_t before = pl_alloc_held();
    for (int i = 0; i < N; i++) CHECK_OK(pl_alloc((size_t)(i % 37) * 100, &p[i]));
    CHECK(pl_alloc_held() > before + N * 1000);
    for (int i = 0; i < N; i++) pl_free(p[(i * 7919) % N]);  // 7919 and 5000 share no factor
    pl_alloc_trim();
    CHECK(pl_alloc_held() <= before + 4096);
}

// A made-up training step, over and over: sizes repeat, lifetimes nest and cross. The bound is what
// is promised: an eighth over the most that was in use, and nothing new after the second step.
TEST(a_repeated_step_settles_near_its_peak) {
    if (UNCACHED) return;
    enum { N = 400 };
    static void *p[N];
    size_t settled = 0;
    for (int step = 0; step < 6; step++) {
        for (uint32_t i = 0; i < N; i++) {
            uint32_t r[4];
            pl_philox(5, i, 0, r);
            CHECK_OK(pl_alloc(100000 + r[0] % 1000000, &p[i]));
            if (i >= 8 && r[1] % 3 == 0) {  // a temporary of a few calls ago
                pl_free(p[i - 8]);
                p[i - 8] = NULL;
            }
        }
        for (int i = N - 1; i >= 0; i--) {  // the backward pass, with gradients that stay a while
            void *grad;
            CHECK_OK(pl_alloc(250000, &grad));
            pl_free(p[i]);
            p[i] = grad;
        }
        for (int i = 0; i < N; i++) pl_free(p[i]);
        if (step == 1) settled = pl_alloc_held();
    }
    CHECK_EQ(pl_alloc_held(), settled);
    CHECK(settled <= pl_alloc_peak() + pl_alloc_peak() / 8);
}

TEST(the_peak_can_be_counted_anew) {
    void *a, *b;
    CHECK_OK(pl_alloc(1000000, &a));
    pl_free(a);
    CHECK_OK(pl_alloc(100, &b));
    pl_alloc_reset_peak();
    CHECK_EQ(pl_alloc_peak(), 100);
    pl_free(b);
}

// The kernel would promise it and kill whoever uses it; nothing is left of the attempt.
TEST(more_than_the_machine_has_is_out_of_memory) {
    if (UNCACHED) return;
    size_t machine = (size_t)sysconf(_SC_PHYS_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
    void *p;
    for (int i = 0; i < 100; i++) {  // more often than there are arenas
        CHECK_FAILS(pl_alloc(machine * 4, &p), PL_ENOMEM, "expected less");
    }
    CHECK_OK(pl_alloc(1 << 20, &p));
    pl_free(p);
}

// A limit on addresses: smaller arenas, then an error, then all of it again.
TEST(a_limit_on_addresses_is_kept_within) {
#ifdef __SANITIZE_THREAD__
    return;  // its shadow is over the limit already
#endif
    if (UNCACHED) return;
    enum { N = 64, PIECE = 32 << 20 };
    struct rlimit small = {.rlim_cur = 1 << 30, .rlim_max = RLIM_INFINITY};
    void *p[N];
    int n = 0;
    CHECK_EQ(setrlimit(RLIMIT_AS, &small), 0);
    while (n < N && pl_alloc(PIECE, &p[n]) == PL_OK) n++;
    CHECK(n >= 8 && n < 32);
    CHECK(strstr(pl_error_message(), "out of host memory") != NULL);
    for (int i = 0; i < n; i++) pl_free(p[i]);
    int again = 0;
    while (again < n && pl_alloc(PIECE, &p[again]) == PL_OK) again++;
    CHECK_EQ(again, n);
    for (int i = 0; i < n; i++) pl_free(p[i]);
}

// ---- What there is ------------------------------------------------------------------------------

static void put(const char *folder, const char *name, const char *text) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "w");
    CHECK(f != NULL);
    CHECK(fputs(text, f) >= 0);
    CHECK_EQ(fclose(f), 0);
}

static size_t limit_of(const char *root, const char *groups) {
    char path[256];
    put(root, "groups", groups);
    snprintf(path, sizeof path, "%s/groups", root);
    return pl__group_limit(path, root);
}

TEST(a_containers_limit_is_read) {
    char root[] = "/tmp/paceline-groups-XXXXXX", inner[256];
    CHECK(mkdtemp(root) != NULL);
    const char *folders[] = {"a", "a/b", "memory", "memory/c"};
    for (int i = 0; i < 4; i++) {
        snprintf(inner, sizeof inner, "%s/%s", root, folders[i]);
        CHECK_EQ(mkdir(inner, 0700), 0);
    }
    CHECK_EQ(limit_of(root, "0::/a/b\n"), SIZE_MAX);
    put(root, "a/b/memory.max", "max\n");
    CHECK_EQ(limit_of(root, "0::/a/b\n"), SIZE_MAX);
    put(root, "a/memory.max", "3000000000\n");
    CHECK_EQ(limit_of(root, "0::/a/b\n"), 3000000000u);  // of the group around it
    put(root, "a/b/memory.max", "2000000000\n");
    CHECK_EQ(limit_of(root, "0::/a/b\n"), 2000000000u);
    CHECK_EQ(limit_of(root, "0::/\n"), SIZE_MAX);
    put(root, "memory.max", "1000000000\n");
    CHECK_EQ(limit_of(root, "0::/not/seen/from/here\n"), 1000000000u);
    put(root, "memory/c/memory.limit_in_bytes", "500000000\n");
    CHECK_EQ(limit_of(root, "5:cpu:/\n4:memory:/c\n0::/\n"), 500000000u);
    CHECK_EQ(limit_of(root, "no group at all\n"), SIZE_MAX);
    CHECK(pl_memory_limit() > (size_t)64 << 20);
    snprintf(inner, sizeof inner, "rm -r %s", root);
    CHECK_EQ(system(inner), 0);
}

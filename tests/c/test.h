// SPDX-License-Identifier: Apache-2.0
// test: a C unit test in one header. A test file includes it once, writes TEST(name) { ... } blocks
// and nothing else: main is here. Each test runs in its own forked process with a time limit, so
// that a crash or a hang is one failed test. A failed CHECK ends its test.
//   ./test_x            all tests; prints "N passed, N failed"; exit status 1 if any failed
//   ./test_x -l         the names          ./test_x name ...   only these
//   ./test_x -n name    in this process, for a debugger
#ifndef PL_TEST_H
#define PL_TEST_H

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/base.h"

#ifndef TEST_TIMEOUT_S
#define TEST_TIMEOUT_S 30
#endif

typedef struct pl_test {
    const char *name;
    void (*fn)(void);
    struct pl_test *next;
} pl_test;
static pl_test *pl_tests, **pl_tests_end = &pl_tests;

#define TEST(test_name)                                                   \
    static void test_##test_name(void);                                   \
    __attribute__((constructor)) static void register_##test_name(void) { \
        static pl_test self = {#test_name, test_##test_name, NULL};       \
        *pl_tests_end = &self;                                            \
        pl_tests_end = &self.next;                                        \
    }                                                                     \
    static void test_##test_name(void)

// _exit, not exit: no leak report from a test that already failed.
#define TEST_FAIL(...)                                  \
    do {                                                \
        fprintf(stderr, "%s:%d: ", __FILE__, __LINE__); \
        fprintf(stderr, __VA_ARGS__);                   \
        fputc('\n', stderr);                            \
        fflush(NULL);                                   \
        _exit(1);                                       \
    } while (0)

#define CHECK(cond)                                        \
    do {                                                   \
        if (!(cond)) TEST_FAIL("CHECK failed: %s", #cond); \
    } while (0)

#define CHECK_OK(expr)                                                                      \
    do {                                                                                    \
        pl_status check_st = (expr);                                                        \
        if (check_st != PL_OK) {                                                            \
            TEST_FAIL("%s: got %s \"%s\", expected PL_OK", #expr, pl_status_name(check_st), \
                      pl_error_message());                                                  \
        }                                                                                   \
    } while (0)

// expr fails with `want`, and its message contains `part`.
#define CHECK_FAILS(expr, want, part)                                                             \
    do {                                                                                          \
        pl_status check_st = (expr);                                                              \
        if (check_st != (want)) {                                                                 \
            TEST_FAIL("%s: got %s, expected %s", #expr, pl_status_name(check_st),                 \
                      pl_status_name(want));                                                      \
        }                                                                                         \
        if (!strstr(pl_error_message(), (part))) {                                                \
            TEST_FAIL("%s: got message \"%s\", expected \"%s\" in it", #expr, pl_error_message(), \
                      (part));                                                                    \
        }                                                                                         \
    } while (0)

// Integers, bools, enums (as 64-bit).
#define CHECK_EQ(got, want)                                                                \
    do {                                                                                   \
        long long check_a = (long long)(got), check_b = (long long)(want);                 \
        if (check_a != check_b) {                                                          \
            TEST_FAIL("%s == %s: got %lld, expected %lld", #got, #want, check_a, check_b); \
        }                                                                                  \
    } while (0)

#define CHECK_STR_EQ(got, want)                                                   \
    do {                                                                          \
        const char *check_a = (got), *check_b = (want);                           \
        if (strcmp(check_a, check_b) != 0) {                                      \
            TEST_FAIL("%s: got \"%s\", expected \"%s\"", #got, check_a, check_b); \
        }                                                                         \
    } while (0)

// |got - want| <= tol, written so that NaN fails.
#define CHECK_NEAR(got, want, tol)                                                          \
    do {                                                                                    \
        double check_a = (double)(got), check_b = (double)(want);                           \
        double check_d = check_a > check_b ? check_a - check_b : check_b - check_a;         \
        if (!(check_a == check_b || check_d <= (double)(tol))) {                            \
            TEST_FAIL("%s ~ %s: got %.17g, expected %.17g within %g", #got, #want, check_a, \
                      check_b, (double)(tol));                                              \
        }                                                                                   \
    } while (0)

static void pl_test_body(const pl_test *t) {
    t->fn();
    for (int k = 0; k < PL_KIND_COUNT; k++) {
        if (pl_live((pl_kind)k) != 0) {
            TEST_FAIL("%s: %lld live %s objects at the end, expected 0", t->name,
                      (long long)pl_live((pl_kind)k), pl_kind_name((pl_kind)k));
        }
    }
    if (pl_alloc_in_use() != 0) {
        TEST_FAIL("%s: %zu bytes in use at the end, expected 0", t->name, pl_alloc_in_use());
    }
}

// Waits for a child with a deadline, by polling: a test may use SIGALRM itself.
static int pl_test_wait(pid_t pid, const char *name) {
    struct timespec pause = {0, 1000000};
    time_t deadline = time(NULL) + TEST_TIMEOUT_S + 1;
    int status = 0;
    for (;;) {
        pid_t r = waitpid(pid, &status, WNOHANG);
        if (r == pid) return status;
        if (r < 0 && errno != EINTR) return 1;
        if (time(NULL) > deadline) {
            fprintf(stderr, "%s: no end after %d s\n", name, TEST_TIMEOUT_S);
            kill(pid, SIGKILL);
            (void)waitpid(pid, &status, 0);
            return status ? status : 1;
        }
        (void)nanosleep(&pause, NULL);
    }
}

static bool pl_test_run(const pl_test *t) {
    fflush(NULL);
    pid_t pid = fork();
    if (pid < 0) return false;
    if (pid == 0) {
        pl_test_body(t);
        exit(0);  // not _exit: LeakSanitizer reports from an exit handler
    }
    int status = pl_test_wait(pid, t->name);
    if (WIFSIGNALED(status)) {
        fprintf(stderr, "%s: killed by signal %d (%s)\n", t->name, WTERMSIG(status),
                strsignal(WTERMSIG(status)));
    }
    bool ok = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    printf("%s %s\n", ok ? "ok  " : "FAIL", t->name);
    return ok;
}

static const pl_test *pl_test_find(const char *name) {
    for (const pl_test *t = pl_tests; t; t = t->next) {
        if (strcmp(t->name, name) == 0) return t;
    }
    fprintf(stderr, "no test called %s\n", name);
    exit(2);
}

int main(int argc, char **argv) {
    int passed = 0, failed = 0;
    if (argc > 1 && strcmp(argv[1], "-l") == 0) {
        for (const pl_test *t = pl_tests; t; t = t->next) puts(t->name);
        return 0;
    }
    if (argc > 2 && strcmp(argv[1], "-n") == 0) {
        pl_test_body(pl_test_find(argv[2]));
        return 0;
    }
    if (argc > 1) {
        for (int i = 1; i < argc; i++)
            *(pl_test_run(pl_test_find(argv[i])) ? &passed : &failed) += 1;
    } else {
        for (const pl_test *t = pl_tests; t; t = t->next)
            *(pl_test_run(t) ? &passed : &failed) += 1;
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0 || passed == 0;
}

#endif

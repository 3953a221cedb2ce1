// SPDX-License-Identifier: Apache-2.0
// Tests of csrc/base/trace.c.
#include "base/trace.h"

#include <pthread.h>

#include "test.h"

static pl_trace_log *read_logs(int *n) {
    pl_trace_log *logs;
    CHECK_OK(pl_trace_read(n, &logs));
    return logs;
}

TEST(off_costs_a_zero_and_records_nothing) {
    CHECK_EQ(pl_trace_begin(), 0);
    pl_trace_end(pl_trace_begin(), PL_TRACE_OP, "add");
    int n;
    pl_trace_log *logs = read_logs(&n);
    CHECK_EQ(n, 0);
    pl_trace_logs_free(n, logs);
    pl_trace_clear();
}

TEST(events_come_in_the_order_of_their_ends) {
    pl_trace_start(false, 100);
    int64_t outer = pl_trace_begin();
    int64_t inner = pl_trace_begin();
    pl_trace_end(inner, PL_TRACE_OP, "matmul");
    pl_trace_end(outer, PL_TRACE_OPTIMIZER, "step");
    pl_trace_stop();
    int n;
    pl_trace_log *logs = read_logs(&n);
    CHECK_EQ(n, 1);
    CHECK_EQ(logs[0].n, 2);
    const pl_trace_event *e = logs[0].events;
    CHECK_STR_EQ(e[0].name, "matmul");
    CHECK_STR_EQ(e[1].name, "step");
    CHECK_STR_EQ(pl_trace_kind_name(e[1].kind), "optimizer");
    CHECK(e[1].start_ns <= e[0].start_ns && e[0].start_ns <= e[0].end_ns);
    CHECK(e[0].end_ns <= e[1].end_ns);
    CHECK_EQ(e[0].number, -1);
    pl_trace_logs_free(n, logs);
    pl_trace_clear();
}

TEST(what_is_over_the_limit_is_counted) {
    pl_trace_start(false, 3000);  // more than one block
    for (int i = 0; i < 3010; i++) pl_trace_end(pl_trace_begin(), PL_TRACE_OP, "add");
    int n;
    pl_trace_log *logs = read_logs(&n);
    CHECK_EQ(logs[0].n, 3000);
    CHECK_EQ(logs[0].n_lost, 10);
    for (int i = 1; i < 3000; i++) {
        CHECK(logs[0].events[i - 1].end_ns <= logs[0].events[i].start_ns);
    }
    pl_trace_logs_free(n, logs);
    pl_trace_clear();
}

TEST(a_session_begins_empty_and_uses_the_memory_again) {
    pl_trace_start(false, 5000);
    for (int i = 0; i < 2500; i++) pl_trace_end(pl_trace_begin(), PL_TRACE_OP, "old");
    int64_t late = pl_trace_begin();
    pl_trace_stop();
    size_t in_use = pl_alloc_in_use();
    for (int k = 0; k < 3; k++) {
        pl_trace_start(true, 5000);
        CHECK(pl_trace_shapes());
        pl_trace_end(late, PL_TRACE_OP, "late");  // began before the session
        for (int i = 0; i < 2500; i++) pl_trace_end(pl_trace_begin(), PL_TRACE_OP, "new");
        pl_trace_stop();
    }
    CHECK_EQ(pl_alloc_in_use(), in_use);
    int n;
    pl_trace_log *logs = read_logs(&n);
    CHECK_EQ(logs[0].n, 2500);
    for (int i = 0; i < 2500; i++) CHECK_STR_EQ(logs[0].events[i].name, "new");
    pl_trace_logs_free(n, logs);
    pl_trace_clear();
}

TEST(a_long_name_is_cut) {
    pl_trace_start(false, 10);
    pl_trace_end(pl_trace_begin(), PL_TRACE_USER, "a name that is longer than what is kept of it");
    int n;
    pl_trace_log *logs = read_logs(&n);
    CHECK_STR_EQ(logs[0].events[0].name, "a name that is longer than what");
    pl_trace_logs_free(n, logs);
    pl_trace_clear();
}

#define EACH 5000
static void *record(void *name) {
    for (int i = 0; i < EACH; i++) pl_trace_end(pl_trace_begin(), PL_TRACE_OP, name);
    return NULL;
}

TEST(threads_record_apart_while_another_reads) {
    static char names[4][2] = {"a", "b", "c", "d"};
    pthread_t threads[4];
    size_t in_use = pl_alloc_in_use();
    pl_trace_start(false, EACH);
    for (int t = 0; t < 4; t++) CHECK(pthread_create(&threads[t], NULL, record, names[t]) == 0);
    for (int k = 0; k < 20; k++) {
        int n;
        pl_trace_log *logs = read_logs(&n);
        for (int i = 0; i < n; i++) {
            for (int64_t j = 0; j < logs[i].n; j++) CHECK(logs[i].events[j].end_ns > 0);
        }
        pl_trace_logs_free(n, logs);
    }
    for (int t = 0; t < 4; t++) CHECK(pthread_join(threads[t], NULL) == 0);
    int n;
    pl_trace_log *logs = read_logs(&n);
    CHECK_EQ(n, 4);
    for (int i = 0; i < n; i++) {
        CHECK_EQ(logs[i].n, EACH);
        for (int64_t j = 1; j < EACH; j++) {
            CHECK_STR_EQ(logs[i].events[j].name, logs[i].events[0].name);
        }
    }
    pl_trace_logs_free(n, logs);
    pl_trace_clear();
    CHECK_EQ(pl_alloc_in_use(), in_use);
}

TEST(without_memory_events_are_counted) {
    pl_trace_start(false, 10);
    pl_alloc_fail_at(1, true);
    pl_trace_end(pl_trace_begin(), PL_TRACE_OP, "add");
    pl_alloc_fail_at(2, true);  // a log, but no block
    pl_trace_end(pl_trace_begin(), PL_TRACE_OP, "add");
    pl_alloc_fail_at(0, false);
    int n;
    pl_trace_log *logs = read_logs(&n);
    CHECK_EQ(n, 2);
    CHECK_EQ(logs[0].n_lost, 1);
    CHECK_EQ(logs[1].n_lost, 1);
    CHECK_EQ(logs[1].tid, 0);
    pl_trace_logs_free(n, logs);
    for (int k = 1; k <= 2; k++) {
        pl_alloc_fail_at((uint64_t)k, true);
        CHECK_FAILS(pl_trace_read(&n, &logs), PL_ENOMEM, "");
        pl_alloc_fail_at(0, false);
    }
    pl_trace_clear();
}

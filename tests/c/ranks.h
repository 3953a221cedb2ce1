// SPDX-License-Identifier: Apache-2.0
// ranks: the ranks of a group inside one C test, as threads or as forked processes. Each rank
// makes its own pl_group over one control block. A test file includes it after test.h.
//   static void body(pl_group *g, void *ctx) { ... CHECK ... }
//   run_threads(4, body, NULL);           all ranks as threads; no pidfds, so nobody dies
//   pid_t pids[4]; start_forks(4, body, NULL, pids); CHECK_EQ(wait_fork(pids[1]), 0);
#ifndef PL_TEST_RANKS_H
#define PL_TEST_RANKS_H

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "comm/comm.h"

#define RANKS_MAX 8
#define MACHINES_MAX 4
#define SITE(where) ((pl_site){.hash = pl_test_hash(where), .text = where})

static inline uint64_t pl_test_hash(const char *s) {
    uint64_t h = 1469598103934665603u;
    while (*s) h = (h ^ (unsigned char)*s++) * 1099511628211u;
    return h;
}

typedef void (*rank_fn)(pl_group *g, void *ctx);

typedef struct ranks {
    int world;
    // Machine m has the ranks first[m] .. first[m + 1] - 1, which share one control block.
    int n_machines, first[MACHINES_MAX + 1], control_fds[MACHINES_MAX];
    int links[RANKS_MAX][MACHINES_MAX];    // of a rank to each machine
    int inboxes[MACHINES_MAX][RANKS_MAX];  // of a machine, from each rank
    int fds[RANKS_MAX][RANKS_MAX];
    int64_t timeout_ms;
    bool strict;
    rank_fn fn;
    void *ctx;
} ranks;

static int64_t ranks_timeout_ms = 20000;
static bool ranks_strict;
#ifndef RANKS_MACHINES
#define RANKS_MACHINES 1
#endif
static int ranks_machines = RANKS_MACHINES;  // over how many machines the ranks are spread

static int ranks_machine(const ranks *rs, int rank) {
    int m = 0;
    while (rank >= rs->first[m + 1]) m++;
    return m;
}

static void ranks_open(ranks *rs, int world, rank_fn fn, void *ctx) {
    *rs = (ranks){.world = world,
                  .timeout_ms = ranks_timeout_ms,
                  .strict = ranks_strict,
                  .n_machines = ranks_machines < world ? ranks_machines : world,
                  .fn = fn,
                  .ctx = ctx};
    for (int m = 0; m <= rs->n_machines; m++) rs->first[m] = world * m / rs->n_machines;
    for (int m = 0; m < rs->n_machines; m++) {
        int fd = memfd_create("control", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        CHECK(fd >= 0);
        size_t nbytes = pl_group_control_bytes(world, rs->first[m + 1] - rs->first[m]);
        CHECK_EQ(ftruncate(fd, (off_t)nbytes), 0);
        rs->control_fds[m] = fd;
        for (int r = 0; r < world; r++) {
            int pair[2] = {-1, -1};
            if (ranks_machine(rs, r) != m) {
                CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
            }
            rs->links[r][m] = pair[0];
            rs->inboxes[m][r] = pair[1];
        }
    }
    for (int a = 0; a < world; a++) {
        rs->fds[a][a] = -1;
        for (int b = a + 1; b < world; b++) {
            int pair[2];
            CHECK_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
            rs->fds[a][b] = pair[0];
            rs->fds[b][a] = pair[1];
        }
    }
}

static void ranks_close_control(const ranks *rs) {
    for (int m = 0; m < rs->n_machines; m++) close(rs->control_fds[m]);
}

// The sockets that rank r would own, in a process that is not rank r.
__attribute__((unused)) static void ranks_close_sockets(const ranks *rs, int r) {
    int machine = ranks_machine(rs, r);
    for (int b = 0; b < rs->world; b++) {
        if (b != r) close(rs->fds[r][b]);
        if (r == rs->first[machine] && rs->inboxes[machine][b] >= 0) close(rs->inboxes[machine][b]);
    }
    for (int m = 0; m < rs->n_machines; m++) {
        if (rs->links[r][m] >= 0) close(rs->links[r][m]);
    }
}

static pl_status ranks_join(const ranks *rs, int rank, const int *pidfds, const int *pids,
                            pl_group **g) {
    pl_group_options o = {
        .name = "test",
        .rank = rank,
        .world = rs->world,
        .control_fd = rs->control_fds[ranks_machine(rs, rank)],
        .peer_fds = rs->fds[rank],
        .pidfds = pidfds,
        .pids = pids,
        .timeout_ms = rs->timeout_ms,
        .strict_sites = rs->strict,
        .n_machines = rs->n_machines,
        .link_ms = 3000,
        .machine_first = rs->first,
        .link_fds = rs->links[rank],
        .inbox_fds = rs->inboxes[ranks_machine(rs, rank)],
    };
    return pl_group_new(&o, g);
}

typedef struct rank_thread {
    const ranks *rs;
    int rank;
    pthread_t thread;
} rank_thread;

static void *ranks_thread_main(void *arg) {
    rank_thread *t = arg;
    pl_group *g = NULL;
    CHECK_OK(ranks_join(t->rs, t->rank, NULL, NULL, &g));
    t->rs->fn(g, t->rs->ctx);
    pl_group_free(g);
    return NULL;
}

__attribute__((unused)) static void run_threads(int world, rank_fn fn, void *ctx) {
    ranks rs;
    rank_thread t[RANKS_MAX];
    ranks_open(&rs, world, fn, ctx);
    for (int r = 0; r < world; r++) {
        t[r] = (rank_thread){.rs = &rs, .rank = r};
        CHECK_EQ(pthread_create(&t[r].thread, NULL, ranks_thread_main, &t[r]), 0);
    }
    for (int r = 0; r < world; r++) CHECK_EQ(pthread_join(t[r].thread, NULL), 0);
    ranks_close_control(&rs);
}

// Rank `rank` in its own process: learns the others' pids through `gate`, then joins and runs.
static void ranks_fork_main(const ranks *rs, int rank, int gate) {
    // A test that fails half-way leaves none behind, not even a stopped one: it would hold the
    // output open, and who reads that would wait for it.
    CHECK_EQ(prctl(PR_SET_PDEATHSIG, SIGKILL), 0);
    int pids[RANKS_MAX], pidfds[RANKS_MAX];
    CHECK_EQ(read(gate, pids, sizeof pids), (ssize_t)sizeof pids);
    for (int r = 0; r < rs->world; r++) {
        bool near = ranks_machine(rs, r) == ranks_machine(rs, rank);
        pidfds[r] = r == rank || !near ? -1 : (int)syscall(SYS_pidfd_open, pids[r], 0);
        CHECK(r == rank || !near || pidfds[r] >= 0);
        if (r != rank) ranks_close_sockets(rs, r);
    }
    pl_group *g = NULL;
    CHECK_OK(ranks_join(rs, rank, pidfds, pids, &g));
    rs->fn(g, rs->ctx);
    pl_group_free(g);
    ranks_close_control(rs);
    exit(0);
}

__attribute__((unused)) static void start_forks(int world, rank_fn fn, void *ctx, pid_t *out) {
    ranks rs;
    int gates[RANKS_MAX][2], pids[RANKS_MAX] = {0};
    ranks_open(&rs, world, fn, ctx);
    fflush(NULL);
    for (int r = 0; r < world; r++) {
        CHECK_EQ(pipe2(gates[r], O_CLOEXEC), 0);
        pids[r] = fork();
        CHECK(pids[r] >= 0);
        if (pids[r] == 0) ranks_fork_main(&rs, r, gates[r][0]);
    }
    for (int r = 0; r < world; r++) {
        CHECK_EQ(write(gates[r][1], pids, sizeof pids), (ssize_t)sizeof pids);
        close(gates[r][0]);
        close(gates[r][1]);
        out[r] = pids[r];
        ranks_close_sockets(&rs, r);
    }
    ranks_close_control(&rs);
}

// As run_threads, over one, two and three machines (as many as there are ranks for).
// ThreadSanitizer knows memory by its address, and the ranks of a machine map one block at several:
// it would miss what orders them and report races that are none. So there every rank is a machine.
__attribute__((unused)) static void run_spread(int world, rank_fn fn, void *ctx) {
    run_threads(world, fn, ctx);
#ifdef __SANITIZE_THREAD__
    ranks_machines = world;
    if (world > 1 && world <= MACHINES_MAX) run_threads(world, fn, ctx);
#else
    for (ranks_machines = 2; ranks_machines <= world && ranks_machines <= 3; ranks_machines++) {
        run_threads(world, fn, ctx);
    }
#endif
    ranks_machines = RANKS_MACHINES;
}

// Exit code of a rank, or -signal.
__attribute__((unused)) static int wait_fork(pid_t pid) {
    int status = pl_test_wait(pid, "rank");
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

#endif

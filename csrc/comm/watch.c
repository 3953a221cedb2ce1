// SPDX-License-Identifier: Apache-2.0
// The watch thread of a group: notices dead peers by their pidfds and writes this rank's
// heartbeat. It decides nothing alone: it proposes a verdict and wakes whoever waits. Uses no
// OpenMP, blocks all signals, never allocates.
//
// A pidfd becomes readable when the last thread of its process has exited, whoever else holds the
// process's sockets; it takes about 10 ms less than a closed socket, and a forked child that
// inherited the socket cannot hide it. A peer that announced its end beforehand did not die: one
// that finished is nobody's business unless it is waited for; one that raised has proposed its own
// verdict already, unless it was killed in between.
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "comm/internal.h"

#define HEARTBEAT_MS 250
#define GRACE_MS 3  // ranks killed together are seen together, and their parent has reaped them

// Linux 6.15 tells how the process behind a pidfd ended, to anyone, once its parent has reaped it.
typedef struct pidfd_info {
    uint64_t mask, cgroup;
    uint32_t ids[11];
    int32_t exit_code;
} pidfd_info;
#define PIDFD_GET_INFO_ _IOWR(0xFF, 11, pidfd_info)
#define PIDFD_INFO_EXIT_ (UINT64_C(1) << 3)

static void how_it_ended(int pidfd, char *buf, size_t cap) {
    pidfd_info info = {.mask = PIDFD_INFO_EXIT_};
    buf[0] = 0;
    if (ioctl(pidfd, PIDFD_GET_INFO_, &info) != 0 || !(info.mask & PIDFD_INFO_EXIT_)) return;
    int signo = info.exit_code & 0x7f;
    if (signo) {
        const char *name = sigabbrev_np(signo);
        snprintf(buf, cap, ", killed by signal %d%s%s", signo, name ? " SIG" : "",
                 name ? name : "");
    } else {
        snprintf(buf, cap, ", exit code %d", info.exit_code >> 8 & 0xff);
    }
}

bool pl__has_exited(int pidfd) {
    struct pollfd p = {.fd = pidfd, .events = POLLIN};
    return pidfd >= 0 && poll(&p, 1, 0) == 1 && (p.revents & POLLIN);
}

void pl__blame_dead(pl_group *g) {
    char text[PL__TABLE_BYTES] = "", how[64], seen[256];
    uint64_t dead[PL_MAX_RANKS / 64] = {0};
    int n_dead = 0;
    size_t at = 0;
    for (int r = 0; r < g->world; r++) {
        if (r == g->rank || !pl__has_exited(g->pidfds[r])) continue;
        uint32_t state = atomic_load_explicit(&g->control->slots[r].state, memory_order_acquire);
        if (state == PL__FINISHED) continue;
        if (state == PL__FAILED) {
            (void)pl__blame_failed(g, NULL, r);
            return;
        }
        n_dead++;
        dead[r / 64] |= UINT64_C(1) << (r % 64);
        how_it_ended(g->pidfds[r], how, sizeof how);
        (void)pl__last_seen(g, r, seen, sizeof seen);
        if (at < sizeof text) {
            at += (size_t)snprintf(text + at, sizeof text - at, "%srank %d (pid %d) died%s, %s",
                                   at ? "; " : "", r, g->pids[r], how, seen);
        }
    }
    if (n_dead) (void)pl__propose(g, PL_EPEER, dead, text);
}

// Relaxed: a date for messages, nothing is read because of it.
static void beat(pl_group *g) {
    atomic_store_explicit(&g->me->heartbeat_ns, (uint64_t)pl_now_ns(), memory_order_relaxed);
}

static void *watch_main(void *arg) {
    pl_group *g = arg;
    struct pollfd fds[PL_MAX_RANKS + 1];
    pl__lookout lookout = {.tick_ns = 0};
    for (int r = 0; r < g->world; r++) {
        fds[r] = (struct pollfd){.fd = r == g->rank ? -1 : g->pidfds[r], .events = POLLIN};
    }
    fds[g->world] = (struct pollfd){.fd = g->stop_fd, .events = POLLIN};
    for (;;) {
        beat(g);
        pl__net_beat(g);
        pl__look_out(g, &lookout);
        pl__settle(g, false);
        // A device may be waiting for who has died while no thread of this process waits for it.
        if (atomic_load_explicit(&g->control->verdict, memory_order_acquire)) pl__device_abort(g);
        int n = poll(fds, (nfds_t)g->world + 1, HEARTBEAT_MS);
        if (n <= 0) continue;
        if (fds[g->world].revents) return NULL;
        struct timespec grace = {0, GRACE_MS * 1000000};
        nanosleep(&grace, NULL);
        pl__blame_dead(g);
        // Also one that had finished, and was killed before it could say that it is gone.
        if (g->net && fds[g->first].revents) {
            atomic_store_explicit(&g->control->receiver_gone, 1, memory_order_release);
        }
        for (int r = 0; r < g->world; r++) {
            if (fds[r].revents) fds[r].fd = -1;  // poll skips it from now on
        }
        pl__wake_all(g);  // a waiter looks at the state of a peer that finished
    }
}

pl_status pl__thread_start(pthread_t *t, void *(*main)(void *), void *arg) {
    // Note [comm thread stays out of OpenMP]: the new thread inherits a full mask.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int err = pthread_create(t, NULL, main, arg);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (err) return pl_fail(PL_ESYS, "[group] cannot start a thread: %s", strerror(err));
    return PL_OK;
}

pl_status pl__watch_start(pl_group *g) {
    beat(g);  // a rank that is stopped before its watch thread has run is frozen too
    PL_TRY(pl__thread_start(&g->watch_thread, watch_main, g));
    g->watch_started = true;
    return PL_OK;
}

void pl__watch_stop(pl_group *g) {
    if (!g->watch_started) return;
    uint64_t one = 1;
    while (write(g->stop_fd, &one, sizeof one) < 0 && errno == EINTR) continue;
    pthread_join(g->watch_thread, NULL);
    g->watch_started = false;
}

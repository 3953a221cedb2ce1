// SPDX-License-Identifier: Apache-2.0
// Birth, death and state of a group. pl_group_new and pl_group_free run on the owner's thread.
//
// Birth: map the control block, start the watch thread, meet everyone (the first meeting also
// compares world and layout), exchange the arenas. From the first step on, a peer's death ends the
// wait. Death: announce it, end the own threads, unmap; peers are not waited for.
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "comm/internal.h"

#define LINGER_NS INT64_C(5000000000)

size_t pl_group_control_bytes(int world, int local) {
    if (world < 1 || world > PL_MAX_RANKS || local < 1 || local > world) return 0;
    size_t n = sizeof(pl__control) + (size_t)world * sizeof(pl__slot), page = 4096;
    n += (size_t)(world - local) * pl__arena_bytes(world);  // Note [mirrors] in net.h
    return (n + page - 1) / page * page;
}

static pl_status check_options(const pl_group_options *o) {
    if (o->world < 1 || o->world > PL_MAX_RANKS) {
        return pl_fail(PL_EINVAL, "[group_new] wrong world size: got %d, expected 1 to %d",
                       o->world, PL_MAX_RANKS);
    }
    if (o->rank < 0 || o->rank >= o->world) {
        return pl_fail(PL_EINVAL, "[group_new] wrong rank: got %d, expected 0 to %d", o->rank,
                       o->world - 1);
    }
    for (int m = 0; m < o->n_machines && o->n_machines > 1; m++) {
        int before = m ? o->machine_first[m - 1] : -1;
        if (o->machine_first[m] <= before || (m == 0 && o->machine_first[0] != 0) ||
            o->machine_first[m] >= o->world) {
            return pl_fail(PL_EINVAL,
                           "[group_new] machine %d begins with rank %d: expected them to rise "
                           "from 0 to at most %d",
                           m, o->machine_first[m], o->world - 1);
        }
    }
    if (o->timeout_ms <= 0) {
        return pl_fail(PL_EINVAL, "[group_new] wrong timeout: got %lld ms, expected more than 0",
                       (long long)o->timeout_ms);
    }
    return PL_OK;
}

// The control block cannot shrink or lack pages from here on, so touching it never raises SIGBUS.
static pl_status map_control(pl_group *g, int fd) {
    struct stat info;
    g->control_bytes = pl_group_control_bytes(g->world, g->end - g->first);
    if (fstat(fd, &info) != 0) {
        return pl_fail(PL_ESYS, "[group_new] control block: %s", strerror(errno));
    }
    if (info.st_size < (off_t)g->control_bytes) {
        return pl_fail(PL_EINVAL,
                       "[group_new] control block too small: got %lld bytes, expected %zu",
                       (long long)info.st_size, g->control_bytes);
    }
    // Any rank may be the first to seal; EPERM then means that it is sealed for good.
    (void)fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK);
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || !(seals & F_SEAL_SHRINK)) {
        return pl_fail(PL_EINVAL,
                       "[group_new] control block can shrink: expected a memfd made with "
                       "MFD_ALLOW_SEALING");
    }
    if (fallocate(fd, 0, 0, (off_t)g->control_bytes) != 0) {
        return pl_fail(PL_ENOMEM, "[group_new] no shared memory for %zu bytes: %s",
                       g->control_bytes, strerror(errno));
    }
    void *p = mmap(NULL, g->control_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) {
        return pl_fail(PL_ENOMEM, "[group_new] cannot map the control block: %s", strerror(errno));
    }
    g->control = p;
    g->me = &g->control->slots[g->rank];
    return PL_OK;
}

// Publishes the processors this rank may use.
static void publish_affinity(pl_group *g) {
    uint64_t words[16] = {0};
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        for (int i = 0; i < 1024 && i < CPU_SETSIZE; i++) {
            if (CPU_ISSET(i, &set)) words[i / 64] |= UINT64_C(1) << (i % 64);
        }
    }
    pl__shared_put(g->me->affinity, words, sizeof words);
}

// How many processors the ranks of this machine may use, together.
static int count_processors(const pl_group *g) {
    int processors = 0;
    for (int i = 0; i < 16; i++) {
        uint64_t all = 0;
        for (int r = g->first; r < g->end; r++) {
            all |= atomic_load_explicit(&g->control->slots[r].affinity[i], memory_order_relaxed);
        }
        processors += __builtin_popcountll(all);
    }
    return processors;
}

// Everything that needs no peer. On failure pl_group_free undoes what was done.
static pl_status set_up(pl_group *g, const pl_group_options *o) {
    size_t ints = sizeof(int) * (size_t)g->world;
    void *p;
    PL_TRY(pl_calloc(5 * ints, &p));
    g->peer_fds = p;
    g->pidfds = g->peer_fds + g->world;
    g->pids = g->pidfds + g->world;
    g->mail_posted = (uint32_t *)(void *)(g->pids + g->world);
    g->mail_taken = g->mail_posted + g->world;
    for (int r = 0; r < g->world; r++) {
        g->peer_fds[r] = r == g->rank || !o->peer_fds ? -1 : o->peer_fds[r];
        g->pidfds[r] = r == g->rank || !o->pidfds ? -1 : o->pidfds[r];
        g->pids[r] = o->pids ? o->pids[r] : 0;
    }
    PL_TRY(pl__registry_add(g));
    g->registered = true;
    PL_TRY(map_control(g, o->control_fd));
    g->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (g->stop_fd < 0) return pl_fail(PL_ESYS, "[group_new] eventfd: %s", strerror(errno));
    PL_TRY(pl__net_start(g, o));
    return pl__watch_start(g);
}

static pl_status join(pl_group *g) {
    pl__call call = {.op = PL__OP_GROUP_NEW,
                     .dtype = PL_U8,
                     .root = -1,
                     .count = (int64_t)pl__arena_bytes(g->world),
                     .extra = PL__CONTROL_MAGIC + (uint32_t)g->world};
    atomic_store_explicit(&g->me->pid, (uint32_t)getpid(), memory_order_relaxed);
    publish_affinity(g);
    // Release: a peer that sees us running sees our pid.
    atomic_store_explicit(&g->me->state, PL__RUNNING, memory_order_release);
    PL_TRY(pl__run_sync(g, &call));
    g->processors = count_processors(g);
    // Spinning would keep the awaited rank from running.
    g->oversubscribed = g->end - g->first > g->processors;
    pl_segment *arena;
    return pl__segment_make(g, &call, &arena);  // puts it into g->arena as well
}

// Which ranks share this machine's memory.
static void place_on_machine(pl_group *g, const pl_group_options *o) {
    g->first = 0;
    g->end = o->world;
    for (int m = 0; m < o->n_machines && o->n_machines > 1; m++) {
        if (o->machine_first[m] <= o->rank) {
            g->first = o->machine_first[m];
            g->end = m + 1 < o->n_machines ? o->machine_first[m + 1] : o->world;
        }
    }
}

// A rank that cannot even make its group tells the others, through a group that lives here only.
static void tell_peers(const pl_group_options *o, const char *message) {
    pl_group g = {.rank = o->rank, .world = o->world};
    place_on_machine(&g, o);
    if (map_control(&g, o->control_fd) != PL_OK) return;
    pthread_mutex_init(&g.failure_lock, NULL);
    pl_group_announce_failed(&g, message);
    pthread_mutex_destroy(&g.failure_lock);
    munmap(g.control, g.control_bytes);
}

static void initialise(pl_group *g, const pl_group_options *o) {
    g->transport = &pl__shm_transport;
    g->rank = o->rank;
    g->world = o->world;
    place_on_machine(g, o);
    g->timeout_ns = o->timeout_ms * 1000000;
    g->report = o->report;
    g->report_ns = o->report_ms * 1000000;
    g->suspect_ns = o->suspect_ms * 1000000;
    g->frozen_ns = o->frozen_ms * 1000000;
    g->strict_sites = o->strict_sites;
    g->stop_fd = -1;
    snprintf(g->name, sizeof g->name, "%s", o->name ? o->name : "default");
    pthread_mutex_init(&g->failure_lock, NULL);
    pthread_mutex_init(&g->queue_lock, NULL);
    pthread_cond_init(&g->queue_cond, NULL);
}

// Gives st back with its message, after everything is undone; the descriptors stay the caller's.
static pl_status give_up(pl_group *g, const pl_group_options *o, pl_status st) {
    char message[2048], what[PL__TEXT_BYTES];
    snprintf(message, sizeof message, "%s", pl_error_message());
    snprintf(what, sizeof what, "%s: %.900s", pl_status_exception(st), message);
    if (g && g->control) {
        pl_group_announce_failed(g, what);
    } else {
        tell_peers(o, what);
    }
    if (g) {
        pl__watch_stop(g);
        pl__inbox_stop(g);
        for (int r = 0; g->peer_fds && r < g->world; r++) g->peer_fds[r] = g->pidfds[r] = -1;
        pl__net_forget_fds(g);
        pl_group_free(g);
    }
    return pl_fail(st, "%s", message);
}

pl_status pl_group_new(const pl_group_options *opt, pl_group **out) {
    PL_TRY(check_options(opt));
    void *p = NULL;
    pl_status st = pl_calloc(sizeof(pl_group), &p);
    pl_group *g = p;
    if (st != PL_OK) return give_up(NULL, opt, st);
    pl_live_add(PL_KIND_GROUP, 1);
    initialise(g, opt);
    st = set_up(g, opt);
    if (st == PL_OK) st = join(g);
    if (st != PL_OK) return give_up(g, opt, st);
    *out = g;
    return PL_OK;
}

static bool has_left(const pl_group *g, int rank) {
    uint32_t state = atomic_load_explicit(&g->control->slots[rank].state, memory_order_acquire);
    return state == PL__FINISHED || state == PL__FAILED || pl__has_exited(g->pidfds[rank]);
}

void pl__group_linger(pl_group *g) {
    if (!g->net || g->rank != g->first) return;
    int64_t deadline = pl_now_ns() + LINGER_NS;
    for (int r = g->first + 1; r < g->end; r++) {
        while (!has_left(g, r) && pl_now_ns() < deadline &&
               !atomic_load_explicit(&g->control->verdict, memory_order_acquire)) {
            nanosleep(&(struct timespec){0, 1000000}, NULL);
        }
    }
    atomic_store_explicit(&g->control->receiver_gone, 1, memory_order_release);
    pl__wake_all(g);
}

void pl_group_free(pl_group *g) {
    if (!g) return;
    bool forked = atomic_load_explicit(&g->forked, memory_order_relaxed);
    if (!forked && g->control) {
        pl_group_announce_finished(g);
        pl__group_linger(g);
        atomic_store_explicit(&g->broken, true, memory_order_release);
        pl__wake_all(g);
        pl__polled_stop(g);
        pl__comm_stop(g);
        pl__watch_stop(g);
        pl__inbox_stop(g);
        pl__device_close(g);
    }
    if (g->registered) pl__registry_remove(g);
    if (g->peer_fds && !forked) pl__group_close_fds(g);
    pl_segment_release(g->arena);
    if (!forked) pl__net_free(g);
    if (g->control) munmap(g->control, g->control_bytes);
    if (!forked) {
        pthread_cond_destroy(&g->queue_cond);
        pthread_mutex_destroy(&g->queue_lock);
        pthread_mutex_destroy(&g->failure_lock);
    }
    pl_free(g->peer_fds);
    pl_live_add(PL_KIND_GROUP, -1);
    // In a forked child work may be queued for ever, and it looks at `forked` when it is freed.
    if (!forked) pl_free(g);
}

int pl_group_rank(const pl_group *g) { return g->rank; }
int pl_group_world(const pl_group *g) { return g->world; }

bool pl_group_crowded(const pl_group *g, int threads) {
    return (int64_t)(g->end - g->first) * threads >= g->processors;
}

bool pl_group_on_one_machine(const pl_group *g) { return !g->net; }

pl_status pl__group_enter(pl_group *g, const pl__call *call) {
    if (PL_UNLIKELY(atomic_load_explicit(&g->forked, memory_order_relaxed))) {
        return pl_fail(PL_ERUNTIME,
                       "[%s] the group belongs to process %u: got a call in process %d, which was "
                       "forked from it; create a new group or use spawn",
                       pl__op_name(call->op),
                       atomic_load_explicit(&g->me->pid, memory_order_relaxed), (int)getpid());
    }
    // Acquire: Note [sticky].
    if (PL_UNLIKELY(atomic_load_explicit(&g->failed, memory_order_acquire))) {
        return pl__fail_again(g);
    }
    if (PL_UNLIKELY(atomic_load_explicit(&g->control->verdict, memory_order_acquire) != 0)) {
        return pl__fail_verdict(g, call);
    }
    return PL_OK;
}

// A rank leaves once: the first announcement stays.
static bool leave(pl_group *g, uint32_t state) {
    uint32_t running = PL__RUNNING;
    // Release: what belongs to the state (finished_seq, failure) was written before.
    return atomic_compare_exchange_strong_explicit(&g->me->state, &running, state,
                                                   memory_order_acq_rel, memory_order_relaxed);
}

void pl_group_announce_finished(pl_group *g) {
    if (atomic_load_explicit(&g->forked, memory_order_relaxed)) return;
    uint64_t seq = atomic_load_explicit(&g->seq, memory_order_relaxed);
    atomic_store_explicit(&g->me->finished_seq, seq, memory_order_relaxed);
    if (!leave(g, PL__FINISHED)) return;
    pl__wake_all(g);
    pl__net_state(g);
}

void pl_group_announce_failed(pl_group *g, const char *text) {
    if (atomic_load_explicit(&g->forked, memory_order_relaxed)) return;
    char why[PL__TEXT_BYTES + 64];
    uint64_t self[PL_MAX_RANKS / 64] = {0};
    self[g->rank / 64] |= UINT64_C(1) << (g->rank % 64);
    pl__shared_put_text(g->me->failure, PL__TEXT_BYTES, text ? text : "an exception");
    snprintf(why, sizeof why, "rank %d raised %.1024s", g->rank, text ? text : "an exception");
    // The verdict first: who sees the state finds it decided.
    (void)pl__propose(g, PL_EREMOTE, self, why);
    if (!leave(g, PL__FAILED)) return;
    pl__wake_all(g);
    pl__net_state(g);
}

pl_status pl_group_check(pl_group *g) {
    pl__call call = {.op = PL__OP_CHECK,
                     .dtype = PL_U8,
                     .root = -1,
                     .seq = atomic_load_explicit(&g->seq, memory_order_relaxed)};
    return pl__group_enter(g, &call);
}

void pl_group_failure_get(pl_group *g, pl_group_failure *out) {
    if (atomic_load_explicit(&g->forked, memory_order_relaxed) ||
        !atomic_load_explicit(&g->failed, memory_order_acquire)) {
        memset(out, 0, sizeof *out);
        return;
    }
    *out = g->failure;  // final once `failed` is seen, Note [sticky]
}

bool pl_group_take_warning(pl_group *g, char *buf, size_t cap) {
    if (!atomic_load_explicit(&g->warned, memory_order_relaxed)) return false;
    if (atomic_load_explicit(&g->forked, memory_order_relaxed)) return false;
    pthread_mutex_lock(&g->failure_lock);
    atomic_store_explicit(&g->warned, false, memory_order_relaxed);
    bool any = g->warning[0] != 0;
    if (any) snprintf(buf, cap, "%s", g->warning);
    g->warning[0] = 0;
    pthread_mutex_unlock(&g->failure_lock);
    return any;
}

// SPDX-License-Identifier: Apache-2.0
// The groups and segments of this process: which segments a failed group must make private, and
// what a forked child must close. Its lock is the outermost of comm and is held briefly.
//
// Note [fork]: a forked child has copies of the group's descriptors and mappings but none of its
// threads. It closes the descriptors at once, so that its life does not hide a death and it holds
// no peer's socket open, and marks the group: every call in it fails. The mappings stay, since
// the child may read gradients that live in them. Nothing else is touched: a lock that another
// thread held at the fork stays locked there for ever.
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#include "comm/internal.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pl_group *groups;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int atfork_error;

void pl__registry_lock(void) { pthread_mutex_lock(&lock); }
void pl__registry_unlock(void) { pthread_mutex_unlock(&lock); }

void pl__group_close_fds(pl_group *g) {
    for (int r = 0; r < g->world; r++) {
        if (g->peer_fds[r] >= 0) close(g->peer_fds[r]);
        if (g->pidfds[r] >= 0) close(g->pidfds[r]);
        g->peer_fds[r] = g->pidfds[r] = -1;
    }
    pl__net_close_fds(g);
    if (g->stop_fd >= 0) close(g->stop_fd);
    g->stop_fd = -1;
}

static void in_child(void) {
    for (pl_group *g = groups; g; g = g->next) {
        atomic_store_explicit(&g->forked, true, memory_order_relaxed);
        pl__group_close_fds(g);
    }
    pthread_mutex_unlock(&lock);
}

static void set_up(void) {
    atfork_error = pthread_atfork(pl__registry_lock, pl__registry_unlock, in_child);
}

pl_status pl__registry_add(pl_group *g) {
    pthread_once(&once, set_up);
    if (atfork_error) return pl_fail(PL_ENOMEM, "[group_new] cannot register for fork");
    pl__registry_lock();
    g->next = groups;
    groups = g;
    pl__registry_unlock();
    return PL_OK;
}

pl_group *pl__registry_find(const pl_group *g) {
    pl__registry_lock();
    pl_group *found = groups;
    while (found && found != g) found = found->next;
    pl__registry_unlock();
    return found;
}

void pl_group_announce_exit(int code) {
    char text[48];
    snprintf(text, sizeof text, "SystemExit: %d", code);
    pl__registry_lock();
    for (pl_group *g = groups; g; g = g->next) {
        // An exception that was announced already is the better reason.
        if (!g->control || atomic_load_explicit(&g->me->state, memory_order_relaxed) != PL__RUNNING)
            continue;
        if (code == 0) {
            pl_group_announce_finished(g);
        } else {
            pl_group_announce_failed(g, text);
        }
    }
    for (pl_group *g = groups; g; g = g->next) {
        if (g->control) pl__group_linger(g);
    }
    pl__registry_unlock();
}

void pl__registry_remove(pl_group *g) {
    pl__registry_lock();
    for (pl_group **at = &groups; *at; at = &(*at)->next) {
        if (*at == g) {
            *at = g->next;
            break;
        }
    }
    for (pl_segment *s = g->segments; s; s = s->next) s->group = NULL;
    g->segments = NULL;
    pl__registry_unlock();
}

void pl__registry_add_segment(pl_group *g, pl_segment *s) {
    pl__registry_lock();
    s->group = g;
    s->next = g->segments;
    g->segments = s;
    pl__registry_unlock();
}

void pl__registry_remove_segment(pl_segment *s) {
    pl__registry_lock();
    if (s->group) {
        for (pl_segment **at = &s->group->segments; *at; at = &(*at)->next) {
            if (*at == s) {
                *at = s->next;
                break;
            }
        }
    }
    pl__registry_unlock();
}

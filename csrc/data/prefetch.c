// SPDX-License-Identifier: Apache-2.0
// prefetch: one thread gathers batches in the order in which they were asked for. The jobs stand
// in a ring: [taken, done) are ready, [done, asked) wait for the thread. Results and messages are
// written into the job before `done` passes it, and read after, both under the lock.
//
// The owner allocates and frees all tensors; the thread only copies bytes into them.
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "data/data.h"

enum { MAX_COLUMNS = 32, WAIT_NS = 20000000 };  // between two looks at Ctrl-C

typedef struct job {
    pl_tensor *index;
    pl_tensor *outs[MAX_COLUMNS];
    pl_status status;
    char message[256];
} job;

struct pl_prefetch {
    pthread_mutex_t lock;  // guards all below but columns and pid; held for a few instructions
    pthread_cond_t changed;
    pthread_t thread;
    bool stop;
    uint64_t asked, done, taken;
    int n_columns;
    pid_t pid;  // of the process that has the thread
    pl_rows columns[MAX_COLUMNS];
    job jobs[PL_PREFETCH_MAX];
};

static void run_job(const pl_prefetch *p, job *j) {
    j->status = PL_OK;
    for (int c = 0; c < p->n_columns && j->status == PL_OK; c++) {
        j->status = pl_data_gather(&p->columns[c], j->index->data, j->index->numel, false,
                                   j->outs[c]->data);
    }
    if (j->status != PL_OK) snprintf(j->message, sizeof j->message, "%s", pl_error_message());
}

static void *work(void *arg) {
    pl_prefetch *p = arg;
    pthread_mutex_lock(&p->lock);
    while (!p->stop) {
        if (p->done == p->asked) {
            pthread_cond_wait(&p->changed, &p->lock);
            continue;
        }
        job *j = &p->jobs[p->done % PL_PREFETCH_MAX];
        pthread_mutex_unlock(&p->lock);
        run_job(p, j);
        pthread_mutex_lock(&p->lock);
        p->done++;
        pthread_cond_broadcast(&p->changed);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

// Started with all signals blocked, so that Ctrl-C reaches the thread that Python listens on.
static pl_status start(pl_prefetch *p) {
    sigset_t all, before;
    sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = pthread_create(&p->thread, NULL, work, p);
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc == 0) return PL_OK;
    return pl_fail(PL_ESYS, "[DataLoader] cannot start the prefetch thread: %s", strerror(rc));
}

pl_status pl_prefetch_new(int n_columns, const pl_rows *columns, pl_prefetch **out) {
    if (n_columns < 1 || n_columns > MAX_COLUMNS) {
        return pl_fail(PL_EINVAL, "[DataLoader] prefetch of arrays: got %d, expected 1 to %d",
                       n_columns, MAX_COLUMNS);
    }
    void *memory;
    PL_TRY(pl_calloc(sizeof(pl_prefetch), &memory));
    pl_prefetch *p = memory;
    p->n_columns = n_columns;
    p->pid = getpid();
    memcpy(p->columns, columns, (size_t)n_columns * sizeof *columns);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, NULL);
    pl_status st = start(p);
    if (st != PL_OK) {
        pthread_cond_destroy(&p->changed);
        pthread_mutex_destroy(&p->lock);
        pl_free(p);
        return st;
    }
    pl_live_add(PL_KIND_OTHER, 1);
    *out = p;
    return PL_OK;
}

static pl_status check_owner(const pl_prefetch *p) {
    if (p->pid == getpid()) return PL_OK;
    return pl_fail(PL_ERUNTIME,
                   "[DataLoader] the iterator belongs to process %d: got a call in process %d, "
                   "which was forked from it; iterate anew there",
                   (int)p->pid, (int)getpid());
}

pl_status pl_prefetch_ask(pl_prefetch *p, pl_tensor *index, pl_tensor *const *outs) {
    PL_TRY(check_owner(p));
    if (p->asked - p->taken == PL_PREFETCH_MAX) {
        return pl_fail(PL_ERUNTIME, "[DataLoader] %d batches are asked for already: take one first",
                       PL_PREFETCH_MAX);
    }
    // asked and taken are the owner's: read without the lock. The thread does not look at this job
    // before asked has passed it.
    job *j = &p->jobs[p->asked % PL_PREFETCH_MAX];
    j->index = pl_tensor_retain(index);
    for (int c = 0; c < p->n_columns; c++) j->outs[c] = pl_tensor_retain(outs[c]);
    pthread_mutex_lock(&p->lock);
    p->asked++;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    return PL_OK;
}

static pl_status wait_done(pl_prefetch *p) {
    pl_status st = PL_OK;
    pthread_mutex_lock(&p->lock);
    while (p->done == p->taken && st == PL_OK) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += WAIT_NS;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        if (pthread_cond_timedwait(&p->changed, &p->lock, &until) != ETIMEDOUT) continue;
        pthread_mutex_unlock(&p->lock);
        st = pl_check_interrupt();
        pthread_mutex_lock(&p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return st;
}

static void drop(const pl_prefetch *p, job *j) {
    pl_tensor_release(j->index);
    for (int c = 0; c < p->n_columns; c++) pl_tensor_release(j->outs[c]);
}

pl_status pl_prefetch_take(pl_prefetch *p, pl_tensor **outs) {
    PL_TRY(check_owner(p));
    if (p->asked == p->taken) {
        return pl_fail(PL_ERUNTIME, "[DataLoader] no batch to take: ask for one first");
    }
    PL_TRY(wait_done(p));
    job *j = &p->jobs[p->taken % PL_PREFETCH_MAX];
    pl_status st = j->status;
    for (int c = 0; st == PL_OK && c < p->n_columns; c++) outs[c] = pl_tensor_retain(j->outs[c]);
    drop(p, j);
    pthread_mutex_lock(&p->lock);
    p->taken++;
    pthread_mutex_unlock(&p->lock);
    return st == PL_OK ? PL_OK : pl_fail(st, "%s", j->message);
}

int pl_prefetch_pending(const pl_prefetch *p) { return (int)(p->asked - p->taken); }

void pl_prefetch_free(pl_prefetch *p) {
    if (!p) return;
    if (p->pid == getpid()) {
        pthread_mutex_lock(&p->lock);
        p->stop = true;
        pthread_cond_broadcast(&p->changed);
        pthread_mutex_unlock(&p->lock);
        pthread_join(p->thread, NULL);
        pthread_cond_destroy(&p->changed);
        pthread_mutex_destroy(&p->lock);
    }
    while (p->taken < p->asked) drop(p, &p->jobs[p->taken++ % PL_PREFETCH_MAX]);
    pl_live_add(PL_KIND_OTHER, -1);
    pl_free(p);
}

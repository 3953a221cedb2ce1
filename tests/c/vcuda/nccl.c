// SPDX-License-Identifier: Apache-2.0
// A fake of NCCL on the virtual GPU: the functions that csrc/comm/nccl_abi.h names, for ranks that
// are processes of one machine. As strict and as unkind as the real one may be:
// - a call goes to the stream only when ncclCommGetAsyncError has been asked twice after it, so an
//   event recorded before that is recorded too early;
// - ranks whose n-th collectives differ are reported, on stderr and as an asynchronous error, and
//   never end by themselves;
// - a rank that died is never noticed: who waits for it waits until the communicator is aborted;
// - what is not memory of the device, a call during the making or after the end, is refused.
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "comm/nccl_abi.h"
#include "vcuda/nccl_fold.h"
#include "vcuda/nccl_segment.h"
#include "vcuda/vcuda.h"

#define EXPORT __attribute__((visibility("default")))
#define X(result, name, arguments) EXPORT result name arguments;
PL__NCCL_MAP(X)
#undef X

enum { ALL_REDUCE = 1, REDUCE, REDUCE_SCATTER, ALL_GATHER, BROADCAST, PENDING = 64, PAIRS = 32 };

// A message of a group, to or from a peer.
typedef struct message {
    bool sends, done;
    int peer;
    void *data;
    size_t nbytes;
} message;

// One task of a stream: a collective, or the messages of a group.
typedef struct task {
    struct ncclComm *comm;
    what op;  // op.op 0: messages
    const void *in;
    void *out;
    uint64_t number;  // of the collective
    bool posted;
    int messages;
    message message[PAIRS];
} task;

struct ncclComm {
    struct ncclComm *next;  // of all that were ever made: none is freed
    segment *shared;
    int rank, world;
    int meeting;  // rank 0's descriptor of the segment, until all have come; else -1
    int made;     // times that a caller saw it made
    _Atomic bool aborted, finalized;
    _Atomic int error;  // an asynchronous one
    char why[256];
    uint64_t collectives;
    _Atomic int running;  // tasks on a stream
    int pending, asked;   // calls that are not on their stream yet; looks at the state since
    void *stream[PENDING];
    task *wait[PENDING];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;  // all calls; tasks take none
static struct ncclComm *all;                              // guarded by lock
static _Thread_local int depth;                           // of ncclGroupStart
static _Thread_local task *group;                         // messages since then
static _Thread_local void *group_stream;
static _Thread_local char last_error[256];

static int fail(struct ncclComm *c, int result, const char *why) {
    snprintf(last_error, sizeof last_error, "%s", why);
    if (c) snprintf(c->why, sizeof c->why, "%s", why);
    fprintf(stderr, "virtual NCCL: %s\n", why);
    return result;
}

// ---- Tasks, on a thread of the virtual GPU ------------------------------------------------------

static void disagree(const task *t, int peer, const what *theirs) {
    struct ncclComm *c = t->comm;
    if (atomic_exchange(&c->error, PL__NCCL_INVALID_USAGE) != 0) return;
    snprintf(c->why, sizeof c->why,
             "collective %llu differs: rank %d makes op %d of %llu elements of type %d (%d, root "
             "%d), rank %d makes op %d of %llu elements of type %d (%d, root %d)",
             (unsigned long long)t->number, c->rank, t->op.op, (unsigned long long)t->op.count,
             t->op.dtype, t->op.redop, t->op.root, peer, theirs->op,
             (unsigned long long)theirs->count, theirs->dtype, theirs->redop, theirs->root);
    fprintf(stderr, "virtual NCCL: %s\n", c->why);
}

static size_t input_bytes(const struct ncclComm *c, const what *w) {
    if (w->op == BROADCAST && w->root != c->rank) return 0;
    return w->count * size_of(w->dtype) * (w->op == REDUCE_SCATTER ? (size_t)c->world : 1);
}

static void finish_collective(const task *t) {
    struct ncclComm *c = t->comm;
    const void *in[MOST_RANKS];
    size_t bytes = t->op.count * size_of(t->op.dtype);
    size_t skip = t->op.op == REDUCE_SCATTER ? bytes * (size_t)c->rank : 0;
    for (int r = 0; r < c->world; r++) in[r] = area_of(c->shared, r) + skip;
    if (t->op.op == ALL_GATHER) {
        for (int r = 0; r < c->world; r++) memcpy((char *)t->out + bytes * (size_t)r, in[r], bytes);
    } else if (t->op.op == BROADCAST) {
        memcpy(t->out, in[t->op.root], bytes);
    } else if (t->op.op != REDUCE || t->op.root == c->rank) {
        fold_of(t->op.dtype)(t->out, in, c->world, t->op.count, t->op.redop);
    }
}

static bool step_collective(task *t) {
    struct ncclComm *c = t->comm;
    rank_state *ranks = c->shared->ranks, *me = &ranks[c->rank];
    if (!t->posted) {
        for (int r = 0; r < c->world; r++) {  // until nobody reads the area any more
            if (atomic_load(&ranks[r].taken) < t->number) return false;
        }
        size_t bytes = input_bytes(c, &t->op);
        if (bytes) memcpy(area_of(c->shared, c->rank), t->in, bytes);
        me->said = t->op;
        atomic_store(&me->posted, t->number + 1);
        t->posted = true;
    }
    for (int r = 0; r < c->world; r++) {
        if (atomic_load(&ranks[r].posted) <= t->number) return false;
    }
    for (int r = 0; r < c->world; r++) {
        if (memcmp(&ranks[r].said, &t->op, sizeof t->op) == 0) continue;
        disagree(t, r, &ranks[r].said);
        return false;
    }
    finish_collective(t);
    atomic_store(&me->taken, t->number + 1);
    return true;
}

static bool step_message(struct ncclComm *c, message *m) {
    int from = m->sends ? c->rank : m->peer, to = m->sends ? m->peer : c->rank;
    box *b = &c->shared->boxes[from][to];
    uint64_t posted = atomic_load(&b->posted), taken = atomic_load(&b->taken);
    if (m->sends) {
        if (posted != taken) return false;
        memcpy(box_data(c->shared, from, to), m->data, m->nbytes);
        b->nbytes = m->nbytes;
        atomic_store(&b->posted, posted + 1);
        return true;
    }
    if (posted == taken) return false;
    if (b->nbytes != m->nbytes) {
        if (atomic_exchange(&c->error, PL__NCCL_INVALID_USAGE) == 0) {
            snprintf(c->why, sizeof c->why, "rank %d sends %llu bytes, rank %d expects %zu", from,
                     (unsigned long long)b->nbytes, to, m->nbytes);
            fprintf(stderr, "virtual NCCL: %s\n", c->why);
        }
        return false;
    }
    memcpy(m->data, box_data(c->shared, from, to), m->nbytes);
    atomic_store(&b->taken, taken + 1);
    return true;
}

static bool step_messages(task *t) {
    bool done = true;
    for (int i = 0; i < t->messages; i++) {
        message *m = &t->message[i];
        if (!m->done) m->done = step_message(t->comm, m);
        done = done && m->done;
    }
    return done;
}

// `context` holds the address of the task, which this frees.
static bool run_task(void *context) {
    task *t = *(task **)context;
    struct ncclComm *c = t->comm;
    bool end = atomic_load(&c->aborted);
    if (!end) end = t->op.op ? step_collective(t) : step_messages(t);
    if (!end) return false;
    free(t);
    atomic_fetch_sub(&c->running, 1);
    return true;
}

// ---- Calls --------------------------------------------------------------------------------------

static bool is_made(const struct ncclComm *c) {
    for (int r = 0; r < c->world; r++) {
        if (!atomic_load(&c->shared->ranks[r].joined)) return false;
    }
    return true;
}

// A task for the stream, once the state has been asked for.
static int submit(task *t, void *stream) {
    struct ncclComm *c = t->comm;
    pthread_mutex_lock(&lock);
    int result = PL__NCCL_IN_PROGRESS;
    if (!c->made || c->pending == PENDING || atomic_load(&c->finalized)) {
        result = fail(c, PL__NCCL_INVALID_USAGE, "a call on a communicator that takes none now");
        free(t);
    } else {
        t->number = c->collectives;
        c->collectives += t->op.op != 0;
        c->stream[c->pending] = stream;
        c->wait[c->pending++] = t;
        c->asked = 0;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORT int ncclCommGetAsyncError(struct ncclComm *c, int *error) {
    pthread_mutex_lock(&lock);
    *error = atomic_load(&c->error);
    if (*error == PL__NCCL_SUCCESS && !is_made(c)) *error = PL__NCCL_IN_PROGRESS;
    else if (*error == PL__NCCL_SUCCESS && c->pending && ++c->asked < 2) {
        *error = PL__NCCL_IN_PROGRESS;
    } else if (*error == PL__NCCL_SUCCESS) {
        c->made++;
        if (c->meeting >= 0) close(c->meeting);
        c->meeting = -1;
        for (int i = 0; i < c->pending; i++) {
            atomic_fetch_add(&c->running, 1);
            vcuda_enqueue_poll(c->stream[i], run_task, &c->wait[i], sizeof c->wait[i]);
        }
        c->pending = 0;
        if (atomic_load(&c->finalized) && atomic_load(&c->running)) *error = PL__NCCL_IN_PROGRESS;
    }
    pthread_mutex_unlock(&lock);
    return PL__NCCL_SUCCESS;
}

static int collective(struct ncclComm *c, what op, const void *in, void *out, void *stream) {
    if (!c || atomic_load(&c->aborted))
        return fail(c, PL__NCCL_INVALID_ARGUMENT, "no communicator");
    size_t each = op.count * size_of(op.dtype), input = input_bytes(c, &op);
    size_t output = op.op == ALL_GATHER ? each * (size_t)c->world : each;
    if (op.op == REDUCE && op.root != c->rank) output = 0;
    if (input > AREA_BYTES) return fail(c, PL__NCCL_INTERNAL_ERROR, "too large for the fake");
    if (!fold_of(op.dtype) || (input && !vcuda_is_device(in, input)) ||
        (output && !vcuda_is_device(out, output))) {
        return fail(c, PL__NCCL_INVALID_ARGUMENT, "a buffer is not memory of the device");
    }
    task *t = calloc(1, sizeof *t);
    if (!t) return PL__NCCL_SYSTEM_ERROR;
    *t = (task){.comm = c, .op = op, .in = in, .out = out};
    return submit(t, stream);
}

EXPORT int ncclAllReduce(const void *in, void *out, size_t count, int dtype, int op,
                         pl__nccl_comm comm, void *s) {
    return collective(comm, (what){count, ALL_REDUCE, dtype, op, -1}, in, out, s);
}

EXPORT int ncclReduce(const void *in, void *out, size_t count, int dtype, int op, int root,
                      pl__nccl_comm comm, void *s) {
    return collective(comm, (what){count, REDUCE, dtype, op, root}, in, out, s);
}

EXPORT int ncclReduceScatter(const void *in, void *out, size_t count, int dtype, int op,
                             pl__nccl_comm comm, void *s) {
    return collective(comm, (what){count, REDUCE_SCATTER, dtype, op, -1}, in, out, s);
}

EXPORT int ncclAllGather(const void *in, void *out, size_t count, int dtype, pl__nccl_comm comm,
                         void *s) {
    return collective(comm, (what){count, ALL_GATHER, dtype, -1, -1}, in, out, s);
}

EXPORT int ncclBroadcast(const void *in, void *out, size_t count, int dtype, int root,
                         pl__nccl_comm comm, void *s) {
    return collective(comm, (what){count, BROADCAST, dtype, -1, root}, in, out, s);
}

static int add_message(struct ncclComm *c, message m, void *stream) {
    if (!c || !depth) return fail(c, PL__NCCL_INVALID_USAGE, "a message outside of a group");
    if (m.peer < 0 || m.peer >= c->world || m.nbytes > BOX_BYTES ||
        !vcuda_is_device(m.data, m.nbytes)) {
        return fail(c, PL__NCCL_INVALID_ARGUMENT, "wrong peer, size or memory of a message");
    }
    if (!group) group = calloc(1, sizeof *group);
    if (!group || group->messages == PAIRS) return PL__NCCL_SYSTEM_ERROR;
    group->comm = c;
    group->message[group->messages++] = m;
    group_stream = stream;
    return PL__NCCL_SUCCESS;
}

EXPORT int ncclSend(const void *in, size_t count, int dtype, int to, pl__nccl_comm c, void *s) {
    message m = {.sends = true, .peer = to, .nbytes = count * size_of(dtype)};
    m.data = (void *)(uintptr_t)in;
    return add_message(c, m, s);
}

EXPORT int ncclRecv(void *out, size_t count, int dtype, int from, pl__nccl_comm c, void *s) {
    message m = {.peer = from, .nbytes = count * size_of(dtype), .data = out};
    return add_message(c, m, s);
}

EXPORT int ncclGroupStart(void) {
    depth++;
    return PL__NCCL_SUCCESS;
}

EXPORT int ncclGroupEnd(void) {
    if (depth == 0) return fail(NULL, PL__NCCL_INVALID_USAGE, "the end of no group");
    if (--depth > 0 || !group) return PL__NCCL_SUCCESS;
    task *t = group;
    group = NULL;
    return submit(t, group_stream);
}

// ---- Communicators ------------------------------------------------------------------------------

typedef struct id_text {
    char magic[8];
    int32_t pid, fd;
} id_text;

EXPORT int ncclGetVersion(int *version) {
    *version = 22809;
    return PL__NCCL_SUCCESS;
}

EXPORT int ncclGetUniqueId(pl__nccl_id *id) {
    id_text text = {"vcuda", getpid(), memfd_create("virtual-nccl", MFD_CLOEXEC)};
    if (text.fd < 0 || ftruncate(text.fd, (off_t)SEGMENT_BYTES) != 0) {
        return fail(NULL, PL__NCCL_SYSTEM_ERROR, "no shared memory");
    }
    memset(id, 0, sizeof *id);
    memcpy(id, &text, sizeof text);
    return PL__NCCL_SUCCESS;
}

static int meeting_of(const pl__nccl_id *id) {
    id_text text;
    memcpy(&text, id, sizeof text);
    return text.pid == getpid() ? text.fd : -1;
}

static segment *attach(const pl__nccl_id *id) {
    id_text text;
    char path[64];
    memcpy(&text, id, sizeof text);
    if (memcmp(text.magic, "vcuda\0\0", 8) != 0) return NULL;
    snprintf(path, sizeof path, "/proc/%d/fd/%d", text.pid, text.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return NULL;
    void *p = mmap(NULL, SEGMENT_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    close(fd);
    return p == MAP_FAILED ? NULL : p;
}

EXPORT int ncclCommInitRankConfig(pl__nccl_comm *comm, int world, pl__nccl_id id, int rank,
                                  pl__nccl_config *config) {
    if (world > MOST_RANKS || rank < 0 || rank >= world || config->size != sizeof *config ||
        config->magic != PL__NCCL_CONFIG_MAGIC || config->blocking != 0) {
        return fail(NULL, PL__NCCL_INVALID_ARGUMENT, "wrong world, rank or configuration");
    }
    struct ncclComm *c = calloc(1, sizeof *c);
    segment *s = c ? attach(&id) : NULL;
    if (!s) {
        free(c);
        return fail(NULL, PL__NCCL_SYSTEM_ERROR, "cannot reach rank 0");
    }
    c->shared = s;
    c->rank = rank;
    c->world = world;
    c->meeting = rank == 0 ? meeting_of(&id) : -1;
    if (atomic_exchange(&s->ranks[rank].joined, 1)) {
        return fail(c, PL__NCCL_INVALID_USAGE, "two ranks have one number");
    }
    pthread_mutex_lock(&lock);
    c->next = all;
    all = c;
    pthread_mutex_unlock(&lock);
    *comm = c;
    return PL__NCCL_IN_PROGRESS;
}

EXPORT int ncclCommFinalize(pl__nccl_comm c) {
    atomic_store(&c->finalized, true);
    return PL__NCCL_IN_PROGRESS;
}

// The struct stays: tasks of an aborted one may still look at it.
EXPORT int ncclCommDestroy(pl__nccl_comm c) {
    if (!atomic_load(&c->finalized) || atomic_load(&c->running)) {
        return fail(c, PL__NCCL_INVALID_USAGE, "the end of a communicator that is in use");
    }
    munmap(c->shared, SEGMENT_BYTES);
    return PL__NCCL_SUCCESS;
}

EXPORT int ncclCommAbort(pl__nccl_comm c) {
    if (!c || atomic_exchange(&c->aborted, true)) {
        return fail(NULL, PL__NCCL_INVALID_ARGUMENT, "the second end of a communicator");
    }
    pthread_mutex_lock(&lock);
    while (c->pending) free(c->wait[--c->pending]);
    pthread_mutex_unlock(&lock);
    return PL__NCCL_SUCCESS;
}

EXPORT const char *ncclGetErrorString(int result) {
    static const char *const texts[] = {"no error",
                                        "unhandled cuda error",
                                        "unhandled system error",
                                        "internal error",
                                        "invalid argument",
                                        "invalid usage",
                                        "remote process exited or there was a network error",
                                        "NCCL operation in progress"};
    return result >= 0 && result < 8 ? texts[result] : "unknown result code";
}

EXPORT const char *ncclGetLastError(pl__nccl_comm c) {
    return c && c->why[0] ? c->why : last_error;
}

// SPDX-License-Identifier: Apache-2.0
// What the files of comm share with each other, and nobody else includes.
//
// Life of a collective: entry (collectives.c, bucket.c, segment.c) -> order with the queue
// (work.c) -> meet: publish the fingerprint, wait for all, compare (fingerprint.c) -> the
// transport moves the data (staged.c, small.c, bucket.c) -> a failure becomes the group's
// (verdict.c). One thread per rank is inside at a time: the caller, or the comm thread.
#ifndef PL_COMM_INTERNAL_H
#define PL_COMM_INTERNAL_H

#include <pthread.h>

#include "base/device.h"
#include "comm/control.h"
#include "comm/net.h"

#define PL__OP_MAP(X)                   \
    X(GROUP_NEW, "group_new")           \
    X(SEGMENT, "segment_new")           \
    X(BARRIER, "barrier")               \
    X(ALL_REDUCE, "all_reduce")         \
    X(REDUCE, "reduce")                 \
    X(REDUCE_SCATTER, "reduce_scatter") \
    X(ALL_GATHER, "all_gather")         \
    X(BROADCAST, "broadcast")           \
    X(GATHER, "gather")                 \
    X(SCATTER, "scatter")               \
    X(ALL_TO_ALL, "all_to_all")         \
    X(BUCKET, "reduce_bucket")          \
    X(SEND, "send")                     \
    X(RECV, "recv")                     \
    X(CHECK, "check")

typedef enum pl__op {
#define X(name, text) PL__OP_##name,
    PL__OP_MAP(X)
#undef X
        PL__OP_COUNT
} pl__op;
const char *pl__op_name(unsigned op);
const char *pl__redop_name(unsigned op);

// One call, from its entry to its end.
typedef struct pl__call {
    pl__op op;
    pl_dtype dtype;
    pl_redop redop;
    int root;       // root; peer of send and recv; bucket number; else -1
    int tag;        // of send and recv
    int64_t count;  // elements; bytes for segment_new
    uint32_t extra;
    pl_site site;
    const void *in;
    void *out;
    pl_segment *seg;   // bucket
    size_t offset;     // bucket, bytes
    uint64_t *used;    // bucket, in and out
    int n_params;      // bucket
    int64_t n_blocks;  // bucket, these four as in pl_bucket_call
    const int64_t *blocks;
    size_t measures;
    double (*measure)(const void *data, int64_t n, pl_dtype dt);
    const int64_t *splits;   // all_to_all: rows to each rank, then rows from each
    pl_device device;        // where in and out are
    struct pl__device *on;   // of a device: the group's part there, which outlives the group
    pl_event *ready, *done;  // likewise: in is there; out is there
    bool on_comm;            // runs on the comm thread: never asks for interrupts
    uint64_t seq;            // set by meet
} pl__call;

// What moves data between ranks: shared memory, and its mirrors between machines. A move runs after
// the ranks have met and agreed.
typedef struct pl__transport {
    const char *name;
    pl_status (*meet)(pl_group *g, pl__call *call);
    pl_status (*move)(pl_group *g, pl__call *call);
    pl_status (*send)(pl_group *g, pl__call *call);
    pl_status (*recv)(pl_group *g, pl__call *call);
} pl__transport;
extern const pl__transport pl__shm_transport;
extern const pl__transport pl__device_transport;  // no messages: these go through the host
typedef struct pl__device pl__device;

struct pl_segment {
    _Atomic int refs;
    pl_group *group;  // NULL once the group is gone or the mapping private; guarded by registry
    pl_segment *next;
    int rank, world;
    int first, end;  // ranks of this machine; the other parts are mirrors, not ours to unmap
    size_t nbytes;   // of one part, whole pages, whole huge pages if it is that large
    size_t filled;   // of these, from the start, the ones that are there and may be touched
    void *parts[];   // [world] mappings, NULL where there is none
};

struct pl_work {
    pl_work *next, *before;  // before: of a polled one
    pl_group *group;
    pl__call call;
    bool polled, published, folded;  // polled.c
    uint32_t step;                   // of a folded one
    _Atomic uint32_t done;           // futex word of this process
    pl_status status;                // valid once done
    char message[2048];
};

struct pl_group {
    const pl__transport *transport;
    char name[64];
    int rank, world;
    int first, end;                // the ranks of this machine: first <= r < end
    pl__net *net;                  // to the other machines; NULL where there is none
    _Atomic(pl__device *) device;  // once there was a collective on a device; set by the caller
    int64_t timeout_ns;
    void (*report)(const char *text);          // NULL: nobody wants to know
    int64_t report_ns, suspect_ns, frozen_ns;  // 0: never
    bool strict_sites;
    int processors;       // that the ranks of this machine may use, together
    bool oversubscribed;  // more ranks than processors: do not spin
    bool sites_warned;
    const char *site_shown[2];  // texts that stand in the records
    _Atomic bool forked;        // this is a forked child's copy: nothing may be used

    pl__control *control;
    size_t control_bytes;
    pl__slot *me;
    _Atomic(pl_segment *) arena;  // staging and mailboxes, Note [arena] in staged.c; set once
    uint32_t *mail_posted, *mail_taken;  // [world] this rank's count as sender, as receiver

    _Atomic uint64_t seq;  // of the next call; written by the caller's thread
    uint32_t step;         // of this rank; likewise

    int *peer_fds, *pidfds, *pids;  // [world]
    int stop_fd;                    // eventfd: ends the watch thread
    pthread_t watch_thread;
    bool watch_started, registered;

    // Guards `failure`, `warning` and proposing. A leaf: nothing is locked inside it.
    pthread_mutex_t failure_lock;
    _Atomic bool failed;  // failure is set and final
    _Atomic bool broken;  // this process gave up (interrupt, close): its waits end
    bool proposed;
    pl_group_failure failure;
    char warning[512];
    _Atomic bool warned;  // there is a warning; a look without the lock

    // Guards the queue; order: queue_lock before failure_lock.
    pthread_mutex_t queue_lock;
    pthread_cond_t queue_cond;
    pl_work *queue_head, *queue_tail;
    _Atomic uint32_t pending;  // queued or running; futex word of this process
    pthread_t comm_thread;
    bool comm_started, comm_stop;

    // Of the caller's thread (polled.c): what is not done, and the first that is not folded.
    pl_work *polled, *polled_last, *polled_unfolded;

    pl_group *next;        // guarded by the registry
    pl_segment *segments;  // likewise
};

// group.c
// May this call begin? Not in a forked child, not after a failure, known here or not yet.
pl_status pl__group_enter(pl_group *g, const pl__call *call) PL_MUST_USE;
// The process's groups and segments (registry.c). The lock is the outermost of comm.
void pl__group_close_fds(pl_group *g);
// The lowest rank of a machine receives for the others until they have left as well, or a moment.
void pl__group_linger(pl_group *g);
void pl__registry_lock(void);
void pl__registry_unlock(void);
pl_group *pl__registry_find(const pl_group *g);  // NULL if it is no group any more
pl_status pl__registry_add(pl_group *g) PL_MUST_USE;
void pl__registry_remove(pl_group *g);  // also cuts its segments loose
void pl__registry_add_segment(pl_group *g, pl_segment *s);
void pl__registry_remove_segment(pl_segment *s);

static inline bool pl__is_remote(const pl_group *g, int rank) {
    return rank < g->first || rank >= g->end;
}

// wait.c: posting a word of this rank and waiting for one of a peer
void pl__post(pl_group *g, _Atomic uint32_t *word, uint32_t value);
// Waits until *word has reached `value` (modulo 2^32). `sleepers` belongs to the slot of the word.
pl_status pl__wait_word(pl_group *g, pl__call *call, int peer, const _Atomic uint32_t *word,
                        _Atomic uint32_t *sleepers, uint32_t value) PL_MUST_USE;
// Everything but the word that can end a wait: this process's failure, the verdict, the peer's
// state, the deadline, Ctrl-C. PL_OK: go on waiting. `word` may be NULL.
pl_status pl__look_around(pl_group *g, pl__call *call, int peer, const _Atomic uint32_t *word,
                          uint32_t value, int64_t deadline) PL_MUST_USE;
// The same among the ranks of this machine only; the others see it with the next step of all.
pl_status pl__step_here(pl_group *g, pl__call *call) PL_MUST_USE;
pl_status pl__step(pl_group *g, pl__call *call) PL_MUST_USE;  // post the next step, wait for all
// Its two halves: wait until all have made the step that this rank made `behind` steps ago.
pl_status pl__step_post(pl_group *g, pl__call *call) PL_MUST_USE;
pl_status pl__step_await(pl_group *g, pl__call *call, uint32_t behind) PL_MUST_USE;
bool pl__step_reached(const pl_group *g, uint32_t step);  // have all ranks made it?
void pl__wake_all(pl_group *g);                           // everyone who sleeps on any slot
// A word of this process only: returns when it differs from `seen`, or after the slice.
void pl__futex_wait(const _Atomic uint32_t *word, uint32_t seen, int64_t timeout_ns, bool shared);
void pl__futex_wake(const _Atomic uint32_t *word, bool shared);

// verdict.c: the failure of a group
pl_status pl__propose(pl_group *g, pl_status st, const uint64_t *dead, const char *text);
// Takes over the verdict (or, with none, this process's own `st` and text) as the group's sticky
// failure in the words of `call`, makes the segments private, and returns it.
pl_status pl__fail_verdict(pl_group *g, const pl__call *call);
pl_status pl__fail_local(pl_group *g, const pl__call *call, pl_status st, const char *text);
// A failure of this rank alone (out of memory, a system call): tells the peers, with this thread's
// message, and returns st.
pl_status pl__fail_here(pl_group *g, const pl__call *call, pl_status st);
pl_status pl__fail_again(pl_group *g);
void pl__note_failed(pl_group *g);  // this thread is told of the failure now
pl_status pl__blame_finished(pl_group *g, const pl__call *call, int peer);
pl_status pl__blame_failed(pl_group *g, const pl__call *call, int peer);
pl_status pl__blame_late(pl_group *g, const pl__call *call);
// Decides what is offered and not answered; waits for the answer at most as long as is granted.
void pl__settle(pl_group *g, bool wait);
void pl__take_verdict(pl_group *g, int rank);  // rank's proposal is the verdict, if none is yet
void pl__blame_dead(pl_group *g);              // called by the watch thread; looks at all pidfds
void pl__describe_call(const pl_group *g, const pl__call *call, char *buf, size_t cap);
uint64_t pl__last_seen(const pl_group *g, int rank, char *buf, size_t cap);

// watch.c
pl_status pl__watch_start(pl_group *g) PL_MUST_USE;
void pl__watch_stop(pl_group *g);
bool pl__has_exited(int pidfd);  // false for -1
pl_status pl__thread_start(pthread_t *t, void *(*main)(void *), void *arg) PL_MUST_USE;

// report.c
typedef struct pl__lookout {
    int64_t tick_ns, awake_ns;  // of the last look; since when this process runs without a gap
    int64_t reported_ns, since_ns[PL_MAX_RANKS];  // since when a rank stands where it stands
    uint64_t progress[PL_MAX_RANKS];
    bool suspected[PL_MAX_RANKS];
} pl__lookout;
void pl__look_out(pl_group *g, pl__lookout *o);  // by the watch thread, at every heartbeat

// fingerprint.c
// Publishes the call with nbytes (<= PL__SMALL_BYTES) of payload, waits for all, compares.
pl_status pl__meet(pl_group *g, pl__call *call, const void *payload, size_t nbytes) PL_MUST_USE;
// Its two halves, and whether the second would not wait.
pl_status pl__meet_post(pl_group *g, pl__call *call, const void *payload, size_t n) PL_MUST_USE;
pl_status pl__meet_await(pl_group *g, pl__call *call) PL_MUST_USE;
bool pl__met_all(const pl_group *g, const pl__call *call);
// The payload of nbytes that `rank` published in this call; stays until this rank's next meeting.
const void *pl__met_payload(const pl_group *g, const pl__call *call, int rank, size_t nbytes);

// shape.c: "(2, 3)" of what pl_site_shape packed, with the number of elements
void pl__shape_text(uint32_t shape, uint64_t count, char *buf, size_t cap);

// small.c, staged.c, alltoall.c, bucket.c, p2p.c: the shared-memory transport
size_t pl__small_bytes(const pl_group *g, const pl__call *call);  // what this rank publishes
bool pl__is_small(const pl_group *g, const pl__call *call);
void pl__small_move(pl_group *g, pl__call *call);
pl_status pl__staged_move(pl_group *g, pl__call *call) PL_MUST_USE;
// A rank's staging area, and what to do when the own one is written: [skip, skip + n) of area
// `which` is to be read by all; or, of rows of n bytes, row r by rank r. Both include the step.
char *pl__area(const pl_group *g, int rank, int which);
size_t pl__area_row(const pl_group *g);  // bytes of each of `world` equal rows, whole cache lines
pl_status pl__show(pl_group *g, pl__call *call, int which, size_t skip, size_t n) PL_MUST_USE;
pl_status pl__show_rows(pl_group *g, pl__call *call, int which, size_t n) PL_MUST_USE;
size_t pl__splits_bytes(const pl_group *g);                           // what all_to_all publishes
pl_status pl__splits_check(pl_group *g, pl__call *call) PL_MUST_USE;  // after the meeting
pl_status pl__all_to_all_move(pl_group *g, pl__call *call) PL_MUST_USE;
void pl__unite_used(pl_group *g, pl__call *call);
pl_status pl__bucket_move(pl_group *g, pl__call *call) PL_MUST_USE;
size_t pl__used_bytes(const pl__call *call);  // what a bucket publishes
// Reduces this rank's slice of a bucket that all ranks of this machine have met for.
void pl__bucket_fold(pl_group *g, pl__call *call);
pl_status pl__shm_send(pl_group *g, pl__call *call) PL_MUST_USE;
pl_status pl__shm_recv(pl_group *g, pl__call *call) PL_MUST_USE;
void pl__mail_wake(pl_group *g);  // everyone who sleeps on a mailbox
size_t pl__arena_bytes(int world);
size_t pl__mail_offset(void);  // where the mailboxes begin in an arena
size_t pl__mail_slot_bytes(int world);
// The mailbox from src to dst in src's arena: its words, and its n-th slot.
_Atomic uint32_t *pl__mail_word(const pl_group *g, int src, int dst, bool taken);
void *pl__mail_slot(const pl_group *g, int src, int dst, uint32_t n);

// device.c, device_link.c: collectives on a device, Note [device collectives] in device.h
static inline bool pl__on_device(const pl__call *call) { return call->device.type != PL_CPU; }
pl_status pl__device_open(pl_group *g, const pl__call *call) PL_MUST_USE;  // nothing collective
void pl__device_close(pl_group *g);
// A call's events are taken, and given back by forget. order: the compute stream waits for its end.
pl_status pl__device_begin(pl_group *g, pl__call *call) PL_MUST_USE;
pl_status pl__device_order(const pl__call *call) PL_MUST_USE;
bool pl__device_done(const pl__call *call);
void pl__device_forget(pl__call *call);
pl_status pl__device_connect(pl_group *g, pl__call *call) PL_MUST_USE;
pl_status pl__device_look(void *context, int64_t waited_ns) PL_MUST_USE;
void pl__device_abort(pl_group *g);  // any thread; again is legal
void pl__device_end(pl_group *g);

// segment.c
pl_status pl__segment_make(pl_group *g, pl__call *call, pl_segment **out) PL_MUST_USE;
void pl__segment_make_private(pl_segment *s);  // registry locked

// work.c
pl_status pl__run_sync(pl_group *g,
                       pl__call *call) PL_MUST_USE;  // enter, drain the queue, meet, move
pl_status pl__queue(pl_group *g, const pl__call *call, pl_work **out) PL_MUST_USE;
// Enters and takes a number, when all that was called before on other threads is done.
pl_status pl__take_turn(pl_group *g, pl__call *call) PL_MUST_USE;
void pl__trace_call(const pl__call *call, int64_t since);
void pl__comm_stop(pl_group *g);  // ends the queue and joins the comm thread

// polled.c: buckets that the caller's thread reduces between other things
pl_status pl__poll_later(pl_group *g, const pl__call *call, pl_work **out) PL_MUST_USE;
pl_status pl__polled_wait(pl_work *w) PL_MUST_USE;
pl_status pl__polled_drain(pl_group *g) PL_MUST_USE;  // until the last one is folded
void pl__polled_stop(pl_group *g);

#endif

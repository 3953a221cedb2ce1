// SPDX-License-Identifier: Apache-2.0
// comm: process groups. Shared memory inside a machine, stream sockets between machines. Moves
// address, count, dtype; knows no tensor, no Python. The control plane (who the ranks are, their
// sockets) is Python and hands over descriptors.
//
// Threads: collectives of one group are issued from one thread at a time, in the same order on all
// ranks. Each group has one communication thread (queued work) and one watch thread (peers'
// pidfds, heartbeat).
//
// Note [comm thread stays out of OpenMP]: a second thread that enters OpenMP gets a pool of its
// own, and a forked child hangs in it. So the threads of comm never call pl_parallel_for, and they
// block all signals, so that Ctrl-C always reaches the main thread.
#ifndef PL_COMM_H
#define PL_COMM_H

#include "base/base.h"
#include "base/device.h"

#define PL_MAX_RANKS 256

typedef enum pl_redop { PL_RED_SUM, PL_RED_MEAN, PL_RED_MAX, PL_RED_MIN } pl_redop;

typedef struct pl_group pl_group;
typedef struct pl_segment pl_segment;
typedef struct pl_work pl_work;

// Where in the user's program a collective was called: hash for comparison, text only for errors.
typedef struct pl_site {
    uint64_t hash;
    const char *text;  // "train.py:31 in main"; must outlive the group (interned) or be NULL
    uint32_t shape;    // pl_site_shape of the buffer, 0 where it has none: compared too
} pl_site;
// Packs a shape, so that ranks with (2, 3) and (3, 2) are told apart, and told so. Never 0.
uint32_t pl_site_shape(int ndim, const int64_t *dims);

typedef struct pl_group_options {
    const char *name;  // "default"
    int rank, world;
    int control_fd;       // memfd of pl_group_control_bytes(world), made by rank 0, zeroed
    const int *peer_fds;  // [world] connected AF_UNIX SOCK_SEQPACKET, own entry -1; group owns them
    const int *pidfds;    // [world] own entry -1; group owns them
    const int *pids;      // [world]
    int64_t timeout_ms;   // of a collective; default 600000
    bool strict_sites;    // call sites that differ are an error, not a warning (B2)
    // Called by the watch thread, at any time, with a text about ranks that keep others waiting;
    // may be NULL. Of the times 0 means never: without progress until a report (and the next one),
    // without a heartbeat until a line about it, and until it is an error.
    void (*report)(const char *text);
    int64_t report_ms, suspect_ms, frozen_ms;
    // Several machines (n_machines > 1): each has its own control block, and peer_fds, pidfds and
    // pids of ranks elsewhere are -1 and 0. The ranks of a machine follow one another; the lowest
    // receives for all of them.
    int n_machines;
    int64_t link_ms;           // data without acknowledgement for so long: the link is cut
    const int *machine_first;  // [n_machines] lowest rank of each, rising from 0
    const int *link_fds;   // [n_machines] to the lowest rank of each, own entry -1; group owns them
    const int *inbox_fds;  // [world] from each rank elsewhere, else -1; NULL but on the lowest rank
} pl_group_options;

// Bytes of a machine's control block: `local` of the `world` ranks are on it.
size_t pl_group_control_bytes(int world, int local);
// Collective. On success the sockets and pidfds are the group's, on failure they stay the caller's;
// control_fd stays the caller's and may be closed afterwards.
pl_status pl_group_new(const pl_group_options *opt, pl_group **out) PL_MUST_USE;
// Joins its threads; never blocks on peers, but for the lowest rank of one of several machines,
// which receives for the others: it waits for them to leave too, five seconds at most. NULL is
// legal.
void pl_group_free(pl_group *g);
int pl_group_rank(const pl_group *g);
int pl_group_world(const pl_group *g);

// How a rank leaves: peers that wait for it get the matching error at once. `text` of a failure is
// "ValueError: message" of the exception that ended it.
void pl_group_announce_finished(pl_group *g);
void pl_group_announce_failed(pl_group *g, const char *text);
// The same for every group of this process that is still there, by its exit code; for on_exit.
void pl_group_announce_exit(int code);

// Memory that the ranks of a machine see: each rank's own part of nbytes, mapped by all of them.
// Collective.
// After the group failed, the mapping is replaced by a private copy.
pl_status pl_segment_new(pl_group *g, size_t nbytes, pl_site site, pl_segment **out) PL_MUST_USE;
void pl_segment_retain(pl_segment *s);
void pl_segment_release(pl_segment *s);  // valid after the group is gone; NULL is legal
void *pl_segment_data(pl_segment *s);    // this rank's part

// Collectives. Buffers are ordinary memory. They block until the result is there (the wait calls
// pl_check_interrupt at least every 20 ms), the group failed, or the deadline passed. On a failure
// before the data moved (mismatch) outputs are untouched. count is in elements; 0 is legal and
// still meets the peers. The sum is the binary tree of DESIGN.md: the same bits on every rank.
pl_status pl_group_all_reduce(pl_group *g, void *buf, int64_t count, pl_dtype dt, pl_redop op,
                              pl_site site) PL_MUST_USE;
pl_status pl_group_reduce(pl_group *g, void *buf, int64_t count, pl_dtype dt, pl_redop op, int root,
                          pl_site site) PL_MUST_USE;  // buf changes on root only
// in: world * count elements; out: count elements (this rank's block).
pl_status pl_group_reduce_scatter(pl_group *g, const void *in, void *out, int64_t count,
                                  pl_dtype dt, pl_redop op, pl_site site) PL_MUST_USE;
pl_status pl_group_all_gather(pl_group *g, const void *in, void *out, int64_t count, pl_dtype dt,
                              pl_site site) PL_MUST_USE;  // out: world * count
pl_status pl_group_broadcast(pl_group *g, void *buf, int64_t count, pl_dtype dt, int root,
                             pl_site site) PL_MUST_USE;
pl_status pl_group_barrier(pl_group *g, pl_site site) PL_MUST_USE;
// Any of the collectives that move data, as one description: blocks where out is NULL, else queued
// like pl_group_all_reduce_async. The three that have no function of their own are
//   GATHER      in: count elements; out, of the root only: world * count
//   SCATTER     in, of the root only: world * count; out: count (this rank's block)
//   ALL_TO_ALL  rows of count elements. splits[j]: rows for rank j, one after another in `in`;
//               splits[world + j]: rows from rank j, likewise in `out`. Not queued. Splits that
//               do not fit those of the peers are a mismatch.
typedef enum pl_coll {
    PL_COLL_ALL_REDUCE,
    PL_COLL_REDUCE,
    PL_COLL_REDUCE_SCATTER,
    PL_COLL_ALL_GATHER,
    PL_COLL_BROADCAST,
    PL_COLL_GATHER,
    PL_COLL_SCATTER,
    PL_COLL_ALL_TO_ALL,
    PL_COLL_COUNT
} pl_coll;
typedef struct pl_collective {
    pl_coll kind;
    const void *in;
    void *out;  // of one buffer the same as in
    int64_t count;
    pl_dtype dtype;
    pl_redop op;
    int root;
    const int64_t *splits;  // [2 * world]
    // Where in and out are. On a device other than the CPU the call returns when all ranks have
    // made it: the device computes later, in the order of its compute stream, and a failure of that
    // is told by the next wait for the device (pl_device_wait) or the next call here.
    pl_device device;
} pl_collective;
pl_status pl_group_collective(pl_group *g, const pl_collective *what, pl_site site,
                              pl_work **out) PL_MUST_USE;
// Point to point, matched by source in order: the next message of src must have this tag, dtype,
// count and shape, else the group fails on both. A send returns when the message is in the mailbox:
// a short one does not wait for its receiver, and its sender hears of a mismatch at its next call.
pl_status pl_group_send(pl_group *g, const void *buf, int64_t count, pl_dtype dt, int dst, int tag,
                        pl_site site) PL_MUST_USE;
pl_status pl_group_recv(pl_group *g, void *buf, int64_t count, pl_dtype dt, int src, int tag,
                        pl_site site) PL_MUST_USE;

// Either of them, for memory of a device too, which goes through the host (and through its mailbox:
// the same rules). A send has read buf when it returns.
typedef struct pl_message {
    bool sends;
    void *buf;
    int64_t count;
    pl_dtype dtype;
    int peer, tag;
    pl_device device;
} pl_message;
pl_status pl_group_message(pl_group *g, const pl_message *m, pl_site site) PL_MUST_USE;

// Queued work, run in order by the communication thread. The buffer must live until the work is
// done. A synchronous collective first lets the queue drain, so that order is the order of calls.
pl_status pl_group_all_reduce_async(pl_group *g, void *buf, int64_t count, pl_dtype dt, pl_redop op,
                                    pl_site site, pl_work **out) PL_MUST_USE;
// One bucket of gradients, in place in shared memory: `count` elements at `offset_bytes` of every
// rank's part of `seg`. used: n_words words of bits, in: which parameters this rank used; out: the
// union over ranks. Protocol: publish fingerprint and bits; wait for all; compare; each owner
// reduces its slice and writes it everywhere; a completion barrier before anyone reads.
// `bucket` names the bucket in the fingerprint and in errors. If `sync` it runs on the caller.
//
// On a device a bucket is any memory of it (`data`, `device`; no segment), reduced as a collective
// there is: pl_work_wait, or the return of one that is `sync`, orders the compute stream behind it.
typedef struct pl_bucket_call {
    pl_segment *seg;
    size_t offset_bytes;
    int64_t count;
    pl_dtype dtype;
    pl_redop op;  // SUM or MEAN
    int bucket;
    int n_params;
    uint64_t *used;  // in and out, (n_params + 63) / 64 words
    bool sync;
    // Not by the communication thread but by this one, in pl_group_poll, pl_work_wait and before
    // the next call: for ranks that take all processors. Elsewhere it is queued as ever.
    bool polled;
    // Blocks of the bucket, in elements: block i is [blocks[i], blocks[i + 1]), the first at 0, the
    // same on all ranks; each is reduced by one rank, whole. 0: no blocks. In a segment, on one
    // machine, the owner puts measure(block) into every rank's part, at byte measures + 8 i, where
    // it has one; it runs on the thread that reduces. `blocks` must live until the work is done.
    int64_t n_blocks;
    const int64_t *blocks;
    size_t measures;
    double (*measure)(const void *data, int64_t n, pl_dtype dt);
    void *data;  // where there is no segment
    pl_device device;
} pl_bucket_call;
pl_status pl_group_reduce_bucket(pl_group *g, const pl_bucket_call *call, pl_site site,
                                 pl_work **out) PL_MUST_USE;  // *out NULL when sync
// Goes on with polled buckets as far as nobody has to be waited for.
pl_status pl_group_poll(pl_group *g) PL_MUST_USE;
// Do the ranks of this machine, with so many threads each, take all its processors?
bool pl_group_crowded(const pl_group *g, int threads);
bool pl_group_on_one_machine(const pl_group *g);
// Gives the work's own status and message. Of one on a device: it was put there, and what the
// compute stream gets from now on comes after it.
pl_status pl_work_wait(pl_work *w) PL_MUST_USE;
bool pl_work_done(const pl_work *w);  // on a device: it has been computed
void pl_work_free(pl_work *w);        // waits for completion or failure first; NULL is legal

// The group's failure, if any: PL_OK while it is whole. After a failure every call gives it again.
pl_status pl_group_check(pl_group *g) PL_MUST_USE;
// Details of the failure for the exception's attributes.
typedef struct pl_group_failure {
    pl_status status;
    int n_dead;
    int dead_ranks[PL_MAX_RANKS];  // those to blame: died, finished while waited for, or raised
    uint64_t seq;
    char op[32];
    char site[256];
    char remote[1024];  // PL_EREMOTE: "ValueError: message" as the peer announced it
    char text[2048];
} pl_group_failure;
void pl_group_failure_get(pl_group *g, pl_group_failure *out);
// The same for the group whose failure this thread was told last, for statuses that came through
// other modules (a backward pass); false if there is none or the group is gone.
bool pl_group_failure_last(pl_group_failure *out);
// Warnings gathered since the last call (call sites that differ), for the binding to raise.
bool pl_group_take_warning(pl_group *g, char *buf, size_t cap);

#endif

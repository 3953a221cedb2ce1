// SPDX-License-Identifier: Apache-2.0
// Between machines: what a rank writes for all to read goes to every other machine as well. Files:
// net.c (the links on which this rank sends), inbox.c (the thread that receives for a machine).
//
// Note [mirrors]: on every machine the control block has a slot for each rank of the job, and
// behind the slots an arena for each rank elsewhere. A rank posts a word (of a meeting, a step, a
// mailbox) in its own machine's memory, and sends what it wrote since, then the word, on its links:
// one stream to each other machine. There the lowest rank's inbox thread writes the same bytes into
// the mirror, then the word, and wakes who waits. So every algorithm of comm reads the memory of
// its own machine only and runs unchanged over any number of machines, with the same bits; and
// every rule about when a place may be written again holds for mirrors, since a mirror is written
// after the original and in the same order (a rank's stream), and before the word that says so.
//
// Trust: the sockets come from the control plane, which has proved both ends. Still every frame is
// checked: a rank can write into its own slot and arena only.
//
// Faults: a rank that dies closes its streams, which the inbox sees; a cut link or a dead machine
// leaves data unacknowledged, which the kernel reports (TCP_USER_TIMEOUT) since heartbeats are
// always under way. When a machine's lowest rank has finished, nothing more arrives there.
#ifndef PL_COMM_NET_H
#define PL_COMM_NET_H

#include <pthread.h>

#include "comm/control.h"

struct pl__call;

// What a frame carries, and where it goes in the sender's mirror.
typedef enum pl__frame_kind {
    PL__FRAME_BEAT,     // nothing: the sender lives
    PL__FRAME_CALL,     // record, site, payload of the meeting `value` - 1; posts `arrived`
    PL__FRAME_STEP,     // posts `step`
    PL__FRAME_AREA,     // bytes of the staging areas at `at`
    PL__FRAME_MAIL,     // a slot of the mailbox for rank `at`; posts `posted`
    PL__FRAME_TAKEN,    // posts `taken` of the mailbox from rank `at`
    PL__FRAME_STATE,    // state `value`, finished_seq `at`, the failure's text
    PL__FRAME_OFFER,    // a proposal, for rank 0's machine to decide
    PL__FRAME_VERDICT,  // what it decided: the proposal of rank `value` - 1
    PL__FRAME_KINDS
} pl__frame_kind;

typedef struct pl__frame {
    uint32_t magic;
    uint16_t kind, rank;  // the sender, as a check
    uint32_t value;
    uint32_t nbytes;  // of the body that follows
    uint64_t at;
} pl__frame;

// The body of a CALL: this, then the payload where it is not inlined.
typedef struct pl__frame_call {
    pl__fingerprint fingerprint;
    unsigned char inlined[PL__INLINE_BYTES];
    char site[PL__SITE_BYTES];
} pl__frame_call;

typedef struct pl__frame_proposal {
    uint64_t status;
    uint64_t dead[PL_MAX_RANKS / 64];
    char text[PL__TABLE_BYTES];
} pl__frame_proposal;

#define PL__BODY_MAX (sizeof(pl__frame_call) + PL__SMALL_BYTES)  // of all but AREA and MAIL

// The stream to one machine. `lock` guards writing, so that frames do not mix: the caller, the comm
// thread, the watch thread and the inbox send. A leaf.
typedef struct pl__link {
    pthread_mutex_t lock;
    int fd;
    _Atomic bool closed;  // an error, or a frame that was cut off: nothing more can be sent
    int error;            // errno of the first failure; valid once closed
    int64_t dropped_ns;   // when something of a call could not be sent; 0 if never
} pl__link;

typedef struct pl__inbox pl__inbox;
typedef struct pl__net {
    int link_ms;                  // data without acknowledgement for so long: the link is cut
    int n_machines, machine;      // how many, and this one
    int first[PL_MAX_RANKS + 1];  // lowest rank of each; world after the last
    pl__link *links;              // [n_machines]
    int width;         // ranks of each machine where that is one power of two above 1, else 0
    pl__inbox *inbox;  // of the machine's lowest rank, else NULL
} pl__net;

pl_status pl__net_start(pl_group *g, const pl_group_options *opt) PL_MUST_USE;
void pl__net_close_fds(pl_group *g);
void pl__net_forget_fds(pl_group *g);  // they stay the caller's
void pl__net_free(pl_group *g);
int pl__machine_of(const pl_group *g, int rank);

// Sending; all of them do nothing where there is one machine.
pl_status pl__net_call(pl_group *g, struct pl__call *call, const pl__fingerprint *fp,
                       const void *payload, size_t nbytes) PL_MUST_USE;
pl_status pl__net_step(pl_group *g, struct pl__call *call) PL_MUST_USE;
// [skip, skip + n) of staging area `which`, to one machine or to all; or, of rows of n bytes, each
// machine's own rows.
pl_status pl__net_area_to(pl_group *g, struct pl__call *call, int machine, int which, size_t skip,
                          size_t n) PL_MUST_USE;
pl_status pl__net_area(pl_group *g, struct pl__call *call, int which, size_t skip,
                       size_t n) PL_MUST_USE;
pl_status pl__net_rows(pl_group *g, struct pl__call *call, int which, size_t n) PL_MUST_USE;
pl_status pl__net_mail(pl_group *g, struct pl__call *call, uint32_t n, size_t nbytes) PL_MUST_USE;
pl_status pl__net_taken(pl_group *g, struct pl__call *call, uint32_t n) PL_MUST_USE;
void pl__net_beat(pl_group *g);
void pl__net_state(pl_group *g);  // this rank's state, which has just changed
bool pl__net_offer(pl_group *g);  // this rank's proposal, to rank 0's machine; false: not sent
void pl__net_verdict(pl_group *g, int rank);  // rank's proposal is the verdict, to all machines
// A wait for something of `peer`: can it still come? PL_OK, or the failure that says why not.
pl_status pl__net_look(pl_group *g, const struct pl__call *call, int peer) PL_MUST_USE;

// inbox.c
pl_status pl__inbox_start(pl_group *g, const int *fds) PL_MUST_USE;
void pl__inbox_stop(pl_group *g);
void pl__inbox_close_fds(pl__inbox *in);
void pl__inbox_forget_fds(pl__inbox *in);
void pl__inbox_free(pl__inbox *in);
void *pl__mirror_arena(const pl_group *g, int rank);

#endif

// SPDX-License-Identifier: Apache-2.0
// The part of a group that its collectives on a device need. Private to comm.
//
// Note [device collectives]: the ranks meet and compare on the host, as for any collective, and
// whoever fails there fails the group before data moves. Then each rank puts its part on a stream
// of the group's own: `ready` orders it behind the caller's current stream, `done` that stream
// behind it. The host waits for none of that. What NCCL waits for, a peer's part, may never come:
// the communicator does not block, is polled, and is aborted as soon as the group has failed, by
// whoever sees it first (the thread inside, a host that waits for the device, the watch thread).
// Results that were under way then are worthless, and every later wait for the device says so
// until the group is gone.
#ifndef PL_COMM_DEVICE_H
#define PL_COMM_DEVICE_H

#include "comm/internal.h"
#include "comm/nccl.h"

struct pl__device {
    pl__device *next;  // of the list of those that no group has
    pl_group *group;
    const pl_device_services *services;
    pl_runtime *r;
    pl_stream *stream;
    pl_device_watch watch;
    const pl__nccl *nccl;
    // Taken around every call on the communicator but the abort, which does not wait for it long.
    pthread_mutex_t lock;
    _Atomic(pl__nccl_comm) comm;  // NULL: not made yet, or ended
    _Atomic bool worthless;       // aborted while something was under way
    // Guarded by state_lock, a leaf: the last call that was put on the stream, its end (NULL: none
    // yet), and events that nobody holds.
    pthread_mutex_t state_lock;
    pl__call last;
    pl_event *tail;
    bool used;
    pl_event **spare;
    int spares, room;
};

// This call's view of NCCL's state: PL_OK when nothing is under way in the library any more.
pl_status pl__device_settle(pl_group *g, pl__call *call, bool joining) PL_MUST_USE;
// A failure of NCCL or of the device: the group's, in the words of whoever is to blame.
pl_status pl__device_failed(pl_group *g, pl__call *call, pl_status st);
bool pl__device_is_alone(const pl_group *g);
pl_status pl__device_put(pl_group *g, pl__call *call) PL_MUST_USE;  // device_move.c

#endif

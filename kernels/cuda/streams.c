// SPDX-License-Identifier: Apache-2.0
// The streams that threads may choose, each with what kernels on it share (a lane, state.h). They
// are made when they are asked for, from a pool for each priority that then goes round, and live
// as long as the process: an event or a block of memory may name one at any time.
#include <stdatomic.h>

#include "cuda/state.h"

typedef struct pool {
    int lanes[PL_CUDA_POOL];
    int made, next;
} pool;

// Guards the pools, the making of lanes, and that nobody records an event of a lane between
// another's record and wait. Nothing is taken inside but the run time's own.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pool pools[2];
static _Thread_local int chosen;

pl_status pl__cuda_lane_start(pl_stream *stream) {
    pl_runtime *r = pl__cuda.runtime;
    int number = pl__cuda.lane_count;
    pl_cuda_lane *lane = &pl__cuda.lanes[number];
    PL_TRY(r->event_new(r, &lane->order));
    lane->stream = stream;
    lane->queue = (pl_cuda_queue){.stream = r->native(r, stream),
                                  .fault = pl__cuda.fault,
                                  .scratch = pl__cuda_scratch,
                                  .owner = lane};
    // Release: who sees the number reads the lane.
    atomic_store_explicit(&pl__cuda.lane_count, number + 1, memory_order_release);
    return PL_OK;
}

pl_cuda_lane *pl__cuda_lane(void) { return &pl__cuda.lanes[chosen]; }

pl_stream *pl__cuda_current(void) { return pl__cuda.lanes[chosen].stream; }

pl_stream *pl__cuda_stream(int number) {
    int count = atomic_load_explicit(&pl__cuda.lane_count, memory_order_acquire);
    return number >= 0 && number < count ? pl__cuda.lanes[number].stream : NULL;
}

static pl_status make_locked(pool *p, bool high_priority) {
    pl_stream *stream = NULL;
    PL_TRY(pl__cuda.runtime->stream_new(pl__cuda.runtime, high_priority, &stream));
    int number = pl__cuda.lane_count;
    PL_TRY(pl__cuda_lane_start(stream));
    p->lanes[p->made++] = number;
    return PL_OK;
}

pl_status pl__cuda_stream_new(bool high_priority, int *number) {
    pl_status st = PL_OK;
    pool *p = &pools[high_priority];
    pthread_mutex_lock(&lock);
    if (p->made < PL_CUDA_POOL) st = make_locked(p, high_priority);
    if (st == PL_OK) *number = p->lanes[p->next++ % PL_CUDA_POOL];
    pthread_mutex_unlock(&lock);
    return st;
}

int pl__cuda_choose(int number) {
    int before = chosen;
    if (pl__cuda_stream(number) != NULL) chosen = number;
    return before;
}

static pl_status order_locked(bool before) {
    pl_runtime *r = pl__cuda.runtime;
    pl_cuda_lane *here = pl__cuda_lane();
    if (!before) PL_TRY(r->record(r, here->order, here->stream));
    for (int i = 0; i < pl__cuda.lane_count; i++) {
        pl_cuda_lane *other = &pl__cuda.lanes[i];
        if (other == here) continue;
        if (before) PL_TRY(r->record(r, other->order, other->stream));
        PL_TRY(
            r->wait(r, before ? here->stream : other->stream, before ? other->order : here->order));
    }
    return PL_OK;
}

pl_status pl__cuda_order_streams(bool before) {
    if (atomic_load_explicit(&pl__cuda.lane_count, memory_order_acquire) == 1) return PL_OK;
    pthread_mutex_lock(&lock);
    pl_status st = order_locked(before);
    pthread_mutex_unlock(&lock);
    return st;
}

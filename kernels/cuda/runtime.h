// SPDX-License-Identifier: Apache-2.0
// runtime: what host code asks of a device, as a table, so that the same code runs on the CUDA run
// time or on the tests' virtual device (tests/c/vdev). Work on one stream runs in order; nothing
// else is ordered but by events and synchronisation. Knows no CUDA header.
#ifndef PL_CUDA_RUNTIME_H
#define PL_CUDA_RUNTIME_H

#include "base/base.h"

typedef struct pl_cuda_stream pl_cuda_stream;
typedef struct pl_cuda_event pl_cuda_event;

// Bytes that a task reads, or writes too.
typedef struct pl_cuda_range {
    const void *data;
    size_t nbytes;
    bool writes;
} pl_cuda_range;

// Something enqueued. `run` puts its kernels on the stream; it may be called late, so `context` is
// valid until the stream is synchronised. The ranges say all that it touches: a real device
// ignores them, the virtual one holds the task to them.
enum { PL_CUDA_TASK_RANGES = 8 };
typedef struct pl_cuda_task {
    const char *name;  // for messages; a literal
    void (*run)(void *context);
    void *context;
    int ranges;
    pl_cuda_range range[PL_CUDA_TASK_RANGES];
} pl_cuda_task;

// Every function gets the table itself; a device keeps its state behind it.
typedef struct pl_cuda_runtime pl_cuda_runtime;
struct pl_cuda_runtime {
    pl_status (*malloc)(pl_cuda_runtime *r, size_t nbytes, void **out);
    pl_status (*free)(pl_cuda_runtime *r, void *p);  // nothing enqueued may still touch it
    pl_status (*stream_new)(pl_cuda_runtime *r, pl_cuda_stream **out);
    pl_status (*event_new)(pl_cuda_runtime *r, pl_cuda_event **out);
    pl_status (*launch)(pl_cuda_runtime *r, pl_cuda_stream *s, const pl_cuda_task *task);
    // The event stands for all that is on the stream now; an earlier record is forgotten.
    pl_status (*record)(pl_cuda_runtime *r, pl_cuda_event *e, pl_cuda_stream *s);
    // What comes on the stream from now on waits for the event's latest record.
    pl_status (*wait)(pl_cuda_runtime *r, pl_cuda_stream *s, pl_cuda_event *e);
    pl_status (*sync_stream)(pl_cuda_runtime *r, pl_cuda_stream *s);
    pl_status (*sync_event)(pl_cuda_runtime *r, pl_cuda_event *e);
};

#endif

// SPDX-License-Identifier: Apache-2.0
// device: what the engine asks of a device that is not the CPU, without knowing which it is. Two
// tables: the run time (memory, streams, events, copies), which a device's library fills or the
// tests' virtual device does; and the services that stand on it, registered once per process, by
// which every module above finds the device. Knows no library of any device.
//
// Note [one device per process]: a process computes on the CPU and on at most one other device, as
// the launchers place ranks. A second one is refused where it is opened.
//
// Note [order on a device]: work on one stream runs in the order of calls; nothing else is ordered
// but by events and synchronisation. Operators run on the stream that the calling thread has
// chosen (pl_device_current), which is services->compute until it chooses. Whoever puts work on
// another stream orders it by events on both sides, and tells the allocator (used).
//
// Note [chosen streams]: what a tensor holds is ordered by who chose the streams, as in PyTorch: by
// events. How long its memory lives is not: an operator that reads what was made on another stream
// tells the allocator, and so does a release on another stream. A backward pass comes behind all
// chosen streams, and they behind it (order_streams).
#ifndef PL_DEVICE_H
#define PL_DEVICE_H

#include "base/base.h"

typedef enum pl_device_type { PL_CPU, PL_CUDA } pl_device_type;
typedef struct pl_device {
    pl_device_type type;
    int index;
} pl_device;

typedef struct pl_stream pl_stream;
typedef struct pl_event pl_event;

typedef enum pl_copy_kind { PL_COPY_TO_DEVICE, PL_COPY_TO_HOST, PL_COPY_ON_DEVICE } pl_copy_kind;

// Bytes that a task reads, or writes too.
typedef struct pl_range {
    const void *data;
    size_t nbytes;
    bool writes;
} pl_range;

// Something enqueued by hand. `run` does its work on the stream's native handle; it may be called
// late, so `context` is valid until the stream is synchronised. The ranges say all that it touches:
// a real device ignores them, the virtual one holds the task to them.
enum { PL_TASK_RANGES = 8 };
typedef struct pl_task {
    const char *name;  // for messages; a literal
    void (*run)(void *context);
    void *context;
    int ranges;
    pl_range range[PL_TASK_RANGES];
} pl_task;

// Every function gets the table itself; a device keeps its state behind it.
typedef struct pl_runtime pl_runtime;
struct pl_runtime {
    pl_device device;
    // ---- memory: slow, each may wait for the device; see services for the allocator ----
    pl_status (*malloc)(pl_runtime *r, size_t nbytes, void **out);
    pl_status (*free)(pl_runtime *r, void *p);  // nothing enqueued may still touch it
    // Page-locked memory of the host, which copies reach without waiting for the host.
    pl_status (*host_malloc)(pl_runtime *r, size_t nbytes, void **out);
    pl_status (*host_free)(pl_runtime *r, void *p);
    pl_status (*memory)(pl_runtime *r, size_t *free_bytes, size_t *total_bytes);
    // ---- order ----
    pl_status (*stream_new)(pl_runtime *r, bool high_priority, pl_stream **out);
    pl_status (*event_new)(pl_runtime *r, pl_event **out);
    // The event stands for all that is on the stream now; an earlier record is forgotten.
    pl_status (*record)(pl_runtime *r, pl_event *e, pl_stream *s);
    // What comes on the stream from now on waits for the event's latest record.
    pl_status (*wait)(pl_runtime *r, pl_stream *s, pl_event *e);
    pl_status (*event_done)(pl_runtime *r, pl_event *e, bool *out);  // never recorded: done
    // An event that knows when it was reached; ms between two of them, both recorded and done.
    pl_status (*timed_event_new)(pl_runtime *r, pl_event **out);
    pl_status (*elapsed)(pl_runtime *r, pl_event *from, pl_event *to, float *ms);
    pl_status (*sync_stream)(pl_runtime *r, pl_stream *s);
    pl_status (*sync_event)(pl_runtime *r, pl_event *e);
    // ---- work ----
    // Enqueued; a copy from or to memory that is not page-locked may wait for the host's part.
    pl_status (*copy)(pl_runtime *r, pl_stream *s, pl_copy_kind kind, void *dst, const void *src,
                      size_t nbytes);
    pl_status (*zero)(pl_runtime *r, pl_stream *s, void *dst, size_t nbytes);
    pl_status (*launch)(pl_runtime *r, pl_stream *s, const pl_task *task);
    // The library's own handle (cudaStream_t), for libraries that enqueue by themselves.
    void *(*native)(pl_runtime *r, pl_stream *s);
    // The stream of another library behind such a handle, for as long as that one keeps it; the
    // legacy default stream is 1, the thread's default one 2, as in DLPack.
    pl_stream *(*adopt)(pl_runtime *r, uintptr_t native);
};

// Of the allocator. Bytes: in blocks that tensors hold, the most so far; all that was asked of the
// device and not given back, the most so far; of that, free. Then: blocks that tensors hold,
// segments of the device, how often it was asked for one and given one back, how often it was full
// at first and what is kept free went back, and how often it was full all the same.
typedef struct pl_device_memory {
    size_t allocated, peak, reserved, reserved_peak, cached;
    int64_t blocks, segments, mallocs, frees, retries, failures;
} pl_device_memory;

struct pl_kernels;
typedef struct pl_device_services {
    pl_runtime *runtime;
    const char *name;                  // of the hardware: "NVIDIA H200"
    const struct pl_kernels *kernels;  // opaque below kernels.h
    pl_stream *compute;
    // Streams besides `compute`, which is number 0: from a pool, never given back. `current` is
    // that of the calling thread, `choose` gives the number that was chosen before; -1 only asks.
    // Where `current` is NULL there is `compute` only.
    pl_stream *(*current)(void);
    pl_stream *(*stream)(int number);  // NULL: there is none
    pl_status (*stream_new)(bool high_priority, int *number);
    int (*choose)(int number);
    // The current stream waits for all others of the pool (before), or they for it.
    pl_status (*order_streams)(bool before);
    // Memory for use on the current stream, contents undefined; 0 bytes give NULL. `tag` (a
    // literal) names its use when there is none left (PL_ENOMEM). release waits for nothing. Any
    // thread.
    pl_status (*alloc)(size_t nbytes, const char *tag, void **out);
    void (*release)(void *p);
    // Note [uploads]: what comes from page-locked memory does not wait for what is computed
    // meanwhile. alloc_ahead gives memory that only uploads have used since it was last computed
    // with; upload copies into it on a stream of its own, and what is enqueued on the current
    // stream from then on waits for that. release serves both kinds.
    pl_status (*alloc_ahead)(size_t nbytes, const char *tag, void **out);
    pl_status (*upload)(void *dst, const void *src, size_t nbytes);
    pl_status (*used)(void *p, pl_stream *s);  // work that touches p was put on another stream
    pl_status (*trim)(void);                   // gives free blocks back to the device
    pl_device_memory (*statistics)(bool reset_peak);
    // Waits for all work on all streams, then tells what kernels complained of (an index out of
    // range), if anything.
    pl_status (*synchronize)(void);
    // nbytes of the device to the host, after what is on the current stream; waits for that, then
    // tells what kernels complained of.
    pl_status (*read)(void *dst, const void *src, size_t nbytes);
} pl_device_services;

// Once per process; `s` is kept. PL_EDEVICE where another device is there already.
pl_status pl_device_register(const pl_device_services *s) PL_MUST_USE;
const pl_device_services *pl_device_find(pl_device d);  // NULL: not open (or the CPU)
const pl_device_services *pl_device_open_one(void);     // whichever it is; NULL: none
static inline pl_stream *pl_device_current(const pl_device_services *s) {
    return s->current ? s->current() : s->compute;
}

// Waiting on the host for what a device does. Work may wait for another process in its turn, which
// may die or never come: who puts such work on a stream watches over it, so that a wait ends.
typedef struct pl_device_watch pl_device_watch;
struct pl_device_watch {
    pl_device device;
    pl_stream *stream;  // of its own, or NULL: pl_device_wait_all waits for it too
    // Asked at least every 20 ms of a wait, and once at its end: PL_OK, or why what the device has
    // computed, or is waiting for, is worth nothing. From any thread; removes no watch.
    pl_status (*look)(void *context, int64_t waited_ns);
    void *context;
    pl_device_watch *next;  // of the list's
};
void pl_device_watch_add(pl_device_watch *w);
void pl_device_watch_remove(pl_device_watch *w);  // no look is under way after it
// Waits until all that is on the stream now is done, or until a watch says why it never will be
// or is worthless; Ctrl-C ends it too (PL_EINTR), and the work goes on then. Any thread.
pl_status pl_device_wait(const pl_device_services *s, pl_stream *stream) PL_MUST_USE;
// The same, polled even where nobody watches: for an event, or a stream, that a user waits for.
pl_status pl_device_wait_event(const pl_device_services *s, pl_event *event) PL_MUST_USE;
pl_status pl_device_wait_polled(const pl_device_services *s, pl_stream *stream) PL_MUST_USE;
// The same for the compute stream and those of all watches.
pl_status pl_device_wait_all(const pl_device_services *s) PL_MUST_USE;

static inline bool pl_device_equal(pl_device a, pl_device b) {
    return a.type == b.type && a.index == b.index;
}

#endif

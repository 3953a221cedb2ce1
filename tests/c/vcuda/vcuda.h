// SPDX-License-Identifier: Apache-2.0
// vcuda: what the virtual GPU (libvcuda.so) offers the fakes of CUDA's libraries in this folder,
// and tests. Work put on a stream runs LATE, in a seeded order that streams and events allow; only
// while it runs is the memory of the device accessible. C and C++. Knows nothing of paceline.
#ifndef VCUDA_H
#define VCUDA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// `run` gets a copy of the nbytes at `context`, made now, and runs once, on some thread, one task
// at a time. All that it points to must live until then. stream: a cudaStream_t; NULL: at once.
void vcuda_enqueue(void *stream, void (*run)(void *context), const void *context, size_t nbytes);

// The same for work that waits for somebody else (a peer of a collective): `run` never blocks; it
// says false as long as it cannot go on, and is called again (with the same copy) after tasks of
// other streams and a short sleep, without end: it keeps its own deadline.
void vcuda_enqueue_poll(void *stream, bool (*run)(void *context), const void *context,
                        size_t nbytes);

// Inside of a task only: the device is lost, as after an illegal access in a kernel. Every call of
// the run time fails from now on; `why` (copied) goes to stderr, since CUDA tells no more than the
// kind of a failure.
void vcuda_fail(const char *why);

// What the process has done so far: kernels launched, and times that the host waited for a stream
// or an event. To see what a call costs: the difference.
typedef struct vcuda_counts {
    uint64_t launches, waits;
} vcuda_counts;
void vcuda_count(vcuda_counts *out);

// All of it lies in one live allocation of the device, or of page-locked memory of the host.
bool vcuda_is_device(const void *p, size_t nbytes);
bool vcuda_is_pinned(const void *p, size_t nbytes);

#ifdef __cplusplus
}
#endif
#endif

// SPDX-License-Identifier: Apache-2.0
// device: what the files of the virtual GPU know of each other. C++; not for its users (vcuda.h).
#ifndef VCUDA_DEVICE_H
#define VCUDA_DEVICE_H

#include <stdarg.h>
#include <stdint.h>

#include "cuda_runtime.h"
#include "vcuda.h"

// ---- settings.cc: PACELINE_VCUDA_*, read once ---------------------------------------------------

struct vcuda_settings {
    uint64_t seed;
    bool worker;    // a thread of its own runs the tasks, instead of whoever synchronises
    int devices;    // that the process sees
    size_t memory;  // bytes of each device
    // Tests of tests: waits for events that are left out. 1: on streams of high priority; 2: on
    // the others.
    int dropped_waits;
};
const vcuda_settings &vcuda_get_settings(void);

struct vcuda_random {
    uint64_t state;
    uint64_t next();
    bool one_in(unsigned n) { return next() % n == 0; }
};

// ---- memory.cc ----------------------------------------------------------------------------------

cudaError_t vcuda_malloc(size_t nbytes, bool pinned, void **out);
cudaError_t vcuda_free(void *p, bool pinned);
size_t vcuda_memory_in_use(void);
void vcuda_access(bool allowed);  // to the memory of the device, for all of the process
bool vcuda_is_accessible(void);
bool vcuda_in_arena(const void *p);   // live or not; safe in a signal's handler
const char *vcuda_check_zones(void);  // NULL, or what was written beside an allocation

// ---- fault.cc -----------------------------------------------------------------------------------

void vcuda_catch_faults(void);
// Runs fn(context); NULL, or what went wrong: an access outside of live memory, a complaint of the
// shim. One thread at a time.
const char *vcuda_guarded(void (*fn)(void *), void *context);

// ---- lost.cc: a device that failed answers every call with the same error -----------------------

cudaError_t vcuda_lost(void);  // cudaSuccess: no
void vcuda_lose(cudaError_t e, const char *why);

// ---- queue.cc: streams, events, tasks. None of these fails but with a lost device ---------------

vcuda_stream *vcuda_stream_new(bool high_priority);
vcuda_event *vcuda_event_new(bool timed);
void vcuda_record(vcuda_event *e, vcuda_stream *s);
void vcuda_wait(vcuda_stream *s, vcuda_event *e);
// Simulated: a microsecond for every task that ran between. false: not recorded, or not timed.
bool vcuda_elapsed(vcuda_event *from, vcuda_event *to, float *ms);
bool vcuda_query(vcuda_event *e);  // runs a few tasks, perhaps
void vcuda_sync_stream(vcuda_stream *s);
void vcuda_sync_event(vcuda_event *e);

#endif

// SPDX-License-Identifier: Apache-2.0
// calls: CUDA's run time over the virtual GPU. As CUDA: a failure is kept for cudaGetLastError by
// thread, one that lost the device is told by every call; a child of a process that used the device
// cannot. Harsher than CUDA: cudaFree waits for nothing, a pageable copy to the device is staged
// before anything before it on the stream has run.
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "device.h"

namespace {

thread_local cudaError_t last;
thread_local int current;
bool forked;

cudaError_t usable() {
    static const int watch = pthread_atfork(nullptr, nullptr, [] { forked = true; });
    (void)watch;
    return forked ? cudaErrorInitializationError : vcuda_lost();
}

cudaError_t keep(cudaError_t e) {
    if (e != cudaSuccess) last = e;
    return e;
}

#define USABLE()                                    \
    do {                                            \
        cudaError_t lost = usable();                \
        if (lost != cudaSuccess) return keep(lost); \
    } while (0)

struct copying {
    void *dst;
    const void *src;
    size_t nbytes;
};

void run_copy(void *context) {
    const copying *c = (const copying *)context;
    memcpy(c->dst, c->src, c->nbytes);
}

// The bytes themselves follow the head.
void run_staged(void *context) {
    const copying *c = (const copying *)context;
    memcpy(c->dst, c + 1, c->nbytes);
}

struct setting {
    void *dst;
    int value;
    size_t nbytes;
};

void run_set(void *context) {
    const setting *c = (const setting *)context;
    memset(c->dst, c->value, c->nbytes);
}

// The default streams by CUDA's numbers. Nothing waits for them by itself: all others are made as
// cudaStreamNonBlocking.
cudaStream_t real(cudaStream_t s) {
    if (s != (cudaStream_t)1 && s != (cudaStream_t)2) return s;
    static cudaStream_t legacy = vcuda_stream_new(false), per_thread = vcuda_stream_new(false);
    return s == (cudaStream_t)1 ? legacy : per_thread;
}

void stage(const copying &c, cudaStream_t s) {
    char *all = new char[sizeof(c) + c.nbytes];
    memcpy(all, &c, sizeof(c));
    memcpy(all + sizeof(c), c.src, c.nbytes);
    vcuda_enqueue(s, run_staged, all, sizeof(c) + c.nbytes);
    delete[] all;
}

}  // namespace

// ---- Errors -------------------------------------------------------------------------------------

const char *cudaGetErrorString(cudaError_t e) {
#define X(name, number, text) \
    if (e == name) return text;
    VCUDA_ERRORS(X)
#undef X
    return "unrecognized error code";
}

const char *cudaGetErrorName(cudaError_t e) {
#define X(name, number, text) \
    if (e == name) return #name;
    VCUDA_ERRORS(X)
#undef X
    return "unrecognized error code";
}

cudaError_t cudaGetLastError(void) {
    cudaError_t e = usable();
    if (e == cudaSuccess) e = last;
    last = cudaSuccess;
    return e;
}

// ---- Devices ------------------------------------------------------------------------------------

cudaError_t cudaDriverGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count) {
    USABLE();
    *count = vcuda_get_settings().devices;
    return *count > 0 ? cudaSuccess : keep(cudaErrorNoDevice);
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *out, int device) {
    USABLE();
    if (device < 0 || device >= vcuda_get_settings().devices) return keep(cudaErrorInvalidDevice);
    memset(out, 0, sizeof(*out));
    snprintf(out->name, sizeof(out->name), "Virtual GPU");
    out->totalGlobalMem = vcuda_get_settings().memory;
    out->major = 9;
    out->multiProcessorCount = 132;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    USABLE();
    if (device < 0 || device >= vcuda_get_settings().devices) return keep(cudaErrorInvalidDevice);
    current = device;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    USABLE();
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

// ---- Memory -------------------------------------------------------------------------------------

cudaError_t cudaMalloc(void **out, size_t nbytes) {
    USABLE();
    return keep(vcuda_malloc(nbytes, false, out));
}

cudaError_t cudaFree(void *p) {
    USABLE();
    return keep(vcuda_free(p, false));
}

cudaError_t cudaMallocHost(void **out, size_t nbytes) {
    USABLE();
    return keep(vcuda_malloc(nbytes, true, out));
}

cudaError_t cudaFreeHost(void *p) {
    USABLE();
    return keep(vcuda_free(p, true));
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    USABLE();
    *total_bytes = vcuda_get_settings().memory;
    *free_bytes = *total_bytes - vcuda_memory_in_use();
    return cudaSuccess;
}

// ---- Streams and events -------------------------------------------------------------------------

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned, int priority) {
    USABLE();
    *out = vcuda_stream_new(priority < 0);
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t s) {
    USABLE();
    vcuda_sync_stream(real(s));
    return keep(vcuda_lost());
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned) {
    USABLE();
    vcuda_wait(real(s), e);
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags) {
    USABLE();
    *out = vcuda_event_new((flags & cudaEventDisableTiming) == 0);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
    USABLE();
    vcuda_record(e, real(s));
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t e) {
    USABLE();
    bool done = vcuda_query(e);
    if (vcuda_lost() != cudaSuccess) return keep(vcuda_lost());
    return done ? cudaSuccess : keep(cudaErrorNotReady);
}

cudaError_t cudaEventSynchronize(cudaEvent_t e) {
    USABLE();
    vcuda_sync_event(e);
    return keep(vcuda_lost());
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to) {
    USABLE();
    if (!vcuda_elapsed(from, to, ms)) return keep(cudaErrorInvalidResourceHandle);
    return vcuda_query(to) && vcuda_query(from) ? cudaSuccess : keep(cudaErrorNotReady);
}

// ---- Work ---------------------------------------------------------------------------------------

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t nbytes, cudaMemcpyKind kind,
                            cudaStream_t s) {
    USABLE();
    bool to_device = kind != cudaMemcpyDeviceToHost, from_device = kind != cudaMemcpyHostToDevice;
    if (s == nullptr || vcuda_is_device(dst, nbytes) != to_device ||
        vcuda_is_device(src, nbytes) != from_device) {
        return keep(cudaErrorInvalidValue);
    }
    s = real(s);
    copying c = {dst, src, nbytes};
    if (!from_device && !vcuda_is_pinned(src, nbytes)) {
        stage(c, s);
        return cudaSuccess;
    }
    vcuda_enqueue(s, run_copy, &c, sizeof(c));
    if (!to_device && !vcuda_is_pinned(dst, nbytes)) return cudaStreamSynchronize(s);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *dst, int value, size_t nbytes, cudaStream_t s) {
    USABLE();
    if (s == nullptr || !vcuda_is_device(dst, nbytes)) return keep(cudaErrorInvalidValue);
    setting c = {dst, value, nbytes};
    vcuda_enqueue(real(s), run_set, &c, sizeof(c));
    return cudaSuccess;
}

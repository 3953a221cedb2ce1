// SPDX-License-Identifier: Apache-2.0
// runtime: the table of base/device.h over CUDA's run time, and what its failures are called. Host
// code only, and the only file besides backend.cu that calls CUDA other than to launch.
//
// Note [a GPU that failed]: after an illegal access or another failure inside a kernel CUDA answers
// every call of the process with the same error, for ever. It is told in one sentence, kept from
// the first time, since later calls are not to blame. What CUDA forgets (memory that is not there,
// a launch it refused) is cleared, so that the next call does not tell it again.
#include "cuda/runtime.cuh"

#include <cuda_runtime.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool watches_forks, forked;
static bool broken;            // read without the lock: once set it stays
static char broken_text[512];  // written before `broken` is
static int used_device = -1;
static __thread int current_device = 0;  // CUDA's own choice for a new thread

// ---- Failures -----------------------------------------------------------------------------------

static void after_fork(void) { forked = true; }

pl_status pl_cuda_usable(void) {
    if (forked) {
        return pl_fail(PL_EDEVICE,
                       "[cuda] this process was forked from one that had used CUDA, and cannot use "
                       "it; expected CUDA to be used first in the process that computes (start "
                       "workers before it, or by the spawn method)");
    }
    if (__atomic_load_n(&broken, __ATOMIC_ACQUIRE)) {
        return pl_fail(PL_EDEVICE, "%s", broken_text);
    }
    if (!__atomic_load_n(&watches_forks, __ATOMIC_RELAXED)) {
        pthread_mutex_lock(&lock);
        if (!watches_forks) pthread_atfork(NULL, NULL, after_fork);
        __atomic_store_n(&watches_forks, true, __ATOMIC_RELAXED);
        pthread_mutex_unlock(&lock);
    }
    return PL_OK;
}

// Those after which the context is lost.
static bool stays(cudaError_t e) {
    switch (e) {
        case cudaErrorIllegalAddress:
        case cudaErrorLaunchFailure:
        case cudaErrorLaunchTimeout:
        case cudaErrorAssert:
        case cudaErrorHardwareStackError:
        case cudaErrorIllegalInstruction:
        case cudaErrorMisalignedAddress:
        case cudaErrorInvalidAddressSpace:
        case cudaErrorInvalidPc:
        case cudaErrorECCUncorrectable:
        case cudaErrorNvlinkUncorrectable:
        case cudaErrorContained:
        case cudaErrorTensorMemoryLeak:
        case cudaErrorExternalDevice:
            return true;
        default:
            return false;
    }
}

static pl_status break_down(const char *what, cudaError_t e) {
    pthread_mutex_lock(&lock);
    if (!broken) {
        snprintf(broken_text, sizeof(broken_text),
                 "[cuda] the GPU failed and this process cannot use it any more: got \"%s\" (told "
                 "first at: %s); what failed ran before that: start again with "
                 "CUDA_LAUNCH_BLOCKING=1 to see which call it was",
                 cudaGetErrorString(e), what);
        __atomic_store_n(&broken, true, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&lock);
    return pl_fail(PL_EDEVICE, "%s", broken_text);
}

pl_status pl_cuda_status(const char *what, int error) {
    cudaError_t e = (cudaError_t)error;
    if (e == cudaSuccess) return PL_OK;
    if (stays(e)) return break_down(what, e);
    (void)cudaGetLastError();  // or the next launch tells it once more
    if (e == cudaErrorMemoryAllocation) {
        return pl_fail(PL_ENOMEM, "[cuda] %s: no memory left", what);
    }
    return pl_fail(PL_EDEVICE, "[cuda] %s: got \"%s\" (%s), expected success", what,
                   cudaGetErrorString(e), cudaGetErrorName(e));
}

#define TRY_CUDA(what, call) PL_TRY(pl_cuda_status(what, (int)(call)))

// ---- Threads and launches -----------------------------------------------------------------------

void pl_cuda_enter(void) {
    int device = __atomic_load_n(&used_device, __ATOMIC_RELAXED);
    if (device < 0 || current_device == device || forked) return;
    if (cudaSetDevice(device) == cudaSuccess) current_device = device;
}

pl_status pl_cuda_launched(const char *op) {
    if (forked || __atomic_load_n(&broken, __ATOMIC_ACQUIRE)) return pl_cuda_usable();
    cudaError_t e = cudaGetLastError();
    if (e == cudaSuccess) return PL_OK;
    if (stays(e)) return break_down(op, e);
    return pl_fail(PL_EDEVICE, "[%s] the GPU refused a kernel: %s", op, cudaGetErrorString(e));
}

static pl_status enter(void) {
    PL_TRY(pl_cuda_usable());
    pl_cuda_enter();
    return PL_OK;
}

static cudaStream_t stream_of(pl_stream *s) { return (cudaStream_t)(void *)s; }
static cudaEvent_t event_of(pl_event *e) { return (cudaEvent_t)(void *)e; }

// ---- Memory -------------------------------------------------------------------------------------

static pl_status device_malloc(pl_runtime *, size_t nbytes, void **out) {
    PL_TRY(enter());
    return pl_cuda_status("malloc", cudaMalloc(out, nbytes));
}

static pl_status device_free(pl_runtime *, void *p) {
    PL_TRY(enter());
    return pl_cuda_status("free", cudaFree(p));
}

static pl_status host_malloc(pl_runtime *, size_t nbytes, void **out) {
    PL_TRY(enter());
    return pl_cuda_status("page-locked memory", cudaMallocHost(out, nbytes));
}

static pl_status host_free(pl_runtime *, void *p) {
    PL_TRY(enter());
    return pl_cuda_status("free of page-locked memory", cudaFreeHost(p));
}

static pl_status memory(pl_runtime *, size_t *free_bytes, size_t *total_bytes) {
    PL_TRY(enter());
    return pl_cuda_status("memory", cudaMemGetInfo(free_bytes, total_bytes));
}

// ---- Order --------------------------------------------------------------------------------------

static pl_status stream_new(pl_runtime *, bool high_priority, pl_stream **out) {
    PL_TRY(enter());
    int least = 0, greatest = 0;
    TRY_CUDA("stream", cudaDeviceGetStreamPriorityRange(&least, &greatest));
    cudaStream_t s = NULL;
    TRY_CUDA("stream", cudaStreamCreateWithPriority(&s, cudaStreamNonBlocking,
                                                    high_priority ? greatest : least));
    *out = (pl_stream *)(void *)s;
    return PL_OK;
}

static pl_status event_new(pl_runtime *, pl_event **out) {
    PL_TRY(enter());
    cudaEvent_t e = NULL;
    TRY_CUDA("event", cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    *out = (pl_event *)(void *)e;
    return PL_OK;
}

static pl_status timed_event_new(pl_runtime *, pl_event **out) {
    PL_TRY(enter());
    cudaEvent_t e = NULL;
    TRY_CUDA("event", cudaEventCreateWithFlags(&e, cudaEventDefault));
    *out = (pl_event *)(void *)e;
    return PL_OK;
}

static pl_status elapsed(pl_runtime *, pl_event *from, pl_event *to, float *ms) {
    PL_TRY(enter());
    return pl_cuda_status("elapsed time", cudaEventElapsedTime(ms, event_of(from), event_of(to)));
}

static pl_status record(pl_runtime *, pl_event *e, pl_stream *s) {
    PL_TRY(enter());
    return pl_cuda_status("record", cudaEventRecord(event_of(e), stream_of(s)));
}

static pl_status wait(pl_runtime *, pl_stream *s, pl_event *e) {
    PL_TRY(enter());
    return pl_cuda_status("wait", cudaStreamWaitEvent(stream_of(s), event_of(e), 0));
}

static pl_status event_done(pl_runtime *, pl_event *e, bool *out) {
    PL_TRY(enter());
    cudaError_t got = cudaEventQuery(event_of(e));
    *out = got == cudaSuccess;
    if (got == cudaErrorNotReady) {
        (void)cudaGetLastError();
        return PL_OK;
    }
    return pl_cuda_status("event", got);
}

static pl_status sync_stream(pl_runtime *, pl_stream *s) {
    PL_TRY(enter());
    return pl_cuda_status("synchronize", cudaStreamSynchronize(stream_of(s)));
}

static pl_status sync_event(pl_runtime *, pl_event *e) {
    PL_TRY(enter());
    return pl_cuda_status("synchronize", cudaEventSynchronize(event_of(e)));
}

// ---- Work ---------------------------------------------------------------------------------------

static pl_status copy(pl_runtime *, pl_stream *s, pl_copy_kind kind, void *dst, const void *src,
                      size_t nbytes) {
    static const cudaMemcpyKind kinds[] = {cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost,
                                           cudaMemcpyDeviceToDevice};
    PL_TRY(enter());
    if (nbytes == 0) return PL_OK;
    return pl_cuda_status("copy", cudaMemcpyAsync(dst, src, nbytes, kinds[kind], stream_of(s)));
}

static pl_status zero(pl_runtime *, pl_stream *s, void *dst, size_t nbytes) {
    PL_TRY(enter());
    if (nbytes == 0) return PL_OK;
    return pl_cuda_status("zero", cudaMemsetAsync(dst, 0, nbytes, stream_of(s)));
}

// The task puts its work on the stream by itself, by the native handle.
static pl_status launch(pl_runtime *, pl_stream *, const pl_task *task) {
    PL_TRY(enter());
    task->run(task->context);
    return pl_cuda_launched(task->name);
}

static void *native(pl_runtime *, pl_stream *s) { return s; }

// CUDA's own names of the default streams are 1 and 2 too.
static pl_stream *adopt(pl_runtime *, uintptr_t handle) { return (pl_stream *)handle; }

// ---- Opening ------------------------------------------------------------------------------------

pl_status pl_cuda_runtime(int index, pl_runtime **out) {
    static pl_runtime table;
    PL_TRY(pl_cuda_usable());
    pthread_mutex_lock(&lock);
    int other = used_device;
    if (other < 0) {
        table = {
            {PL_CUDA, index}, device_malloc, device_free, host_malloc, host_free,  memory,
            stream_new,       event_new,     record,      wait,        event_done, timed_event_new,
            elapsed,          sync_stream,   sync_event,  copy,        zero,       launch,
            native,           adopt};
        __atomic_store_n(&used_device, index, __ATOMIC_RELAXED);
    }
    pthread_mutex_unlock(&lock);
    if (other >= 0 && other != index) {
        return pl_fail(PL_EDEVICE,
                       "[cuda] one GPU per process: got device %d after device %d, expected the "
                       "same; start one process per GPU",
                       index, other);
    }
    *out = &table;
    return enter();
}

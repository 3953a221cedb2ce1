// SPDX-License-Identifier: Apache-2.0
// The services of base/device.h on the open GPU: memory by the caching allocator, scratch memory
// and the fault record of kernels, and reading back. Streams are streams.c's.
#include <stdlib.h>
#include <string.h>

#include "cuda/state.h"

enum { STAGE = 4096 };  // bytes that are read by way of page-locked memory

// What the host reads of the device: a few bytes of data, then the fault record.
typedef struct landing {
    unsigned char data[STAGE];
    pl_cuda_fault fault;
} landing;

pl_cuda_state pl__cuda = {.queue_lock = PTHREAD_MUTEX_INITIALIZER,
                          .memory_lock = PTHREAD_MUTEX_INITIALIZER};
static pl_device_services services;

// Guards `stage`: one reader at a time. Before the queue's lock.
static pthread_mutex_t read_lock = PTHREAD_MUTEX_INITIALIZER;
static landing *stage;  // page-locked

// ---- Memory -------------------------------------------------------------------------------------

static pl_status alloc(size_t nbytes, const char *tag, void **out) {
    *out = NULL;
    if (nbytes == 0) return PL_OK;
    pthread_mutex_lock(&pl__cuda.memory_lock);
    pl_status st = pl_cuda_cache_alloc(pl__cuda.cache, nbytes, pl__cuda_current(), tag, out);
    pthread_mutex_unlock(&pl__cuda.memory_lock);
    return st;
}

static pl_status alloc_ahead(size_t nbytes, const char *tag, void **out) {
    *out = NULL;
    if (nbytes == 0) return PL_OK;
    pthread_mutex_lock(&pl__cuda.memory_lock);
    pl_status st = pl_cuda_cache_alloc(pl__cuda.cache, nbytes, pl__cuda.uploads, tag, out);
    // When it is released its next upload waits for all that compute does with it until then.
    if (st == PL_OK) st = pl_cuda_cache_used(pl__cuda.cache, *out, pl__cuda_current());
    pthread_mutex_unlock(&pl__cuda.memory_lock);
    return st;
}

static pl_status upload(void *dst, const void *src, size_t nbytes) {
    pl_runtime *r = pl__cuda.runtime;
    // One event serves all: a wait is for its latest record, and nobody records between the two.
    pthread_mutex_lock(&pl__cuda.memory_lock);
    pl_status st = r->copy(r, pl__cuda.uploads, PL_COPY_TO_DEVICE, dst, src, nbytes);
    if (st == PL_OK) st = r->record(r, pl__cuda.uploaded, pl__cuda.uploads);
    if (st == PL_OK) st = r->wait(r, pl__cuda_current(), pl__cuda.uploaded);
    pthread_mutex_unlock(&pl__cuda.memory_lock);
    return st;
}

static void release(void *p) {
    if (p == NULL) return;
    pthread_mutex_lock(&pl__cuda.memory_lock);
    // It fails for a GPU that has failed: the block then stays in use, which nobody can mend. Who
    // releases it has used it, perhaps on another stream than its own (Note [chosen streams]).
    pl_status st = PL_OK;
    if (pl__cuda.lane_count > 1) st = pl_cuda_cache_used(pl__cuda.cache, p, pl__cuda_current());
    if (st == PL_OK) st = pl_cuda_cache_release(pl__cuda.cache, p);
    (void)st;
    pthread_mutex_unlock(&pl__cuda.memory_lock);
}

static pl_status used(void *p, pl_stream *s) {
    if (p == NULL) return PL_OK;
    pthread_mutex_lock(&pl__cuda.memory_lock);
    pl_status st = pl_cuda_cache_used(pl__cuda.cache, p, s);
    pthread_mutex_unlock(&pl__cuda.memory_lock);
    return st;
}

static pl_status trim(void) {
    pthread_mutex_lock(&pl__cuda.memory_lock);
    pl_status st = pl_cuda_cache_trim(pl__cuda.cache);
    pthread_mutex_unlock(&pl__cuda.memory_lock);
    return st;
}

static pl_device_memory statistics(bool reset_peak) {
    pthread_mutex_lock(&pl__cuda.memory_lock);
    if (reset_peak) pl_cuda_cache_reset_peak(pl__cuda.cache);
    pl_device_memory m = pl_cuda_cache_statistics(pl__cuda.cache);
    pthread_mutex_unlock(&pl__cuda.memory_lock);
    return m;
}

// Kept between calls and grown: the call before may still use it, but on the same stream.
pl_status pl__cuda_scratch(void *owner, size_t nbytes, void **out) {
    pl_cuda_lane *lane = owner;
    if (nbytes > lane->scratch_nbytes) {
        void *more = NULL;
        PL_TRY(alloc(nbytes, "scratch of kernels", &more));
        release(lane->scratch);
        lane->scratch = more;
        lane->scratch_nbytes = nbytes;
    }
    *out = lane->scratch;
    return PL_OK;
}

// ---- Reading and waiting ------------------------------------------------------------------------

// What stage->fault says, which is then forgotten: it is told once.
static pl_status told(void) {
    pl_cuda_fault f = stage->fault;
    if (f.kind == PL_CUDA_FAULT_NONE) return PL_OK;
    pl_runtime *r = pl__cuda.runtime;
    PL_TRY(r->zero(r, pl__cuda_current(), pl__cuda.fault, sizeof f));
    return pl__cuda.backend->fault_status(&f);
}

static pl_status fetch(void *dst, const void *src, size_t nbytes) {
    pl_runtime *r = pl__cuda.runtime;
    return r->copy(r, pl__cuda_current(), PL_COPY_TO_HOST, dst, src, nbytes);
}

static pl_status read_locked(void *dst, const void *src, size_t nbytes) {
    bool small = nbytes <= STAGE;
    // A copy to memory that is not page-locked waits inside the driver, where nothing can end it:
    // only once all before it is done.
    if (!small) PL_TRY(pl_device_wait(&services, pl__cuda_current()));
    if (nbytes > 0) PL_TRY(fetch(small ? stage->data : dst, src, nbytes));
    PL_TRY(fetch(&stage->fault, pl__cuda.fault, sizeof stage->fault));
    PL_TRY(pl_device_wait(&services, pl__cuda_current()));
    if (small && nbytes > 0) memcpy(dst, stage->data, nbytes);
    return told();
}

static pl_status read_back(void *dst, const void *src, size_t nbytes) {
    pthread_mutex_lock(&read_lock);
    pl_status st = read_locked(dst, src, nbytes);
    pthread_mutex_unlock(&read_lock);
    return st;
}

// Streams that were not chosen, and that the allocator was not told of and nobody watches, touch no
// tensor.
static pl_status synchronize(void) {
    PL_TRY(pl_device_wait_all(&services));
    for (int i = 1; pl__cuda_stream(i) != NULL; i++) {
        PL_TRY(pl_device_wait(&services, pl__cuda_stream(i)));
    }
    for (int i = 0;; i++) {
        pthread_mutex_lock(&pl__cuda.memory_lock);
        pl_stream *s = pl_cuda_cache_stream(pl__cuda.cache, i);
        pthread_mutex_unlock(&pl__cuda.memory_lock);
        if (s == NULL) break;
        PL_TRY(pl_device_wait(&services, s));
    }
    return read_back(NULL, NULL, 0);
}

// ---- Opening ------------------------------------------------------------------------------------

static pl_status start_memory(void) {
    pl_runtime *r = pl__cuda.runtime;
    void *room = NULL;
    PL_TRY(r->stream_new(r, false, &pl__cuda.compute));
    PL_TRY(r->stream_new(r, false, &pl__cuda.uploads));
    PL_TRY(r->event_new(r, &pl__cuda.uploaded));
    const char *whole = getenv("PACELINE_CUDA_WHOLE_BLOCKS");
    PL_TRY(pl_cuda_cache_new(r, whole != NULL && strcmp(whole, "1") == 0, &pl__cuda.cache));
    PL_TRY(r->host_malloc(r, sizeof *stage, &room));
    stage = room;
    PL_TRY(r->malloc(r, sizeof *pl__cuda.fault, &room));
    pl__cuda.fault = room;
    PL_TRY(r->zero(r, pl__cuda.compute, room, sizeof *pl__cuda.fault));
    return pl__cuda_lane_start(pl__cuda.compute);
}

static pl_status start_queue(void) {
    pl_cuda_state *s = &pl__cuda;
    pl_cuda_blas_args args = {.runtime = s->runtime,
                              .backend = s->backend,
                              .device_name = s->properties.name,
                              .stream = s->compute,
                              .queue = &s->lanes[0].queue,
                              .alloc = alloc,
                              .release = release};
    PL_TRY(pl_cuda_blas_new(&args, &s->blas));
    int capability = 10 * s->properties.major + s->properties.minor;
    return pl_cuda_dnn_new(s->blas, capability, &s->dnn);
}

pl_status pl__cuda_start(const pl_cuda_backend *backend, int index) {
    pl__cuda.backend = backend;
    PL_TRY(backend->properties(index, &pl__cuda.properties));
    PL_TRY(backend->runtime(index, &pl__cuda.runtime));
    PL_TRY(start_memory());
    PL_TRY(start_queue());
    services = (pl_device_services){.runtime = pl__cuda.runtime,
                                    .name = pl__cuda.properties.name,
                                    .kernels = &pl__cuda_kernels,
                                    .compute = pl__cuda.compute,
                                    .current = pl__cuda_current,
                                    .stream = pl__cuda_stream,
                                    .stream_new = pl__cuda_stream_new,
                                    .choose = pl__cuda_choose,
                                    .order_streams = pl__cuda_order_streams,
                                    .alloc = alloc,
                                    .release = release,
                                    .alloc_ahead = alloc_ahead,
                                    .upload = upload,
                                    .used = used,
                                    .trim = trim,
                                    .statistics = statistics,
                                    .synchronize = synchronize,
                                    .read = read_back};
    return pl_device_register(&services);
}

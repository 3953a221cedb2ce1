// SPDX-License-Identifier: Apache-2.0
// cache: device memory that is kept instead of given back, aware of streams. A block belongs to the
// stream it was asked for; freed, it may be handed out on that stream at once, without waiting,
// because work on a stream runs in order. What other streams did with it is told by _used, and the
// next user's stream waits for that by events: the host never does. Knows the run-time table only.
// One thread at a time per cache.
//
// Note [segments]: the device is asked for segments: of 2 MiB for requests up to 1 MiB, of 20 MiB
// for those below 10 MiB, of their own size (to 2 MiB) for the rest. A request takes the tightest
// free block of its stream and leaves what it does not need as a free block of its own; a block
// that is freed grows together with its free neighbours. Only whole segments go back.
#ifndef PL_CUDA_CACHE_H
#define PL_CUDA_CACHE_H

#include "base/device.h"

typedef struct pl_cuda_cache pl_cuda_cache;

// whole: every block is a segment of its own, of the request's size to 512 bytes, so that a tool
// that knows the device's allocations finds a kernel which writes past the end of its tensor.
pl_status pl_cuda_cache_new(pl_runtime *r, bool whole, pl_cuda_cache **out) PL_MUST_USE;
// Gives all memory back, in use or not; waits for the streams first. NULL is legal.
pl_status pl_cuda_cache_free(pl_cuda_cache *c) PL_MUST_USE;

// nbytes > 0 for use on `s`; `tag` (a literal) says for what, in the message of PL_ENOMEM. Free
// segments, of all streams, are given back to the device before that.
pl_status pl_cuda_cache_alloc(pl_cuda_cache *c, size_t nbytes, pl_stream *s, const char *tag,
                              void **out) PL_MUST_USE;
// Work that touches p was put on another stream than p's.
pl_status pl_cuda_cache_used(pl_cuda_cache *c, const void *p, pl_stream *s) PL_MUST_USE;
pl_status pl_cuda_cache_release(pl_cuda_cache *c, void *p) PL_MUST_USE;
// Waits for what still uses freed blocks, and gives segments that are free as a whole back.
pl_status pl_cuda_cache_trim(pl_cuda_cache *c) PL_MUST_USE;

pl_device_memory pl_cuda_cache_statistics(const pl_cuda_cache *c);
void pl_cuda_cache_reset_peak(pl_cuda_cache *c);  // the peaks count from what there is now
// The i-th of the other streams that blocks were used on (_used), or NULL.
pl_stream *pl_cuda_cache_stream(const pl_cuda_cache *c, int i);

#endif

// SPDX-License-Identifier: Apache-2.0
// vdev: a device of pl_runtime without a GPU, for tests of host code. Work is run late, when
// somebody waits for it, in a seeded order that streams and events allow and nobody expects. Each
// enqueued task carries a vector clock, one number per stream; two tasks that touch the same bytes,
// one of them writing, must be ordered by them, or the second is refused with both names (the rule
// of PyTorch's CUDA sanitizer). Memory is filled with 0xFF, has guards, and is never given twice.
// One thread only.
#ifndef PL_VDEV_H
#define PL_VDEV_H

#include "base/device.h"

typedef struct vdev vdev;

pl_status vdev_new(uint64_t seed, vdev **out) PL_MUST_USE;
// Runs nothing more; PL_EDEVICE where a guard was overwritten or memory was not freed.
pl_status vdev_free(vdev *v) PL_MUST_USE;
pl_runtime *vdev_runtime(vdev *v);
// The host is about to read (or write) bytes: all that touched them must have been waited for.
pl_status vdev_host(vdev *v, const void *p, size_t nbytes, bool writes) PL_MUST_USE;
// From now on no more than this may be live at once; 0: no limit.
void vdev_limit(vdev *v, size_t nbytes);
// Off: unordered tasks are taken, so that a test sees what they do.
void vdev_check(vdev *v, bool on);

#endif

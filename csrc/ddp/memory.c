// SPDX-License-Identifier: Apache-2.0
// Where buckets live and who reduces them, by device: all that a reducer does differently there.
//
// On the CPU they lie in memory that all ranks of a machine see, and are reduced in place. On a
// device they lie in its memory, and the group's collective reduces them: queued behind what the
// compute stream has been given so far, on a stream of its own, and the compute stream waits for
// that, not the host.
#include "ddp/ddp_internal.h"

static void segment_release(void *owner, void *data) {
    (void)data;
    pl_segment_release(owner);
}

static pl_status open_shared(pl_reducer *r, size_t nbytes) {
    PL_TRY(pl_segment_new(r->group, nbytes, r->site, &r->segment));
    pl_segment_retain(r->segment);
    pl_status st = pl_storage_wrap(pl_segment_data(r->segment), nbytes, segment_release, r->segment,
                                   &r->storage);
    if (st != PL_OK) pl_segment_release(r->segment);
    return st;
}

static void place_shared(const pl_reducer *r, const pl__bucket *b, pl_bucket_call *call) {
    call->seg = r->segment;
    call->offset_bytes = (size_t)b->offset;
}

static pl_status open_on_device(pl_reducer *r, size_t nbytes) {
    PL_TRY(pl_storage_new_on(r->device, nbytes, &r->storage));
    // Also what pads the gradients is summed.
    return pl_bytes_zero(r->device, r->storage->data, nbytes);
}

static void place_on_device(const pl_reducer *r, const pl__bucket *b, pl_bucket_call *call) {
    call->data = (char *)r->storage->data + b->offset;
    call->device = r->device;
}

static const struct {
    pl_status (*open)(pl_reducer *r, size_t nbytes);
    void (*place)(const pl_reducer *r, const pl__bucket *b, pl_bucket_call *call);
} homes[] = {
    [PL_CPU] = {open_shared, place_shared},
    [PL_CUDA] = {open_on_device, place_on_device},
};

pl_status pl__memory_open(pl_reducer *r) {
    return homes[r->device.type].open(r, r->nbytes ? (size_t)r->nbytes : 64);
}

void pl__memory_place(const pl_reducer *r, const pl__bucket *b, pl_bucket_call *call) {
    homes[r->device.type].place(r, b, call);
}

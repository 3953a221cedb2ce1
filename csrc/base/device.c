// SPDX-License-Identifier: Apache-2.0
// The one device besides the CPU. Written once, read by any thread.
#include "base/device.h"

#include <stdatomic.h>

static _Atomic(const pl_device_services *) registered;

pl_status pl_device_register(const pl_device_services *s) {
    const pl_device_services *none = NULL;
    if (atomic_compare_exchange_strong(&registered, &none, s) || none == s) return PL_OK;
    return pl_fail(
        PL_EDEVICE,
        "[device] one device per process: got cuda:%d, expected cuda:%d, which is in use "
        "already; start one process per device (paceline launch does)",
        s->runtime->device.index, none->runtime->device.index);
}

const pl_device_services *pl_device_open_one(void) {
    return atomic_load_explicit(&registered, memory_order_acquire);
}

const pl_device_services *pl_device_find(pl_device d) {
    const pl_device_services *s = pl_device_open_one();
    return s != NULL && pl_device_equal(s->runtime->device, d) ? s : NULL;
}

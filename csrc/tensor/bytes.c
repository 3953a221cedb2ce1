// SPDX-License-Identifier: Apache-2.0
// Bytes that may lie on a device: zeroed, copied, and small numbers read back. See tensor.h.
// Threads: any; the order on a device is that of the thread's current stream.
#include <string.h>

#include "tensor/tensor.h"

static pl_status services_of(pl_device d, const pl_device_services **out) {
    *out = pl_device_find(d);
    if (*out != NULL) return PL_OK;
    return pl_fail(PL_EDEVICE, "[device] cuda:%d is not open in this process", d.index);
}

pl_status pl_bytes_zero(pl_device d, void *p, size_t nbytes) {
    const pl_device_services *s;
    if (nbytes == 0) return PL_OK;
    if (d.type == PL_CPU) {
        memset(p, 0, nbytes);
        return PL_OK;
    }
    PL_TRY(services_of(d, &s));
    return s->runtime->zero(s->runtime, pl_device_current(s), p, nbytes);
}

pl_status pl_bytes_copy(pl_device to, void *dst, pl_device from, const void *src, size_t nbytes) {
    const pl_device_services *s;
    if (nbytes == 0) return PL_OK;
    if (to.type == PL_CPU && from.type == PL_CPU) {
        memcpy(dst, src, nbytes);
        return PL_OK;
    }
    PL_TRY(services_of(to.type == PL_CPU ? from : to, &s));
    if (to.type == PL_CPU) return s->read(dst, src, nbytes);
    if (from.type == PL_CPU) return pl_bytes_upload(s, dst, src, nbytes);
    return s->runtime->copy(s->runtime, pl_device_current(s), PL_COPY_ON_DEVICE, dst, src, nbytes);
}

pl_status pl_numbers_open(pl_device d, size_t nbytes, void *host, pl_numbers *out) {
    const pl_device_services *s;
    *out = (pl_numbers){.device = d, .nbytes = nbytes, .at = host, .host = host};
    if (d.type == PL_CPU) return pl_bytes_zero(d, host, nbytes);
    PL_TRY(services_of(d, &s));
    PL_TRY(s->alloc(nbytes, "numbers of kernels", &out->at));
    pl_status st = pl_bytes_zero(d, out->at, nbytes);
    if (st != PL_OK) s->release(out->at);
    return st;
}

pl_status pl_numbers_close(pl_numbers *n, pl_status st) {
    const pl_device_services *s = pl_device_find(n->device);
    if (s == NULL) return st;  // the CPU
    if (st == PL_OK) st = s->read(n->host, n->at, n->nbytes);
    s->release(n->at);
    return st;
}

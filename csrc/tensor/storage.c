// SPDX-License-Identifier: Apache-2.0
// Storage: reference-counted bytes with a version.
// Thread rule: reference count and version are atomic; the bytes are the caller's to guard.
#include "tensor/tensor.h"

pl_status pl_storage_wrap(void *data, size_t nbytes, void (*release)(void *owner, void *data),
                          void *owner, pl_storage **out) {
    pl_storage *s = NULL;
    PL_TRY(pl_alloc(sizeof *s, (void **)&s));
    *s = (pl_storage){.refs = 1,
                      .watchers = 1,
                      .device = {PL_CPU, 0},
                      .nbytes = nbytes,
                      .data = data,
                      .release = release,
                      .owner = owner};
    pl_live_add(PL_KIND_STORAGE, 1);
    *out = s;
    return PL_OK;
}

pl_status pl_storage_new(size_t nbytes, pl_storage **out) {
    void *data = NULL;
    PL_TRY(pl_alloc(nbytes, &data));
    pl_status st = pl_storage_wrap(data, nbytes, NULL, NULL, out);
    if (st != PL_OK) pl_free(data);
    return st;
}

// The owner is the stream that the memory was asked for on.
static void release_on(void *owner, void *data) {
    (void)owner;
    pl_device_open_one()->release(data);
}

pl_status pl_storage_used_on(const pl_storage *s, pl_stream *stream) {
    // The CPU's, or another library's: nobody here hands that memory out again.
    if (s->release != release_on || stream == s->owner) return PL_OK;
    return pl_device_open_one()->used(s->data, stream);
}

pl_status pl_tensors_used_here(int n, pl_tensor *const *t) {
    const pl_device_services *d = pl_device_open_one();
    for (int i = 0; d != NULL && d->current != NULL && i < n; i++) {
        if (t[i] != NULL) PL_TRY(pl_storage_used_on(t[i]->storage, d->current()));
    }
    return PL_OK;
}

static pl_status new_on_gpu(pl_device d, bool ahead, size_t nbytes, pl_storage **out) {
    const pl_device_services *s = pl_device_find(d);
    if (s == NULL) {
        return pl_fail(PL_EDEVICE,
                       "[tensor] cuda:%d is not open in this process: expected paceline.cuda to "
                       "have opened it, or device=\"cpu\"",
                       d.index);
    }
    void *data = NULL;
    PL_TRY((ahead ? s->alloc_ahead : s->alloc)(nbytes, "tensors", &data));
    pl_status st = pl_storage_wrap(data, nbytes, release_on, pl_device_current(s), out);
    if (st == PL_OK) {
        (*out)->device = d;
    } else {
        s->release(data);
    }
    return st;
}

pl_status pl_storage_new_on(pl_device d, size_t nbytes, pl_storage **out) {
    if (PL_LIKELY(d.type == PL_CPU)) return pl_storage_new(nbytes, out);
    return new_on_gpu(d, false, nbytes, out);
}

pl_status pl_storage_new_ahead(pl_device d, size_t nbytes, pl_storage **out) {
    return new_on_gpu(d, true, nbytes, out);
}

void pl_storage_retain(pl_storage *s) {
    // Relaxed: whoever retains already holds a reference, so nothing is published by the count.
    __atomic_add_fetch(&s->refs, 1, __ATOMIC_RELAXED);
}

void pl_storage_release(pl_storage *s) {
    // Acquire-release: the last holder must see every other holder's writes before it frees.
    if (!s || __atomic_sub_fetch(&s->refs, 1, __ATOMIC_ACQ_REL) != 0) return;
    if (s->release) {
        s->release(s->owner, s->data);
    } else {
        pl_free(s->data);
    }
    pl_storage_unwatch(s);
}

void pl_storage_watch(pl_storage *s) { __atomic_add_fetch(&s->watchers, 1, __ATOMIC_RELAXED); }

void pl_storage_unwatch(pl_storage *s) {
    if (__atomic_sub_fetch(&s->watchers, 1, __ATOMIC_ACQ_REL) != 0) return;
    pl_live_add(PL_KIND_STORAGE, -1);
    pl_free(s);
}

uint32_t pl_storage_version(const pl_storage *s) {
    return __atomic_load_n(&s->version, __ATOMIC_RELAXED);
}

void pl_storage_bump(pl_storage *s) { __atomic_add_fetch(&s->version, 1, __ATOMIC_RELAXED); }

// SPDX-License-Identifier: Apache-2.0
// shared: a mapped memfd whose users are counted, so that a worker process writes its next batch
// into a segment only when no tensor of an earlier one looks at it any more.
// Threads: counts are atomic; any thread.
#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "data/data.h"

enum { ALIGN = 64 };

struct pl_shared {
    atomic_int refs;   // the owner's and one per user
    atomic_int users;  // storages over it
    char *data;
    size_t nbytes;
};

pl_status pl_shared_map(int fd, size_t nbytes, pl_shared **out) {
    struct stat info;
    if (nbytes == 0 || fstat(fd, &info) != 0 || info.st_size < (off_t)nbytes) {
        return pl_fail(PL_EINVAL, "[shared memory] descriptor %d has not the %zu bytes to map", fd,
                       nbytes);
    }
    void *memory;
    PL_TRY(pl_alloc(sizeof(pl_shared), &memory));
    pl_shared *s = memory;
    void *data = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (data == MAP_FAILED) {
        pl_free(s);
        return pl_fail(PL_ENOMEM, "[shared memory] cannot map %zu bytes: %s", nbytes,
                       strerror(errno));
    }
    atomic_init(&s->refs, 1);
    atomic_init(&s->users, 0);
    s->data = data;
    s->nbytes = nbytes;
    pl_live_add(PL_KIND_OTHER, 1);
    *out = s;
    return PL_OK;
}

void pl_shared_release(pl_shared *s) {
    // Acquire-release: the last holder sees every other's writes before it unmaps.
    if (!s || atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) != 1) return;
    (void)munmap(s->data, s->nbytes);
    pl_live_add(PL_KIND_OTHER, -1);
    pl_free(s);
}

size_t pl_shared_nbytes(const pl_shared *s) { return s->nbytes; }

// Acquire: who sees 0 also sees the last user's reads behind it.
int pl_shared_users(const pl_shared *s) {
    return atomic_load_explicit(&s->users, memory_order_acquire);
}

static void user_gone(void *owner, void *data) {
    pl_shared *s = owner;
    (void)data;
    atomic_fetch_sub_explicit(&s->users, 1, memory_order_release);
    pl_shared_release(s);
}

static pl_status check_fits(const pl_shared *s, size_t offset, size_t nbytes) {
    if (offset <= s->nbytes && nbytes <= s->nbytes - offset) return PL_OK;
    return pl_fail(PL_EINVAL, "[shared memory] %zu bytes at %zu: got a segment of %zu", nbytes,
                   offset, s->nbytes);
}

pl_status pl_shared_tensor(pl_shared *s, size_t offset, pl_dtype dt, int ndim, const int64_t *shape,
                           pl_tensor **out) {
    int64_t numel = 1, strides[PL_MAX_DIMS], most = (int64_t)(s->nbytes / pl_dtype_size(dt));
    if (offset % ALIGN != 0) {
        return pl_fail(PL_EINVAL, "[shared memory] offset: got %zu, expected a multiple of %d",
                       offset, ALIGN);
    }
    for (int d = ndim - 1; d >= 0; d--) {
        strides[d] = numel;
        if (shape[d] < 0 || (shape[d] > 0 && numel > most / shape[d])) {
            return pl_fail(PL_EINVAL, "[shared memory] the shape does not fit into %zu bytes",
                           s->nbytes);
        }
        numel *= shape[d];
    }
    size_t nbytes = (size_t)numel * pl_dtype_size(dt);
    PL_TRY(check_fits(s, offset, nbytes));
    pl_storage *storage;
    PL_TRY(pl_storage_wrap(s->data + offset, nbytes, user_gone, s, &storage));
    atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&s->users, 1, memory_order_relaxed);
    pl_status st = pl_tensor_from_storage(storage, dt, ndim, shape, strides, 0, out);
    pl_storage_release(storage);
    return st;
}

pl_status pl_shared_write(pl_shared *s, size_t offset, const void *from, size_t nbytes) {
    PL_TRY(check_fits(s, offset, nbytes));
    memcpy(s->data + offset, from, nbytes);
    return PL_OK;
}

// SPDX-License-Identifier: Apache-2.0
// See nccl.h.
#include "comm/nccl.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/library.h"

// 2.18: communicators that do not block are whole, and end when they are aborted.
#define OLDEST 21800
#define TOO_NEW 30000  // another ABI

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;  // guards opening; a leaf
static pl__nccl table;                                    // whole once its version is set

const char *pl__nccl_version_text(int version, char *buf, size_t cap) {
    int major = version / (version < 10000 ? 1000 : 10000);
    int rest = version % (version < 10000 ? 1000 : 10000);
    snprintf(buf, cap, "%d.%d.%d", major, rest / 100, rest % 100);
    return buf;
}

static pl_status look_up(void *library, pl__nccl *t) {
#define X(result, name, arguments)                                                          \
    {                                                                                       \
        void *found = dlsym(library, #name);                                                \
        if (found == NULL) {                                                                \
            return pl_fail(PL_EDEVICE,                                                      \
                           "[nccl] %s has no %s: expected NCCL 2.18 or newer; pip install " \
                           "'paceline[cuda13]' brings one",                                 \
                           pl_library_file(PL_LIBRARY_NCCL), #name);                        \
        }                                                                                   \
        memcpy(&t->name, &found, sizeof found);                                             \
    }
    PL__NCCL_MAP(X)
#undef X
    return PL_OK;
}

static pl_status open_library(void) {
    void *library = NULL;
    pl__nccl t = {0};
    char text[32];
    PL_TRY(pl_library_open(PL_LIBRARY_NCCL, &library));
    PL_TRY(look_up(library, &t));
    int version = 0;
    PL_TRY(pl__nccl_status(&t, "nccl", t.ncclGetVersion(&version), NULL));
    if (version < OLDEST || version >= TOO_NEW) {
        return pl_fail(PL_EDEVICE,
                       "[nccl] %s is NCCL %s, expected 2.18 or newer and below 3; pip install "
                       "'paceline[cuda13]' brings one, PACELINE_NCCL names another",
                       pl_library_file(PL_LIBRARY_NCCL),
                       pl__nccl_version_text(version, text, sizeof text));
    }
    t.version = version;
    table = t;
    return PL_OK;
}

pl_status pl__nccl_open(const pl__nccl **out) {
    pthread_mutex_lock(&lock);
    pl_status st = table.version ? PL_OK : open_library();
    pthread_mutex_unlock(&lock);
    *out = &table;
    return st;
}

pl_status pl__nccl_status(const pl__nccl *n, const char *op, int result, pl__nccl_comm comm) {
    if (result == PL__NCCL_SUCCESS || result == PL__NCCL_IN_PROGRESS) return PL_OK;
    const char *what = n->ncclGetErrorString(result), *more = n->ncclGetLastError(comm);
    const char *hint = "; NCCL_DEBUG=INFO makes it say more";
    return pl_fail(PL_EDEVICE, "[%s] NCCL failed: %s%s%.400s%s", op, what,
                   more && more[0] ? ": " : "", more ? more : "",
                   strstr(what, "NCCL_DEBUG") ? "" : hint);
}

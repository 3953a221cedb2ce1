// SPDX-License-Identifier: Apache-2.0
// library: see library.h. Symbols stay local to the handle (RTLD_LOCAL), so that another copy in
// the process, of another version, is not disturbed.
#include "base/library.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REASON = 600 };

typedef struct library {
    const char *variable, *file, *text;
    char told[4096];  // by Python
    char used[4096];  // what it was opened from
    void *handle;     // NULL until it is open
} library;

// Guards told, used and handle of all; held while one is opened, so that each is opened once.
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static library libraries[PL_LIBRARY_COUNT] = {
#define X(name, variable, file, text) {variable, file, text, "", "", NULL},
    PL_LIBRARY_MAP(X)
#undef X
};

void pl_library_set_path(pl_library which, const char *path) {
    library *l = &libraries[which];
    (void)pthread_mutex_lock(&lock);
    (void)snprintf(l->told, sizeof l->told, "%s", path ? path : "");
    (void)pthread_mutex_unlock(&lock);
}

// dlopen by a path or a name; notes which, or why not: the first of several reasons stays.
static void *attempt(library *l, const char *path, int extra, char *reason) {
    if (path[0] == '\0') return NULL;
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL | extra);
    if (handle != NULL) {
        (void)snprintf(l->used, sizeof l->used, "%s", path);
        return handle;
    }
    const char *said = dlerror();
    if (reason != NULL && reason[0] == '\0') {
        (void)snprintf(reason, REASON, "%s", said ? said : "dlopen failed");
    }
    return NULL;
}

static const char *bringer(pl_library which) {
    if (which == PL_LIBRARY_CUDA) return "install paceline again";
    bool optional = which == PL_LIBRARY_CUDNN || which == PL_LIBRARY_NVRTC;
    return optional ? "pip install 'paceline[cudnn]' brings it"
                    : "pip install 'paceline[cuda13]' brings it";
}

static pl_status explain(pl_library which, const char *named, const char *reason) {
    const library *l = &libraries[which];
    if (named[0] != '\0') {
        return pl_fail(PL_EDEVICE,
                       "[cuda] %s cannot be opened: got %s=%s (%s), expected the path of the "
                       "library, or no such variable",
                       l->text, l->variable, named, reason);
    }
    if (which == PL_LIBRARY_CUDA && l->told[0] == '\0') {
        return pl_fail(PL_EDEVICE,
                       "[cuda] this build has no CUDA: got no _cuda.so beside paceline, expected "
                       "one; install paceline where nvcc 13 is on PATH (docs/build.md)");
    }
    return pl_fail(PL_EDEVICE,
                   "[cuda] %s cannot be opened: got \"%s\", expected it among the installed "
                   "packages or on the system; %s, or set %s to its path",
                   l->text, reason, bringer(which), l->variable);
}

static pl_status open_first(pl_library which) {
    library *l = &libraries[which];
    const char *named = getenv(l->variable);
    char reason[REASON] = "";
    if (named != NULL && named[0] != '\0') {
        l->handle = attempt(l, named, 0, reason);
    } else {
        named = "";
        l->handle = attempt(l, l->file, RTLD_NOLOAD, NULL);
        if (l->handle == NULL) l->handle = attempt(l, l->told, 0, reason);
        if (l->handle == NULL) l->handle = attempt(l, l->file, 0, reason);
    }
    return l->handle != NULL ? PL_OK : explain(which, named, reason);
}

pl_status pl_library_open(pl_library which, void **out) {
    (void)pthread_mutex_lock(&lock);
    pl_status st = libraries[which].handle != NULL ? PL_OK : open_first(which);
    if (st == PL_OK) *out = libraries[which].handle;
    (void)pthread_mutex_unlock(&lock);
    return st;
}

const char *pl_library_file(pl_library which) { return libraries[which].used; }

pl_status pl_library_find(pl_library_use *use, pl_status (*find)(void)) {
    if (atomic_load_explicit(&use->found, memory_order_acquire)) return PL_OK;
    (void)pthread_mutex_lock(&use->lock);
    bool done = atomic_load_explicit(&use->found, memory_order_relaxed);
    pl_status st = done ? PL_OK : find();
    if (st == PL_OK) atomic_store_explicit(&use->found, true, memory_order_release);
    (void)pthread_mutex_unlock(&use->lock);
    return st;
}

void pl_library_describe(pl_library which, size_t version, const void *function, char *text,
                         size_t cap) {
    Dl_info where;
    bool known = dladdr(function, &where) != 0 && where.dli_fname;
    (void)snprintf(text, cap, "%s %zu.%zu.%zu (%s)", libraries[which].text, version / 10000,
                   version / 100 % 100, version % 100,
                   known ? where.dli_fname : pl_library_file(which));
}

// SPDX-License-Identifier: Apache-2.0
// memory: how much there is for this process: what the machine has, with its swap, or the limit of
// the control group that it is in (a container's), where that is smaller. More than that can be
// promised by the system, but who touches it is killed: an error that says so is better.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>

#include "base/alloc_internal.h"

enum { PATH_MOST = 512 };

static size_t machine_bytes(void) {
    struct sysinfo info;
    if (sysinfo(&info) != 0) return (size_t)1 << 36;
    return ((size_t)info.totalram + (size_t)info.totalswap) * (size_t)info.mem_unit;
}

// The number in a file; "max", and no such file: SIZE_MAX.
static size_t limit_in(const char *folder, const char *name) {
    char path[2 * PATH_MOST], text[32] = "";
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "re");
    if (f == NULL) return SIZE_MAX;
    bool read = fgets(text, sizeof text, f) != NULL;
    (void)fclose(f);
    char *end = text;
    unsigned long long n = read ? strtoull(text, &end, 10) : 0;
    return end == text || n == 0 ? SIZE_MAX : (size_t)n;
}

// The smallest limit of a group and those around it: `root` + `path`, then up to `root`. A process
// in a container often sees its own group as the root, whatever the path says.
static size_t limit_along(const char *root, char *path, const char *name) {
    size_t least = limit_in(root, name);
    for (char *end = path + strlen(path); end > path; end = strrchr(path, '/')) {
        *end = 0;
        char folder[2 * PATH_MOST];
        if (path[0] == 0) break;
        (void)snprintf(folder, sizeof folder, "%s%s", root, path);
        size_t here = limit_in(folder, name);
        if (here < least) least = here;
    }
    return least;
}

size_t pl__group_limit(const char *groups, const char *root) {
    FILE *f = fopen(groups, "re");
    if (f == NULL) return SIZE_MAX;
    size_t least = SIZE_MAX;
    char line[PATH_MOST], first[PATH_MOST];
    while (fgets(line, sizeof line, f) != NULL) {
        line[strcspn(line, "\n")] = 0;
        char *kinds = strchr(line, ':'), *path = kinds ? strchr(kinds + 1, ':') : NULL;
        if (path == NULL) continue;
        *path++ = 0;
        size_t here = SIZE_MAX;
        if (kinds[1] == 0) {  // version 2 has one tree
            here = limit_along(root, path, "memory.max");
        } else if (strcmp(kinds + 1, "memory") == 0) {
            (void)snprintf(first, sizeof first, "%s/memory", root);
            here = limit_along(first, path, "memory.limit_in_bytes");
        }
        if (here < least) least = here;
    }
    (void)fclose(f);
    return least;
}

static size_t most;
static void find_most(void) {
    size_t machine = machine_bytes(),
           group = pl__group_limit("/proc/self/cgroup", "/sys/fs/cgroup");
    most = group < machine ? group : machine;
}

size_t pl_memory_limit(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    (void)pthread_once(&once, find_most);
    return most;
}

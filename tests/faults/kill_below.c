// SPDX-License-Identifier: Apache-2.0
// A library to be preloaded: it stands between a program and the C library's calls that change what
// is on a disk, counts them, and kills the program before the n-th or in the middle of the n-th
// write. So calls are met whoever makes them: Python's os, ctypes, or a C extension. Linux only.
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static atomic_long seen, kill_at;
static atomic_bool armed, half_way;

void kill_below_arm(long at, int in_the_middle);
long kill_below_seen(void);

// Counts from now on; at: the call to die at, 0 for none.
void kill_below_arm(long at, int in_the_middle) {
    atomic_store(&seen, 0);
    atomic_store(&kill_at, at);
    atomic_store(&half_way, in_the_middle != 0);
    atomic_store(&armed, true);
}

long kill_below_seen(void) { return atomic_load(&seen); }

// Whether this call is the one; dies there unless it is a write to be cut in its middle.
static int step(int is_write) {
    if (!atomic_load(&armed)) return 0;
    if (atomic_fetch_add(&seen, 1) + 1 != atomic_load(&kill_at)) return 0;
    if (is_write && atomic_load(&half_way)) return 1;
    (void)kill(getpid(), SIGKILL);
    return 0;
}

ssize_t write(int fd, const void *from, size_t n) {
    if (step(1)) {
        (void)syscall(SYS_write, fd, from, n / 2);
        (void)kill(getpid(), SIGKILL);
    }
    return syscall(SYS_write, fd, from, n);
}

#define CALL(type, name, parameters, number, ...)        \
    type name parameters {                               \
        (void)step(0);                                   \
        return (type)syscall(SYS_##number, __VA_ARGS__); \
    }

CALL(ssize_t, pwrite, (int fd, const void *p, size_t n, off_t at), pwrite64, fd, p, n, at)
CALL(ssize_t, pwrite64, (int fd, const void *p, size_t n, off64_t at), pwrite64, fd, p, n, at)
CALL(int, fsync, (int fd), fsync, fd)
CALL(int, fdatasync, (int fd), fdatasync, fd)
CALL(int, ftruncate, (int fd, off_t n), ftruncate, fd, n)
CALL(int, ftruncate64, (int fd, off64_t n), ftruncate, fd, n)
CALL(int, rename, (const char *a, const char *b), renameat2, AT_FDCWD, a, AT_FDCWD, b, 0)
CALL(int, renameat, (int d, const char *a, int e, const char *b), renameat2, d, a, e, b, 0)
CALL(int, renameat2, (int d, const char *a, int e, const char *b, unsigned f), renameat2, d, a, e,
     b, f)
CALL(int, link, (const char *a, const char *b), linkat, AT_FDCWD, a, AT_FDCWD, b, 0)
CALL(int, linkat, (int d, const char *a, int e, const char *b, int f), linkat, d, a, e, b, f)
CALL(int, unlink, (const char *a), unlinkat, AT_FDCWD, a, 0)
CALL(int, unlinkat, (int d, const char *a, int f), unlinkat, d, a, f)
CALL(int, rmdir, (const char *a), unlinkat, AT_FDCWD, a, AT_REMOVEDIR)
CALL(int, mkdir, (const char *a, mode_t m), mkdirat, AT_FDCWD, a, m)

static int open_counted(const char *path, int flags, mode_t mode) {
    if (flags & O_CREAT) (void)step(0);
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

#define OPEN(name)                                                \
    int name(const char *path, int flags, ...) {                  \
        va_list rest;                                             \
        va_start(rest, flags);                                    \
        mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                             \
        return open_counted(path, flags, mode);                   \
    }

OPEN(open)
OPEN(open64)

// SPDX-License-Identifier: Apache-2.0
// Segments: memory that all ranks of a machine see. Each rank makes its own part as a memfd and
// sends the descriptor to every peer; nothing ever has a name in a file system, so nothing is left
// behind whoever is killed. Runs on the caller's thread (collective).
//
// A part has all its pages before it is sent, and is sealed against shrinking, which the receiver
// checks with its size: an access can never raise SIGBUS, whatever a peer does afterwards. Of a
// peer's part a rank maps what it touches, which of buckets is its own slice: a page that is mapped
// counts as resident memory of each process, and to map one that is there costs little.
//
// Note [private after failure]: a peer that was only stopped may wake up after the group has
// failed and go on writing into our part. So at a failure the mapping of our own part is replaced,
// at the same address and in one system call, by private memory with the same contents.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "comm/internal.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#define HUGE_BYTES ((size_t)2 << 20)
#define POLL_MS 20

// What goes with the descriptor.
typedef struct letter {
    uint32_t magic, seq;
    uint64_t nbytes;
} letter;

static size_t round_up(size_t nbytes, size_t unit) { return (nbytes + unit - 1) / unit * unit; }

static void choose_sizes(pl_segment *s, size_t nbytes) {
    s->filled = round_up(nbytes ? nbytes : 1, (size_t)sysconf(_SC_PAGESIZE));
    s->nbytes = nbytes >= HUGE_BYTES ? round_up(nbytes, HUGE_BYTES) : s->filled;
}

static void *map(int fd, size_t nbytes) {
    void *p = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) return NULL;
    if (nbytes >= HUGE_BYTES) (void)madvise(p, nbytes, MADV_HUGEPAGE);
    return p;
}

// This rank's part: memfd, mapping, all pages present, sealed.
static pl_status make_part(pl_segment *s, int *fd) {
    *fd = memfd_create("paceline", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (*fd < 0) return pl_fail(PL_ESYS, "[segment_new] memfd_create: %s", strerror(errno));
    if (ftruncate(*fd, (off_t)s->nbytes) != 0) {
        return pl_fail(PL_ESYS, "[segment_new] ftruncate to %zu bytes: %s", s->nbytes,
                       strerror(errno));
    }
    s->parts[s->rank] = map(*fd, s->nbytes);
    if (!s->parts[s->rank]) {
        return pl_fail(PL_ENOMEM, "[segment_new] cannot map %zu bytes: %s", s->nbytes,
                       strerror(errno));
    }
    // Through the mapping, so that huge pages are used; by fallocate where the kernel is older.
    if (madvise(s->parts[s->rank], s->filled, MADV_POPULATE_WRITE) != 0 &&
        fallocate(*fd, 0, 0, (off_t)s->filled) != 0) {
        return pl_fail(PL_ENOMEM, "[segment_new] no shared memory for %zu bytes: %s", s->filled,
                       strerror(errno));
    }
    if (fcntl(*fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
        return pl_fail(PL_ESYS, "[segment_new] cannot seal: %s", strerror(errno));
    }
    return PL_OK;
}

static int send_letter(int sock, const letter *l, int fd) {
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } u = {{0}};
    struct iovec iov = {(void *)(uintptr_t)l, sizeof *l};
    struct msghdr m = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = u.buf, .msg_controllen = sizeof u.buf};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
    return sendmsg(sock, &m, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)sizeof *l ? 0 : -1;
}

// The descriptor that came, or -1; 0 bytes (end of stream) is EPIPE.
static int receive_letter(int sock, letter *l) {
    union {
        char buf[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } u;
    struct iovec iov = {l, sizeof *l};
    struct msghdr m = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = u.buf, .msg_controllen = sizeof u.buf};
    ssize_t n = recvmsg(sock, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n < 0) return -1;
    int fd = -1;
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
        c->cmsg_len >= CMSG_LEN(sizeof(int))) {
        memcpy(&fd, CMSG_DATA(c), sizeof fd);
    }
    if (n == (ssize_t)sizeof *l && fd >= 0) return fd;
    if (fd >= 0) close(fd);
    errno = n == 0 ? EPIPE : EPROTO;
    return -1;
}

// Whether to try a socket call again: after a pause for `events`, with a look around.
static pl_status again(pl_group *g, pl__call *call, int peer, short events, int64_t deadline) {
    int err = errno;
    if (err == EAGAIN || err == EINTR || err == ENOBUFS) {
        struct pollfd p = {.fd = g->peer_fds[peer], .events = events};
        (void)poll(&p, 1, POLL_MS);
        return pl__look_around(g, call, peer, NULL, 0, deadline);
    }
    // The peer is ending: give its pidfd the time to say how.
    for (int i = 0; i < 10 && (err == EPIPE || err == ECONNRESET); i++) {
        (void)poll(NULL, 0, POLL_MS);
        PL_TRY(pl__look_around(g, call, peer, NULL, 0, deadline));
    }
    return pl_fail(PL_ESYS, "[%s] the socket to rank %d failed: %s", pl__op_name(call->op), peer,
                   strerror(err));
}

static pl_status exchange(pl_group *g, pl__call *call, pl_segment *s, int fd) {
    letter mine = {PL__CONTROL_MAGIC, (uint32_t)call->seq, s->nbytes}, theirs;
    int64_t deadline = pl_now_ns() + g->timeout_ns;
    for (int i = 1; i < g->world; i++) {
        int peer = (g->rank + i) % g->world;
        if (pl__is_remote(g, peer)) continue;
        while (send_letter(g->peer_fds[peer], &mine, fd) != 0) {
            PL_TRY(again(g, call, peer, POLLOUT, deadline));
        }
    }
    for (int i = 1; i < g->world; i++) {
        int peer = (g->rank + i) % g->world, got;
        if (pl__is_remote(g, peer)) continue;
        while ((got = receive_letter(g->peer_fds[peer], &theirs)) < 0) {
            PL_TRY(again(g, call, peer, POLLIN, deadline));
        }
        struct stat info;
        bool good = theirs.magic == mine.magic && theirs.seq == mine.seq &&
                    theirs.nbytes == s->nbytes && fstat(got, &info) == 0 &&
                    info.st_size >= (off_t)s->nbytes && (fcntl(got, F_GET_SEALS) & F_SEAL_SHRINK);
        s->parts[peer] = good ? map(got, s->nbytes) : NULL;
        int err = errno;
        // Messages come into all of an arena: no fault in the first of them.
        if (s->parts[peer] && call->op == PL__OP_GROUP_NEW) {
            (void)madvise(s->parts[peer], s->filled, MADV_POPULATE_WRITE);
        }
        close(got);
        if (!good) {
            return pl_fail(PL_ERUNTIME, "[%s] rank %d sent memory that is not what was agreed on",
                           pl__op_name(call->op), peer);
        }
        if (!s->parts[peer]) {
            return pl_fail(PL_ENOMEM, "[%s] cannot map %zu bytes of rank %d: %s",
                           pl__op_name(call->op), s->nbytes, peer, strerror(err));
        }
    }
    return PL_OK;
}

static void destroy(pl_segment *s) {
    for (int r = s->first; r < s->end; r++) {
        if (s->parts[r]) munmap(s->parts[r], s->nbytes);
    }
    pl_live_add(PL_KIND_SEGMENT, -1);
    pl_free(s);
}

pl_status pl__segment_make(pl_group *g, pl__call *call, pl_segment **out) {
    pl_segment *s = NULL;
    int fd = -1;
    void *p = NULL;
    pl_status st = pl_calloc(sizeof *s + sizeof(void *) * (size_t)g->world, &p);
    if (st == PL_OK) {
        s = p;
        pl_live_add(PL_KIND_SEGMENT, 1);
        *s = (pl_segment){.refs = 1, .rank = g->rank, .world = g->world};
        s->first = g->first;
        s->end = g->end;
        choose_sizes(s, (size_t)call->count);
        st = make_part(s, &fd);
    }
    if (st == PL_OK) st = exchange(g, call, s, fd);
    if (fd >= 0) close(fd);
    bool is_arena = call->op == PL__OP_GROUP_NEW;
    for (int r = 0; r < g->world && st == PL_OK && is_arena; r++) {
        if (pl__is_remote(g, r)) s->parts[r] = pl__mirror_arena(g, r);
    }
    // Before the step, after which messages for it may come. Release: the watch thread and the
    // inbox, which are there already, see it whole.
    if (st == PL_OK && is_arena) atomic_store_explicit(&g->arena, s, memory_order_release);
    // The last step: nobody goes on unless all have everything.
    if (st == PL_OK) st = pl__step(g, call);
    if (st != PL_OK) {
        if (s && s != atomic_load_explicit(&g->arena, memory_order_relaxed)) destroy(s);
        // A failure of this rank alone must not leave the others waiting.
        if (!atomic_load_explicit(&g->failed, memory_order_acquire))
            st = pl__fail_here(g, call, st);
        return st;
    }
    // The arena is the group's own: nobody reads it after a failure.
    if (!is_arena) pl__registry_add_segment(g, s);
    *out = s;
    return PL_OK;
}

pl_status pl_segment_new(pl_group *g, size_t nbytes, pl_site site, pl_segment **out) {
    if (nbytes > (size_t)1 << 46) {
        return pl_fail(PL_EINVAL, "[segment_new] too large: got %zu bytes", nbytes);
    }
    pl__call call = {
        .op = PL__OP_SEGMENT, .dtype = PL_U8, .root = -1, .site = site, .count = (int64_t)nbytes};
    PL_TRY(pl__run_sync(g, &call));  // the meeting; there is nothing to move
    return pl__segment_make(g, &call, out);
}

void pl__segment_make_private(pl_segment *s) {
    void *own = s->parts[s->rank];
    void *copy = mmap(NULL, s->nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED) return;  // no memory: the contents are undefined either way
    memcpy(copy, own, s->filled);
    if (mremap(copy, s->nbytes, s->nbytes, MREMAP_MAYMOVE | MREMAP_FIXED, own) == MAP_FAILED) {
        munmap(copy, s->nbytes);
    }
}

void pl_segment_retain(pl_segment *s) {
    atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
}

void pl_segment_release(pl_segment *s) {
    // Acquire and release: the last one sees all uses by the others before it unmaps.
    if (!s || atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) != 1) return;
    pl__registry_remove_segment(s);
    destroy(s);
}

void *pl_segment_data(pl_segment *s) { return s->parts[s->rank]; }

// SPDX-License-Identifier: Apache-2.0
// The layout of the control block: the memory that all ranks of a group on one machine share for
// everything but bulk data. It is a memfd, zeroed at birth; nothing here is ever a pointer. A rank
// of another machine has its slot here too: a mirror, see Note [mirrors] in net.h.
// Every field but the payloads is an atomic: any peer may die between any two stores, and a rank
// reads the others' fields at any time. Who may write a field is said beside it; all others only
// read it.
//
// Note [no locks in shared memory]: a process-shared mutex stays locked when its holder is killed.
// So ranks agree through words that have one writer each, and one word (`verdict`) that is set once
// by compare-and-swap. Waiting is a futex on the word of the rank that is waited for.
#ifndef PL_COMM_CONTROL_H
#define PL_COMM_CONTROL_H

#include <stdatomic.h>

#include "comm/comm.h"

#define PL__CONTROL_MAGIC 0x706c0001u  // "pl" and the version of this layout
#define PL__LINE 64                    // a cache line
#define PL__SMALL_BYTES 4096           // payload that travels with a fingerprint
#define PL__INLINE_BYTES 24            // payload that travels in the fingerprint's own cache line
#define PL__SITE_BYTES 128
#define PL__TEXT_BYTES 1024
#define PL__TABLE_BYTES 1920  // text of a verdict: a table of ranks fits

// What a rank is doing with its life. Only that rank writes it.
typedef enum pl__state {
    PL__JOINING = 0,  // also the state of a rank that has not come yet
    PL__RUNNING,
    PL__FINISHED,  // left in order; an error only for those who wait for it
    PL__FAILED,    // an exception ended it; slot.failure has its text
} pl__state;

// Fingerprint of a collective, 32 bytes: what must be equal on all ranks before data moves.
// The site is compared apart: it differs in a harmless way more often than not.
typedef struct pl__fingerprint {
    uint64_t count;  // elements, or bytes where the operation has no dtype
    uint64_t site;   // hash of the place in the user's program
    uint32_t seq;    // low half of the sequence number
    int32_t root;    // root, or bucket number, or -1
    uint8_t op, dtype, redop, flags;
    uint32_t extra;  // bucket: hash of offset and number of parameters; group_new: layout, world
} pl__fingerprint;
_Static_assert(sizeof(pl__fingerprint) == 32, "a fingerprint is 32 bytes");

// One published call. There are two, used in turn by the parity of seq, see
// Note [two records] in fingerprint.c. One cache line: a small collective moves just this.
typedef struct pl__record {
    _Alignas(PL__LINE) _Atomic uint32_t arrived;  // low half of seq + 1, stored last (release)
    uint32_t unused;
    _Atomic uint64_t fingerprint[4];
    unsigned char inlined[PL__INLINE_BYTES];  // a payload that fits; else it is in `payload`
} pl__record;
_Static_assert(sizeof(pl__record) == PL__LINE, "a record is one cache line");

// What a rank believes to have ended the group. Written once by that rank, before it offers it by
// compare-and-swap on `verdict`; never changed afterwards.
typedef struct pl__proposal {
    _Atomic uint32_t status;  // pl_status
    _Atomic uint32_t unused;
    _Atomic uint64_t dead[PL_MAX_RANKS / 64];  // bit r: rank r is to blame
    _Atomic uint64_t text[PL__TABLE_BYTES / 8];
} pl__proposal;

// One rank's part of the control block, written by that rank only (but `sleepers`). Fields that
// are written in different rhythms live on different cache lines.
typedef struct pl__slot {
    _Alignas(PL__LINE) _Atomic uint32_t state;  // pl__state
    _Atomic uint32_t pid;
    _Atomic uint64_t finished_seq;                     // calls made when it announced its end
    _Alignas(PL__LINE) _Atomic uint64_t heartbeat_ns;  // by its watch thread, CLOCK_MONOTONIC
    // How many threads sleep on a word of this slot, so that a post costs no system call when
    // nobody does. Written by the sleepers.
    _Alignas(PL__LINE) _Atomic uint32_t sleepers;
    _Alignas(PL__LINE) _Atomic uint32_t step;  // progress inside collectives; never reset
    pl__record record[2];
    _Alignas(PL__LINE) _Atomic uint64_t site[2][PL__SITE_BYTES / 8];  // texts of the records
    _Atomic uint64_t affinity[16];                 // processors it may run on, at joining
    _Atomic uint64_t failure[PL__TEXT_BYTES / 8];  // valid once state is PL__FAILED
    pl__proposal proposal;
    _Alignas(PL__LINE) unsigned char payload[2][PL__SMALL_BYTES];  // by parity, as record
} pl__slot;

typedef struct pl__control {
    _Alignas(PL__LINE) _Atomic uint32_t magic;
    // 0: the group is whole. r + 1: the proposal in slot r is what ended it. Set once, by
    // compare-and-swap, so that all survivors tell the same story.
    _Alignas(PL__LINE) _Atomic uint32_t verdict;
    // The same as it is offered to rank 0's machine, which decides; Note [one verdict] in
    // verdict.c.
    _Atomic uint32_t candidate;
    _Atomic uint64_t candidate_ns;  // since when
    // The lowest rank, which receives for this machine, does so no more.
    _Atomic uint32_t receiver_gone;
    pl__slot slots[];
} pl__control;

// Copies between private and shared memory, word by word with relaxed atomics: a reader may meet a
// writer (a text that is replaced while a peer prints it) and must get bytes, not undefined
// behaviour. Order comes from a release store or acquire load of a word beside them.
static inline void pl__shared_put(_Atomic uint64_t *dst, const void *src, size_t nbytes) {
    const unsigned char *p = src;
    for (size_t i = 0; i < nbytes; i += 8) {
        uint64_t w = 0;
        __builtin_memcpy(&w, p + i, nbytes - i < 8 ? nbytes - i : 8);
        atomic_store_explicit(&dst[i / 8], w, memory_order_relaxed);
    }
}

static inline void pl__shared_get(void *dst, const _Atomic uint64_t *src, size_t nbytes) {
    unsigned char *p = dst;
    for (size_t i = 0; i < nbytes; i += 8) {
        uint64_t w = atomic_load_explicit(&src[i / 8], memory_order_relaxed);
        __builtin_memcpy(p + i, &w, nbytes - i < 8 ? nbytes - i : 8);
    }
}

// Text into a shared field of `cap` bytes and out of it; cut to fit, always terminated.
void pl__shared_put_text(_Atomic uint64_t *dst, size_t cap, const char *text);
void pl__shared_get_text(char *dst, const _Atomic uint64_t *src, size_t cap);

#endif

// SPDX-License-Identifier: Apache-2.0
// What the ranks of a fake communicator share: a memfd of rank 0's, which the others open through
// /proc by what the unique id says. It has no name that could be left behind. Sparse: only what is
// used takes memory.
#ifndef VCUDA_NCCL_SEGMENT_H
#define VCUDA_NCCL_SEGMENT_H

#include <stdatomic.h>
#include <stdint.h>

enum { MOST_RANKS = 8 };
#define AREA_BYTES ((size_t)64 << 20)  // the most that one rank can put into a collective
#define BOX_BYTES ((size_t)16 << 20)   // the most that one rank can send another at once

// A collective as a rank makes it: equal on all ranks, or the job is wrong.
typedef struct what {
    uint64_t count;
    int32_t op, dtype, redop, root;
} what;

typedef struct rank_state {
    _Alignas(64) _Atomic uint32_t joined;
    _Alignas(64) _Atomic uint64_t posted;  // collectives whose input lies in this rank's area
    _Atomic uint64_t taken;                // collectives whose inputs this rank has read
    what said;                             // of the one posted last
} rank_state;

// Messages from one rank to another, one at a time.
typedef struct box {
    _Alignas(64) _Atomic uint64_t posted, taken;
    uint64_t nbytes;
} box;

typedef struct segment {
    uint32_t world;
    rank_state ranks[MOST_RANKS];
    box boxes[MOST_RANKS][MOST_RANKS];  // [from][to]
    _Alignas(4096) unsigned char data[];
} segment;

#define SEGMENT_BYTES \
    (sizeof(segment) + MOST_RANKS * AREA_BYTES + MOST_RANKS * MOST_RANKS * BOX_BYTES)

static inline unsigned char *area_of(segment *s, int rank) {
    return s->data + (size_t)rank * AREA_BYTES;
}

static inline unsigned char *box_data(segment *s, int from, int to) {
    return s->data + MOST_RANKS * AREA_BYTES + (size_t)(from * MOST_RANKS + to) * BOX_BYTES;
}

#endif

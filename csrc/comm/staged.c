// SPDX-License-Identifier: Apache-2.0
// Collectives on ordinary buffers that do not fit beside the fingerprint: staged through the
// arena in pieces that stay in the cache. Runs on the thread inside the group, after the meeting.
//
// Note [arena]: each rank's arena has two `in` areas, one `out` area and the mailboxes (p2p.c).
// A rank writes only into its own areas. A step is a barrier of the ranks inside the collective.
// No area is in use when a collective begins: its meeting proves that all have left the last one.
//
// One-step collectives (gathers, broadcast, scatters, and reductions of two ranks): for
// piece p, write in[p % 2], step, read everybody's in[p % 2]. A rank writes in[p % 2] again for
// piece p + 2, after step p + 1, which a peer makes only when it has done reading piece p.
//
// Two-step reductions (three ranks and more): write in[0]; step; fold the own slice of everybody's
// in[0] into out; step; copy every owner's slice of out. in[0] is written again after the second
// step, when all have folded; out is written again after the next first step, when all have
// copied. So every element is folded once, by its owner, and two ranks fold half as much each as
// one would alone.
//
// With two ranks each folds the whole piece for itself instead: one step less, and the same bits,
// since both fold rank 0 and rank 1 in that order with the same loops. On one machine each reads
// its own part where the user has it, which the cache has too.
//
// Between two machines a step takes as long as the link, so one piece is always under way: a rank
// writes and sends piece p, then waits for piece p - 1 and folds it. The areas are four smaller
// ones then. Whoever has sent piece p has folded piece p - 2; so a rank that writes piece p, having
// seen the peer's p - 2, knows that its p - 4, which stood in the same place, has been folded.
#include <string.h>

#include "comm/internal.h"
#include "comm/reduce.h"

#define AREA_BYTES ((size_t)256 * 1024)  // three of them and the user's piece fit a 1 MiB cache
#define AREAS 3
#define FAR_AREAS 4
#define FAR_BYTES (AREAS * AREA_BYTES / FAR_AREAS)

size_t pl__mail_offset(void) { return AREAS * AREA_BYTES; }

size_t pl__area_row(const pl_group *g) {
    return AREA_BYTES / (size_t)g->world / PL__LINE * PL__LINE;
}

char *pl__area(const pl_group *g, int rank, int which) {
    const pl_segment *arena = atomic_load_explicit(&g->arena, memory_order_relaxed);  // set once
    return (char *)arena->parts[rank] + (size_t)which * AREA_BYTES;
}

pl_status pl__show(pl_group *g, pl__call *call, int which, size_t skip, size_t n) {
    PL_TRY(pl__net_area(g, call, which, skip, n));
    return pl__step(g, call);
}

pl_status pl__show_rows(pl_group *g, pl__call *call, int which, size_t n) {
    PL_TRY(pl__net_rows(g, call, which, n));
    return pl__step(g, call);
}

// The elements of a piece of n that `rank` owns: whole cache lines, but at the end.
static int64_t slice_begin(const pl_group *g, int64_t n, size_t size, int rank) {
    int64_t line = PL__LINE / (int64_t)size;
    int64_t lines = (n + line - 1) / line;
    int64_t at = lines * rank / g->world * line;
    return at < n ? at : n;
}

// dst of `rank`'s fold of m elements that stand `skip` bytes into everybody's area.
static void fold(const pl_group *g, const pl__call *call, int which, size_t skip, int64_t m,
                 void *out) {
    const void *src[PL_MAX_RANKS];
    void *dst[1] = {out};
    for (int r = 0; r < g->world; r++) src[r] = pl__area(g, r, which) + skip;
    pl__reduce(src, g->world, dst, 1, m, call->dtype, call->redop);
}

static bool wants_result(const pl_group *g, const pl__call *call) {
    return call->op != PL__OP_REDUCE || call->root == g->rank;
}

// Of two ranks near each other: the own part is where it was copied from.
static void fold_with_peer(const pl_group *g, const pl__call *call, int which, int64_t m,
                           char *user) {
    const void *src[2] = {user, user};
    void *dst[1] = {user};
    src[!g->rank] = pl__area(g, !g->rank, which);
    pl__reduce(src, 2, dst, 1, m, call->dtype, call->redop);
}

static pl_status reduce_of_two_near(pl_group *g, pl__call *call) {
    size_t size = pl_dtype_size(call->dtype);
    int64_t piece = (int64_t)(AREA_BYTES / size);
    for (int64_t i = 0, p = 0; i < call->count; i += piece, p++) {
        int64_t m = call->count - i < piece ? call->count - i : piece;
        char *user = (char *)call->out + (size_t)i * size;
        memcpy(pl__area(g, g->rank, (int)(p & 1)), user, (size_t)m * size);
        PL_TRY(pl__show(g, call, (int)(p & 1), 0, (size_t)m * size));
        if (wants_result(g, call)) fold_with_peer(g, call, (int)(p & 1), m, user);
    }
    return PL_OK;
}

// Two ranks on two machines: one piece ahead.
static pl_status reduce_of_two_far(pl_group *g, pl__call *call) {
    size_t size = pl_dtype_size(call->dtype);
    int64_t piece = (int64_t)(FAR_BYTES / size), pieces = (call->count + piece - 1) / piece;
    for (int64_t p = 0; p <= pieces; p++) {
        if (p < pieces) {
            int64_t left = call->count - p * piece, m = left < piece ? left : piece;
            size_t skip = (size_t)(p % FAR_AREAS) * FAR_BYTES, n = (size_t)m * size;
            memcpy(pl__area(g, g->rank, 0) + skip, (char *)call->out + (size_t)(p * piece) * size,
                   n);
            PL_TRY(pl__net_area(g, call, 0, skip, n));
            PL_TRY(pl__step_post(g, call));
        }
        if (p == 0) continue;
        PL_TRY(pl__step_await(g, call, p < pieces ? 1 : 0));
        if (!wants_result(g, call)) continue;
        int64_t i = (p - 1) * piece, left = call->count - i, m = left < piece ? left : piece;
        fold(g, call, 0, (size_t)((p - 1) % FAR_AREAS) * FAR_BYTES, m,
             (char *)call->out + (size_t)i * size);
    }
    return PL_OK;
}

static pl_status reduce_of_two(pl_group *g, pl__call *call) {
    return g->net ? reduce_of_two_far(g, call) : reduce_of_two_near(g, call);
}

// The bytes of a piece of m elements that the ranks [from, to) own.
typedef struct span {
    int64_t begin, n;  // elements
    size_t skip, bytes;
} span;

static span owned(const pl_group *g, int64_t m, size_t size, int from, int to) {
    span s = {.begin = slice_begin(g, m, size, from)};
    s.n = slice_begin(g, m, size, to) - s.begin;
    s.skip = (size_t)s.begin * size;
    s.bytes = (size_t)s.n * size;
    return s;
}

// Area 2 of every owner holds its slice of the result: takes it home.
static pl_status take_slices(pl_group *g, pl__call *call, char *user, int64_t m, size_t size) {
    span mine = owned(g, m, size, g->rank, g->rank + 1);
    PL_TRY(pl__show(g, call, 2, mine.skip, mine.bytes));
    for (int r = 0; r < g->world && wants_result(g, call); r++) {
        span s = owned(g, m, size, r, r + 1);
        memcpy(user + s.skip, pl__area(g, r, 2) + s.skip, s.bytes);
    }
    return PL_OK;
}

// Own slices go through the areas of all ranks; to another machine goes what its ranks own.
static pl_status fold_slices(pl_group *g, pl__call *call, int64_t m, size_t size) {
    for (int k = 0; g->net && k < g->net->n_machines; k++) {
        span theirs = owned(g, m, size, g->net->first[k], g->net->first[k + 1]);
        PL_TRY(pl__net_area_to(g, call, k, 0, theirs.skip, theirs.bytes));
    }
    PL_TRY(pl__step(g, call));
    span mine = owned(g, m, size, g->rank, g->rank + 1);
    if (mine.n) fold(g, call, 0, mine.skip, mine.n, pl__area(g, g->rank, 2) + mine.skip);
    return PL_OK;
}

// Note [two levels]: with one power of two of ranks on each machine, the tree over all ranks is the
// tree over the machines of the trees inside them (Note [the tree], reduce.h). So the i-th rank of
// a machine folds its own machine's part of every slice that an i-th rank owns, in the type of the
// accumulator and unrounded, into area 1, one after another by machine; each goes to its owner's
// machine; and the owner folds what the machines made. Between machines goes one part per machine
// and not one per rank. The half types need twice the room there, and have it: a rank folds at
// most half of the piece.
static pl_status fold_two_levels(pl_group *g, pl__call *call, int64_t m, size_t size) {
    int width = g->net->width, index = g->rank - g->first;
    size_t acc = pl_dtype_size(pl__reduce_acc(call->dtype)), at = 0, mine_at = 0;
    const void *src[PL_MAX_RANKS];
    PL_TRY(pl__step_here(g, call));
    for (int k = 0; k < g->net->n_machines; k++) {
        int owner = g->net->first[k] + index;
        span s = owned(g, m, size, owner, owner + 1);
        for (int r = 0; r < width; r++) src[r] = pl__area(g, g->first + r, 0) + s.skip;
        if (s.n) {
            pl__reduce_block(src, width, pl__area(g, g->rank, 1) + at, s.n, call->dtype,
                             call->redop);
        }
        PL_TRY(pl__net_area_to(g, call, k, 1, at, (size_t)s.n * acc));
        if (owner == g->rank) mine_at = at;
        at += (size_t)s.n * acc;
    }
    PL_TRY(pl__step(g, call));
    span mine = owned(g, m, size, g->rank, g->rank + 1);
    for (int k = 0; k < g->net->n_machines; k++) {
        src[k] = pl__area(g, g->net->first[k] + index, 1) + mine_at;
    }
    if (mine.n) {
        pl__reduce_blocks(src, g->net->n_machines, pl__area(g, g->rank, 2) + mine.skip, mine.n,
                          call->dtype, call->redop, g->world);
    }
    return PL_OK;
}

static pl_status reduce_of_many(pl_group *g, pl__call *call) {
    size_t size = pl_dtype_size(call->dtype);
    int64_t piece = (int64_t)(AREA_BYTES / size);
    bool two_levels = g->net && g->net->width;
    for (int64_t i = 0; i < call->count; i += piece) {
        int64_t m = call->count - i < piece ? call->count - i : piece;
        char *user = (char *)call->out + (size_t)i * size;
        memcpy(pl__area(g, g->rank, 0), user, (size_t)m * size);
        PL_TRY(two_levels ? fold_two_levels(g, call, m, size) : fold_slices(g, call, m, size));
        PL_TRY(take_slices(g, call, user, m, size));
    }
    return PL_OK;
}

static pl_status reduce_scatter(pl_group *g, pl__call *call) {
    size_t size = pl_dtype_size(call->dtype), row = (size_t)call->count * size;
    int64_t piece = (int64_t)(pl__area_row(g) / size);
    for (int64_t i = 0, p = 0; i < call->count; i += piece, p++) {
        int64_t m = call->count - i < piece ? call->count - i : piece;
        size_t n = (size_t)m * size, at = (size_t)i * size;
        char *in = pl__area(g, g->rank, (int)(p & 1));
        for (int r = 0; r < g->world; r++) {
            memcpy(in + (size_t)r * n, (const char *)call->in + (size_t)r * row + at, n);
        }
        PL_TRY(pl__show_rows(g, call, (int)(p & 1), n));
        fold(g, call, (int)(p & 1), (size_t)g->rank * n, m, (char *)call->out + at);
    }
    return PL_OK;
}

// all_gather, and gather, where only the root reads.
static pl_status all_gather(pl_group *g, pl__call *call) {
    size_t row = (size_t)call->count * pl_dtype_size(call->dtype);
    bool reads = call->op == PL__OP_ALL_GATHER || call->root == g->rank;
    for (size_t at = 0, p = 0; at < row; at += AREA_BYTES, p++) {
        size_t n = row - at < AREA_BYTES ? row - at : AREA_BYTES;
        const char *mine = (const char *)call->in + at;
        memcpy(pl__area(g, g->rank, (int)(p & 1)), mine, n);
        PL_TRY(pl__show(g, call, (int)(p & 1), 0, n));
        for (int r = 0; r < g->world && reads; r++) {
            char *to = (char *)call->out + (size_t)r * row + at;
            const char *from = r == g->rank ? mine : pl__area(g, r, (int)(p & 1));
            if (to != from) memmove(to, from, n);  // in may be this rank's place in out
        }
    }
    return PL_OK;
}

static pl_status broadcast(pl_group *g, pl__call *call) {
    size_t total = (size_t)call->count * pl_dtype_size(call->dtype);
    bool root = g->rank == call->root;
    for (size_t at = 0, p = 0; at < total; at += AREA_BYTES, p++) {
        size_t n = total - at < AREA_BYTES ? total - at : AREA_BYTES;
        char *user = (char *)call->out + at;
        if (root) memcpy(pl__area(g, g->rank, (int)(p & 1)), user, n);
        PL_TRY(pl__show(g, call, (int)(p & 1), 0, root ? n : 0));
        if (!root) memcpy(user, pl__area(g, call->root, (int)(p & 1)), n);
    }
    return PL_OK;
}

static pl_status scatter(pl_group *g, pl__call *call) {
    size_t row = (size_t)call->count * pl_dtype_size(call->dtype), piece = pl__area_row(g);
    bool root = g->rank == call->root;
    for (size_t at = 0, p = 0; at < row; at += piece, p++) {
        size_t n = row - at < piece ? row - at : piece;
        int which = (int)(p & 1);
        for (int r = 0; r < g->world && root; r++) {
            memcpy(pl__area(g, g->rank, which) + (size_t)r * n,
                   (const char *)call->in + (size_t)r * row + at, n);
        }
        PL_TRY(pl__show_rows(g, call, which, root ? n : 0));
        memcpy((char *)call->out + at, pl__area(g, call->root, which) + (size_t)g->rank * n, n);
    }
    return PL_OK;
}

pl_status pl__staged_move(pl_group *g, pl__call *call) {
    switch (call->op) {
        case PL__OP_ALL_REDUCE:
        case PL__OP_BUCKET:
        case PL__OP_REDUCE:
            return g->world == 2 ? reduce_of_two(g, call) : reduce_of_many(g, call);
        case PL__OP_REDUCE_SCATTER:
            return reduce_scatter(g, call);
        case PL__OP_ALL_GATHER:
        case PL__OP_GATHER:
            return all_gather(g, call);
        case PL__OP_BROADCAST:
            return broadcast(g, call);
        case PL__OP_SCATTER:
            return scatter(g, call);
        default:
            return pl_fail(PL_EBUG, "[%s] does not move data", pl__op_name(call->op));
    }
}

// SPDX-License-Identifier: Apache-2.0
// all_to_all: rank i's rows for rank j go to rank j's place for rank i. Knows the arena of
// staged.c; runs on the thread inside the group.
//
// The meeting carries every rank's splits, so each rank checks all pairs and all find the same
// difference before data moves. Then, for piece p, every rank writes the next part of its rows for
// rank j into row j of in[p % 2], step, and reads its own row of everybody's. All know the longest
// chunk of all pairs, so all make the same number of steps.
#include <stdio.h>
#include <string.h>

#include "comm/internal.h"

size_t pl__splits_bytes(const pl_group *g) { return (size_t)g->world * 2 * sizeof(int64_t); }
_Static_assert(PL_MAX_RANKS * 2 * sizeof(int64_t) <= PL__SMALL_BYTES, "splits fit beside the call");

// Rows that `from` says it sends to `to`, or (by_receiver) that `to` says it gets from `from`.
static int64_t rows(const pl_group *g, const pl__call *call, int from, int to, bool by_receiver) {
    const char *p = pl__met_payload(g, call, by_receiver ? to : from, pl__splits_bytes(g));
    int64_t n;
    memcpy(&n, p + sizeof n * (size_t)(by_receiver ? g->world + from : to), sizeof n);
    return n;
}

static pl_status mismatch(pl_group *g, pl__call *call, int from, int to) {
    char text[PL__TABLE_BYTES], sites[2][PL__SITE_BYTES];
    int who[2] = {from, to};
    for (int i = 0; i < 2; i++) {
        pl__shared_get_text(sites[i], g->control->slots[who[i]].site[call->seq & 1],
                            sizeof sites[i]);
    }
    unsigned long long seq = call->seq;
    snprintf(text, sizeof text,
             "ranks disagree on splits at seq %llu\n"
             "  rank=%d, splits=%lld rows to rank %d, op=all_to_all, seq=%llu, at %s\n"
             "  rank=%d, splits=%lld rows from rank %d, op=all_to_all, seq=%llu, at %s",
             seq, from, (long long)rows(g, call, from, to, false), to, seq, sites[0], to,
             (long long)rows(g, call, from, to, true), from, seq, sites[1]);
    (void)pl__propose(g, PL_EMISMATCH, NULL, text);
    return pl__fail_verdict(g, call);
}

// Compares all pairs; gives the longest chunk in rows.
static pl_status compare(pl_group *g, pl__call *call, int64_t *longest) {
    *longest = 0;
    for (int from = 0; from < g->world; from++) {
        for (int to = 0; to < g->world; to++) {
            int64_t n = rows(g, call, from, to, false);
            if (n != rows(g, call, from, to, true)) return mismatch(g, call, from, to);
            if (n > *longest) *longest = n;
        }
    }
    return PL_OK;
}

pl_status pl__splits_check(pl_group *g, pl__call *call) {
    int64_t longest;
    return compare(g, call, &longest);
}

// The part of a chunk of `chunk` bytes that piece p carries.
static size_t part_of(size_t chunk, size_t at, size_t piece) {
    if (chunk <= at) return 0;
    return chunk - at < piece ? chunk - at : piece;
}

pl_status pl__all_to_all_move(pl_group *g, pl__call *call) {
    size_t row = (size_t)call->count * pl_dtype_size(call->dtype), piece = pl__area_row(g);
    int64_t longest;
    PL_TRY(compare(g, call, &longest));
    size_t end = (size_t)longest * row;
    for (size_t at = 0, p = 0; at < end; at += piece, p++) {
        int which = (int)(p & 1);
        const char *in = call->in;
        for (int r = 0; r < g->world; r++) {
            size_t chunk = (size_t)call->splits[r] * row, n = part_of(chunk, at, piece);
            if (n) memcpy(pl__area(g, g->rank, which) + (size_t)r * piece, in + at, n);
            in += chunk;
        }
        PL_TRY(pl__show_rows(g, call, which, piece));
        char *out = call->out;
        for (int r = 0; r < g->world; r++) {
            size_t chunk = (size_t)call->splits[g->world + r] * row;
            size_t n = part_of(chunk, at, piece);
            if (n) memcpy(out + at, pl__area(g, r, which) + (size_t)g->rank * piece, n);
            out += chunk;
        }
    }
    return PL_OK;
}

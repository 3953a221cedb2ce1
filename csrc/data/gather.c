// SPDX-License-Identifier: Apache-2.0
// Rows of an array by index. Neighbouring rows are copied as one block, so that reading in order
// is one memcpy; the head of a row further on is asked for early, since its place is random.
// Threads: no state; any thread.
#include <string.h>

#include "data/data.h"

enum {
    GRAIN_BYTES = 1 << 16,  // a piece of a parallel gather: below this a thread costs more
    AHEAD_ROWS = 2,         // whose first lines are prefetched; the processor streams the rest
    AHEAD_LINES = 8,
    LINE = 64
};

static pl_status check_index(const pl_rows *rows, const int64_t *index, int64_t count) {
    int64_t low = 0, high = -1;
    for (int64_t i = 0; i < count; i++) {
        low = index[i] < low ? index[i] : low;
        high = index[i] > high ? index[i] : high;
    }
    if (low >= -rows->n && high < rows->n) return PL_OK;
    return pl_fail(PL_EINDEX, "[DataLoader] index out of range: got %lld, expected %lld to %lld",
                   (long long)(high < rows->n ? low : high), (long long)-rows->n,
                   (long long)rows->n - 1);
}

typedef struct gather_ctx {
    const pl_rows *rows;
    const int64_t *index;
    char *out;
} gather_ctx;

static const char *row_at(const gather_ctx *c, int64_t i) {
    int64_t at = c->index[i];
    if (at < 0) at += c->rows->n;
    return (const char *)c->rows->data + at * c->rows->stride_bytes;
}

static void ask_ahead(const gather_ctx *c, int64_t i, int64_t end) {
    if (i + AHEAD_ROWS >= end) return;
    const char *row = row_at(c, i + AHEAD_ROWS);
    int64_t bytes = c->rows->row_bytes;
    for (int64_t at = 0; at < bytes && at < AHEAD_LINES * LINE; at += LINE) {
        __builtin_prefetch(row + at, 0, 1);
    }
}

static void gather_range(int64_t begin, int64_t end, void *ctx) {
    const gather_ctx *c = ctx;
    int64_t bytes = c->rows->row_bytes;
    bool dense = c->rows->stride_bytes == bytes;
    for (int64_t i = begin; i < end;) {
        int64_t stop = i + 1;
        // A negative index stands for another place: it ends a run, unless all of it is negative.
        while (dense && stop < end && c->index[stop] == c->index[stop - 1] + 1 &&
               c->index[stop] != 0) {
            stop++;
        }
        if (stop == i + 1) ask_ahead(c, i, end);
        memcpy(c->out + i * bytes, row_at(c, i), (size_t)((stop - i) * bytes));
        i = stop;
    }
}

pl_status pl_data_gather(const pl_rows *rows, const int64_t *index, int64_t count, bool parallel,
                         void *out) {
    PL_TRY(check_index(rows, index, count));
    if (rows->row_bytes == 0) return PL_OK;
    gather_ctx c = {rows, index, out};
    int64_t grain = GRAIN_BYTES / rows->row_bytes;
    if (parallel) {
        pl_parallel_for(count, grain > 0 ? grain : 1, gather_range, &c);
    } else {
        gather_range(0, count, &c);
    }
    return PL_OK;
}

// SPDX-License-Identifier: Apache-2.0
// Rows of an array by index. Neighbouring rows are copied as one block, so that reading in order
// is one memcpy. Rows in random places are asked for early, in two steps, since the processor
// cannot guess where the next one is: the translation of its address far ahead (it takes a walk
// through page tables, of the host too on a virtual machine), its lines when they are soon wanted.
// Threads: no state; any thread.
#include <string.h>

#include "data/data.h"

enum {
    GRAIN_BYTES = 1 << 16,  // a piece of a parallel gather: below this a thread costs more
    // The same where rows follow one another. One core copies 35 GB/s, two awake ones 50; but a
    // thread that sleeps takes 30 us to wake up, the time of this piece, and where anything else
    // runs two threads now and then share one processor, which costs a time slice of 8 ms.
    STREAM_BYTES = 1 << 20,
    FAR_ROWS = 16,          // ahead: the addresses of first and last byte are translated
    NEAR_BYTES = 6 << 10,   // ahead: lines are fetched, at least of the next row ...
    NEAR_MAX_BYTES = 8192,  // ... and at most so much of a row: the processor streams the rest
    LINE = 64
};

// *runs: stretches of rows that follow one another.
static pl_status check_index(const pl_rows *rows, const int64_t *index, int64_t count,
                             int64_t *runs) {
    int64_t low = 0, high = -1;
    *runs = count > 0;
    for (int64_t i = 0; i < count; i++) {
        low = index[i] < low ? index[i] : low;
        high = index[i] > high ? index[i] : high;
        *runs += i > 0 && (uint64_t)index[i] != (uint64_t)index[i - 1] + 1;
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

// Row i is about to be copied; rows up to `end` follow. near: rows ahead whose lines are fetched.
static void ask_ahead(const gather_ctx *c, int64_t i, int64_t end, int64_t near) {
    int64_t bytes = c->rows->row_bytes;
    if (i + FAR_ROWS < end) {
        const char *row = row_at(c, i + FAR_ROWS);
        __builtin_prefetch(row);
        __builtin_prefetch(row + bytes - 1);
    }
    if (i + near >= end) return;
    const char *row = row_at(c, i + near);
    for (int64_t at = 0; at < bytes && at < NEAR_MAX_BYTES; at += LINE) {
        __builtin_prefetch(row + at);
    }
}

static int64_t rows_near(int64_t row_bytes) {
    int64_t rows = NEAR_BYTES / row_bytes + 1;
    return rows < FAR_ROWS ? rows : FAR_ROWS;
}

static void gather_range(int64_t begin, int64_t end, void *ctx) {
    const gather_ctx *c = ctx;
    int64_t bytes = c->rows->row_bytes;
    bool dense = c->rows->stride_bytes == bytes;
    int64_t near = rows_near(bytes);
    for (int64_t i = begin; i < end;) {
        int64_t stop = i + 1;
        // A negative index stands for another place: it ends a run, unless all of it is negative.
        while (dense && stop < end && c->index[stop] == c->index[stop - 1] + 1 &&
               c->index[stop] != 0) {
            stop++;
        }
        if (stop == i + 1) ask_ahead(c, i, end, near);
        memcpy(c->out + i * bytes, row_at(c, i), (size_t)((stop - i) * bytes));
        i = stop;
    }
}

pl_status pl_data_gather(const pl_rows *rows, const int64_t *index, int64_t count, bool parallel,
                         void *out) {
    int64_t runs;
    PL_TRY(check_index(rows, index, count, &runs));
    if (rows->row_bytes == 0) return PL_OK;
    gather_ctx c = {rows, index, out};
    bool streams = runs * GRAIN_BYTES <= count * rows->row_bytes;
    int64_t grain = (streams ? STREAM_BYTES : GRAIN_BYTES) / rows->row_bytes;
    if (parallel) {
        pl_parallel_for(count, grain > 0 ? grain : 1, gather_range, &c);
    } else {
        gather_range(0, count, &c);
    }
    return PL_OK;
}

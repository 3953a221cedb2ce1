// SPDX-License-Identifier: Apache-2.0
// Index lists of samplers. Both kinds are closed forms over one "stream": the order, continued for
// ever by looping over its first `loop` samples.
// Threads: no state; any thread.
#include "data/data.h"

static pl_status check_rank(const char *op, int64_t n, int world, int rank) {
    if (n < 0) return pl_fail(PL_EINVAL, "[%s] negative size: got %lld", op, (long long)n);
    if (world < 1) return pl_fail(PL_EINVAL, "[%s] ranks: got %d, expected 1 or more", op, world);
    if (rank < 0 || rank >= world) {
        return pl_fail(PL_EINVAL, "[%s] rank out of range: got %d, expected 0 to %d", op, rank,
                       world - 1);
    }
    return PL_OK;
}

// Sample at place i of the stream: past the end it goes round the first `loop` samples.
static int64_t stream_at(const int64_t *order, int64_t n, int64_t loop, int64_t i) {
    int64_t at = i < n ? i : (i - n) % loop;
    return order != NULL ? order[at] : at;
}

pl_status pl_data_distributed_count(int64_t n, int world, int rank, bool drop_last, int64_t *out) {
    PL_TRY(check_rank("distributed_indices", n, world, rank));
    *out = drop_last ? n / world : n / world + (n % world != 0);
    return PL_OK;
}

pl_status pl_data_distributed_fill(const int64_t *order, int64_t n, int world, int rank,
                                   bool drop_last, int64_t *out) {
    int64_t count;
    PL_TRY(pl_data_distributed_count(n, world, rank, drop_last, &count));
    for (int64_t i = 0; i < count; i++) out[i] = stream_at(order, n, n, rank + i * world);
    return PL_OK;
}

static pl_status check_shard(const pl_data_shard *s) {
    PL_TRY(check_rank("shard_batches", s->n, s->world, s->rank));
    if (s->batch_size < 1) {
        return pl_fail(PL_EINVAL, "[shard_batches] batch_size: got %lld, expected 1 or more",
                       (long long)s->batch_size);
    }
    if (s->split && s->batch_size % s->world != 0) {
        return pl_fail(PL_EINVAL,
                       "[shard_batches] split_batches needs a batch_size that the %d ranks divide: "
                       "got %lld",
                       s->world, (long long)s->batch_size);
    }
    return PL_OK;
}

// Range [*from, *to) of the stream that is batch b of this rank.
static void shard_range(const pl_data_shard *s, int64_t b, int64_t *from, int64_t *to) {
    int64_t part = s->split ? s->batch_size / s->world : s->batch_size;
    *from = (b * s->world + s->rank) * part;
    *to = *from + part;
    if (!s->even && !s->drop_last) {
        if (*from > s->n) *from = s->n;
        if (*to > s->n) *to = s->n;
    }
}

pl_status pl_data_shard_count(const pl_data_shard *s, int64_t *n_batches, int64_t *n_indices) {
    PL_TRY(check_shard(s));
    // A round is what all ranks take together: `world` batches, or one batch that is split.
    int64_t part = s->split ? s->batch_size / s->world : s->batch_size;
    int64_t round = part * s->world;
    int64_t full = s->n / round;
    int64_t rest = s->n % round;
    *n_batches = full;
    *n_indices = full * part;
    if (rest == 0 || s->drop_last) return PL_OK;
    int64_t from, to;
    shard_range(s, full, &from, &to);
    if (to > from) {
        *n_batches += 1;
        *n_indices += to - from;
    }
    return PL_OK;
}

pl_status pl_data_shard_fill(const pl_data_shard *s, const int64_t *order, int64_t *indices,
                             int64_t *offsets) {
    int64_t n_batches, n_indices;
    PL_TRY(pl_data_shard_count(s, &n_batches, &n_indices));
    int64_t first = s->split ? s->batch_size : s->batch_size * s->world;
    int64_t loop = s->n < first ? s->n : first;
    int64_t at = 0;
    offsets[0] = 0;
    for (int64_t b = 0; b < n_batches; b++) {
        int64_t from, to;
        shard_range(s, b, &from, &to);
        for (int64_t i = from; i < to; i++) indices[at++] = stream_at(order, s->n, loop, i);
        offsets[b + 1] = at;
    }
    return PL_OK;
}

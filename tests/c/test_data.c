// SPDX-License-Identifier: Apache-2.0
// Tests of csrc/data: over all small sizes, the shares of all ranks together are the order, and
// nothing is written past a list's end (the sanitizers watch lists of exactly the counted size).
#include "test.h"

#include "data/data.h"

// A list of n indices in memory of its own, so that a write past its end is seen.
static int64_t *list_of(int64_t n) {
    int64_t *p = malloc(n > 0 ? (size_t)n * sizeof *p : 1);
    CHECK(p != NULL);
    return p;
}

static void check_distributed(int64_t n, int world, bool drop_last) {
    int64_t order[16];
    for (int64_t i = 0; i < n; i++) order[i] = 100 + i;
    for (int rank = 0; rank < world; rank++) {
        int64_t count;
        CHECK_OK(pl_data_distributed_count(n, world, rank, drop_last, &count));
        CHECK(count == (drop_last ? n / world : (n + world - 1) / world));
        int64_t *out = list_of(count);
        CHECK_OK(pl_data_distributed_fill(order, n, world, rank, drop_last, out));
        for (int64_t i = 0; i < count; i++) CHECK(out[i] == 100 + (rank + i * world) % n);
        free(out);
    }
}

TEST(distributed_lists) {
    for (int64_t n = 0; n <= 13; n++) {
        for (int world = 1; world <= 6; world++) {
            check_distributed(n, world, false);
            check_distributed(n, world, true);
        }
    }
}

// Counts how often each sample is read by all ranks; gives the batches of the fullest rank.
static void read_all(pl_data_shard s, int64_t *seen, int64_t *most, int64_t *least) {
    *most = 0;
    *least = INT64_MAX;
    for (s.rank = 0; s.rank < s.world; s.rank++) {
        int64_t n_batches, n_indices;
        CHECK_OK(pl_data_shard_count(&s, &n_batches, &n_indices));
        int64_t *indices = list_of(n_indices), *offsets = list_of(n_batches + 1);
        CHECK_OK(pl_data_shard_fill(&s, NULL, indices, offsets));
        CHECK(offsets[0] == 0 && offsets[n_batches] == n_indices);
        for (int64_t i = 0; i < n_indices; i++) {
            CHECK(indices[i] >= 0 && indices[i] < s.n);
            seen[indices[i]]++;
        }
        int64_t part = s.split ? s.batch_size / s.world : s.batch_size;
        for (int64_t b = 0; b < n_batches; b++) {
            int64_t size = offsets[b + 1] - offsets[b];
            CHECK(size >= 1 && size <= part);
            if (s.even || s.drop_last) CHECK(size == part);
        }
        if (n_batches > *most) *most = n_batches;
        if (n_batches < *least) *least = n_batches;
        free(indices);
        free(offsets);
    }
}

static void check_shard(pl_data_shard s) {
    int64_t seen[32] = {0}, most, least;
    read_all(s, seen, &most, &least);
    if (s.even || s.drop_last) CHECK(most == least);
    for (int64_t i = 0; i < s.n; i++) {
        if (s.drop_last) {
            CHECK(seen[i] <= 1);
        } else if (s.even) {
            CHECK(seen[i] >= 1);
        } else {
            CHECK(seen[i] == 1);
        }
    }
}

TEST(every_sample_goes_where_the_rules_say) {
    for (int flags = 0; flags < 8; flags++) {
        for (int world = 1; world <= 4; world++) {
            for (int64_t size = 1; size <= 4; size++) {
                for (int64_t n = 0; n <= 27; n++) {
                    pl_data_shard s = {.n = n, .batch_size = size, .world = world};
                    s.drop_last = (flags & 1) != 0;
                    s.even = (flags & 2) != 0;
                    s.split = (flags & 4) != 0;
                    if (s.split) s.batch_size *= world;
                    check_shard(s);
                }
            }
        }
    }
}

TEST(wrong_arguments_are_refused) {
    int64_t a, b;
    CHECK_FAILS(pl_data_distributed_count(-1, 1, 0, false, &a), PL_EINVAL, "got -1");
    CHECK_FAILS(pl_data_distributed_count(1, 0, 0, false, &a), PL_EINVAL, "got 0");
    CHECK_FAILS(pl_data_distributed_count(1, 2, 2, false, &a), PL_EINVAL, "got 2");
    pl_data_shard s = {.n = 4, .batch_size = 3, .world = 2, .split = true};
    CHECK_FAILS(pl_data_shard_count(&s, &a, &b), PL_EINVAL, "split_batches");
    s.batch_size = 0;
    CHECK_FAILS(pl_data_shard_count(&s, &a, &b), PL_EINVAL, "got 0");
}

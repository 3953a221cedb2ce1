// SPDX-License-Identifier: Apache-2.0
// Tests of gathering, of the thread that does it ahead, and of shared segments.
#include <pthread.h>
#include <sys/mman.h>

#include "test.h"

#include "data/data.h"

// rows (n, bytes) with a value that tells row and byte apart.
static unsigned char *rows_of(int64_t n, int64_t bytes, int64_t stride) {
    unsigned char *p = malloc((size_t)(n * stride) + 1);
    CHECK(p != NULL);
    for (int64_t r = 0; r < n; r++) {
        for (int64_t b = 0; b < stride; b++) {
            p[r * stride + b] = b < bytes ? (unsigned char)(r * 31 + b * 7) : 0xEE;
        }
    }
    return p;
}

static void check_gather(const pl_rows *rows, const int64_t *index, int64_t count, bool parallel) {
    unsigned char *out = malloc((size_t)(count * rows->row_bytes) + 1);
    CHECK(out != NULL);
    CHECK_OK(pl_data_gather(rows, index, count, parallel, out));
    for (int64_t i = 0; i < count; i++) {
        int64_t r = index[i] < 0 ? index[i] + rows->n : index[i];
        const char *want = (const char *)rows->data + r * rows->stride_bytes;
        CHECK(memcmp(out + i * rows->row_bytes, want, (size_t)rows->row_bytes) == 0);
    }
    free(out);
}

TEST(gather_is_row_by_row) {
    // Runs, jumps, repeats, negatives, and a run of negatives that would step over to 0.
    const int64_t index[] = {0, 1, 2, 5, 5, 4, 9, -1, 0, -3, -2, -1, 0, 1, -10, 8, 9};
    const int64_t sizes[] = {0, 1, 8, 100, 3136, 70000};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (int64_t gap = 0; gap <= 3; gap += 3) {
            unsigned char *data = rows_of(10, sizes[s], sizes[s] + gap);
            pl_rows rows = {data, 10, sizes[s], sizes[s] + gap};
            for (int64_t count = 0; count <= 17; count++) {
                check_gather(&rows, index, count, count % 2 == 0);
            }
            free(data);
        }
    }
}

TEST(gather_refuses_what_is_not_there) {
    unsigned char *data = rows_of(3, 4, 4), out[8] = {7, 7, 7, 7, 7, 7, 7, 7};
    pl_rows rows = {data, 3, 4, 4}, none = {data, 0, 4, 4};
    const int64_t high[] = {0, 3}, low[] = {-4, 0}, zero[] = {0};
    CHECK_FAILS(pl_data_gather(&rows, high, 2, false, out), PL_EINDEX, "got 3, expected -3 to 2");
    CHECK_FAILS(pl_data_gather(&rows, low, 2, true, out), PL_EINDEX, "got -4");
    CHECK_FAILS(pl_data_gather(&none, zero, 1, false, out), PL_EINDEX, "got 0");
    CHECK_OK(pl_data_gather(&none, zero, 0, false, out));
    for (int i = 0; i < 8; i++) CHECK_EQ(out[i], 7);  // nothing is written
    free(data);
}

static pl_tensor *index_of(int64_t n, int64_t first) {
    pl_tensor *t;
    CHECK_OK(pl_tensor_empty(PL_I64, 1, &n, &t));
    for (int64_t i = 0; i < n; i++) ((int64_t *)t->data)[i] = first + i;
    return t;
}

// Asks for the rows [first, first + n) of a column of doubles and one of bytes.
static void ask(pl_prefetch *p, int64_t n, int64_t first) {
    pl_tensor *index = index_of(n, first), *outs[2];
    CHECK_OK(pl_tensor_empty(PL_F64, 1, &n, &outs[0]));
    CHECK_OK(pl_tensor_empty(PL_U8, 1, &n, &outs[1]));
    CHECK_OK(pl_prefetch_ask(p, index, outs));
    pl_tensor_release(index);
    for (int c = 0; c < 2; c++) pl_tensor_release(outs[c]);
}

enum { N = 1000 };
static double numbers[N];
static unsigned char bytes[N];

static pl_prefetch *new_prefetch(void) {
    for (int i = 0; i < N; i++) {
        numbers[i] = i;
        bytes[i] = (unsigned char)i;
    }
    const pl_rows columns[2] = {{numbers, N, 8, 8}, {bytes, N, 1, 1}};
    pl_prefetch *p;
    CHECK_OK(pl_prefetch_new(2, columns, &p));
    return p;
}

TEST(prefetch_gives_batches_in_order) {
    pl_prefetch *p = new_prefetch();
    int64_t asked = 0, taken = 0;
    while (taken < 200) {
        while (asked < 200 && pl_prefetch_pending(p) < 1 + (int)(asked % PL_PREFETCH_MAX)) {
            ask(p, 1 + asked % 5, asked * 3);
            asked++;
        }
        pl_tensor *outs[2];
        CHECK_OK(pl_prefetch_take(p, outs));
        CHECK_EQ(outs[0]->numel, 1 + taken % 5);
        for (int64_t i = 0; i < outs[0]->numel; i++) {
            CHECK(((double *)outs[0]->data)[i] == (double)(taken * 3 + i));
            CHECK_EQ(((unsigned char *)outs[1]->data)[i], (taken * 3 + i) % 256);
        }
        for (int c = 0; c < 2; c++) pl_tensor_release(outs[c]);
        taken++;
    }
    pl_prefetch_free(p);
}

TEST(prefetch_tells_an_error_in_its_turn) {
    pl_prefetch *p = new_prefetch();
    pl_tensor *outs[2];
    CHECK_FAILS(pl_prefetch_take(p, outs), PL_ERUNTIME, "no batch to take");
    ask(p, 2, 0);
    ask(p, 2, N - 1);  // one too far
    ask(p, 2, 4);
    for (int turn = 0; turn < 3; turn++) {
        if (turn == 1) {
            CHECK_FAILS(pl_prefetch_take(p, outs), PL_EINDEX, "got 1000, expected -1000 to 999");
            continue;
        }
        CHECK_OK(pl_prefetch_take(p, outs));
        CHECK(((double *)outs[0]->data)[1] == 1 + 2.0 * turn);
        for (int c = 0; c < 2; c++) pl_tensor_release(outs[c]);
    }
    for (int i = 0; i < PL_PREFETCH_MAX; i++) ask(p, 1, i);
    pl_tensor *index = index_of(1, 0);
    CHECK_FAILS(pl_prefetch_ask(p, index, outs), PL_ERUNTIME, "take one first");
    pl_tensor_release(index);
    pl_prefetch_free(p);  // with batches that nobody took
}

TEST(prefetch_refuses_no_or_many_columns) {
    pl_prefetch *p;
    pl_rows rows = {numbers, N, 8, 8};
    CHECK_FAILS(pl_prefetch_new(0, &rows, &p), PL_EINVAL, "got 0");
    CHECK_FAILS(pl_prefetch_new(33, &rows, &p), PL_EINVAL, "got 33");
    pl_prefetch_free(NULL);
}

static pl_status interrupted(void) { return pl_fail(PL_EINTR, "stopped"); }

TEST(prefetch_can_be_interrupted_and_taken_again) {
    // Rows so large that the wait is long enough to look at Ctrl-C.
    enum { ROWS = 64, BYTES = 1 << 22 };
    char *data = calloc(ROWS, BYTES);
    CHECK(data != NULL);
    pl_rows rows = {data, ROWS, BYTES, BYTES};
    pl_prefetch *p;
    CHECK_OK(pl_prefetch_new(1, &rows, &p));
    int64_t n = ROWS, shape[2] = {ROWS, BYTES};
    pl_tensor *index, *out, *got;
    CHECK_OK(pl_tensor_empty(PL_I64, 1, &n, &index));
    for (int64_t i = 0; i < n; i++) ((int64_t *)index->data)[i] = (i * 37) % n;
    CHECK_OK(pl_tensor_empty(PL_U8, 2, shape, &out));
    CHECK_OK(pl_prefetch_ask(p, index, &out));
    pl_set_interrupt(interrupted);
    pl_status st = pl_prefetch_take(p, &got);
    pl_set_interrupt(NULL);
    if (st == PL_EINTR) CHECK_OK(pl_prefetch_take(p, &got));  // unless it was quicker
    CHECK(st == PL_OK || st == PL_EINTR);
    CHECK(got == out);
    pl_tensor_release(got);
    pl_tensor_release(out);
    pl_tensor_release(index);
    pl_prefetch_free(p);
    free(data);
}

TEST(prefetch_knows_a_fork) {
    pl_prefetch *p = new_prefetch();
    ask(p, 2, 0);
    pid_t child = fork();
    if (child == 0) {
        pl_tensor *outs[2];
        bool ok = pl_prefetch_take(p, outs) == PL_ERUNTIME &&
                  strstr(pl_error_message(), "forked from it") != NULL;
        pl_prefetch_free(p);  // neither waits for a thread that is not there, nor leaks
        _exit(ok && pl_live(PL_KIND_TENSOR) == 0 ? 0 : 1);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    pl_tensor *outs[2];
    CHECK_OK(pl_prefetch_take(p, outs));
    for (int c = 0; c < 2; c++) pl_tensor_release(outs[c]);
    pl_prefetch_free(p);
}

TEST(prefetch_undoes_a_failed_start) {
    pl_rows rows = {numbers, N, 8, 8};
    pl_prefetch *p;
    pl_alloc_fail_at(1, false);
    CHECK_FAILS(pl_prefetch_new(1, &rows, &p), PL_ENOMEM, "");
    pl_alloc_fail_at(0, false);
}

TEST(shared_memory_counts_its_users) {
    int fd = memfd_create("test", 0);
    CHECK(fd >= 0 && ftruncate(fd, 8192) == 0);
    pl_shared *s;
    CHECK_FAILS(pl_shared_map(fd, 8193, &s), PL_EINVAL, "8193");
    CHECK_FAILS(pl_shared_map(fd, 0, &s), PL_EINVAL, "0 bytes");
    CHECK_FAILS(pl_shared_map(-1, 1, &s), PL_EINVAL, "descriptor -1");
    CHECK_OK(pl_shared_map(fd, 8192, &s));
    close(fd);
    CHECK_EQ(pl_shared_nbytes(s), 8192);
    pl_tensor *a, *b;
    int64_t shape[2] = {4, 16}, large[2] = {INT64_MAX, 2}, negative[1] = {-1};
    CHECK_OK(pl_shared_tensor(s, 0, PL_F32, 2, shape, &a));
    CHECK_OK(pl_shared_tensor(s, 8192 - 256, PL_F32, 2, shape, &b));
    CHECK_EQ(pl_shared_users(s), 2);
    pl_tensor *c;
    CHECK_FAILS(pl_shared_tensor(s, 8192 - 192, PL_F32, 2, shape, &c), PL_EINVAL, "at 8000");
    CHECK_FAILS(pl_shared_tensor(s, 4, PL_F32, 2, shape, &c), PL_EINVAL, "multiple of 64");
    CHECK_FAILS(pl_shared_tensor(s, 0, PL_F32, 2, large, &c), PL_EINVAL, "does not fit");
    CHECK_FAILS(pl_shared_tensor(s, 0, PL_F32, 1, negative, &c), PL_EINVAL, "does not fit");
    CHECK_FAILS(pl_shared_write(s, 8190, "abc", 3), PL_EINVAL, "8192");
    for (uint64_t n = 1; n <= 2; n++) {  // a tensor takes two blocks
        pl_alloc_fail_at(n, false);
        CHECK_FAILS(pl_shared_tensor(s, 0, PL_F32, 2, shape, &c), PL_ENOMEM, "");
    }
    CHECK_EQ(pl_shared_users(s), 2);
    CHECK_OK(pl_shared_write(s, 4, "\0\0\x80\x3f", 4));
    CHECK(((float *)a->data)[1] == 1.0f);
    pl_tensor_release(a);
    CHECK_EQ(pl_shared_users(s), 1);
    pl_shared_release(s);
    ((float *)b->data)[63] = 2;  // the last user keeps the mapping
    pl_tensor_release(b);
    pl_shared_release(NULL);
}

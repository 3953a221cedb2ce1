// SPDX-License-Identifier: Apache-2.0
// Collectives on the memory of a device: every one gives what the same call gives on the CPU, for
// all dtypes, ranks and machines; queued ones overlap and keep their order; what the ranks do not
// agree on is told before data moves.
#include "test.h"
#include "vcuda_ranks.h"

enum { COUNT = 1000, MOST = 8 * COUNT };

static pid_t pids[RANKS_MAX];

// On one machine and on two. ThreadSanitizer sees no order that goes through another process, as
// that of a mirror's writer behind its readers does: there on one only.
static void spread(int world, rank_fn fn, void *ctx) {
#ifdef __SANITIZE_THREAD__
    int most = 1;
#else
    int most = world < 2 ? world : 2;
#endif
    for (ranks_machines = 1; ranks_machines <= most; ranks_machines++) {
        start_forks(world, fn, ctx, pids);
        for (int r = 0; r < world; r++) CHECK_EQ(wait_fork(pids[r]), 0);
    }
    ranks_machines = 1;
}

// ---- Values -------------------------------------------------------------------------------------

static void put(void *data, pl_dtype dt, int64_t i, int v) {
    switch (dt) {
        case PL_BOOL:
            ((uint8_t *)data)[i] = v & 1;
            return;
        case PL_U8:
            ((uint8_t *)data)[i] = (uint8_t)v;
            return;
        case PL_I32:
            ((int32_t *)data)[i] = v - 60;
            return;
        case PL_I64:
            ((int64_t *)data)[i] = (int64_t)v << 33;
            return;
        case PL_F16:
            ((pl_f16 *)data)[i] = pl_f32_to_f16((float)v / 4 - 2);
            return;
        case PL_BF16:
            ((pl_bf16 *)data)[i] = pl_f32_to_bf16((float)v - 20);
            return;
        case PL_F32:
            ((float *)data)[i] = (float)v / 8;
            return;
        default:
            ((double *)data)[i] = v / 1024.0;
    }
}

// Small whole numbers, so that every order of a sum gives the same bits.
static void fill(void *data, pl_dtype dt, int64_t n, int rank) {
    for (int64_t i = 0; i < n; i++) put(data, dt, i, (int)((i * 7 + rank * 13) % 31));
}

static int64_t in_count(const pl_group *g, const pl_collective *c) {
    bool rows = c->kind == PL_COLL_REDUCE_SCATTER ||
                (c->kind == PL_COLL_SCATTER && c->root == pl_group_rank(g));
    return rows ? c->count * pl_group_world(g) : c->count;
}

static int64_t out_count(const pl_group *g, const pl_collective *c) {
    if (c->kind == PL_COLL_GATHER && c->root != pl_group_rank(g)) return 0;
    bool rows = c->kind == PL_COLL_ALL_GATHER || c->kind == PL_COLL_GATHER;
    return rows ? c->count * pl_group_world(g) : c->count;
}

// The collective in place on the CPU and on the device; the same bytes must come out.
static void check_alike(pl_group *g, pl_collective c, bool queued) {
    static char in[MOST * 8], host[MOST * 8], got[MOST * 8];
    size_t size = pl_dtype_size(c.dtype);
    size_t n_in = (size_t)in_count(g, &c) * size, n_out = (size_t)out_count(g, &c) * size;
    bool one = c.kind == PL_COLL_ALL_REDUCE || c.kind == PL_COLL_REDUCE;
    one = one || c.kind == PL_COLL_BROADCAST;
    fill(in, c.dtype, in_count(g, &c), pl_group_rank(g));
    memset(host, 0x55, sizeof host);
    if (one) memcpy(host, in, n_in);
    c.in = one ? host : in;
    c.out = host;
    CHECK_OK(pl_group_collective(g, &c, SITE("host"), NULL));
    char *device_in = gpu_alloc(n_in), *device_out = one ? device_in : gpu_alloc(n_out);
    gpu_write(device_in, in, n_in);
    c.in = device_in;
    c.out = device_out;
    c.device = gpu;
    pl_work *w = NULL;
    CHECK_OK(pl_group_collective(g, &c, SITE("device"), queued ? &w : NULL));
    if (queued) CHECK_OK(pl_work_wait(w));
    if (n_out) CHECK_OK(gpu_read(got, device_out, n_out));
    CHECK_OK(pl_device_wait(&gpu_services, gpu_services.compute));  // the memory goes
    if (queued) CHECK(pl_work_done(w));
    pl_work_free(w);
    bool has = c.kind != PL_COLL_REDUCE || c.root == pl_group_rank(g);
    if (has && memcmp(got, host, n_out) != 0) {
        TEST_FAIL("kind %d of %lld %s, op %d, root %d differs", (int)c.kind, (long long)c.count,
                  pl_dtype_name(c.dtype), (int)c.op, c.root);
    }
    CHECK_OK(gpu_open()->free(gpu_open(), device_in));
    if (!one) CHECK_OK(gpu_open()->free(gpu_open(), device_out));
}

static void every_collective(pl_group *g, void *ctx) {
    (void)ctx;
    for (int dt = 0; dt < PL_DTYPE_COUNT; dt++) {
        for (int kind = 0; kind < PL_COLL_ALL_TO_ALL; kind++) {
            bool reduces = kind <= PL_COLL_REDUCE_SCATTER;
            for (int op = 0; op < (reduces ? 4 : 1); op++) {
                if (op == PL_RED_MEAN && !pl_dtype_is_float((pl_dtype)dt)) continue;
                pl_collective c = {.kind = (pl_coll)kind,
                                   .count = kind % 2 ? COUNT : COUNT / 9,
                                   .dtype = (pl_dtype)dt,
                                   .op = (pl_redop)op,
                                   .root = (dt + kind) % pl_group_world(g)};
                check_alike(g, c, (dt + kind + op) % 3 == 0);
                c.count = 0;
                check_alike(g, c, false);
            }
        }
    }
}

TEST(every_collective_gives_what_it_gives_on_the_cpu) {
    spread(2, every_collective, NULL);
    spread(4, every_collective, NULL);
    start_forks(1, every_collective, NULL, pids);
    CHECK_EQ(wait_fork(pids[0]), 0);
}

// Rank i sends i + j rows to rank j: none from 0 to 0.
static void uneven(pl_group *g, void *ctx) {
    (void)ctx;
    int me = pl_group_rank(g), world = pl_group_world(g);
    int32_t in[64], want[64], got[64];
    int64_t splits[2 * RANKS_MAX], n = 0;
    for (int j = 0; j < world; j++) {
        splits[j] = splits[world + j] = me + j;
        for (int k = 0; k < 2 * (me + j); k++) in[n + k] = 100 * me + 10 * j + k;
        for (int k = 0; k < 2 * (me + j); k++) want[n + k] = 100 * j + 10 * me + k;
        n += 2 * (me + j);
    }
    void *a = gpu_alloc((size_t)n * 4), *b = gpu_alloc((size_t)n * 4);
    gpu_write(a, in, (size_t)n * 4);
    pl_collective c = {.kind = PL_COLL_ALL_TO_ALL, .in = a, .out = b, .count = 2, .dtype = PL_I32};
    c.splits = splits;
    c.device = gpu;
    for (int i = 0; i < 3; i++) CHECK_OK(pl_group_collective(g, &c, SITE("uneven"), NULL));
    CHECK_OK(gpu_read(got, b, (size_t)n * 4));
    CHECK_EQ(memcmp(got, want, (size_t)n * 4), 0);
    if (me == 1) splits[0]++;
    CHECK_FAILS(pl_group_collective(g, &c, SITE("wrong"), NULL), PL_EMISMATCH, "splits");
}

TEST(rows_of_any_number) {
    spread(2, uneven, NULL);
    spread(4, uneven, NULL);
}

// Messages may cross collectives, as on the CPU: both ranks send first.
static void messages(pl_group *g, void *ctx) {
    (void)ctx;
    int me = pl_group_rank(g), peer = me ^ 1;
    float out[64], in[64] = {0};
    for (int i = 0; i < 64; i++) out[i] = (float)(100 * me + i);
    void *a = gpu_alloc(sizeof out), *b = gpu_alloc(sizeof in);
    pl_message m = {.sends = true, .buf = a, .count = 64, .dtype = PL_F32, .peer = peer};
    m.device = gpu;
    gpu_write(a, out, sizeof out);
    CHECK_OK(pl_group_message(g, &m, SITE("send")));
    CHECK_OK(pl_group_barrier(g, SITE("between")));
    m.sends = false;
    m.buf = b;
    CHECK_OK(pl_group_message(g, &m, SITE("recv")));
    CHECK_OK(gpu_read(in, b, sizeof in));
    for (int i = 0; i < 64; i++) CHECK_EQ(in[i], (float)(100 * peer + i));
    m.sends = me == 0;
    m.dtype = me == 0 ? PL_F32 : PL_I32;
    if (me == 0) CHECK_OK(pl_group_message(g, &m, SITE("send")));
    else CHECK_FAILS(pl_group_message(g, &m, SITE("recv")), PL_EMISMATCH, "dtype");
}

TEST(messages_of_device_memory) { spread(2, messages, NULL); }

// ---- Order --------------------------------------------------------------------------------------

static void chain(pl_group *g, void *ctx) {
    (void)ctx;
    enum { WORKS = 12 };
    static float x[WORKS][COUNT], y[WORKS][COUNT];
    pl_work *w[WORKS];
    void *at[WORKS];
    for (int k = 0; k < WORKS; k++) {
        for (int i = 0; i < COUNT; i++) x[k][i] = (float)(k + pl_group_rank(g));
        at[k] = gpu_alloc(sizeof x[k]);
        gpu_write(at[k], x[k], sizeof x[k]);
        pl_collective c = {.kind = PL_COLL_ALL_REDUCE, .in = at[k], .out = at[k], .count = COUNT};
        c.dtype = PL_F32;
        c.device = gpu;
        CHECK_OK(pl_group_collective(g, &c, SITE("queued"), &w[k]));
    }
    // The second sum of a buffer is put behind the first one, which nobody has waited for.
    pl_collective c = {.kind = PL_COLL_ALL_REDUCE, .in = at[3], .out = at[3], .count = COUNT};
    c.dtype = PL_F32;
    c.device = gpu;
    CHECK_OK(pl_group_collective(g, &c, SITE("again"), NULL));
    int world = pl_group_world(g);
    for (int k = 0; k < WORKS; k++) {
        CHECK_OK(pl_work_wait(w[k]));
        CHECK_OK(gpu_read(y[k], at[k], sizeof y[k]));
        float want = (float)(world * k + world * (world - 1) / 2) * (k == 3 ? (float)world : 1);
        for (int i = 0; i < COUNT; i++) CHECK_EQ(y[k][i], want);
        pl_work_free(w[k]);
    }
}

TEST(queued_collectives_keep_their_order) {
    for (gpu_seed = 0; gpu_seed < 6; gpu_seed++) spread(2, chain, NULL);
    spread(4, chain, NULL);
}

// ---- One wait left out --------------------------------------------------------------------------

static pl_status (*real_wait)(pl_runtime *r, pl_stream *s, pl_event *e);
static bool drop_on_compute, drop_on_comm;

static pl_status dropping_wait(pl_runtime *r, pl_stream *s, pl_event *e) {
    bool drop = s == gpu_services.compute ? drop_on_compute : drop_on_comm;
    return drop ? PL_OK : real_wait(r, s, e);
}

// Exits with 1 where a sum came out wrong.
static void sums_without_a_wait(pl_group *g, void *ctx) {
    static float x[COUNT], y[COUNT];
    int wrong = 0;
    pl_runtime *r = gpu_open();
    real_wait = r->wait;
    r->wait = dropping_wait;
    drop_on_compute = *(int *)ctx == 1;
    drop_on_comm = *(int *)ctx == 2;
    for (int pass = 0; pass < 20; pass++) {
        void *at = gpu_alloc(sizeof x);
        for (int i = 0; i < COUNT; i++) x[i] = (float)pass;
        gpu_write(at, x, sizeof x);
        pl_collective c = {.kind = PL_COLL_ALL_REDUCE, .in = at, .out = at, .count = COUNT};
        c.dtype = PL_F32;
        c.device = gpu;
        pl_work *w = NULL;  // every other one as the reducer does
        CHECK_OK(pl_group_collective(g, &c, SITE("sum"), pass % 2 ? &w : NULL));
        if (w) CHECK_OK(pl_work_wait(w));
        pl_work_free(w);
        CHECK_OK(gpu_read(y, at, sizeof y));
        for (int i = 0; i < COUNT; i++) wrong += y[i] != (float)(2 * pass);
    }
    CHECK_OK(pl_group_barrier(g, SITE("end")));
    exit(wrong != 0);
}

TEST(a_wait_that_is_left_out_is_seen) {
    for (int which = 0; which < 3; which++) {
        bool seen = false;
        for (gpu_seed = 0; gpu_seed < 8; gpu_seed++) {
            start_forks(2, sums_without_a_wait, &which, pids);
            for (int r = 0; r < 2; r++) {
                int code = wait_fork(pids[r]);
                CHECK(code == 0 || code == 1);
                seen = seen || code == 1;
            }
            if (which > 0 && seen) break;
        }
        CHECK_EQ(seen, which > 0);
    }
}

// ---- What the ranks do not agree on -------------------------------------------------------------

typedef struct odd_one {
    pl_collective c;  // what rank 1 does instead
    const char *says[3];
} odd_one;

static void disagree(pl_group *g, void *ctx) {
    const odd_one *odd = ctx;
    static float x[COUNT], y[COUNT];
    float *at = gpu_alloc(sizeof x);
    for (int i = 0; i < COUNT; i++) x[i] = 3;
    gpu_write(at, x, sizeof x);
    pl_collective c = {.kind = PL_COLL_ALL_REDUCE, .count = COUNT, .dtype = PL_F32, .device = gpu};
    c.in = c.out = at;
    if (pl_group_rank(g) == 1) {
        c = odd->c;
        c.in = c.out = c.device.type == PL_CUDA ? (void *)at : x;
    }
    for (int i = 0; i < 3; i++) {
        CHECK_FAILS(pl_group_collective(g, &c, SITE("train.py:7"), NULL), PL_EMISMATCH,
                    odd->says[i]);
    }
    CHECK_OK(gpu_read(y, at, sizeof y));
    for (int i = 0; i < COUNT; i++) CHECK_EQ(y[i], 3);  // nothing moved
}

TEST(what_differs_is_told_before_data_moves) {
    odd_one odd[] = {
        {{.kind = PL_COLL_ALL_REDUCE, .count = COUNT, .dtype = PL_I32, .device = gpu},
         {"disagree on dtype", "rank=0, dtype=float32", "rank=1, dtype=int32"}},
        {{.kind = PL_COLL_ALL_REDUCE, .count = COUNT, .dtype = PL_F32},
         {"disagree on device", "rank=0, device=cuda", "rank=1, device=cpu"}},
        {{.kind = PL_COLL_BROADCAST, .count = COUNT, .dtype = PL_F32, .device = gpu},
         {"disagree on op", "op=all_reduce, device=cuda", "rank=1, op=broadcast"}},
        {{.kind = PL_COLL_ALL_REDUCE, .count = 9, .dtype = PL_F32, .device = gpu},
         {"disagree on count", "count=1000", "rank=1, count=9"}},
    };
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) spread(2, disagree, &odd[i]);
}

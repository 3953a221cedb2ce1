// SPDX-License-Identifier: Apache-2.0
// The all-reduce as C calls it, and the loops that bound it, on ranks that are forked processes.
// Driven by benchmarks/allreduce.py: a line "KIND BYTES REPEATS" on stdin, on stdout the seconds of
// one call of the slowest rank. Knows nothing of Python.
//
// The limits are what the traffic costs with nothing around it. flags: each rank posts one word and
// waits for all others'. inplace: each rank reads its slice of every rank's part once and writes
// the sum into every part. staged: pieces of 128 KiB are copied into shared memory and summed from
// there; with more than two ranks each sums its slice, and all take the slices home. Every line
// that is written has just been read, so stores past the cache gain nothing here.
#define main pl_test_main  // the ranks' helpers come with a main of their own
#include "test.h"
#undef main

#include <sched.h>
#include <stdatomic.h>

#include "ranks.h"

#define MOST ((size_t)64 << 20)
#define PIECE ((size_t)128 << 10)
#define SPINS 2000

typedef float v16 __attribute__((vector_size(64)));

typedef struct flag {
    _Alignas(64) _Atomic uint32_t at;
} flag;

// Shared by all ranks, made before the forks.
typedef struct shared {
    flag flags[RANKS_MAX];
    _Alignas(4096) char areas[RANKS_MAX][3][PIECE];
} shared;

static struct {
    int world;
    shared *s;
    char *parts[RANKS_MAX];      // [MOST] of each rank, for inplace
    int commands[RANKS_MAX][2];  // pipe to a rank
    int seconds[RANKS_MAX][2];   // pipe from it
} bench;

// One rank's view of a run.
typedef struct run {
    pl_group *g;
    pl_segment *segment;
    char *user;  // [MOST]
    uint64_t used;
    uint32_t step;
    int rank;
    size_t nbytes;
} run;

static void meet(run *r) {
    atomic_store_explicit(&bench.s->flags[r->rank].at, ++r->step, memory_order_release);
    for (int k = 0; k < bench.world; k++) {
        for (int spin = 0;; spin++) {
            uint32_t at = atomic_load_explicit(&bench.s->flags[k].at, memory_order_acquire);
            if ((int32_t)(at - r->step) >= 0) break;
            if (bench.world > 2 || spin > SPINS) (void)sched_yield();
        }
    }
}

static char *area(int rank, int which) { return bench.s->areas[rank][which]; }

// dst[d][i] = sum of src[k][i] over the ranks; whole lines.
static void sum(char *const *src, char *const *dst, int n_dst, size_t begin, size_t end) {
    for (size_t i = begin; i < end; i += sizeof(v16)) {
        v16 x = *(const v16 *)(const void *)(src[0] + i);
        for (int k = 1; k < bench.world; k++) x += *(const v16 *)(const void *)(src[k] + i);
        for (int d = 0; d < n_dst; d++) *(v16 *)(void *)(dst[d] + i) = x;
    }
}

static size_t slice(size_t nbytes, int rank) {
    return nbytes / 64 * (size_t)rank / (size_t)bench.world * 64;
}

static void in_place(run *r) {
    meet(r);
    sum(bench.parts, bench.parts, bench.world, slice(r->nbytes, r->rank),
        slice(r->nbytes, r->rank + 1));
    meet(r);
}

static void staged(run *r) {
    char *src[RANKS_MAX];
    for (size_t at = 0, p = 0; at < r->nbytes; at += PIECE, p++) {
        size_t n = r->nbytes - at < PIECE ? r->nbytes - at : PIECE;
        int which = bench.world == 2 ? (int)(p & 1) : 0;
        for (int k = 0; k < bench.world; k++) src[k] = area(k, which);
        memcpy(src[r->rank], r->user + at, n);
        meet(r);
        char *to = r->user + at, *mine = area(r->rank, 2);
        if (bench.world == 2) {
            sum(src, &to, 1, 0, n);
            continue;
        }
        sum(src, &mine, 1, slice(n, r->rank), slice(n, r->rank + 1));
        meet(r);
        for (int k = 0; k < bench.world; k++) {
            size_t begin = slice(n, k);
            memcpy(to + begin, area(k, 2) + begin, slice(n, k + 1) - begin);
        }
    }
}

static void all_reduce(run *r) {
    CHECK_OK(pl_group_all_reduce(r->g, r->user, (int64_t)r->nbytes / 4, PL_F32, PL_RED_SUM,
                                 SITE("benchmark")));
}

static void bucket(run *r) {
    pl_bucket_call c = {.seg = r->segment,
                        .count = (int64_t)r->nbytes / 4,
                        .dtype = PL_F32,
                        .op = PL_RED_SUM,
                        .n_params = 1,
                        .used = &r->used,
                        .sync = true};
    CHECK_OK(pl_group_reduce_bucket(r->g, &c, SITE("benchmark"), NULL));
}

static const struct {
    const char *name;
    void (*fn)(run *r);
} kinds[] = {{"call", all_reduce},
             {"bucket", bucket},
             {"flags", meet},
             {"inplace", in_place},
             {"staged", staged}};

static double timed(run *r, void (*fn)(run *), int repeats) {
    for (int i = 0; i < 2; i++) fn(r);
    CHECK_OK(pl_group_barrier(r->g, SITE("benchmark")));
    int64_t start = pl_now_ns();
    for (int i = 0; i < repeats; i++) fn(r);
    return (double)(pl_now_ns() - start) / 1e9 / repeats;
}

static void serve(pl_group *g, void *ctx) {
    (void)ctx;
    run r = {.g = g, .rank = pl_group_rank(g)};
    FILE *commands = fdopen(bench.commands[r.rank][0], "r");
    char kind[32];
    int repeats;
    void *p;
    CHECK(commands != NULL);
    // Else the ranks would keep each other's pipes open, and none would see their end.
    for (int k = 0; k < bench.world; k++) close(bench.commands[k][1]);
    if (sysconf(_SC_NPROCESSORS_ONLN) >= bench.world) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET((size_t)r.rank, &set);
        CHECK_EQ(sched_setaffinity(0, sizeof set, &set), 0);
    }
    CHECK_OK(pl_alloc(MOST, &p));
    r.user = p;
    memset(r.user, 0, MOST);
    memset(bench.parts[r.rank], 0, MOST);
    CHECK_OK(pl_segment_new(g, MOST, SITE("benchmark"), &r.segment));
    while (fscanf(commands, "%31s %zu %d", kind, &r.nbytes, &repeats) == 3) {
        double seconds = -1;
        for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
            if (strcmp(kind, kinds[k].name) == 0) seconds = timed(&r, kinds[k].fn, repeats);
        }
        CHECK_EQ(write(bench.seconds[r.rank][1], &seconds, sizeof seconds), sizeof seconds);
    }
    pl_segment_release(r.segment);
    pl_free(r.user);
    fclose(commands);
}

static void *share(size_t nbytes) {
    void *p = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    (void)madvise(p, nbytes, MADV_HUGEPAGE);
    return p;
}

int main(int argc, char **argv) {
    pid_t pids[RANKS_MAX];
    char line[128];
    bench.world = argc > 1 ? atoi(argv[1]) : 0;
    if (bench.world < 2 || bench.world > RANKS_MAX) return 2;
    bench.s = share(sizeof *bench.s);
    for (int r = 0; r < bench.world; r++) {
        bench.parts[r] = share(MOST);
        CHECK_EQ(pipe2(bench.commands[r], O_CLOEXEC), 0);
        CHECK_EQ(pipe2(bench.seconds[r], O_CLOEXEC), 0);
    }
    ranks_timeout_ms = 600000;
    start_forks(bench.world, serve, NULL, pids);
    for (int r = 0; r < bench.world; r++) close(bench.commands[r][0]);
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        double worst = 0, seconds;
        for (int r = 0; r < bench.world; r++) {
            CHECK_EQ(write(bench.commands[r][1], line, strlen(line)), strlen(line));
        }
        for (int r = 0; r < bench.world; r++) {
            CHECK_EQ(read(bench.seconds[r][0], &seconds, sizeof seconds), sizeof seconds);
            if (seconds > worst) worst = seconds;
        }
        printf("%.9g\n", worst);
        fflush(stdout);
    }
    return 0;  // the pipes close, and the ranks end
}

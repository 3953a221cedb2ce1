// SPDX-License-Identifier: Apache-2.0
// The virtual GPU (tests/c/vcuda): what is right gives the same result under every seed, with and
// without a thread of its own; what is wrong (a wait left out, a host that reads early, memory of
// the device touched by the host, freed memory, a write past the end) is found. By the way the
// run time of kernels/cuda: what it says of failures, in forked children, of memory that is full.
#include <dlfcn.h>

#include "cuda/backend.h"
#include "test.h"
#include "vcuda/vcuda.h"

enum { N = 1000, SEEDS = 24 };

// ThreadSanitizer knows nothing of the threads of kernels (fibers), and takes for a signal's
// handler what runs after a fault ended one.
#ifdef __SANITIZE_THREAD__
enum { KERNELS_MAY_FAULT = 0 };
#else
enum { KERNELS_MAY_FAULT = 1 };
#endif

static pl_status keep_failure(pl_status st, const char *file, int line, const char *message) {
    return pl_fail_at(st, file, line, "%s", message);
}

typedef struct fixture {
    const pl_cuda_backend *b;
    pl_runtime *r;
    pl_stream *s[2];
    void (*enqueue)(void *, void (*)(void *), const void *, size_t);
    void (*enqueue_poll)(void *, bool (*)(void *), const void *, size_t);
} fixture;

static void *find(void *library, const char *name) {
    void *p = dlsym(library, name);
    if (p == NULL) TEST_FAIL("%s is missing", name);
    return p;
}

static fixture open_device(void) {
    static const pl_cuda_host host = {keep_failure};
    fixture f = {0};
    void *library = dlopen(VCUDA_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) TEST_FAIL("%s", dlerror());
    const pl_cuda_backend *(*open)(int, const pl_cuda_host *);
    *(void **)&open = find(library, "pl_cuda_backend_open");
    *(void **)&f.enqueue = find(library, "vcuda_enqueue");
    *(void **)&f.enqueue_poll = find(library, "vcuda_enqueue_poll");
    f.b = open(PL_CUDA_BACKEND_VERSION, &host);
    CHECK(f.b != NULL);
    CHECK_OK(f.b->runtime(0, &f.r));
    for (int i = 0; i < 2; i++) CHECK_OK(f.r->stream_new(f.r, i == 1, &f.s[i]));
    return f;
}

static void set_seed(int seed, bool worker) {
    char text[16];
    snprintf(text, sizeof(text), "%d", seed);
    setenv("PACELINE_VCUDA_SEED", text, 1);
    setenv("PACELINE_VCUDA_WORKER", worker ? "1" : "0", 1);
}

// In a process of its own, since a process has one device and one seed. The status of its exit.
static int in_child(void (*body)(void *), void *argument, char *said, size_t room) {
    int pipes[2], status = 0;
    CHECK(pipe(pipes) == 0);
    pid_t child = fork();
    if (child == 0) {
        dup2(pipes[1], STDERR_FILENO);
        signal(SIGSEGV, SIG_DFL);
        body(argument);
        fflush(NULL);
        _exit(0);
    }
    close(pipes[1]);
    size_t used = 0;
    for (ssize_t n; (n = read(pipes[0], said + used, room - 1 - used)) > 0;) used += (size_t)n;
    said[used] = 0;
    close(pipes[0]);
    CHECK(waitpid(child, &status, 0) == child);
    return status;
}

#define CHECK_CHILD(body, argument)                                    \
    do {                                                               \
        char check_said[1024];                                         \
        int check_status = in_child(body, argument, check_said, 1024); \
        if (check_status != 0) TEST_FAIL("%s: %s", #body, check_said); \
    } while (0)

// ---- Order --------------------------------------------------------------------------------------

static int64_t *device_numbers(const fixture *f) {
    void *p;
    CHECK_OK(f->r->malloc(f->r, N * sizeof(int64_t), &p));
    return p;
}

static pl_tensor numbers(void *data) {
    pl_tensor t = {.data = data, .dtype = PL_I64, .ndim = 1, .shape = {N}, .strides = {1}};
    t.numel = N;
    return t;
}

// data[i] = start + i on stream s, by a real kernel.
static void count_up(const fixture *f, int s, void *data, double start) {
    pl_cuda_queue q = {.stream = f->r->native(f->r, f->s[s])};
    pl_tensor t = numbers(data);
    CHECK_OK(f->b->arange(&t, start, 1, &q));
}

static void copy_numbers(const fixture *f, int s, pl_copy_kind kind, void *dst, const void *src) {
    CHECK_OK(f->r->copy(f->r, f->s[s], kind, dst, src, N * sizeof(int64_t)));
}

typedef struct order_case {
    int seed;
    bool worker, waits, syncs;
    int64_t *wrong;  // shared with the parent: counts
} order_case;

// Stream 0 counts up, stream 1 copies that and brings it to the host, stream 0 counts again.
static void two_streams(void *argument) {
    const order_case *c = argument;
    set_seed(c->seed, c->worker);
    fixture f = open_device();
    int64_t *a = device_numbers(&f), *b = device_numbers(&f);
    void *host;
    CHECK_OK(f.r->host_malloc(f.r, N * sizeof(int64_t), &host));
    pl_event *made, *read;
    CHECK_OK(f.r->event_new(f.r, &made));
    CHECK_OK(f.r->event_new(f.r, &read));
    int64_t *got = host;
    for (int round = 0; round < 4; round++) {
        count_up(&f, 0, a, round);
        CHECK_OK(f.r->record(f.r, made, f.s[0]));
        if (c->waits) CHECK_OK(f.r->wait(f.r, f.s[1], made));
        copy_numbers(&f, 1, PL_COPY_ON_DEVICE, b, a);
        CHECK_OK(f.r->record(f.r, read, f.s[1]));
        if (c->waits) CHECK_OK(f.r->wait(f.r, f.s[0], read));
        copy_numbers(&f, 1, PL_COPY_TO_HOST, host, b);
        if (c->syncs) CHECK_OK(f.r->sync_stream(f.r, f.s[1]));
        for (int i = 0; i < N && *c->wrong == 0; i++) *c->wrong = got[i] != round + i;
    }
    for (int i = 0; i < 2; i++) CHECK_OK(f.r->sync_stream(f.r, f.s[i]));
}

// In how many seeds the result was wrong.
static int wrong_seeds(bool worker, bool waits, bool syncs) {
    int wrong = 0;
    for (int seed = 0; seed < SEEDS; seed++) {
        int pipes[2];
        CHECK(pipe(pipes) == 0);
        pid_t child = fork();
        if (child == 0) {
            int64_t count = 0;
            two_streams(&(order_case){seed, worker, waits, syncs, &count});
            _exit(count != 0 ? 2 : 0);
        }
        int status = 0;
        close(pipes[0]);
        close(pipes[1]);
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(status == 0 || (WIFEXITED(status) && WEXITSTATUS(status) == 2));
        wrong += status != 0;
    }
    return wrong;
}

TEST(what_is_ordered_is_right_under_every_seed) {
    CHECK_EQ(wrong_seeds(false, true, true), 0);
    CHECK_EQ(wrong_seeds(true, true, true), 0);
}

TEST(a_wait_left_out_is_seen) {
    CHECK(wrong_seeds(false, false, true) > SEEDS / 3);
    CHECK(wrong_seeds(true, false, true) > 0);
}

TEST(a_host_that_reads_early_sees_that) { CHECK_EQ(wrong_seeds(false, true, false), SEEDS); }

static void pageable(void *argument) {
    (void)argument;
    fixture f = open_device();
    int64_t *a = device_numbers(&f), here[N], back[N];
    for (int i = 0; i < N; i++) here[i] = i * i;
    copy_numbers(&f, 0, PL_COPY_TO_DEVICE, a, here);
    memset(here, 0, sizeof(here));  // staged by then
    copy_numbers(&f, 0, PL_COPY_TO_HOST, back, a);
    for (int i = 0; i < N; i++) CHECK_EQ(back[i], i * i);  // which has waited
    CHECK_OK(f.r->zero(f.r, f.s[0], a, sizeof(here) / 2));
    copy_numbers(&f, 0, PL_COPY_TO_HOST, back, a);
    CHECK_EQ(back[N / 2 - 1], 0);
    CHECK_EQ(back[N / 2], N * N / 4);
}

static void pinned(void *argument) {
    (void)argument;
    fixture f = open_device();
    void *p;
    int64_t *a = device_numbers(&f), back[N];
    CHECK_OK(f.r->host_malloc(f.r, sizeof(back), &p));
    memset(p, 0, sizeof(back));
    copy_numbers(&f, 0, PL_COPY_TO_DEVICE, a, p);
    memset(p, 1, sizeof(back));  // too early
    copy_numbers(&f, 0, PL_COPY_TO_HOST, back, a);
    CHECK_EQ(back[3], 0x0101010101010101);
    CHECK_OK(f.r->host_free(f.r, p));
}

TEST(copies_from_pageable_memory_are_staged_and_from_pinned_read_late) {
    CHECK_CHILD(pageable, NULL);
    CHECK_CHILD(pinned, NULL);
}

static void events(void *argument) {
    (void)argument;
    fixture f = open_device();
    int64_t *a = device_numbers(&f);
    pl_event *e;
    bool done = false;
    CHECK_OK(f.r->event_new(f.r, &e));
    CHECK_OK(f.r->event_done(f.r, e, &done));
    CHECK(done);  // never recorded
    CHECK_OK(f.r->sync_event(f.r, e));
    count_up(&f, 0, a, 0);
    CHECK_OK(f.r->record(f.r, e, f.s[0]));
    int asked = 0;
    for (done = false; !done; asked++) CHECK_OK(f.r->event_done(f.r, e, &done));
    CHECK(asked < 1000);
    for (int i = 0; i < 5000; i++) {  // a long queue runs by itself
        CHECK_OK(f.r->zero(f.r, f.s[i % 2], a, N * sizeof(int64_t)));
    }
    CHECK_OK(f.r->record(f.r, e, f.s[0]));
    CHECK_OK(f.r->sync_event(f.r, e));
}

TEST(events_come_to_an_end) { CHECK_CHILD(events, NULL); }

// Two streams that wait for each other's polled tasks, as collectives of two groups do.
static bool meet(void *context) {
    int *const *both = context;
    *both[0] = 1;
    return *both[1] != 0;
}

static void polling(void *worker) {
    set_seed(7, worker != NULL);
    fixture f = open_device();
    static int there[2];
    int *first[2] = {&there[0], &there[1]}, *second[2] = {&there[1], &there[0]};
    f.enqueue_poll(f.r->native(f.r, f.s[0]), meet, first, sizeof(first));
    f.enqueue_poll(f.r->native(f.r, f.s[1]), meet, second, sizeof(second));
    CHECK_OK(f.r->sync_stream(f.r, f.s[0]));
    CHECK(there[0] && there[1]);
}

TEST(polled_tasks_let_others_run) {
    CHECK_CHILD(polling, NULL);
    CHECK_CHILD(polling, "");
}

// ---- What is wrong is found ---------------------------------------------------------------------

static void host_reads(void *argument) {
    (void)argument;
    fixture f = open_device();
    int64_t *a = device_numbers(&f);
    count_up(&f, 0, a, 0);
    CHECK_OK(f.r->sync_stream(f.r, f.s[0]));
    volatile int64_t got = a[0];
    (void)got;
}

TEST(a_host_that_touches_memory_of_the_device_dies) {
    char said[1024];
    int status = in_child(host_reads, NULL, said, sizeof(said));
    CHECK(WIFSIGNALED(status) || WEXITSTATUS(status) != 0);
    CHECK(strstr(said, "the host touched memory of the device") != NULL);
}

// Every call says `sentence` from then on.
static void check_lost(const fixture *f, const char *cause) {
    CHECK_FAILS(f->r->sync_stream(f->r, f->s[0]), PL_EDEVICE, cause);
    char first[512];
    snprintf(first, sizeof(first), "%s", pl_error_message());
    CHECK(strstr(first, "this process cannot use it any more") != NULL);
    void *p = NULL;
    int count;
    bool done;
    size_t some;
    pl_event *e = NULL;
    pl_stream *s = NULL;
    CHECK_FAILS(f->r->malloc(f->r, 8, &p), PL_EDEVICE, first);
    CHECK_FAILS(f->r->free(f->r, p), PL_EDEVICE, first);
    CHECK_FAILS(f->r->host_malloc(f->r, 8, &p), PL_EDEVICE, first);
    CHECK_FAILS(f->r->memory(f->r, &some, &some), PL_EDEVICE, first);
    CHECK_FAILS(f->r->stream_new(f->r, false, &s), PL_EDEVICE, first);
    CHECK_FAILS(f->r->event_new(f->r, &e), PL_EDEVICE, first);
    CHECK_FAILS(f->r->event_done(f->r, e, &done), PL_EDEVICE, first);
    CHECK_FAILS(f->r->zero(f->r, f->s[1], p, 8), PL_EDEVICE, first);
    CHECK_FAILS(f->r->sync_stream(f->r, f->s[1]), PL_EDEVICE, first);
    CHECK_FAILS(f->b->device_count(&count), PL_EDEVICE, first);
    pl_cuda_queue q = {.stream = f->r->native(f->r, f->s[0])};
    pl_tensor t = numbers(NULL);
    CHECK_FAILS(f->b->arange(&t, 0, 1, &q), PL_EDEVICE, first);
}

static void kernel_reads_freed(void *worker) {
    set_seed(3, worker != NULL);
    fixture f = open_device();
    int64_t *a = device_numbers(&f), *b = device_numbers(&f);
    count_up(&f, 0, a, 0);
    copy_numbers(&f, 0, PL_COPY_ON_DEVICE, b, a);
    CHECK_OK(f.r->free(f.r, a));  // while two tasks still touch it, perhaps
    count_up(&f, 0, a, 1);
    check_lost(&f, "an illegal memory access was encountered");
}

static void bad_task(void *context) {
    char *const *p = context;
    memset(*p, 0, N * sizeof(int64_t) + 1);
}

static void writes_past_the_end(void *worker) {
    set_seed(4, worker != NULL);
    fixture f = open_device();
    char *a = (char *)device_numbers(&f);
    f.enqueue(f.r->native(f.r, f.s[0]), bad_task, &a, sizeof(a));
    (void)f.r->sync_stream(f.r, f.s[0]);
    // The worker looks when it has nothing to do.
    for (int i = 0; i < 1000 && f.r->sync_stream(f.r, f.s[0]) == PL_OK; i++) usleep(1000);
    check_lost(&f, "an illegal memory access was encountered");
}

static void not_aligned(void *argument) {
    (void)argument;
    fixture f = open_device();
    char *a = (char *)device_numbers(&f), *b = (char *)device_numbers(&f);
    pl_sgd_args args = {.lr = 0.1, .grad_scale = 1.0};
    pl_run run = {.dtype = PL_F32, .n = 4, .at = {a + 2, b}};
    pl_cuda_queue q = {.stream = f.r->native(f.r, f.s[0])};
    CHECK_OK(f.b->list_sgd(&args, 1, &run, &q));
    check_lost(&f, "misaligned address");
}

TEST(a_device_that_failed_says_the_same_at_every_call) {
    if (KERNELS_MAY_FAULT) CHECK_CHILD(kernel_reads_freed, NULL);
    if (KERNELS_MAY_FAULT) CHECK_CHILD(kernel_reads_freed, "");
    CHECK_CHILD(writes_past_the_end, NULL);
    CHECK_CHILD(writes_past_the_end, "");
    CHECK_CHILD(not_aligned, NULL);
}

// ---- The run time -------------------------------------------------------------------------------

static void full(void *argument) {
    (void)argument;
    setenv("PACELINE_VCUDA_MEMORY", "100000", 1);
    fixture f = open_device();
    void *p, *q;
    size_t free_bytes, total;
    CHECK_OK(f.r->malloc(f.r, 60000, &p));
    CHECK_FAILS(f.r->malloc(f.r, 60000, &q), PL_ENOMEM, "no memory left");
    CHECK_OK(f.r->memory(f.r, &free_bytes, &total));
    CHECK_EQ(free_bytes, 40000);
    CHECK_EQ(total, 100000);
    CHECK_OK(f.r->zero(f.r, f.s[0], p, 60000));  // nothing is left of the failure
    CHECK_OK(f.r->sync_stream(f.r, f.s[0]));
    CHECK_OK(f.r->free(f.r, p));
    CHECK_OK(f.r->malloc(f.r, 60000, &q));
    CHECK_FAILS(f.r->free(f.r, (char *)q + 8), PL_EDEVICE, "invalid argument");
    CHECK_FAILS(f.r->zero(f.r, f.s[0], q, 60001), PL_EDEVICE, "invalid argument");
    CHECK_OK(f.r->free(f.r, q));
}

static void several(void *argument) {
    (void)argument;
    setenv("PACELINE_VCUDA_DEVICES", "3", 1);
    fixture f = open_device();
    int count = 0;
    pl_runtime *again;
    pl_cuda_properties p;
    CHECK_OK(f.b->device_count(&count));
    CHECK_EQ(count, 3);
    CHECK_OK(f.b->runtime(0, &again));
    CHECK(again == f.r);
    CHECK_FAILS(f.b->runtime(2, &again), PL_EDEVICE, "got device 2 after device 0");
    CHECK_FAILS(f.b->properties(3, &p), PL_EDEVICE, "no GPU of index 3: got 3 GPUs");
    CHECK_OK(f.b->properties(2, &p));
    CHECK_STR_EQ(p.name, "Virtual GPU");
    CHECK_EQ(p.major, 9);
}

static void after_fork(void *argument) {
    (void)argument;
    fixture f = open_device();
    pid_t child = fork();
    if (child == 0) {
        void *p;
        int count;
        CHECK_FAILS(f.r->malloc(f.r, 8, &p), PL_EDEVICE, "forked from one that had used CUDA");
        CHECK_FAILS(f.b->device_count(&count), PL_EDEVICE, "forked");
        pl_cuda_queue q = {.stream = f.r->native(f.r, f.s[0])};
        pl_tensor t = numbers(NULL);
        CHECK_FAILS(f.b->arange(&t, 0, 1, &q), PL_EDEVICE, "forked");
        _exit(0);
    }
    int status = 1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK_EQ(status, 0);
    CHECK_OK(f.r->sync_stream(f.r, f.s[0]));
}

TEST(memory_that_is_full_devices_and_forks) {
    CHECK_CHILD(full, NULL);
    CHECK_CHILD(several, NULL);
    CHECK_CHILD(after_fork, NULL);
}

// SPDX-License-Identifier: Apache-2.0
// The traffic of an AdamW step with almost no arithmetic: four arrays are read and three of them
// written, each once, by one or more threads. Driven by benchmarks/adamw.py: argv is the number of
// floats in an array and of threads; a line "REPEATS" on stdin, the seconds of one pass on stdout.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define MOST_THREADS 64

typedef float v16 __attribute__((vector_size(64)));

static struct {
    int64_t n;
    int threads, repeats;
    v16 *p, *g, *m, *v;
    pthread_barrier_t begin, end;
} traffic;

static void pass(int64_t from, int64_t to) {
    v16 *restrict p = traffic.p, *restrict m = traffic.m, *restrict v = traffic.v;
    const v16 *restrict g = traffic.g;
    for (int64_t i = from; i < to; i++) {
        v16 x = g[i], y = m[i] * 0.9f + x, z = v[i] * 0.99f + x;
        m[i] = y;
        v[i] = z;
        p[i] = p[i] - y - z;
    }
}

static void *serve(void *arg) {
    int64_t k = (int64_t)(intptr_t)arg, lines = traffic.n / 16;
    int64_t from = lines * k / traffic.threads, to = lines * (k + 1) / traffic.threads;
    for (;;) {
        pthread_barrier_wait(&traffic.begin);
        if (traffic.repeats == 0) return NULL;
        for (int i = 0; i < traffic.repeats; i++) pass(from, to);
        pthread_barrier_wait(&traffic.end);
    }
}

static v16 *array(void) {
    size_t nbytes = (size_t)traffic.n * sizeof(float);
    float *p = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) exit(1);
    (void)madvise(p, nbytes, MADV_HUGEPAGE);
    for (int64_t i = 0; i < traffic.n; i++) p[i] = 1e-3f;
    return (v16 *)(void *)p;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    pthread_t threads[MOST_THREADS];
    if (argc != 3) return 2;
    traffic.n = atoll(argv[1]) / 16 * 16;
    traffic.threads = atoi(argv[2]);
    if (traffic.n < 16 || traffic.threads < 1 || traffic.threads > MOST_THREADS) return 2;
    traffic.p = array();
    traffic.g = array();
    traffic.m = array();
    traffic.v = array();
    pthread_barrier_init(&traffic.begin, NULL, (unsigned)traffic.threads + 1);
    pthread_barrier_init(&traffic.end, NULL, (unsigned)traffic.threads + 1);
    for (int k = 0; k < traffic.threads; k++) {
        if (pthread_create(&threads[k], NULL, serve, (void *)(intptr_t)k) != 0) return 1;
    }
    puts("ready");
    fflush(stdout);
    while (scanf("%d", &traffic.repeats) == 1 && traffic.repeats > 0) {
        double start = now();
        pthread_barrier_wait(&traffic.begin);
        pthread_barrier_wait(&traffic.end);
        printf("%.9g\n", (now() - start) / traffic.repeats);
        fflush(stdout);
    }
    traffic.repeats = 0;
    pthread_barrier_wait(&traffic.begin);
    for (int k = 0; k < traffic.threads; k++) pthread_join(threads[k], NULL);
    return 0;
}

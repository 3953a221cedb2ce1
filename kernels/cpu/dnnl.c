// SPDX-License-Identifier: Apache-2.0
// dnnl: opens oneDNN with dlopen and keeps compiled products. Making a primitive costs about a
// millisecond, running one for small sizes two microseconds, so every thread keeps those it has
// used, with their memory objects, in a bounded hash table of its own: no lock is ever taken, and
// a call sets five pointers. The cache lives as long as its thread, so its memory is the C
// library's and not pl_alloc's, whose bytes in use are those of live work. Knows no tensor.
// oneDNN's loops run in the libgomp pool that pl_parallel_for uses (pl_num_threads() tells OpenMP
// the count).
#include "dnnl.h"

#include <dlfcn.h>
#include <oneapi/dnnl/dnnl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu.h"

// Guards `wanted_path` and the opening; after it `lib.opened` never changes.
static pthread_mutex_t open_lock = PTHREAD_MUTEX_INITIALIZER;
static char wanted_path[4096];

void pl_cpu_set_dnnl_path(const char *path) {
    (void)pthread_mutex_lock(&open_lock);
    (void)snprintf(wanted_path, sizeof wanted_path, "%s", path ? path : "");
    (void)pthread_mutex_unlock(&open_lock);
}

// One list declares and finds every function that is used.
// clang-format off
#define DNNL_FUNCTIONS(X)                                                                         \
    X(dnnl_version) X(dnnl_engine_create) X(dnnl_stream_create) X(dnnl_stream_destroy)            \
    X(dnnl_memory_desc_create_with_strides) X(dnnl_memory_desc_destroy)                           \
    X(dnnl_memory_desc_get_size) X(dnnl_memory_create) X(dnnl_memory_destroy)                     \
    X(dnnl_memory_set_data_handle) X(dnnl_primitive_attr_create) X(dnnl_primitive_attr_destroy)   \
    X(dnnl_primitive_attr_set_scratchpad_mode) X(dnnl_primitive_attr_set_post_ops)                \
    X(dnnl_post_ops_create) X(dnnl_post_ops_destroy) X(dnnl_post_ops_append_sum)                  \
    X(dnnl_matmul_primitive_desc_create) X(dnnl_primitive_desc_destroy)                           \
    X(dnnl_primitive_desc_query) X(dnnl_primitive_desc_query_md) X(dnnl_primitive_create) X(dnnl_primitive_destroy)            \
    X(dnnl_primitive_execute)
// clang-format on

static struct library {
    atomic_bool opened;  // set last, with release; the rest is constant after
    dnnl_engine_t engine;
    char text[4200];  // "oneDNN 3.2.0 (/path)"
#define X(name) __typeof__(&name) name;
    DNNL_FUNCTIONS(X)
#undef X
} lib;

bool pl__dnnl_built(void) { return true; }

const char *pl_cpu_matmul_library(void) {
    return atomic_load_explicit(&lib.opened, memory_order_acquire) ? lib.text : "not loaded";
}

static pl_status explain_missing(const char *path, const char *reason) {
    const char *remedy = strstr(reason, "libgomp")
                             ? "install GCC's OpenMP runtime (Debian, Ubuntu: apt install libgomp1;"
                               " Fedora: dnf install libgomp)"
                             : "pip install onednn-cpu-gomp, or set PACELINE_DNNL to the path of a "
                               "libdnnl.so.3";
    return pl_fail(PL_EDEVICE,
                   "[oneDNN] cannot open the library for matrix products: got \"%s\" "
                   "for %s, expected oneDNN 3 built for libgomp: %s",
                   reason, path, remedy);
}

static pl_status find_functions(void *handle, const char *path) {
#define X(fn)                                 \
    *(void **)(&lib.fn) = dlsym(handle, #fn); \
    if (!lib.fn) return explain_missing(path, "no " #fn " in it");
    DNNL_FUNCTIONS(X)
#undef X
    return PL_OK;
}

static pl_status open_locked(void) {
    const char *path = wanted_path[0] ? wanted_path : "libdnnl.so.3";
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!handle) return explain_missing(path, dlerror());
    pl_status st = find_functions(handle, path);
    const dnnl_version_t *v = st == PL_OK ? lib.dnnl_version() : NULL;
    if (v && v->major != DNNL_VERSION_MAJOR) {
        char reason[64];
        (void)snprintf(reason, sizeof reason, "version %d.%d.%d", v->major, v->minor, v->patch);
        st = explain_missing(path, reason);
    }
    if (st == PL_OK && lib.dnnl_engine_create(&lib.engine, dnnl_cpu, 0) != dnnl_success) {
        st = explain_missing(path, "no engine for this processor");
    }
    if (st != PL_OK) {
        (void)dlclose(handle);
        return st;
    }
    Dl_info where;
    bool known = dladdr((void *)(uintptr_t)lib.dnnl_version, &where) != 0 && where.dli_fname;
    (void)snprintf(lib.text, sizeof lib.text, "oneDNN %d.%d.%d (%s)", v->major, v->minor, v->patch,
                   known ? where.dli_fname : path);
    atomic_store_explicit(&lib.opened, true, memory_order_release);
    return PL_OK;
}

pl_status pl__dnnl_open(void) {
    if (PL_LIKELY(atomic_load_explicit(&lib.opened, memory_order_acquire))) return PL_OK;
    (void)pthread_mutex_lock(&open_lock);
    bool opened = atomic_load_explicit(&lib.opened, memory_order_relaxed);
    pl_status st = opened ? PL_OK : open_locked();
    (void)pthread_mutex_unlock(&open_lock);
    return st;
}

// ---------------------------------------------------------------------------------------------
// One thread's cache: an open-addressed table of entries, oldest overwritten when it is full.

enum { SLOTS = 2048, CAPACITY = 1024, ARGS = 5 };

typedef struct entry {
    pl_dnnl_product key;
    dnnl_primitive_t primitive;  // NULL: the library has no fast code for this product
    dnnl_exec_arg_t args[ARGS];  // a, b, out, then bias and scratchpad where there are any
    int nargs;
    size_t scratch_nbytes;  // 0: none
} entry;

typedef struct cache {
    dnnl_stream_t stream;
    void *scratch;
    size_t scratch_nbytes;
    int64_t made;              // entries ever made; made % CAPACITY is the oldest
    entry *entries[CAPACITY];  // a ring
    int16_t slots[SLOTS];      // index into entries, or -1
} cache;

static pl_status out_of_memory(size_t nbytes) {
    return pl_fail(PL_ENOMEM, "[matmul] out of memory for oneDNN's cache: wanted %zu bytes",
                   nbytes);
}

static pthread_key_t cache_key;
static pthread_once_t cache_once = PTHREAD_ONCE_INIT;
static _Thread_local cache *my_cache;

static void entry_free(entry *e) {
    if (!e) return;
    for (int i = 0; i < e->nargs; i++) (void)lib.dnnl_memory_destroy(e->args[i].memory);
    if (e->primitive) (void)lib.dnnl_primitive_destroy(e->primitive);
    free(e);
}

static void cache_free(void *p) {  // at the end of its thread
    cache *c = p;
    for (int i = 0; i < CAPACITY; i++) entry_free(c->entries[i]);
    (void)lib.dnnl_stream_destroy(c->stream);
    free(c->scratch);
    free(c);
    my_cache = NULL;
}

static void make_cache_key(void) { (void)pthread_key_create(&cache_key, cache_free); }

static pl_status cache_get(cache **out) {
    if (PL_LIKELY(my_cache != NULL)) {
        *out = my_cache;
        return PL_OK;
    }
    (void)pthread_once(&cache_once, make_cache_key);
    cache *c = NULL;
    c = calloc(1, sizeof *c);
    if (!c) return out_of_memory(sizeof *c);
    memset(c->slots, 0xff, sizeof c->slots);
    if (lib.dnnl_stream_create(&c->stream, lib.engine, dnnl_stream_default_flags) != dnnl_success ||
        pthread_setspecific(cache_key, c) != 0) {
        free(c);
        return pl_fail(PL_EDEVICE, "[oneDNN] cannot make a stream for this thread");
    }
    *out = my_cache = c;
    return PL_OK;
}

// The product's bytes, eight at a time; multiply and fold as in wyhash.
static uint32_t hash_product(const pl_dnnl_product *p) {
    uint64_t h = 0x9E3779B97F4A7C15u, words[sizeof *p / 8];
    memcpy(words, p, sizeof words);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        h = (h ^ words[i]) * 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
    }
    return (uint32_t)h;
}

_Static_assert(sizeof(pl_dnnl_product) % 8 == 0, "hash_product reads whole words");

static entry *cache_find(cache *c, const pl_dnnl_product *p, uint32_t hash) {
    for (uint32_t s = hash % SLOTS; c->slots[s] >= 0; s = (s + 1) % SLOTS) {
        entry *e = c->entries[c->slots[s]];
        if (memcmp(&e->key, p, sizeof *p) == 0) return e;
    }
    return NULL;
}

static void slot_insert(cache *c, int index) {
    uint32_t s = hash_product(&c->entries[index]->key) % SLOTS;
    while (c->slots[s] >= 0) s = (s + 1) % SLOTS;
    c->slots[s] = (int16_t)index;
}

// Takes ownership of e; the oldest entry leaves when the ring is full. Removing from an
// open-addressed table means making it anew: rare, and cheap beside making a primitive.
static void cache_insert(cache *c, entry *e) {
    int index = (int)(c->made++ % CAPACITY);
    bool replaces = c->entries[index] != NULL;
    entry_free(c->entries[index]);
    c->entries[index] = e;
    if (!replaces) {
        slot_insert(c, index);
        return;
    }
    memset(c->slots, 0xff, sizeof c->slots);
    for (int i = 0; i < CAPACITY; i++) slot_insert(c, i);
}

// ---------------------------------------------------------------------------------------------
// Making an entry.

static dnnl_data_type_t dnnl_type(uint8_t dt) {
    return dt == PL_BF16 ? dnnl_bf16 : dt == PL_F16 ? dnnl_f16 : dnnl_f32;
}

static dnnl_status_t make_desc(const pl_dnnl_product *p, uint8_t dt, const int64_t *batch,
                               int64_t rows, int64_t cols, const int64_t *strides,
                               dnnl_memory_desc_t *out) {
    dnnl_dims_t dims = {0}, steps = {0};
    for (int d = 0; d < p->ndim; d++) {
        dims[d] = d < p->ndim - 2 ? batch[d] : d == p->ndim - 2 ? rows : cols;
        steps[d] = strides[d];
    }
    return lib.dnnl_memory_desc_create_with_strides(out, p->ndim, dims, dnnl_type(dt), steps);
}

static dnnl_status_t make_bias_desc(const pl_dnnl_product *p, dnnl_memory_desc_t *out) {
    const int64_t ones[PL_DNNL_DIMS] = {1, 1, 1, 1, 1, 1};
    int64_t strides[PL_DNNL_DIMS];
    for (int d = 0; d < PL_DNNL_DIMS; d++) strides[d] = d == p->ndim - 1 ? 1 : p->n;
    return make_desc(p, p->bias, ones, 1, p->n, strides, out);
}

static dnnl_status_t make_attr(const pl_dnnl_product *p, dnnl_primitive_attr_t *out) {
    dnnl_primitive_attr_t attr;
    dnnl_status_t st = lib.dnnl_primitive_attr_create(&attr);
    if (st != dnnl_success) return st;
    st = lib.dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user);
    dnnl_post_ops_t ops = NULL;
    if (st == dnnl_success) st = lib.dnnl_post_ops_create(&ops);
    if (st == dnnl_success && p->accumulate) {
        st = lib.dnnl_post_ops_append_sum(ops, 1.0f, 0, dnnl_type(p->out));
    }
    if (st == dnnl_success) st = lib.dnnl_primitive_attr_set_post_ops(attr, ops);
    if (ops) (void)lib.dnnl_post_ops_destroy(ops);
    if (st != dnnl_success) {
        (void)lib.dnnl_primitive_attr_destroy(attr);
        return st;
    }
    *out = attr;
    return dnnl_success;
}

static dnnl_status_t add_arg(entry *e, int id, const_dnnl_memory_desc_t desc) {
    dnnl_status_t st =
        lib.dnnl_memory_create(&e->args[e->nargs].memory, desc, lib.engine, DNNL_MEMORY_NONE);
    if (st == dnnl_success) e->args[e->nargs++].arg = id;
    return st;
}

// descs: a, b, out, bias (NULL: none).
static dnnl_status_t fill_entry(entry *e, dnnl_memory_desc_t descs[4], dnnl_primitive_attr_t attr) {
    dnnl_primitive_desc_t pd;
    dnnl_status_t st = lib.dnnl_matmul_primitive_desc_create(&pd, lib.engine, descs[0], descs[1],
                                                             descs[3], descs[2], attr);
    if (st != dnnl_success) return st;
    const char *name = "";
    (void)lib.dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, (void *)&name);
    if (strncmp(name, "brg", 3) != 0) {
        (void)lib.dnnl_primitive_desc_destroy(pd);
        return dnnl_unimplemented;
    }
    st = lib.dnnl_primitive_create(&e->primitive, pd);
    static const int ids[4] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_DST, DNNL_ARG_BIAS};
    for (int i = 0; i < 4 && st == dnnl_success; i++) {
        if (descs[i]) st = add_arg(e, ids[i], descs[i]);
    }
    const_dnnl_memory_desc_t scratch =
        lib.dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    size_t nbytes = scratch ? lib.dnnl_memory_desc_get_size(scratch) : 0;
    if (st == dnnl_success && nbytes > 0) {
        st = add_arg(e, DNNL_ARG_SCRATCHPAD, scratch);
        e->scratch_nbytes = nbytes;
    }
    (void)lib.dnnl_primitive_desc_destroy(pd);
    return st;
}

static dnnl_status_t build_entry(entry *e) {
    const pl_dnnl_product *p = &e->key;
    dnnl_memory_desc_t descs[4] = {NULL};
    dnnl_primitive_attr_t attr = NULL;
    dnnl_status_t st = make_desc(p, p->ab, p->batch_a, p->m, p->k, p->strides_a, &descs[0]);
    if (st == dnnl_success) {
        st = make_desc(p, p->ab, p->batch_b, p->k, p->n, p->strides_b, &descs[1]);
    }
    if (st == dnnl_success) {
        st = make_desc(p, p->out, p->batch_out, p->m, p->n, p->strides_out, &descs[2]);
    }
    if (st == dnnl_success && p->bias != PL_DTYPE_COUNT) st = make_bias_desc(p, &descs[3]);
    if (st == dnnl_success) st = make_attr(p, &attr);
    if (st == dnnl_success) st = fill_entry(e, descs, attr);
    if (attr) (void)lib.dnnl_primitive_attr_destroy(attr);
    for (int i = 0; i < 4; i++) {
        if (descs[i]) (void)lib.dnnl_memory_desc_destroy(descs[i]);
    }
    return st;
}

static pl_status entry_new(const pl_dnnl_product *p, entry **out) {
    entry *e = calloc(1, sizeof *e);
    if (!e) return out_of_memory(sizeof *e);
    e->key = *p;
    dnnl_status_t st = build_entry(e);
    if (st == dnnl_unimplemented) {  // remembered, with primitive NULL
        if (e->primitive) (void)lib.dnnl_primitive_destroy(e->primitive);
        e->primitive = NULL;
    } else if (st != dnnl_success) {
        entry_free(e);
        return pl_fail(st == dnnl_out_of_memory ? PL_ENOMEM : PL_EDEVICE,
                       "[matmul] oneDNN refused a product of (%lld, %lld) by (%lld, %lld): "
                       "got its status %d, expected 0",
                       (long long)p->m, (long long)p->k, (long long)p->k, (long long)p->n, (int)st);
    }
    *out = e;
    return PL_OK;
}

static pl_status grow_scratch(cache *c, size_t nbytes) {
    if (nbytes <= c->scratch_nbytes) return PL_OK;
    free(c->scratch);
    size_t rounded = (nbytes + 4095) / 4096 * 4096;
    c->scratch = aligned_alloc(4096, rounded);
    c->scratch_nbytes = c->scratch ? rounded : 0;
    if (!c->scratch) return out_of_memory(rounded);
    return PL_OK;
}

pl_status pl__dnnl_matmul(const pl_dnnl_product *p, const void *a, const void *b, const void *bias,
                          void *out, bool *done) {
    PL_TRY(pl__dnnl_open());
    cache *c = NULL;
    PL_TRY(cache_get(&c));
    entry *e = cache_find(c, p, hash_product(p));
    if (PL_UNLIKELY(!e)) {
        PL_TRY(entry_new(p, &e));
        cache_insert(c, e);
    }
    *done = e->primitive != NULL;
    if (!*done) return PL_OK;
    PL_TRY(grow_scratch(c, e->scratch_nbytes));
    const void *data[ARGS] = {a, b, out, p->bias != PL_DTYPE_COUNT ? bias : c->scratch, c->scratch};
    for (int i = 0; i < e->nargs; i++) {
        dnnl_status_t set = lib.dnnl_memory_set_data_handle(e->args[i].memory, (void *)data[i]);
        PL_ASSERT(set == dnnl_success);
    }
    dnnl_status_t st = lib.dnnl_primitive_execute(e->primitive, c->stream, e->nargs, e->args);
    if (st != dnnl_success) {
        return pl_fail(PL_EDEVICE, "[matmul] oneDNN failed: got its status %d, expected 0",
                       (int)st);
    }
    return PL_OK;
}

// SPDX-License-Identifier: Apache-2.0
// simt: runs a grid on one host thread. Every CUDA thread of a block is a fiber that runs until it
// waits (barrier, warp operation) or ends; the scheduler then takes the next one in the order of
// the schedule. A warp operation ends when all lanes of its mask have come to the same place with
// the same mask; a barrier when all threads of the block have. Anything else is a complaint, which
// ends the launch: its fibers are dropped where they stand. Blocks run one after the other.
#include "simt.h"

#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <map>
#include <mutex>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SIMT_ASAN 1
#else
#define SIMT_ASAN 0
#endif

dim3 simt_thread, simt_block, simt_block_size, simt_grid_size;
void (*simt_stream)(void *stream, void (*run)(void *), const void *context, size_t nbytes);

namespace {

enum { MAX_THREADS = 1024, STACK_BYTES = SIMT_ASAN ? 512 << 10 : 128 << 10 };
enum { MAX_FETCHES = 64 };
enum { SHARED_LIMIT = 227 << 10, STATIC_LIMIT = 48 << 10, GUARD = 64, MAX_BUFFERS = 32 };
enum state { READY, AT_BARRIER, AT_WARP, ENDED };

struct fiber {
    void *sp;
    state now;
    simt_site site;
    uint32_t mask;
    dim3 index;
    int fetches, group;  // copies not made yet, the group that the next one belongs to
};

struct fetch {
    void *to;
    const void *from;
    size_t nbytes;
    int group;
};

struct warp {
    simt_values given, taken;  // taken: what a finished operation hands out
};

struct buffer {
    const void *key;
    size_t offset, nbytes;
};

fiber fibers[MAX_THREADS];
fetch fetches[MAX_THREADS][MAX_FETCHES];
warp warps[MAX_THREADS / SIMT_WARP];
char *stacks;
alignas(128) unsigned char shared[SHARED_LIMIT + (MAX_BUFFERS + 1) * 2 * GUARD];
buffer buffers[MAX_BUFFERS];
int buffer_count;
size_t shared_used, static_used, dynamic_offset;

// By kernel; not ended with the process, whose other threads may still run.
std::mutex *allowed_lock = new std::mutex;
std::map<const void *, size_t> *allowed = new std::map<const void *, size_t>;

void *scheduler_sp;
int current = -1, thread_count;
void (*kernel)(void *);
void *kernel_arg;
simt_schedule schedule = SIMT_FORWARD;
uint64_t random_state = 1, launches, switches;
char error_text[512];

// ---- Fibers -------------------------------------------------------------------------------------

extern "C" void simt_switch(void **save, void *load);
__asm__(
    ".text\n"
    ".type simt_switch, @function\n"
    "simt_switch:\n"
    "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n"
    "    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq %rbp\n"
    "    ret\n"
    ".size simt_switch, .-simt_switch\n");

char *stack_of(int t) { return stacks + (size_t)t * STACK_BYTES; }

#if SIMT_ASAN
const void *scheduler_bottom;
size_t scheduler_size;
#endif

void to_scheduler() {
    switches++;
#if SIMT_ASAN
    void *fake = nullptr;
    __sanitizer_start_switch_fiber(fibers[current].now == ENDED ? nullptr : &fake, scheduler_bottom,
                                   scheduler_size);
#endif
    simt_switch(&fibers[current].sp, scheduler_sp);
#if SIMT_ASAN
    __sanitizer_finish_switch_fiber(fake, &scheduler_bottom, &scheduler_size);
#endif
}

void fiber_main() {
#if SIMT_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
#endif
    kernel(kernel_arg);
    if (fibers[current].fetches > 0) {
        simt_complain(SIMT_SITE("cp.async"), "left the kernel with %d copies under way",
                      fibers[current].fetches);
    }
    fibers[current].now = ENDED;
    to_scheduler();
    __builtin_trap();
}

void to_fiber(int t) {
    current = t;
    simt_thread = fibers[t].index;
#if SIMT_ASAN
    void *fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, stack_of(t), STACK_BYTES);
#endif
    simt_switch(&scheduler_sp, fibers[t].sp);
#if SIMT_ASAN
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void prepare_fiber(int t) {
#if SIMT_ASAN
    __asan_unpoison_memory_region(stack_of(t), STACK_BYTES);  // a dropped fiber's frames
#endif
    // simt_switch pops six registers and returns to fiber_main with the stack as after a call.
    void **top = (void **)(void *)(stack_of(t) + STACK_BYTES) - 3;
    *--top = (void *)fiber_main;
    for (int i = 0; i < 6; i++) *--top = nullptr;
    unsigned x = simt_block_size.x, y = simt_block_size.y, i = (unsigned)t;
    fibers[t] =
        fiber{top, READY, {nullptr, nullptr, 0}, 0, dim3(i % x, i / x % y, i / x / y), 0, 0};
}

// ---- Orders -------------------------------------------------------------------------------------

uint64_t next_random() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

void fill_order(int n, int *order) {
    for (int i = 0; i < n; i++) order[i] = schedule == SIMT_REVERSE ? n - 1 - i : i;
    for (int i = n - 1; schedule == SIMT_RANDOM && i > 0; i--) {
        int j = (int)(next_random() % (uint64_t)(i + 1)), kept = order[i];
        order[i] = order[j];
        order[j] = kept;
    }
}

// ---- Complaints ---------------------------------------------------------------------------------

const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash != nullptr ? slash + 1 : path;
}

__attribute__((format(printf, 3, 4))) void record(simt_site site, int t, const char *format, ...) {
    if (error_text[0] != 0) return;
    int n = 0;
    if (site.file != nullptr) {
        n = snprintf(error_text, sizeof(error_text), "%s:%d: %s: ", base_name(site.file), site.line,
                     site.what);
    }
    if (t >= 0) {
        n += snprintf(error_text + n, sizeof(error_text) - (size_t)n, "thread %d of block %u: ", t,
                      simt_block.x);
    }
    va_list args;
    va_start(args, format);
    vsnprintf(error_text + n, sizeof(error_text) - (size_t)n, format, args);
    va_end(args);
}

// ---- One block ----------------------------------------------------------------------------------

bool same_place(simt_site a, simt_site b) {
    return a.line == b.line && a.file == b.file && a.what == b.what;
}

// If every lane of t's mask waits at t's place, all go on. Complains where that cannot happen.
void try_warp(int t) {
    int first = t / SIMT_WARP * SIMT_WARP;
    const fiber &mine = fibers[t];
    for (int l = 0; l < SIMT_WARP; l++) {
        if (!(mine.mask >> l & 1)) continue;
        const fiber *other = first + l < thread_count ? &fibers[first + l] : nullptr;
        if (other == nullptr || other->now == ENDED) {
            return record(mine.site, t, "lane %d of mask 0x%08x has left the kernel or never was",
                          l, mine.mask);
        }
        if (other->now != AT_WARP || !same_place(other->site, mine.site)) return;
        if (other->mask != mine.mask) {
            return record(mine.site, t, "lanes disagree on the mask: 0x%08x, lane %d has 0x%08x",
                          mine.mask, l, other->mask);
        }
    }
    warp &w = warps[t / SIMT_WARP];
    for (int l = 0; l < SIMT_WARP; l++) {
        if (!(mine.mask >> l & 1)) continue;
        memcpy(w.taken[l], w.given[l], sizeof(w.taken[l]));
        fibers[first + l].now = READY;
    }
}

// All wait or have ended: the barrier opens, or the block hangs.
void open_barrier() {
    int waiting = -1;
    for (int t = 0; t < thread_count; t++) {
        if (fibers[t].now == AT_WARP) {
            return record(fibers[t].site, t, "waits for ever for mask 0x%08x", fibers[t].mask);
        }
        if (fibers[t].now == AT_BARRIER) waiting = t;
    }
    for (int t = 0; t < thread_count && waiting >= 0; t++) {
        const fiber &w = fibers[waiting];
        if (fibers[t].now == ENDED) {
            return record(w.site, t, "has left the kernel while thread %d waits here", waiting);
        }
        if (!same_place(fibers[t].site, w.site)) {
            return record(w.site, t, "waits at line %d while thread %d waits here",
                          fibers[t].site.line, waiting);
        }
    }
    for (int t = 0; t < thread_count; t++) fibers[t].now = READY;
}

void check_guards() {
    for (int i = 0; i < buffer_count; i++) {
        const unsigned char *end = shared + buffers[i].offset + buffers[i].nbytes;
        for (int j = 0; j < GUARD; j++) {
            if (end[j] != 0xA5) {
                return record({nullptr, nullptr, 0}, -1,
                              "shared memory: written %d bytes past the end of a buffer of %zu", j,
                              buffers[i].nbytes);
            }
        }
    }
}

size_t add_buffer(const void *key, size_t nbytes) {
    size_t offset = (shared_used + 127) / 128 * 128;
    memset(shared + offset, 0xFF, nbytes);
    memset(shared + offset + nbytes, 0xA5, GUARD);
    buffers[buffer_count++] = buffer{key, offset, nbytes};
    shared_used = offset + nbytes + GUARD;
    return offset;
}

void run_block(size_t dynamic_bytes) {
    int order[MAX_THREADS];
    buffer_count = 0;
    shared_used = static_used = 0;
    dynamic_offset = add_buffer(nullptr, dynamic_bytes);
    for (int t = 0; t < thread_count; t++) prepare_fiber(t);
    for (bool live = true; live && error_text[0] == 0;) {
        bool ran = false;
        live = false;
        fill_order(thread_count, order);
        for (int i = 0; i < thread_count && error_text[0] == 0; i++) {
            int t = order[i];
            if (fibers[t].now == READY) {
                ran = true;
                to_fiber(t);
                if (fibers[t].now == AT_WARP && error_text[0] == 0) try_warp(t);
            }
            live = live || fibers[t].now != ENDED;
        }
        if (live && !ran && error_text[0] == 0) open_barrier();
    }
    current = -1;
    if (error_text[0] == 0) check_guards();
}

void run_grid(unsigned x, unsigned y, unsigned z, size_t dynamic_bytes) {
    int n = (int)(x * y * z);
    int *order = (int *)malloc((size_t)n * sizeof(int));
    if (order == nullptr) return record({nullptr, nullptr, 0}, -1, "no memory");
    fill_order(n, order);
    for (int i = 0; i < n && error_text[0] == 0; i++) {
        unsigned b = (unsigned)order[i];
        simt_block = dim3(b % x, b / x % y, b / x / y);
        run_block(dynamic_bytes);
    }
    free(order);
}

}  // namespace

// ---- What kernels call --------------------------------------------------------------------------

void simt_launch(dim3 grid, dim3 block, size_t dynamic_bytes, void (*body)(void *), void *arg) {
    if (error_text[0] != 0) return;
    launches++;
    size_t threads = (size_t)block.x * block.y * block.z;
    if (threads == 0 || threads > MAX_THREADS || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
        grid.y > 65535 || grid.z > 65535 || dynamic_bytes > SHARED_LIMIT) {
        return record({nullptr, nullptr, 0}, -1,
                      "invalid launch: grid (%u, %u, %u), %zu threads, %zu bytes shared", grid.x,
                      grid.y, grid.z, threads, dynamic_bytes);
    }
    if (stacks == nullptr) {
        void *p = mmap(nullptr, (size_t)MAX_THREADS * STACK_BYTES, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) return record({nullptr, nullptr, 0}, -1, "no memory for stacks");
        stacks = (char *)p;
    }
    thread_count = (int)threads;
    simt_block_size = block;
    simt_grid_size = grid;
    kernel = body;
    kernel_arg = arg;
    run_grid(grid.x, grid.y, grid.z, dynamic_bytes);
}

void *simt_shared(const void *key, size_t nbytes) {
    for (int i = 0; i < buffer_count; i++) {
        if (buffers[i].key == key) return shared + buffers[i].offset;
    }
    static_used += nbytes;
    if (static_used > STATIC_LIMIT || shared_used + nbytes > SHARED_LIMIT ||
        buffer_count == MAX_BUFFERS) {
        simt_complain({"", "shared memory", 0}, "%zu bytes are more than a block has", static_used);
    }
    return shared + add_buffer(key, nbytes);
}

void simt_allow_shared(const void *kernel, size_t nbytes) {
    std::lock_guard<std::mutex> hold(*allowed_lock);
    (*allowed)[kernel] = nbytes;
}

bool simt_may_share(const void *kernel, size_t nbytes) {
    if (nbytes <= STATIC_LIMIT) return true;
    std::lock_guard<std::mutex> hold(*allowed_lock);
    auto it = allowed->find(kernel);
    return it != allowed->end() && it->second >= nbytes;
}

void simt_refuse_shared(size_t nbytes) {
    record({nullptr, nullptr, 0}, -1,
           "invalid launch: %zu bytes of dynamic shared memory were not allowed for this kernel",
           nbytes);
}

void *simt_dynamic_shared(void) { return shared + dynamic_offset; }

void simt_complain(simt_site site, const char *format, ...) {
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    record(site, current, "%s", text);
    to_scheduler();  // which drops this fiber
    __builtin_trap();
}

void simt_barrier(simt_site site) {
    fibers[current].now = AT_BARRIER;
    fibers[current].site = site;
    to_scheduler();
}

void simt_fetch(simt_site site, void *to, const void *from, size_t nbytes) {
    fiber &f = fibers[current];
    if (f.fetches == MAX_FETCHES) simt_complain(site, "%d copies and no wait", MAX_FETCHES);
    memset(to, 0xff, nbytes);
    fetches[current][f.fetches++] = fetch{to, from, nbytes, f.group};
}

void simt_fetch_commit(void) { fibers[current].group++; }

void simt_fetch_wait(int newer) {
    fiber &f = fibers[current];
    int kept = 0;
    for (int i = 0; i < f.fetches; i++) {
        const fetch &c = fetches[current][i];
        if (c.group >= f.group - newer) {
            fetches[current][kept++] = c;
        } else if (c.from == nullptr) {
            memset(c.to, 0, c.nbytes);
        } else {
            memcpy(c.to, c.from, c.nbytes);
        }
    }
    f.fetches = kept;
}

unsigned simt_lane(void) { return (unsigned)current % SIMT_WARP; }

const simt_values *simt_exchange(simt_site site, uint32_t mask, const void *mine, size_t nbytes) {
    unsigned lane = simt_lane();
    if (!(mask >> lane & 1)) {
        simt_complain(site, "lane %u is not in its own mask 0x%08x", lane, mask);
    }
    memcpy(warps[current / SIMT_WARP].given[lane], mine, nbytes);
    fibers[current].now = AT_WARP;
    fibers[current].site = site;
    fibers[current].mask = mask;
    to_scheduler();
    return &warps[current / SIMT_WARP].taken;
}

bool simt_fault(const void *address) {
    if (current < 0) return false;
    record({nullptr, nullptr, 0}, current, "illegal access at %p", address);
    to_scheduler();  // which drops this fiber
    __builtin_trap();
}

// ---- What tests call ----------------------------------------------------------------------------

void simt_set_schedule(simt_schedule s, uint64_t seed) {
    schedule = s;
    random_state = seed * 0x9e3779b97f4a7c15u + 1;
}

const char *simt_error(void) { return error_text; }
void simt_clear_error(void) { error_text[0] = 0; }
uint64_t simt_launches(void) { return launches; }
uint64_t simt_switches(void) { return switches; }

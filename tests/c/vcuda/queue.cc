// SPDX-License-Identifier: Apache-2.0
// queue: streams whose tasks run late. A stream is a queue in order; a wait for an event is a task
// of it that is over once the recorded place of the other stream is reached. Whoever synchronises
// runs tasks, one at a time, and picks the next among the streams whose first task can run: at
// random, or by an order that is as late or as early as it can be (a seed's choice, anew for every
// synchronisation). With PACELINE_VCUDA_WORKER=1 a thread does that at all times instead, with
// pauses, so that ranks can wait for each other's tasks while their hosts do something else.
//
// Note [one runner]: `running` is held, not the lock, while a task runs: others go on enqueuing.
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "device.h"
#include "simt.h"

struct vcuda_event {
    vcuda_stream *stream;  // NULL: never recorded
    uint64_t upto;
    std::atomic<uint64_t> *reached;  // tasks that had run when it was; NULL: not asked for
};

namespace {

struct task {
    void (*run)(void *);  // one of run, poll; neither: a wait for `after`
    bool (*poll)(void *);
    void *context;
    vcuda_event after;
};

}  // namespace

struct vcuda_stream {
    std::deque<task> queue;
    uint64_t enqueued, done;
    bool high_priority;
    bool stalled;  // its first task was polled in vain since any other ended
};

namespace {

std::atomic<uint64_t> launches, waits;

void launch(void *stream, void (*run)(void *), const void *context, size_t nbytes) {
    launches++;
    vcuda_enqueue(stream, run, context, nbytes);
}

typedef std::unique_lock<std::mutex> holding;

struct device {
    std::mutex lock;
    std::condition_variable changed;
    std::vector<vcuda_stream *> streams;  // never given back
    vcuda_random random;
    enum order { ANY, EARLY, LATE } order;
    uint64_t waiting, most_waiting;  // tasks; beyond `most` some run at once
    std::atomic<uint64_t> clock;     // tasks that have run
    bool running;
    vcuda_stream *burst;  // the worker stays at a stream for a while
};

void work();

device &gpu() {
    static device *d = [] {
        device *made = new device();
        const vcuda_settings &set = vcuda_get_settings();
        made->random.state = set.seed;
        made->most_waiting = 64 + made->random.next() % 1024;
        simt_set_schedule((simt_schedule)(set.seed % SIMT_SCHEDULES), set.seed);
        simt_stream = launch;
        return made;
    }();
    static std::once_flag once;
    if (vcuda_get_settings().worker) std::call_once(once, [] { std::thread(work).detach(); });
    return *d;
}

bool reached(const vcuda_event &e) { return e.stream == nullptr || e.stream->done >= e.upto; }

// ---- Which task is next -------------------------------------------------------------------------

void finish(device &d, vcuda_stream *s) {
    free(s->queue.front().context);
    s->queue.pop_front();
    s->done++;
    d.clock++;
    d.waiting--;
    for (vcuda_stream *other : d.streams) other->stalled = false;
    d.changed.notify_all();
}

// The first task is one to run or poll; waits that are over go. With a lost device all goes.
bool ready(device &d, vcuda_stream *s) {
    while (!s->queue.empty()) {
        const task &first = s->queue.front();
        bool wait = first.run == nullptr && first.poll == nullptr;
        if (vcuda_lost() == cudaSuccess) {
            if (!wait) return !s->stalled;
            if (!reached(first.after)) return false;
        }
        finish(d, s);
    }
    return false;
}

// What must go on so that `s` does: itself, or the stream that its first task waits for.
vcuda_stream *needed(device &d, vcuda_stream *s) {
    while (s != nullptr && !ready(d, s)) {
        if (s->queue.empty() || s->stalled) return nullptr;
        s = s->queue.front().after.stream;
    }
    return s;
}

// NULL: nothing can run. `target` may be NULL.
vcuda_stream *pick(device &d, vcuda_stream *target) {
    vcuda_stream *must = needed(d, target);
    if (d.order == device::LATE && must != nullptr) return must;
    std::vector<vcuda_stream *> able;
    for (vcuda_stream *s : d.streams) {
        if (!ready(d, s)) continue;
        if (s == d.burst && !d.random.one_in(8)) return s;
        if (d.order != device::EARLY || s != must) able.push_back(s);
    }
    if (able.empty()) return must;
    return able[d.random.next() % able.size()];
}

// ---- Running ------------------------------------------------------------------------------------

struct polled {
    task *what;
    bool over;
};

void run_polled(void *context) {
    polled *p = (polled *)context;
    p->over = true;
    if (p->what->run != nullptr) {
        p->what->run(p->what->context);
    } else {
        p->over = p->what->poll(p->what->context);
    }
}

// What CUDA would call it.
cudaError_t kind(const char *problem) {
    if (strstr(problem, "illegal access") != nullptr) return cudaErrorIllegalAddress;
    if (strstr(problem, "not aligned") != nullptr) return cudaErrorMisalignedAddress;
    return cudaErrorLaunchFailure;
}

// The lock is given up meanwhile; false where nothing could run.
bool run_one(device &d, holding &hold, vcuda_stream *target) {
    vcuda_stream *s = pick(d, target);
    if (s == nullptr) return false;
    d.burst = vcuda_get_settings().worker ? s : nullptr;
    polled p = {&s->queue.front(), false};  // a deque's elements stay where they are
    hold.unlock();
    vcuda_access(true);
    const char *problem = vcuda_guarded(run_polled, &p);
    if (problem != nullptr) vcuda_lose(kind(problem), problem);
    hold.lock();
    if (p.over || problem != nullptr) {
        finish(d, s);
    } else {
        s->stalled = true;
    }
    return true;
}

// Until something changes; where a task is polled, only for a moment.
void rest(device &d, holding &hold) {
    bool polls = false;
    for (vcuda_stream *s : d.streams) {
        polls = polls || s->stalled;
        s->stalled = false;
    }
    d.changed.wait_for(hold, std::chrono::microseconds(polls ? 100 : 20000));
}

void close_memory(device &d) {
    if (d.running || !vcuda_is_accessible()) return;
    const char *problem = vcuda_check_zones();
    if (problem != nullptr) vcuda_lose(cudaErrorIllegalAddress, problem);
    vcuda_access(false);
}

// Runs tasks, or lets others run them, until `e` is reached.
void run_until(const vcuda_event &e) {
    device &d = gpu();
    waits++;
    holding hold(d.lock);
    bool worker = vcuda_get_settings().worker;
    d.order = (enum device::order)(d.random.next() % 3);
    while (!reached(e)) {
        if (worker || d.running) {
            d.changed.wait_for(hold, std::chrono::milliseconds(20));
            continue;
        }
        d.running = true;
        bool ran = run_one(d, hold, e.stream);
        d.running = false;
        d.changed.notify_all();
        if (!ran && !reached(e)) rest(d, hold);
    }
    if (!worker) close_memory(d);
}

// Up to n tasks, whichever; returns when none can.
void run_some(device &d, holding &hold, uint64_t n) {
    if (vcuda_get_settings().worker || d.running) return;
    d.order = device::ANY;
    d.running = true;
    while (n-- > 0 && run_one(d, hold, nullptr)) {
    }
    d.running = false;
    d.changed.notify_all();
    close_memory(d);
}

void work() {
    device &d = gpu();
    holding hold(d.lock);
    d.order = device::ANY;
    for (;;) {
        d.running = true;
        bool ran = run_one(d, hold, nullptr);
        d.running = false;
        if (!ran) {
            close_memory(d);
            rest(d, hold);
        } else if (d.random.one_in(16)) {
            useconds_t pause = (useconds_t)(d.random.next() % 300);
            hold.unlock();
            usleep(pause);
            hold.lock();
        }
    }
}

void put(vcuda_stream *s, const task &t) {
    device &d = gpu();
    holding hold(d.lock);
    s->queue.push_back(t);
    s->enqueued++;
    d.changed.notify_all();
    if (++d.waiting > d.most_waiting) {
        run_some(d, hold, d.waiting / 2);
        d.most_waiting = 64 + d.random.next() % 1024;
    }
}

void put_work(void *stream, task t, const void *context, size_t nbytes) {
    vcuda_stream *s = (vcuda_stream *)stream;
    bool now = s == nullptr;
    static vcuda_stream *own = vcuda_stream_new(false);
    if (now) s = own;
    t.context = malloc(nbytes + 1);
    if (t.context == nullptr) abort();
    if (nbytes > 0) memcpy(t.context, context, nbytes);
    put(s, t);
    if (now) vcuda_sync_stream(s);
}

}  // namespace

void vcuda_enqueue(void *stream, void (*run)(void *), const void *context, size_t nbytes) {
    put_work(stream, task{run, nullptr, nullptr, {nullptr, 0, nullptr}}, context, nbytes);
}

void vcuda_enqueue_poll(void *stream, bool (*run)(void *), const void *context, size_t nbytes) {
    put_work(stream, task{nullptr, run, nullptr, {nullptr, 0, nullptr}}, context, nbytes);
}

vcuda_stream *vcuda_stream_new(bool high_priority) {
    device &d = gpu();
    holding hold(d.lock);
    d.streams.push_back(new vcuda_stream());
    d.streams.back()->high_priority = high_priority;
    return d.streams.back();
}

vcuda_event *vcuda_event_new(bool timed) {
    vcuda_event *e = new vcuda_event();
    if (timed) e->reached = new std::atomic<uint64_t>();
    return e;
}

static void note_time(void *context) {
    std::atomic<uint64_t> *reached;
    memcpy(&reached, context, sizeof reached);
    *reached = gpu().clock.load();
}

void vcuda_record(vcuda_event *e, vcuda_stream *s) {
    if (e->reached != nullptr) vcuda_enqueue(s, note_time, &e->reached, sizeof e->reached);
    holding hold(gpu().lock);
    e->stream = s;
    e->upto = s->enqueued;
}

bool vcuda_elapsed(vcuda_event *from, vcuda_event *to, float *ms) {
    if (from->reached == nullptr || to->reached == nullptr) return false;
    holding hold(gpu().lock);
    if (from->stream == nullptr || to->stream == nullptr) return false;
    *ms = ((float)*to->reached - (float)*from->reached) * 1e-3f;  // each task a microsecond
    return true;
}

void vcuda_wait(vcuda_stream *s, vcuda_event *e) {
    int dropped = vcuda_get_settings().dropped_waits;
    if (dropped != 0 && s->high_priority == (dropped == 1)) return;
    holding hold(gpu().lock);
    vcuda_event after = *e;
    bool over = reached(after);
    hold.unlock();
    if (!over) put(s, task{nullptr, nullptr, nullptr, after});
}

bool vcuda_query(vcuda_event *e) {
    device &d = gpu();
    holding hold(d.lock);
    if (!reached(*e) && d.random.one_in(2)) run_some(d, hold, 1 + d.random.next() % 8);
    return reached(*e);
}

void vcuda_count(vcuda_counts *out) { *out = vcuda_counts{launches, waits}; }

void vcuda_sync_stream(vcuda_stream *s) {
    device &d = gpu();
    holding hold(d.lock);
    vcuda_event now = {s, s->enqueued, nullptr};
    hold.unlock();
    run_until(now);
}

void vcuda_sync_event(vcuda_event *e) {
    holding hold(gpu().lock);
    vcuda_event now = *e;
    hold.unlock();
    run_until(now);
}

// SPDX-License-Identifier: Apache-2.0
// Who keeps the others waiting: a table when a collective lasts long, a line when a rank seems
// frozen, an error when it stays so (RELIABILITY A2, A3). Runs on the watch thread, so it needs
// neither the caller nor the user's language to be awake.
//
// All collectives wait for all ranks. So a rank whose last meeting or step lies behind another's is
// late, and the other waits. One rank reports: the lowest that has a pulse, which is rank 0 but
// when that one is frozen itself.
#include <stdio.h>
#include <string.h>

#include "comm/internal.h"

#define PULSE_NS INT64_C(2000000000)  // without a heartbeat for so long, another rank reports
#define TABLE_ROWS 16

typedef struct progress {
    uint32_t arrived, step;
} progress;

static bool is_behind(progress a, progress b) {
    if (a.arrived != b.arrived) return (int32_t)(a.arrived - b.arrived) < 0;
    return (int32_t)(a.step - b.step) < 0;
}

static progress progress_of(const pl_group *g, int rank) {
    const pl__slot *s = &g->control->slots[rank];
    uint32_t a = atomic_load_explicit(&s->record[0].arrived, memory_order_relaxed);
    uint32_t b = atomic_load_explicit(&s->record[1].arrived, memory_order_relaxed);
    uint32_t step = atomic_load_explicit(&s->step, memory_order_relaxed);
    return (progress){(int32_t)(a - b) > 0 ? a : b, step};
}

static bool has_left(const pl_group *g, int rank) {
    uint32_t state = atomic_load_explicit(&g->control->slots[rank].state, memory_order_acquire);
    return state == PL__FINISHED || state == PL__FAILED;
}

// How long `rank` has given no sign of life; the time in which this process slept does not count.
static int64_t silence(const pl_group *g, const pl__lookout *o, int rank, int64_t now) {
    int64_t beat =
        (int64_t)atomic_load_explicit(&g->control->slots[rank].heartbeat_ns, memory_order_relaxed);
    if (beat == 0) return 0;  // it has not come yet; who waits for that has a deadline
    return now - (beat > o->awake_ns ? beat : o->awake_ns);
}

static bool is_reporter(const pl_group *g, const pl__lookout *o, int64_t now) {
    for (int r = 0; r < g->rank; r++) {
        if (!has_left(g, r) && silence(g, o, r, now) < PULSE_NS) return false;
    }
    return true;
}

static void look_for_frozen(pl_group *g, pl__lookout *o, int64_t now) {
    char text[512], seen[256];
    for (int r = 0; r < g->world; r++) {
        int64_t ns = silence(g, o, r, now);
        if (r == g->rank || has_left(g, r) || ns < g->suspect_ns) {
            o->suspected[r] = false;
            continue;
        }
        (void)pl__last_seen(g, r, seen, sizeof seen);
        snprintf(text, sizeof text,
                 "rank %d is frozen: no heartbeat for %.0f s (stopped, swapped out or without a "
                 "processor), %s",
                 r, (double)ns / 1e9, seen);
        if (g->frozen_ns && ns >= g->frozen_ns) {
            uint64_t dead[PL_MAX_RANKS / 64] = {0};
            dead[r / 64] |= UINT64_C(1) << (r % 64);
            (void)pl__propose(g, PL_EPEER, dead, text);
            return;
        }
        if (!o->suspected[r]) g->report(text);
        o->suspected[r] = true;
    }
}

static size_t row(const pl_group *g, const pl__lookout *o, int rank, bool late, int64_t now,
                  char *buf, size_t cap) {
    char seen[256], state[64];
    double quiet = (double)silence(g, o, rank, now) / 1e9;
    double since = (double)(now - o->since_ns[rank]) / 1e9;
    if (!late) snprintf(state, sizeof state, "waits since %.0f s", since);
    else if (quiet * 1e9 >= (double)PULSE_NS)
        snprintf(state, sizeof state, "late, frozen for %.0f s", quiet);
    else snprintf(state, sizeof state, "late, alive, elsewhere for %.0f s", since);
    (void)pl__last_seen(g, rank, seen, sizeof seen);
    int n = snprintf(buf, cap, "\n  rank %d: %s, %s", rank, state, seen);
    return n < 0 ? 0 : (size_t)n < cap ? (size_t)n : cap - 1;
}

static void report(const pl_group *g, const pl__lookout *o, const bool *late, int64_t since,
                   int64_t now) {
    char text[4096];
    size_t at = (size_t)snprintf(text, sizeof text,
                                 "group \"%s\" waits: %.0f s without progress; late ranks come "
                                 "first",
                                 g->name, (double)(now - since) / 1e9);
    int rows = 0, left = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (int r = 0; r < g->world; r++) {
            if (has_left(g, r) || late[r] != (pass == 0)) continue;
            if (rows++ < TABLE_ROWS) {
                at += row(g, o, r, late[r], now, text + at, sizeof text - at);
            } else {
                left++;
            }
        }
    }
    if (left) snprintf(text + at, sizeof text - at, "\n  and %d more ranks", left);
    g->report(text);
}

void pl__look_out(pl_group *g, pl__lookout *o) {
    int64_t now = pl_now_ns();
    if (now - o->tick_ns > PULSE_NS) o->awake_ns = now;  // stopped, or just born
    o->tick_ns = now;
    if (!g->report || g->world == 1 ||
        atomic_load_explicit(&g->control->verdict, memory_order_acquire)) {
        return;
    }
    progress all[PL_MAX_RANKS], most = progress_of(g, g->rank);
    int first = g->rank;
    for (int r = 0; r < g->world; r++) {
        all[r] = progress_of(g, r);
        uint64_t word = (uint64_t)all[r].arrived << 32 | all[r].step;
        if (word != o->progress[r]) o->since_ns[r] = now;
        o->progress[r] = word;
        if (!has_left(g, r) && is_behind(most, all[r])) most = all[r], first = r;
    }
    if (!is_reporter(g, o, now)) return;
    if (g->suspect_ns) look_for_frozen(g, o, now);
    bool late[PL_MAX_RANKS] = {false}, any = false;
    for (int r = 0; r < g->world; r++) {
        late[r] = !has_left(g, r) && is_behind(all[r], most);
        any = any || late[r];
    }
    int64_t due = o->reported_ns > o->since_ns[first] ? o->reported_ns : o->since_ns[first];
    if (!any || !g->report_ns || now - due < g->report_ns) return;
    o->reported_ns = now;
    report(g, o, late, o->since_ns[first], now);
}

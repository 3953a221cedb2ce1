// SPDX-License-Identifier: Apache-2.0
// How a group fails: proposals, the verdict, and the sticky failure in the words of this rank's
// own call. Called by the thread inside the group and, for pl__propose, by the watch thread.
//
// Whoever notices that the group cannot go on writes what it knows into its own slot (the
// proposal) and offers its rank by compare-and-swap on `verdict`. The first offer wins for good;
// a proposal is complete before it is offered and never changed, and it stays readable when its
// author dies. So all survivors blame the same ranks. Each then writes its own failure: the
// verdict's text, in front of it the call it was in itself.
//
// Note [one verdict]: between machines the word is rank 0's machine's: elsewhere an offer goes into
// `candidate` and over there, and what comes back is the verdict. Where no answer comes (the link
// is cut, the machine is gone) the candidate becomes the verdict after ANSWER_NS.
//
// Note [sticky]: g->failure is set once, under failure_lock; g->failed is stored after it
// (release). From then on every call returns it and touches nothing that is shared.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "comm/internal.h"

#define ANSWER_NS INT64_C(150000000)
#define RAISED " raised "              // "rank 3 raised ValueError: text"
#define FROZEN_NS INT64_C(2000000000)  // eight missed heartbeats

static void append(char *buf, size_t cap, const char *fmt, ...) PL_PRINTF(3, 4);
static void append(char *buf, size_t cap, const char *fmt, ...) {
    size_t at = strlen(buf);
    if (at + 1 >= cap) return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(buf + at, cap - at, fmt, ap);
    va_end(ap);
}

void pl__shared_put_text(_Atomic uint64_t *dst, size_t cap, const char *text) {
    char buf[PL__TABLE_BYTES] = {0};
    snprintf(buf, cap < sizeof buf ? cap : sizeof buf, "%s", text ? text : "");
    size_t n = strlen(buf) / 8 * 8 + 8;  // whole words, with the terminating zero
    pl__shared_put(dst, buf, n < cap ? n : cap);
}

void pl__shared_get_text(char *dst, const _Atomic uint64_t *src, size_t cap) {
    pl__shared_get(dst, src, cap);
    dst[cap - 1] = 0;
}

static bool elect(_Atomic uint32_t *word, int rank) {
    uint32_t none = 0;
    // Release: the proposal is readable by whoever sees the word. A loser changes nothing.
    return atomic_compare_exchange_strong_explicit(word, &none, (uint32_t)rank + 1,
                                                   memory_order_acq_rel, memory_order_acquire);
}

void pl__take_verdict(pl_group *g, int rank) { (void)elect(&g->control->verdict, rank); }

// Note [one verdict].
static void offer(pl_group *g) {
    if (!g->net || g->net->machine == 0) {
        if (elect(&g->control->verdict, g->rank) && g->net) pl__net_verdict(g, g->rank);
        return;
    }
    atomic_store_explicit(&g->control->candidate_ns, (uint64_t)pl_now_ns(), memory_order_relaxed);
    if (elect(&g->control->candidate, g->rank) && !pl__net_offer(g)) {
        pl__take_verdict(g, g->rank);
    }
}

void pl__settle(pl_group *g, bool wait) {
    while (atomic_load_explicit(&g->control->verdict, memory_order_acquire) == 0) {
        uint32_t c = atomic_load_explicit(&g->control->candidate, memory_order_acquire);
        int64_t since =
            (int64_t)atomic_load_explicit(&g->control->candidate_ns, memory_order_relaxed);
        if (c == 0 || c > (uint32_t)g->world) return;
        if (pl_now_ns() - since > ANSWER_NS) pl__take_verdict(g, (int)c - 1);
        else if (!wait) return;
        else nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
}

pl_status pl__propose(pl_group *g, pl_status st, const uint64_t *dead, const char *text) {
    bool offers = false;
    pthread_mutex_lock(&g->failure_lock);
    if (!g->proposed) {
        g->proposed = true;
        pl__proposal *p = &g->me->proposal;
        for (int i = 0; i < PL_MAX_RANKS / 64; i++) {
            atomic_store_explicit(&p->dead[i], dead ? dead[i] : 0, memory_order_relaxed);
        }
        pl__shared_put_text(p->text, sizeof p->text, text);
        atomic_store_explicit(&p->status, (uint32_t)st, memory_order_relaxed);
        offers = true;
    }
    pthread_mutex_unlock(&g->failure_lock);
    if (offers) offer(g);
    pl__wake_all(g);
    return st;
}

void pl__describe_call(const pl_group *g, const pl__call *call, char *buf, size_t cap) {
    const char *site = call->site.text ? call->site.text : "unknown place";
    buf[0] = 0;
    if (call->op == PL__OP_SEND || call->op == PL__OP_RECV) {
        append(buf, cap, "%s rank %d, tag %d, ", call->op == PL__OP_SEND ? "to" : "from",
               call->root, call->tag);
    } else {
        append(buf, cap, "seq %llu, ", (unsigned long long)call->seq);
    }
    if (call->op == PL__OP_BUCKET) append(buf, cap, "bucket %d, ", call->root);
    if (call->op == PL__OP_SEGMENT) {
        append(buf, cap, "%lld bytes, ", (long long)call->count);
    } else if (call->op != PL__OP_BARRIER && call->op != PL__OP_GROUP_NEW) {
        append(buf, cap, "%lld %s%s, ", (long long)call->count, pl_dtype_name(call->dtype),
               pl__on_device(call) ? " on cuda" : "");
    }
    append(buf, cap, "called at %s; group \"%s\", this is rank %d of %d", site, g->name, g->rank,
           g->world);
}

static _Thread_local const pl_group *told_of;  // compared only: it may be gone

void pl__note_failed(pl_group *g) { told_of = g; }

bool pl_group_failure_last(pl_group_failure *out) {
    pl_group *g = told_of ? pl__registry_find(told_of) : NULL;
    if (!g) return false;
    pl_group_failure_get(g, out);
    return true;
}

// Fills in the failure and its text, once. `st` and `why` are the reason in common words.
static pl_status set_failure(pl_group *g, const pl__call *call, pl_status st, const uint64_t *dead,
                             const char *why) {
    char where[512];
    pl__note_failed(g);
    pl__describe_call(g, call, where, sizeof where);
    pthread_mutex_lock(&g->failure_lock);
    bool first = !atomic_load_explicit(&g->failed, memory_order_relaxed);
    pl_group_failure *f = &g->failure;
    if (first) {
        f->status = st;
        f->seq = call->seq;
        snprintf(f->op, sizeof f->op, "%s", pl__op_name(call->op));
        snprintf(f->site, sizeof f->site, "%s", call->site.text ? call->site.text : "");
        for (int r = 0; dead && r < g->world; r++) {
            if (dead[r / 64] >> (r % 64) & 1) f->dead_ranks[f->n_dead++] = r;
        }
        // Out of the verdict, not of the slot: that of a rank elsewhere may not be here yet.
        const char *raised = strstr(why, RAISED);
        if (st == PL_EREMOTE && raised) {
            snprintf(f->remote, sizeof f->remote, "%s", raised + strlen(RAISED));
        }
        f->text[0] = 0;
        if (why[0] != '[') append(f->text, sizeof f->text, "[%s] ", f->op);
        append(f->text, sizeof f->text, "%s%s%s", why, strchr(why, '\n') ? "\n" : ": ", where);
        // Release: pairs with the acquire in pl__group_enter, Note [sticky].
        atomic_store_explicit(&g->failed, true, memory_order_release);
    }
    pthread_mutex_unlock(&g->failure_lock);
    if (first) {
        pl__registry_lock();
        for (pl_segment *s = g->segments; s; s = s->next) pl__segment_make_private(s);
        pl__registry_unlock();
        pl__wake_all(g);
        pl__device_abort(g);  // what it waits for will not come
        return pl_fail(st, "%s", f->text);
    }
    return pl__fail_again(g);
}

pl_status pl__fail_verdict(pl_group *g, const pl__call *call) {
    pl__settle(g, true);
    uint32_t v = atomic_load_explicit(&g->control->verdict, memory_order_acquire);
    if (v == 0 || v > (uint32_t)g->world) {
        return set_failure(g, call, PL_EBUG, NULL, "the control block holds an impossible verdict");
    }
    const pl__proposal *p = &g->control->slots[v - 1].proposal;
    char text[PL__TABLE_BYTES];
    uint64_t dead[PL_MAX_RANKS / 64];
    pl__shared_get_text(text, p->text, sizeof text);
    for (int i = 0; i < PL_MAX_RANKS / 64; i++) {
        dead[i] = atomic_load_explicit(&p->dead[i], memory_order_relaxed);
    }
    uint32_t st = atomic_load_explicit(&p->status, memory_order_relaxed);
    if (st == PL_OK || st >= PL_STATUS_COUNT) st = PL_EBUG;
    return set_failure(g, call, (pl_status)st, dead, text);
}

pl_status pl__fail_local(pl_group *g, const pl__call *call, pl_status st, const char *text) {
    // The threads of this process that are inside give up too.
    atomic_store_explicit(&g->broken, true, memory_order_release);
    return set_failure(g, call, st, NULL, text);
}

pl_status pl__fail_here(pl_group *g, const pl__call *call, pl_status st) {
    char what[PL__TEXT_BYTES], text[PL__TEXT_BYTES + 64];
    snprintf(what, sizeof what, "%s: %s", pl_status_exception(st), pl_error_message());
    uint64_t self[PL_MAX_RANKS / 64] = {0};
    self[g->rank / 64] |= UINT64_C(1) << (g->rank % 64);
    pl__shared_put_text(g->me->failure, PL__TEXT_BYTES, what);
    snprintf(text, sizeof text, "rank %d raised %s", g->rank, what);
    (void)pl__propose(g, PL_EREMOTE, self, text);
    return pl__fail_local(g, call, st, strchr(what, ' ') + 1);
}

pl_status pl__fail_again(pl_group *g) {
    pl__note_failed(g);
    pthread_mutex_lock(&g->failure_lock);
    char text[sizeof g->failure.text];
    memcpy(text, g->failure.text, sizeof text);
    pl_status st = g->failure.status;
    pthread_mutex_unlock(&g->failure_lock);
    // An interrupt is raised once; afterwards it is the reason why the group cannot be used.
    if (st == PL_EINTR) {
        return pl_fail(PL_ERUNTIME, "group \"%s\" cannot be used any more: %s", g->name, text);
    }
    return pl_fail(st, "%s", text);
}

uint64_t pl__last_seen(const pl_group *g, int rank, char *buf, size_t cap) {
    const pl__slot *s = &g->control->slots[rank];
    uint32_t a0 = atomic_load_explicit(&s->record[0].arrived, memory_order_acquire);
    uint32_t a1 = atomic_load_explicit(&s->record[1].arrived, memory_order_acquire);
    buf[0] = 0;
    if (a0 == 0 && a1 == 0) {
        append(buf, cap, "never joined");
        return 0;
    }
    int at = (int32_t)(a1 - a0) > 0;
    pl__fingerprint fp;
    char site[PL__SITE_BYTES];
    pl__shared_get(&fp, s->record[at].fingerprint, sizeof fp);
    pl__shared_get_text(site, s->site[at], sizeof site);
    append(buf, cap, "last seen in %s seq %u at %s", pl__op_name(fp.op), fp.seq,
           site[0] ? site : "unknown place");
    return fp.seq;
}

pl_status pl__blame_finished(pl_group *g, const pl__call *call, int peer) {
    uint64_t after =
        atomic_load_explicit(&g->control->slots[peer].finished_seq, memory_order_acquire);
    char text[PL__TEXT_BYTES];
    uint64_t dead[PL_MAX_RANKS / 64] = {0};
    dead[peer / 64] |= UINT64_C(1) << (peer % 64);
    snprintf(text, sizeof text,
             "rank %d finished normally after seq %lld; rank %d waits in %s seq %llu at %s "
             "(every rank must make the same calls)",
             peer, (long long)after - 1, g->rank, pl__op_name(call->op),
             (unsigned long long)call->seq, call->site.text ? call->site.text : "unknown place");
    (void)pl__propose(g, PL_EPEER, dead, text);
    return pl__fail_verdict(g, call);
}

// Normally the failing rank has proposed this itself; it may have died in between.
pl_status pl__blame_failed(pl_group *g, const pl__call *call, int peer) {
    char what[PL__TEXT_BYTES], text[PL__TEXT_BYTES + 64];
    uint64_t dead[PL_MAX_RANKS / 64] = {0};
    dead[peer / 64] |= UINT64_C(1) << (peer % 64);
    pl__shared_get_text(what, g->control->slots[peer].failure, sizeof what);
    snprintf(text, sizeof text, "rank %d raised %s", peer, what);
    (void)pl__propose(g, PL_EREMOTE, dead, text);
    return call ? pl__fail_verdict(g, call) : PL_EREMOTE;
}

// Has this rank's call been joined by `rank`? Messages are matched elsewhere: the peer is late.
static bool has_come(const pl_group *g, const pl__call *call, int rank) {
    if (call->op == PL__OP_SEND || call->op == PL__OP_RECV) return rank != call->root;
    const pl__slot *s = &g->control->slots[rank];
    uint32_t arrived =
        atomic_load_explicit(&s->record[call->seq & 1].arrived, memory_order_acquire);
    if ((int32_t)(arrived - (uint32_t)(call->seq + 1)) < 0) return false;
    return (int32_t)(atomic_load_explicit(&s->step, memory_order_acquire) - g->step) >= 0;
}

pl_status pl__blame_late(pl_group *g, const pl__call *call) {
    char text[PL__TABLE_BYTES], seen[256];
    int64_t now = pl_now_ns();
    snprintf(text, sizeof text,
             "timed out after %.1f s in group \"%s\": seq %llu, %lld bytes; "
             "missing ranks:",
             (double)g->timeout_ns / 1e9, g->name, (unsigned long long)call->seq,
             (long long)(call->count * (int64_t)pl_dtype_size(call->dtype)));
    for (int r = 0; r < g->world; r++) {
        if (r == g->rank || has_come(g, call, r)) continue;
        (void)pl__last_seen(g, r, seen, sizeof seen);
        int64_t beat =
            (int64_t)atomic_load_explicit(&g->control->slots[r].heartbeat_ns, memory_order_relaxed);
        append(text, sizeof text, " %d (%s, ", r, seen);
        if (beat == 0) append(text, sizeof text, "no heartbeat yet);");
        else if (now - beat > FROZEN_NS)
            append(text, sizeof text, "frozen: no heartbeat for %.0f s);",
                   (double)(now - beat) / 1e9);
        else append(text, sizeof text, "alive but not in this call);");
    }
    append(text, sizeof text, " to wait longer, raise `timeout` of the process group");
    (void)pl__propose(g, PL_ETIME, NULL, text);
    return pl__fail_verdict(g, call);
}

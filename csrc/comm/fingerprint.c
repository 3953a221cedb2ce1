// SPDX-License-Identifier: Apache-2.0
// The meeting of a collective: each rank publishes what it is about to do, waits until all have,
// and compares before any data moves. Runs on the thread inside the group.
//
// Every collective of a group has a sequence number. A rank writes its fingerprint, the text of
// its call site and up to PL__SMALL_BYTES of payload into record[seq % 2] and then posts
// `arrived = seq + 1`. It waits for the same word of every peer and compares the peer's
// fingerprint with its own: all ranks see the same fingerprints, so all of them find the same
// difference. Nothing else keeps ranks in step; a barrier is a meeting and nothing more.
//
// Note [two records]: a rank writes record[seq % 2] again for seq + 2. It gets there only after it
// has met everyone at seq + 1, and a peer publishes seq + 1 only when it has done with seq and no
// longer reads record[seq % 2]. So two records suffice, whatever the collective does in between.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "comm/internal.h"

#define FLAG_DEVICE 0x80u  // in `flags`: the memory is a device's
#define FLAG_OFFSET 0x7fu  // of a bucket in its segment
#define TABLE_ROWS 8
#define TABLE_WAIT_MS 20  // for ranks that have not arrived when a difference is found

static const char *const op_names[PL__OP_COUNT] = {
#define X(name, text) [PL__OP_##name] = text,
    PL__OP_MAP(X)
#undef X
};

const char *pl__op_name(unsigned op) { return op < PL__OP_COUNT ? op_names[op] : "unknown"; }

const char *pl__redop_name(unsigned op) {
    static const char *const names[] = {"sum", "mean", "max", "min"};
    return op < 4 ? names[op] : "unknown";
}

static pl__fingerprint fingerprint_of(const pl__call *call) {
    return (pl__fingerprint){
        .count = (uint64_t)call->count,
        .site = call->site.hash,
        .seq = (uint32_t)call->seq,
        .root = call->root,
        .op = (uint8_t)call->op,
        .dtype = (uint8_t)call->dtype,
        .redop = (uint8_t)call->redop,
        .flags =
            (uint8_t)((call->offset >> 6 & FLAG_OFFSET) | (pl__on_device(call) ? FLAG_DEVICE : 0u)),
        .extra = call->extra ? call->extra : call->site.shape,
    };
}

// The fields in the order in which a difference is reported.
enum {
    F_OP,
    F_DEVICE,
    F_DTYPE,
    F_COUNT,
    F_REDUCE,
    F_ROOT,
    F_SEQ,
    F_EXTRA,
    F_OFFSET,
    F_SITE,
    F_COUNT_
};

static bool field_equal(int f, const pl__fingerprint *a, const pl__fingerprint *b) {
    switch (f) {
        case F_OP:
            return a->op == b->op;
        case F_DEVICE:
            return ((a->flags ^ b->flags) & FLAG_DEVICE) == 0;
        case F_DTYPE:
            return a->dtype == b->dtype;
        case F_COUNT:
            return a->count == b->count;
        case F_REDUCE:
            return a->redop == b->redop;
        case F_ROOT:
            return a->root == b->root;
        case F_SEQ:
            return a->seq == b->seq;
        case F_EXTRA:
            return a->extra == b->extra;
        case F_OFFSET:
            return a->flags == b->flags;
        default:
            return a->site == b->site;
    }
}

static const char *field_name(int f, const pl__fingerprint *fp) {
    static const char *const names[F_COUNT_] = {"op",   "device", "dtype",  "count",  "reduce",
                                                "root", "seq",    "layout", "offset", "call site"};
    if (f == F_ROOT && fp->op == PL__OP_BUCKET) return "bucket";
    if (f == F_EXTRA && fp->op == PL__OP_BUCKET) return "parameters";
    if (f == F_COUNT && fp->op == PL__OP_SEGMENT) return "bytes";
    if (f == F_EXTRA && fp->op != PL__OP_GROUP_NEW) return "shape";
    return names[f];
}

// "dtype=float32", or nothing where the operation has no such field.
static int field_text(int f, const pl__fingerprint *fp, const char *site, char *buf, size_t cap) {
    bool data = fp->op != PL__OP_BARRIER && fp->op != PL__OP_SEGMENT && fp->op != PL__OP_GROUP_NEW;
    bool reduces = fp->op == PL__OP_ALL_REDUCE || fp->op == PL__OP_REDUCE ||
                   fp->op == PL__OP_REDUCE_SCATTER || fp->op == PL__OP_BUCKET;
    const char *n = field_name(f, fp);
    char shape[96];
    buf[0] = 0;
    switch (f) {
        case F_OP:
            return snprintf(buf, cap, "%s=%s", n, pl__op_name(fp->op));
        case F_DEVICE:
            return fp->flags & FLAG_DEVICE ? snprintf(buf, cap, "%s=cuda", n) : 0;
        case F_DTYPE:
            if (!data) return 0;
            return snprintf(buf, cap, "%s=%s", n,
                            fp->dtype < PL_DTYPE_COUNT ? pl_dtype_name(fp->dtype) : "unknown");
        case F_COUNT:
            if (!data && fp->op != PL__OP_SEGMENT) return 0;
            return snprintf(buf, cap, "%s=%llu", n, (unsigned long long)fp->count);
        case F_REDUCE:
            return reduces ? snprintf(buf, cap, "%s=%s", n, pl__redop_name(fp->redop)) : 0;
        case F_ROOT:
            return fp->root >= 0 ? snprintf(buf, cap, "%s=%d", n, fp->root) : 0;
        case F_SEQ:
            return snprintf(buf, cap, "%s=%u", n, fp->seq);
        case F_EXTRA:
            if (!fp->extra) return 0;
            if (!data || fp->op == PL__OP_BUCKET) return snprintf(buf, cap, "%s=%u", n, fp->extra);
            pl__shape_text(fp->extra, fp->count, shape, sizeof shape);
            return snprintf(buf, cap, "%s=%s", n, shape);
        case F_OFFSET:
            return 0;
        default:
            return snprintf(buf, cap, "at %s", site[0] ? site : "unknown place");
    }
}

static bool arrived(const pl_group *g, const pl__call *call, int rank) {
    const pl__record *rec = &g->control->slots[rank].record[call->seq & 1];
    uint32_t at = atomic_load_explicit(&rec->arrived, memory_order_acquire);
    return (int32_t)(at - (uint32_t)(call->seq + 1)) >= 0;
}

static size_t table_row(const pl_group *g, const pl__call *call, int rank, int first, char *buf,
                        size_t cap) {
    const pl__slot *s = &g->control->slots[rank];
    if (!arrived(g, call, rank))
        return (size_t)snprintf(buf, cap, "\n  rank=%d, not there yet", rank);
    pl__fingerprint fp;
    char site[PL__SITE_BYTES], field[PL__SITE_BYTES + 32];
    pl__shared_get(&fp, s->record[call->seq & 1].fingerprint, sizeof fp);
    pl__shared_get_text(site, s->site[call->seq & 1], sizeof site);
    size_t at = (size_t)snprintf(buf, cap, "\n  rank=%d", rank);
    for (int i = -1; i < F_COUNT_ && at < cap; i++) {
        int n = i == first ? 0 : field_text(i < 0 ? first : i, &fp, site, field, sizeof field);
        if (i < 0 && first == F_DEVICE && n == 0) n = snprintf(field, sizeof field, "device=cpu");
        if (n <= 0) continue;
        at += (size_t)snprintf(buf + at, cap - at, ", %s", field);
    }
    return at;
}

static bool some_rank_trains(const pl_group *g, const pl__call *call) {
    for (int r = 0; r < g->world; r++) {
        pl__fingerprint fp;
        if (!arrived(g, call, r)) continue;
        pl__shared_get(&fp, g->control->slots[r].record[call->seq & 1].fingerprint, sizeof fp);
        if (fp.op == PL__OP_BUCKET) return true;
    }
    return false;
}

static pl_status report_mismatch(pl_group *g, pl__call *call, int first) {
    // A moment for the others, so that the table is whole; whoever is quicker decides for all.
    for (int i = 0; i < TABLE_WAIT_MS; i++) {
        bool all = true;
        for (int r = 0; r < g->world; r++) all = all && arrived(g, call, r);
        if (all || atomic_load_explicit(&g->control->verdict, memory_order_acquire)) break;
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    pl__fingerprint mine = fingerprint_of(call);
    char text[PL__TABLE_BYTES];
    size_t at = (size_t)snprintf(text, sizeof text, "ranks disagree on %s at seq %llu",
                                 field_name(first, &mine), (unsigned long long)call->seq);
    int shown = 0;
    for (int r = 0; r < g->world && at < sizeof text; r++) {
        if (shown == TABLE_ROWS && g->world > TABLE_ROWS) {
            (void)snprintf(text + at, sizeof text - at, "\n  and %d more ranks", g->world - r);
            break;
        }
        at += table_row(g, call, r, first, text + at, sizeof text - at);
        shown++;
    }
    if (first == F_OP && at < sizeof text && some_rank_trains(g, call)) {
        (void)snprintf(
            text + at, sizeof text - at,
            "\n  some ranks are in a backward pass and others are not: every rank trains "
            "its share, so take the training out of `if is_main_process:`");
    }
    (void)pl__propose(g, PL_EMISMATCH, NULL, text);
    return pl__fail_verdict(g, call);
}

static void warn_sites(pl_group *g, const pl__call *call, int peer) {
    char site[PL__SITE_BYTES];
    pl__shared_get_text(site, g->control->slots[peer].site[call->seq & 1], sizeof site);
    pthread_mutex_lock(&g->failure_lock);
    if (!g->sites_warned) {
        g->sites_warned = true;
        snprintf(g->warning, sizeof g->warning,
                 "[%s] seq %llu is called at %s by rank %d, but at %s by rank %d: if the order of "
                 "calls differs between ranks, their results are mixed up (this is said once)",
                 pl__op_name(call->op), (unsigned long long)call->seq,
                 call->site.text ? call->site.text : "unknown place", g->rank,
                 site[0] ? site : "unknown place", peer);
    }
    atomic_store_explicit(&g->warned, true, memory_order_relaxed);  // the lock orders it
    pthread_mutex_unlock(&g->failure_lock);
}

static pl_status compare(pl_group *g, pl__call *call, int peer, const pl__fingerprint *mine) {
    const pl__record *rec = &g->control->slots[peer].record[call->seq & 1];
    pl__fingerprint theirs;
    pl__shared_get(&theirs, rec->fingerprint, sizeof theirs);
    if (PL_LIKELY(memcmp(mine, &theirs, sizeof theirs) == 0)) return PL_OK;
    int first = 0;
    while (first < F_COUNT_ - 1 && field_equal(first, mine, &theirs)) first++;
    if (first < F_SITE || g->strict_sites) return report_mismatch(g, call, first);
    if (!g->sites_warned) warn_sites(g, call, peer);
    return PL_OK;
}

static pl_status publish(pl_group *g, pl__call *call, const pl__fingerprint *fp,
                         const void *payload, size_t nbytes) {
    int at = (int)(call->seq & 1);
    pl__record *rec = &g->me->record[at];
    pl__shared_put(rec->fingerprint, fp, sizeof *fp);
    if (nbytes)
        memcpy(nbytes <= PL__INLINE_BYTES ? rec->inlined : g->me->payload[at], payload, nbytes);
    if (g->site_shown[at] != call->site.text) {
        pl__shared_put_text(g->me->site[at], PL__SITE_BYTES, call->site.text);
        g->site_shown[at] = call->site.text;
    }
    pl__post(g, &rec->arrived, (uint32_t)(call->seq + 1));
    return pl__net_call(g, call, fp, payload, nbytes);
}

pl_status pl__meet_post(pl_group *g, pl__call *call, const void *payload, size_t n) {
    pl__fingerprint mine = fingerprint_of(call);
    return publish(g, call, &mine, payload, n);
}

bool pl__met_all(const pl_group *g, const pl__call *call) {
    for (int r = 0; r < g->world; r++) {
        if (!arrived(g, call, r)) return false;
    }
    return true;
}

static pl_status await(pl_group *g, pl__call *call, const pl__fingerprint *mine) {
    for (int i = 1; i < g->world; i++) {
        int peer = (g->rank + i) % g->world;
        pl__slot *s = &g->control->slots[peer];
        PL_TRY(pl__wait_word(g, call, peer, &s->record[call->seq & 1].arrived, &s->sleepers,
                             (uint32_t)(call->seq + 1)));
        PL_TRY(compare(g, call, peer, mine));
    }
    return PL_OK;
}

pl_status pl__meet_await(pl_group *g, pl__call *call) {
    pl__fingerprint mine = fingerprint_of(call);
    return await(g, call, &mine);
}

pl_status pl__meet(pl_group *g, pl__call *call, const void *payload, size_t nbytes) {
    pl__fingerprint mine = fingerprint_of(call);
    PL_TRY(publish(g, call, &mine, payload, nbytes));
    return await(g, call, &mine);
}

const void *pl__met_payload(const pl_group *g, const pl__call *call, int rank, size_t nbytes) {
    const pl__slot *s = &g->control->slots[rank];
    int at = (int)(call->seq & 1);
    return nbytes <= PL__INLINE_BYTES ? s->record[at].inlined : s->payload[at];
}

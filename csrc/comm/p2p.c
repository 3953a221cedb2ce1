// SPDX-License-Identifier: Apache-2.0
// send and recv over mailboxes. Runs on the caller's thread; may run while the comm thread is in a
// collective, since it shares no word with it.
//
// For every ordered pair of ranks there is one mailbox, in the sender's arena: a ring of MAIL_SLOTS
// slots. The sender fills slot `posted % MAIL_SLOTS` and posts; the receiver copies and posts
// `taken`. A message is one or more slots; each carries the header. So messages of one pair arrive
// in order; recv takes the next one and it must have its tag, dtype, count and shape, or the group
// fails on both. A send returns when its last part is in the ring: a short message does not wait
// for its receiver, and its sender hears of a mismatch at its next call.
#include <stdio.h>
#include <string.h>

#include "comm/internal.h"

#define MAIL_SLOTS 8
#define MAIL_SLOT_MAX 16384
#define MAIL_SLOT_MIN 1024
#define MAIL_BUDGET (1u << 20)  // bytes of one rank's mailboxes, as long as slots are not too small

typedef struct mail_header {
    uint64_t count;
    int32_t tag;
    uint32_t dtype;
    uint32_t shape;  // pl_site_shape, 0 where it has none
    char site[PL__SITE_BYTES];
} mail_header;

typedef struct mail_slot {
    _Alignas(PL__LINE) mail_header header;
    _Alignas(PL__LINE) unsigned char data[];
} mail_slot;

typedef struct mailbox {
    _Alignas(PL__LINE) _Atomic uint32_t posted;  // by the sender
    _Alignas(PL__LINE) _Atomic uint32_t taken;   // by the receiver
    _Alignas(PL__LINE) unsigned char slots[];
} mailbox;

size_t pl__mail_slot_bytes(int world) {
    size_t n = MAIL_BUDGET / MAIL_SLOTS / (size_t)world / PL__LINE * PL__LINE;
    return n > MAIL_SLOT_MAX ? MAIL_SLOT_MAX : n < MAIL_SLOT_MIN ? MAIL_SLOT_MIN : n;
}

static size_t mailbox_bytes(int world) {
    return sizeof(mailbox) + MAIL_SLOTS * pl__mail_slot_bytes(world);
}

size_t pl__arena_bytes(int world) {
    return pl__mail_offset() + (size_t)world * mailbox_bytes(world);
}

static mailbox *box_of(const pl_group *g, int src, int dst) {
    // Acquire: the watch thread and the inbox come here as well.
    const pl_segment *arena = atomic_load_explicit(&g->arena, memory_order_acquire);
    return (mailbox *)(void *)((char *)arena->parts[src] + pl__mail_offset() +
                               (size_t)dst * mailbox_bytes(g->world));
}

static mail_slot *slot_of(const pl_group *g, mailbox *b, uint32_t n) {
    return (mail_slot *)(void *)(b->slots + (n % MAIL_SLOTS) * pl__mail_slot_bytes(g->world));
}

_Atomic uint32_t *pl__mail_word(const pl_group *g, int src, int dst, bool taken) {
    mailbox *b = box_of(g, src, dst);
    return taken ? &b->taken : &b->posted;
}

void *pl__mail_slot(const pl_group *g, int src, int dst, uint32_t n) {
    return slot_of(g, box_of(g, src, dst), n);
}

void pl__mail_wake(pl_group *g) {
    if (!atomic_load_explicit(&g->arena, memory_order_acquire)) return;
    for (int r = 0; r < g->world; r++) {
        pl__futex_wake(&box_of(g, g->rank, r)->taken, true);
        pl__futex_wake(&box_of(g, r, g->rank)->posted, true);
    }
}

pl_status pl__shm_send(pl_group *g, pl__call *call) {
    int dst = call->root;
    mailbox *b = box_of(g, g->rank, dst);
    size_t room = pl__mail_slot_bytes(g->world) - sizeof(mail_slot);
    size_t total = (size_t)call->count * pl_dtype_size(call->dtype), at = 0;
    mail_header header = {
        (uint64_t)call->count, call->tag, (uint32_t)call->dtype, call->site.shape, {0}};
    snprintf(header.site, sizeof header.site, "%s", call->site.text ? call->site.text : "");
    do {
        uint32_t n = g->mail_posted[dst];
        // A slot is free once all but MAIL_SLOTS - 1 of the earlier ones are taken.
        PL_TRY(pl__wait_word(g, call, dst, &b->taken, &g->control->slots[dst].sleepers,
                             n - (MAIL_SLOTS - 1)));
        mail_slot *s = slot_of(g, b, n);
        size_t part = total - at < room ? total - at : room;
        s->header = header;
        if (part) memcpy(s->data, (const char *)call->in + at, part);
        at += part;
        g->mail_posted[dst] = n + 1;
        pl__post(g, &b->posted, n + 1);
        PL_TRY(pl__net_mail(g, call, n, sizeof(mail_slot) + part));
    } while (at < total);
    return PL_OK;
}

static pl_status mismatch(pl_group *g, pl__call *call, const mail_header *h, const char *field) {
    char text[PL__TABLE_BYTES], site[PL__SITE_BYTES], sent[96] = "none", wanted[96] = "none";
    if (h->shape) pl__shape_text(h->shape, h->count, sent, sizeof sent);
    if (call->site.shape)
        pl__shape_text(call->site.shape, (uint64_t)call->count, wanted, sizeof wanted);
    memcpy(site, h->site, sizeof site);
    site[sizeof site - 1] = 0;
    const char *dtype = h->dtype < PL_DTYPE_COUNT ? pl_dtype_name((pl_dtype)h->dtype) : "unknown";
    snprintf(text, sizeof text,
             "ranks disagree on %s of a message\n"
             "  rank=%d, op=send, to=%d, tag=%d, dtype=%s, count=%llu, shape=%s, at %s\n"
             "  rank=%d, op=recv, from=%d, tag=%d, dtype=%s, count=%lld, shape=%s, at %s",
             field, call->root, g->rank, h->tag, dtype, (unsigned long long)h->count, sent,
             site[0] ? site : "unknown place", g->rank, call->root, call->tag,
             pl_dtype_name(call->dtype), (long long)call->count, wanted,
             call->site.text ? call->site.text : "unknown place");
    (void)pl__propose(g, PL_EMISMATCH, NULL, text);
    return pl__fail_verdict(g, call);
}

pl_status pl__shm_recv(pl_group *g, pl__call *call) {
    int src = call->root;
    mailbox *b = box_of(g, src, g->rank);
    size_t room = pl__mail_slot_bytes(g->world) - sizeof(mail_slot);
    // The sizes below come from our own arguments only, never from what the peer wrote.
    size_t total = (size_t)call->count * pl_dtype_size(call->dtype), at = 0;
    do {
        uint32_t n = g->mail_taken[src];
        PL_TRY(pl__wait_word(g, call, src, &b->posted, &g->control->slots[src].sleepers, n + 1));
        mail_slot *s = slot_of(g, b, n);
        mail_header h = s->header;
        if (h.tag != call->tag) return mismatch(g, call, &h, "tag");
        if (h.dtype != (uint32_t)call->dtype) return mismatch(g, call, &h, "dtype");
        if (h.count != (uint64_t)call->count) return mismatch(g, call, &h, "count");
        bool shaped = h.shape && call->site.shape;
        if (shaped && h.shape != call->site.shape) return mismatch(g, call, &h, "shape");
        size_t part = total - at < room ? total - at : room;
        if (part) memcpy((char *)call->out + at, s->data, part);
        at += part;
        g->mail_taken[src] = n + 1;
        pl__post(g, &b->taken, n + 1);
        PL_TRY(pl__net_taken(g, call, n + 1));
    } while (at < total);
    return PL_OK;
}

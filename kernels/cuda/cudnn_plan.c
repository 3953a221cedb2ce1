// SPDX-License-Identifier: Apache-2.0
// cudnn_plan: the library's plans of calls, kept in a table: the first call of a shape asks for
// proposals and compiles one (by NVRTC, about half a second), later ones run it. The table forgets;
// what was chosen stays in choices.c.
#include <math.h>
#include <string.h>

#include "cuda/cudnn_internal.h"

enum { PLACES = 8 };  // places of the table that a call may stand in

// ---- Building -----------------------------------------------------------------------------------

static int64_t in_order(const pl_dnn_call *c, int64_t *ids) {
    static const pl_dnn_operand forward[] = {PL_DNN_Q, PL_DNN_K, PL_DNN_V, PL_DNN_OUT, PL_DNN_LSE};
    int n = 0;
    if (c->gradient) {
        for (; n < PL_DNN_DATA; n++) ids[n] = n + 1;
    } else {
        for (; n < 5; n++) ids[n] = forward[n] + 1;
    }
    ids[n++] = PL_DNN_SCALE + 1;
    if (c->causal) ids[n++] = PL_DNN_HIDDEN + 1;
    if (c->gradient) ids[n++] = PL_DNN_ONE + 1;
    return n;
}

// Proposals, best first; those that the library itself finds impossible are left out by it.
static int propose(const pl_dnn_library *lib, pl_dnn_bag *bag, void *graph, void *device,
                   void **out, int64_t *count) {
    int st = PL_DNN_SUCCESS, mode = PL_DNN_HEUR_A;
    int64_t found = 0;
    void *heuristics = pl__dnn_make(lib, bag, PL_DNN_HEURISTICS, &st);
    pl__dnn_set(lib, heuristics, PL_DNN_A_HEUR_GRAPH, PL_DNN_T_DESCRIPTOR, 1, &graph, &st);
    pl__dnn_set(lib, heuristics, PL_DNN_A_HEUR_MODE, PL_DNN_T_HEUR_MODE, 1, &mode, &st);
    if (device) {
        pl__dnn_set(lib, heuristics, PL_DNN_A_HEUR_DEVICE, PL_DNN_T_DESCRIPTOR, 1, &device, &st);
    }
    pl__dnn_finish(lib, heuristics, &st);
    for (int i = 0; i < PL_DNN_PROPOSALS; i++) {
        out[i] = pl__dnn_make(lib, bag, PL_DNN_ENGINE_CONFIG, &st);
    }
    if (st == PL_DNN_SUCCESS) {
        st = lib->desc_get(heuristics, PL_DNN_A_HEUR_RESULTS, PL_DNN_T_DESCRIPTOR, PL_DNN_PROPOSALS,
                           &found, out);
    }
    *count = st == PL_DNN_SUCCESS ? found : 0;
    return st;
}

static int finish_plan(const pl_dnn_library *lib, pl_dnn_plan *p, void *config) {
    int st = PL_DNN_SUCCESS;
    int64_t count;
    void *plan = pl__dnn_make(lib, &p->bag, PL_DNN_PLAN, &st);
    pl__dnn_set(lib, plan, PL_DNN_A_PLAN_CONFIG, PL_DNN_T_DESCRIPTOR, 1, &config, &st);
    pl__dnn_finish(lib, plan, &st);
    if (st == PL_DNN_SUCCESS) {
        st = lib->desc_get(plan, PL_DNN_A_PLAN_WORKSPACE, PL_DNN_T_INT64, 1, &count, &p->workspace);
    }
    if (st == PL_DNN_SUCCESS && p->workspace > PL_DNN_WORKSPACE) st = PL_DNN_NOT_SUPPORTED;
    if (st == PL_DNN_SUCCESS) p->plan = plan;
    return st;
}

int pl__dnn_build(const pl_dnn_library *lib, void *handle, void *device, pl_dnn_plan *p) {
    int st;
    int64_t count = 0;
    void *configs[PL_DNN_PROPOSALS];
    p->asked = true;
    p->ids = (int)in_order(&p->call, p->pack_ids);
    void *graph = pl__dnn_graph(lib, &p->bag, &p->call, handle, &st);
    if (st == PL_DNN_SUCCESS) st = propose(lib, &p->bag, graph, device, configs, &count);
    if (st == PL_DNN_SUCCESS && count == 0) st = PL_DNN_NOT_SUPPORTED;
    for (int64_t i = 0; i < count && !p->plan; i++) st = finish_plan(lib, p, configs[i]);
    if (!p->plan) pl__dnn_empty(lib, &p->bag);
    return st;
}

// ---- The table ----------------------------------------------------------------------------------

static void forget(pl_cuda_dnn *dnn, pl_dnn_plan **place) {
    if (*place && dnn->lib) pl__dnn_empty(dnn->lib, &(*place)->bag);
    pl_free(*place);
    *place = NULL;
}

// Its kernels may still run.
static pl_status forget_later(pl_cuda_dnn *dnn, pl_dnn_plan **place) {
    pl_runtime *r = dnn->blas->args.runtime;
    pl_dnn_plan *p = *place;
    for (int i = 0; p && i < p->stream_count; i++) PL_TRY(r->sync_stream(r, p->streams[i]));
    forget(dnn, place);
    return PL_OK;
}

void pl__dnn_plans_free(pl_cuda_dnn *dnn) {
    for (int i = 0; i < PL_DNN_PLANS; i++) forget(dnn, &dnn->plans[i]);
}

pl_status pl__dnn_place(pl_cuda_dnn *dnn, const pl_dnn_call *call, pl_dnn_plan **out) {
    uint64_t words[PL_DNN_KEY], h = 0x9E3779B97F4A7C15u;
    pl_dnn_plan **place = NULL;
    memcpy(words, call, sizeof words);
    for (int i = 0; i < PL_DNN_KEY; i++) {  // multiply and fold as in wyhash
        h = (h ^ words[i]) * 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
    }
    for (uint64_t i = 0; i < PLACES; i++) {
        pl_dnn_plan **p = &dnn->plans[(h + i) % PL_DNN_PLANS];
        if (*p && memcmp(&(*p)->call, call, sizeof *call) == 0) {
            *out = *p;
            return PL_OK;
        }
        if (!*p && !place) place = p;
    }
    if (!place) place = &dnn->plans[(h + dnn->evicted++ % PLACES) % PL_DNN_PLANS];
    PL_TRY(forget_later(dnn, place));
    void *fresh;
    PL_TRY(pl_calloc(sizeof(pl_dnn_plan), &fresh));
    *place = fresh;
    (*place)->call = *call;
    *out = *place;
    return PL_OK;
}

// ---- Running ------------------------------------------------------------------------------------

// The streams of threads may differ; the library has one at a time.
static int choose_stream(pl_cuda_dnn *dnn) {
    void *stream = dnn->blas->args.queue->stream;
    if (stream == dnn->stream) return PL_DNN_SUCCESS;
    int st = dnn->lib->set_stream(dnn->handle, stream);
    if (st == PL_DNN_SUCCESS) dnn->stream = stream;
    return st;
}

static pl_status note_stream(pl_cuda_dnn *dnn, pl_dnn_plan *p) {
    pl_stream *s = dnn->blas->args.stream;
    pl_runtime *r = dnn->blas->args.runtime;
    for (int i = 0; i < p->stream_count; i++) {
        if (p->streams[i] == s) return PL_OK;
    }
    if (p->stream_count == PL_DNN_STREAMS) {
        PL_TRY(r->sync_stream(r, p->streams[--p->stream_count]));
    }
    p->streams[p->stream_count++] = s;
    return PL_OK;
}

static int enqueue(pl_cuda_dnn *dnn, const pl_dnn_plan *p, const pl_dnn_data *data,
                   void *workspace) {
    float numbers[] = {data->scale, -INFINITY, 1.0f};  // SCALE, HIDDEN, ONE
    void *pointers[PL_DNN_IDS];
    pl_dnn_bag bag = {.count = 0};
    int st = choose_stream(dnn);
    for (int i = 0; i < p->ids; i++) {
        int64_t which = p->pack_ids[i] - 1;
        pointers[i] = which < PL_DNN_DATA ? data->at[which] : &numbers[which - PL_DNN_SCALE];
    }
    void *pack = pl__dnn_make(dnn->lib, &bag, PL_DNN_VARIANT_PACK, &st);
    pl__dnn_set(dnn->lib, pack, PL_DNN_A_PACK_POINTERS, PL_DNN_T_VOID_PTR, p->ids, pointers, &st);
    pl__dnn_set(dnn->lib, pack, PL_DNN_A_PACK_IDS, PL_DNN_T_INT64, p->ids, p->pack_ids, &st);
    pl__dnn_set(dnn->lib, pack, PL_DNN_A_PACK_WORKSPACE, PL_DNN_T_VOID_PTR, 1, &workspace, &st);
    pl__dnn_finish(dnn->lib, pack, &st);
    if (st == PL_DNN_SUCCESS) st = dnn->lib->execute(dnn->handle, p->plan, pack);
    pl__dnn_empty(dnn->lib, &bag);
    return st;
}

pl_status pl__dnn_run(pl_cuda_dnn *dnn, pl_dnn_plan *p, const pl_dnn_data *data) {
    const pl_dnn_call *c = &p->call;
    const pl_cuda_blas_args *args = &dnn->blas->args;
    size_t plan_bytes = ((size_t)p->workspace + 255) / 256 * 256;
    size_t sum_bytes = c->gradient ? (size_t)(c->batch * c->heads * c->queries) * 4 : 0;
    void *workspace = NULL;
    pl_dnn_data use = *data;
    PL_TRY(note_stream(dnn, p));
    if (plan_bytes + sum_bytes > 0) {
        PL_TRY(args->alloc(plan_bytes + sum_bytes, "workspace of attention", &workspace));
    }
    if (c->gradient) use.at[PL_DNN_SUM] = (char *)workspace + plan_bytes;
    int st = enqueue(dnn, p, &use, workspace);
    if (workspace) args->release(workspace);
    return st == PL_DNN_SUCCESS ? PL_OK : pl__dnn_failed("attention", st);
}

// SPDX-License-Identifier: Apache-2.0
// cublaslt_plan: calls with the library's descriptors and the algorithm that was chosen for them,
// kept in a table: the first call of a shape asks the library for proposals, later ones set a few
// pointers. The table forgets; what was chosen stays in choices.c.
#include <string.h>

#include "cuda/cublaslt_internal.h"

enum { PLACES = 8, PROPOSALS = 8 };  // places of the table that a call may stand in

static int data_type(int64_t dtype) {
    return dtype == PL_F64    ? PL_LT_R_64F
           : dtype == PL_F32  ? PL_LT_R_32F
           : dtype == PL_BF16 ? PL_LT_R_16BF
                              : PL_LT_R_16F;
}

// ---- Descriptors --------------------------------------------------------------------------------

static void forget(const pl_lt_library *lib, pl_blas_plan *p) {
    if (p->desc) (void)lib->desc_destroy(p->desc);
    if (p->a) (void)lib->layout_destroy(p->a);
    if (p->b) (void)lib->layout_destroy(p->b);
    if (p->d) (void)lib->layout_destroy(p->d);
    memset(p, 0, sizeof *p);
}

void pl__blas_plans_free(pl_cuda_blas *blas) {
    for (int i = 0; i < PL_BLAS_PLANS; i++) forget(blas->lib, &blas->plans[i]);
}

static int make_layout(const pl_lt_library *lib, const pl_blas_call *c, int64_t dtype,
                       const int64_t rows_cols_ld_stride[4], void **out) {
    const int64_t *s = rows_cols_ld_stride;
    int32_t batch = (int32_t)c->batch;
    int st = lib->layout_create(out, data_type(dtype), (uint64_t)s[0], (uint64_t)s[1], s[2]);
    if (st != PL_LT_SUCCESS || batch == 1) return st;
    st = lib->layout_set(*out, PL_LT_LAYOUT_BATCH_COUNT, &batch, sizeof batch);
    if (st != PL_LT_SUCCESS) return st;
    return lib->layout_set(*out, PL_LT_LAYOUT_BATCH_OFFSET, &s[3], sizeof s[3]);
}

static int make_desc(const pl_lt_library *lib, const pl_blas_call *c, void **out) {
    bool wide = c->type_d == PL_F64;
    int compute = wide ? PL_LT_64F : c->tf32 ? PL_LT_32F_TF32 : PL_LT_32F;
    int st = lib->desc_create(out, compute, wide ? PL_LT_R_64F : PL_LT_R_32F);
    int32_t ta = c->transposed_a ? PL_LT_OP_T : PL_LT_OP_N;
    int32_t tb = c->transposed_b ? PL_LT_OP_T : PL_LT_OP_N;
    uint32_t epilogue = (uint32_t)c->epilogue;
    const struct {
        int attribute;
        const void *value;
        size_t nbytes;
        bool wanted;
    } set[] = {{PL_LT_DESC_TRANSA, &ta, sizeof ta, true},
               {PL_LT_DESC_TRANSB, &tb, sizeof tb, true},
               {PL_LT_DESC_EPILOGUE, &epilogue, sizeof epilogue, true},
               {PL_LT_DESC_AUX_LD, &c->aux_ld, sizeof c->aux_ld, c->aux_ld != 0}};
    for (size_t i = 0; i < sizeof set / sizeof *set && st == PL_LT_SUCCESS; i++) {
        if (set[i].wanted) st = lib->desc_set(*out, set[i].attribute, set[i].value, set[i].nbytes);
    }
    return st;
}

// What changes from call to call. Proposals depend on it too, by the pointers' alignment.
static int set_pointers(const pl_lt_library *lib, const pl_blas_plan *p, const pl_blas_data *data) {
    int64_t e = p->choice.call.epilogue;
    int st = PL_LT_SUCCESS;
    if (e & (PL_LT_EPILOGUE_BIAS | PL_LT_EPILOGUE_BGRADB)) {
        st = lib->desc_set(p->desc, PL_LT_DESC_BIAS_POINTER, &data->bias, sizeof data->bias);
    }
    if (st == PL_LT_SUCCESS && (e & PL_LT_EPILOGUE_AUX)) {
        st = lib->desc_set(p->desc, PL_LT_DESC_AUX_POINTER, &data->aux, sizeof data->aux);
    }
    return st;
}

static pl_status describe(const pl_lt_library *lib, const pl_blas_data *data, pl_blas_plan *p) {
    const pl_blas_call *c = &p->choice.call;
    bool ta = c->transposed_a, tb = c->transposed_b;
    int st = make_desc(lib, c, &p->desc);
    if (st == PL_LT_SUCCESS) {
        int64_t a[] = {ta ? c->k : c->m, ta ? c->m : c->k, c->lda, c->stride_a};
        st = make_layout(lib, c, c->type_ab, a, &p->a);
    }
    if (st == PL_LT_SUCCESS) {
        int64_t b[] = {tb ? c->n : c->k, tb ? c->k : c->n, c->ldb, c->stride_b};
        st = make_layout(lib, c, c->type_ab, b, &p->b);
    }
    if (st == PL_LT_SUCCESS) {
        int64_t d[] = {c->m, c->n, c->ldd, c->stride_d};
        st = make_layout(lib, c, c->type_d, d, &p->d);
    }
    if (st == PL_LT_SUCCESS) st = set_pointers(lib, p, data);
    return st == PL_LT_SUCCESS ? PL_OK : pl__blas_failed("describing a product", st);
}

// ---- Proposals ----------------------------------------------------------------------------------

static int make_preference(const pl_lt_library *lib, const pl_blas_call *c, void **out) {
    uint64_t workspace = PL_BLAS_WORKSPACE;
    uint32_t mask = PL_LT_REDUCTION_COMPUTE_TYPE;
    const uint32_t align[] = {(uint32_t)c->align_a, (uint32_t)c->align_b, (uint32_t)c->align_d,
                              (uint32_t)c->align_d};  // of A, B, C = D
    int st = lib->pref_create(out);
    if (st != PL_LT_SUCCESS) return st;
    st = lib->pref_set(*out, PL_LT_PREF_WORKSPACE, &workspace, sizeof workspace);
    if (st == PL_LT_SUCCESS) {
        st = lib->pref_set(*out, PL_LT_PREF_REDUCTION_MASK, &mask, sizeof mask);
    }
    for (int i = 0; i < 4 && st == PL_LT_SUCCESS; i++) {
        st = lib->pref_set(*out, PL_LT_PREF_ALIGNMENT_A + i, &align[i], sizeof align[i]);
    }
    return st;
}

// Some of what an epilogue cannot be combined with is told as NOT_SUPPORTED, some as if it were a
// mistake of ours, some only when the call is made. There is another way to do such a call.
static bool refused(const pl_blas_plan *p, int status) {
    return p->choice.call.epilogue != PL_LT_EPILOGUE_DEFAULT &&
           (status == PL_LT_NOT_SUPPORTED || status == PL_LT_INVALID_VALUE ||
            status == PL_LT_ARCH_MISMATCH);
}

// None is no failure: *count 0.
static pl_status proposals(pl_cuda_blas *blas, const pl_blas_plan *p, pl_lt_proposal *out,
                           int *count) {
    const pl_lt_library *lib = blas->lib;
    void *pref = NULL;
    int found = 0;
    int st = make_preference(lib, &p->choice.call, &pref);
    if (st == PL_LT_SUCCESS) {
        st = lib->propose(blas->handle, p->desc, p->a, p->b, p->d, p->d, pref, PROPOSALS, out,
                          &found);
    }
    if (pref) (void)lib->pref_destroy(pref);
    *count = 0;
    if (st == PL_LT_NOT_SUPPORTED || refused(p, st)) return PL_OK;
    if (st != PL_LT_SUCCESS) return pl__blas_failed("asking for algorithms", st);
    for (int i = 0; i < found; i++) {
        if (out[i].state == PL_LT_SUCCESS && out[i].workspace <= PL_BLAS_WORKSPACE) {
            out[(*count)++] = out[i];
        }
    }
    return PL_OK;
}

// The file of choices is not trusted: the library looks at the algorithm again.
static bool still_right(pl_cuda_blas *blas, const pl_blas_plan *p, const pl_blas_choice *choice) {
    if (!choice->possible) return p->choice.call.epilogue != PL_LT_EPILOGUE_DEFAULT;
    pl_lt_proposal result;
    int st =
        blas->lib->check(blas->handle, p->desc, p->a, p->b, p->d, p->d, &choice->algo, &result);
    return st == PL_LT_SUCCESS && result.workspace <= PL_BLAS_WORKSPACE;
}

static pl_status choose(pl_cuda_blas *blas, pl_blas_plan *p, const pl_blas_data *data) {
    const pl_blas_choice *known = pl__choices_find(&blas->memory, &p->choice.call);
    if (known && still_right(blas, p, known)) {
        p->choice = *known;
        return PL_OK;
    }
    pl_lt_proposal found[PROPOSALS];
    int count;
    PL_TRY(proposals(blas, p, found, &count));
    p->choice.possible = count > 0;
    if (count > 0) {
        p->choice.algo = found[0].algo;
        p->choice.workspace = found[0].workspace;
    }
    if (pl__blas_may_measure(blas)) {
        p->choice.measured = count < 2;
        if (count > 1) PL_TRY(pl__blas_fastest(blas, p, data, found, count));
    }
    return pl__choices_keep(&blas->memory, &p->choice);
}

// ---- The table ----------------------------------------------------------------------------------

// Multiply and fold as in wyhash.
static uint32_t hash_call(const pl_blas_call *call) {
    uint64_t h = 0x9E3779B97F4A7C15u, words[PL_BLAS_KEY];
    memcpy(words, call, sizeof words);
    for (int i = 0; i < PL_BLAS_KEY; i++) {
        h = (h ^ words[i]) * 0xD6E8FEB86659FD93u;
        h ^= h >> 32;
    }
    return (uint32_t)h;
}

pl_status pl__blas_plan(pl_cuda_blas *blas, const pl_blas_call *call, const pl_blas_data *data,
                        pl_blas_plan **out) {
    pl_blas_plan *place = NULL;
    uint32_t hash = hash_call(call);
    for (uint32_t i = 0; i < PLACES; i++) {
        pl_blas_plan *p = &blas->plans[(hash + i) % PL_BLAS_PLANS];
        if (p->desc && memcmp(&p->choice.call, call, sizeof *call) == 0) {
            *out = p;
            return PL_OK;
        }
        if (!p->desc && !place) place = p;
    }
    if (!place) place = &blas->plans[(hash + blas->evicted++ % PLACES) % PL_BLAS_PLANS];
    forget(blas->lib, place);
    place->choice.call = *call;
    pl_status st = describe(blas->lib, data, place);
    if (st == PL_OK) st = choose(blas, place, data);
    if (st != PL_OK) {
        forget(blas->lib, place);
        return st;
    }
    *out = place;
    return PL_OK;
}

// ---- Running ------------------------------------------------------------------------------------

pl_status pl__blas_enqueue(pl_cuda_blas *blas, pl_blas_plan *p, const pl_lt_algo *algo,
                           const pl_blas_data *data) {
    static const float one = 1.0f, zero = 0.0f;
    static const double one_wide = 1.0, zero_wide = 0.0;
    const pl_blas_call *c = &p->choice.call;
    bool wide = c->type_d == PL_F64;
    const void *alpha = wide ? (const void *)&one_wide : &one;
    const void *beta = wide ? (const void *)(c->accumulate ? &one_wide : &zero_wide)
                            : (const void *)(c->accumulate ? &one : &zero);
    int st = set_pointers(blas->lib, p, data);
    if (st == PL_LT_SUCCESS) {
        st = blas->lib->matmul(blas->handle, p->desc, alpha, data->a, p->a, data->b, p->b, beta,
                               data->d, p->d, data->d, p->d, algo, *blas->workspace,
                               PL_BLAS_WORKSPACE, blas->args.queue->stream);
    }
    if (st == PL_LT_SUCCESS) return PL_OK;
    if (refused(p, st)) p->choice.possible = false;
    return pl__blas_failed("a product", st);
}

pl_status pl__blas_run(pl_cuda_blas *blas, const pl_blas_call *call, const pl_blas_data *data) {
    pl_blas_plan *p;
    PL_TRY(pl__blas_plan(blas, call, data, &p));
    if (!p->choice.possible) {
        return pl_fail(
            PL_EDEVICE,
            "[matmul] cuBLASLt has no algorithm for a product of %s, %lld x %lld x %lld: "
            "use another dtype, or copy views with .contiguous()",
            pl_dtype_name((pl_dtype)call->type_ab), (long long)call->n, (long long)call->k,
            (long long)call->m);
    }
    return pl__blas_enqueue(blas, p, &p->choice.algo, data);
}

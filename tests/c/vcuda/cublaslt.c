// SPDX-License-Identifier: Apache-2.0
// cublaslt: a stand-in for NVIDIA's cuBLASLt: its C interface, as much as this project uses, with
// declarations of its own. Strict: what NVIDIA documents as required is checked, the reason goes to
// stderr and the call gives INVALID_VALUE; what a real library may not support is NOT_SUPPORTED.
// Products are computed naively on the virtual stream. Every proposal gives the same bits.
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cublaslt_values.h"
#include "vcuda.h"

#define EXPORT __attribute__((visibility("default")))

enum { OK = 0, INVALID = 7, UNSUPPORTED = 15 };
enum { COMPUTE_32F = 68, COMPUTE_64F = 70, COMPUTE_TF32 = 77 };
enum { BIAS = 4, GELU = 32, AUX = 128, DGELU = 64 | AUX, BGRADB = 512 };
enum { LAYOUT = 0x4c41594f, DESC = 0x44455343, PREF = 0x50524546, ALGO = 0x414c474f };
enum { ALGORITHMS = 3, ALGORITHM_WORKSPACE = 4096 };

typedef struct layout {
    int magic, type, order, batch;
    uint64_t rows, cols;
    int64_t ld, offset;
} layout;

typedef struct desc {
    int magic, compute, scale;
    int32_t trans_a, trans_b;
    uint32_t epilogue;
    void *bias, *aux;
    int64_t aux_ld;
} desc;

typedef struct preference {
    int magic;
    uint64_t workspace;
    uint32_t reduction_mask, align[4];
} preference;

typedef struct algorithm {  // 64 bytes
    uint64_t magic, number, shape, unused[5];
} algorithm;

typedef struct heuristic {
    algorithm algo;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
} heuristic;

static int refuse(const char *why) {
    fprintf(stderr, "fake cuBLASLt: %s\n", why);
    return INVALID;
}

// ---- Library and descriptors --------------------------------------------------------------------

EXPORT size_t cublasLtGetVersion(void);
EXPORT size_t cublasLtGetVersion(void) {
    const char *other = getenv("VCUDA_CUBLASLT_VERSION");  // for tests
    return other ? strtoull(other, NULL, 10) : 130100;
}

EXPORT const char *cublasLtGetStatusName(int status);
EXPORT const char *cublasLtGetStatusName(int status) {
    return status == OK            ? "CUBLAS_STATUS_SUCCESS"
           : status == INVALID     ? "CUBLAS_STATUS_INVALID_VALUE"
           : status == UNSUPPORTED ? "CUBLAS_STATUS_NOT_SUPPORTED"
                                   : "CUBLAS_STATUS_INTERNAL_ERROR";
}

EXPORT int cublasLtCreate(void **handle);
EXPORT int cublasLtCreate(void **handle) {
    *handle = malloc(1);
    return OK;
}

EXPORT int cublasLtDestroy(void *handle);
EXPORT int cublasLtDestroy(void *handle) {
    free(handle);
    return OK;
}

// A descriptor is dead memory after it is destroyed.
static int destroy(void *p, size_t nbytes, int magic) {
    if (!p || *(int *)p != magic) return refuse("destroying what is no descriptor of this kind");
    memset(p, 0xDD, nbytes);
    free(p);
    return OK;
}

EXPORT int cublasLtMatmulDescCreate(void **out, int compute, int scale);
EXPORT int cublasLtMatmulDescCreate(void **out, int compute, int scale) {
    bool wide = compute == COMPUTE_64F && scale == R_64F;
    bool single = (compute == COMPUTE_32F || compute == COMPUTE_TF32) && scale == R_32F;
    if (!wide && !single) return refuse("compute and scale type do not go together");
    desc *d = calloc(1, sizeof *d);
    *d = (desc){.magic = DESC, .compute = compute, .scale = scale, .epilogue = 1};
    *out = d;
    return OK;
}

EXPORT int cublasLtMatmulDescDestroy(void *d);
EXPORT int cublasLtMatmulDescDestroy(void *d) { return destroy(d, sizeof(desc), DESC); }

static int set(void *field, size_t want, const void *value, size_t nbytes) {
    if (!value || nbytes != want) return refuse("an attribute's size is not what it must be");
    memcpy(field, value, want);
    return OK;
}

EXPORT int cublasLtMatmulDescSetAttribute(desc *d, int attribute, const void *value, size_t nbytes);
EXPORT int cublasLtMatmulDescSetAttribute(desc *d, int attribute, const void *value,
                                          size_t nbytes) {
    if (!d || d->magic != DESC) return refuse("an attribute of what is no operation");
    switch (attribute) {
        case 3:
            return set(&d->trans_a, sizeof d->trans_a, value, nbytes);
        case 4:
            return set(&d->trans_b, sizeof d->trans_b, value, nbytes);
        case 7:
            return set(&d->epilogue, sizeof d->epilogue, value, nbytes);
        case 8:
            return set(&d->bias, sizeof d->bias, value, nbytes);
        case 11:
            return set(&d->aux, sizeof d->aux, value, nbytes);
        case 12:
            return set(&d->aux_ld, sizeof d->aux_ld, value, nbytes);
        default:
            return refuse("an attribute of an operation that is not in this stand-in");
    }
}

EXPORT int cublasLtMatrixLayoutCreate(void **out, int type, uint64_t rows, uint64_t cols,
                                      int64_t ld);
EXPORT int cublasLtMatrixLayoutCreate(void **out, int type, uint64_t rows, uint64_t cols,
                                      int64_t ld) {
    if (size_of(type) == 0) return refuse("a layout's type");
    if (rows == 0 || cols == 0) return refuse("a matrix without elements");
    if (rows > INT32_MAX || cols > INT32_MAX || ld > INT32_MAX) return refuse("a matrix too large");
    if (ld < (int64_t)rows) return refuse("a leading dimension below the number of rows");
    layout *l = calloc(1, sizeof *l);
    *l = (layout){LAYOUT, type, 0, 1, rows, cols, ld, 0};
    *out = l;
    return OK;
}

EXPORT int cublasLtMatrixLayoutDestroy(void *l);
EXPORT int cublasLtMatrixLayoutDestroy(void *l) { return destroy(l, sizeof(layout), LAYOUT); }

EXPORT int cublasLtMatrixLayoutSetAttribute(layout *l, int attribute, const void *value,
                                            size_t nbytes);
EXPORT int cublasLtMatrixLayoutSetAttribute(layout *l, int attribute, const void *value,
                                            size_t nbytes) {
    if (!l || l->magic != LAYOUT) return refuse("an attribute of what is no layout");
    switch (attribute) {
        case 1:
            return set(&l->order, sizeof l->order, value, nbytes);
        case 5:
            return set(&l->batch, sizeof l->batch, value, nbytes);
        case 6:
            return set(&l->offset, sizeof l->offset, value, nbytes);
        default:
            return refuse("an attribute of a layout that is not in this stand-in");
    }
}

EXPORT int cublasLtMatmulPreferenceCreate(void **out);
EXPORT int cublasLtMatmulPreferenceCreate(void **out) {
    preference *p = calloc(1, sizeof *p);
    *p = (preference){PREF, 0, 7, {256, 256, 256, 256}};
    *out = p;
    return OK;
}

EXPORT int cublasLtMatmulPreferenceDestroy(void *p);
EXPORT int cublasLtMatmulPreferenceDestroy(void *p) { return destroy(p, sizeof(preference), PREF); }

EXPORT int cublasLtMatmulPreferenceSetAttribute(preference *p, int attribute, const void *value,
                                                size_t nbytes);
EXPORT int cublasLtMatmulPreferenceSetAttribute(preference *p, int attribute, const void *value,
                                                size_t nbytes) {
    if (!p || p->magic != PREF) return refuse("an attribute of what is no preference");
    if (attribute == 1) return set(&p->workspace, sizeof p->workspace, value, nbytes);
    if (attribute == 3) return set(&p->reduction_mask, sizeof p->reduction_mask, value, nbytes);
    if (attribute >= 5 && attribute <= 8) {
        return set(&p->align[attribute - 5], sizeof p->align[0], value, nbytes);
    }
    return refuse("an attribute of a preference that is not in this stand-in");
}

// ---- What goes together -------------------------------------------------------------------------

static bool known_epilogue(uint32_t e) {
    static const uint32_t known[] = {1,     BIAS,  GELU, GELU | BIAS, GELU | AUX, GELU | AUX | BIAS,
                                     DGELU, BGRADB};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (known[i] == e) return true;
    }
    return false;
}

static int check_types(const desc *op, const layout *a, const layout *b, const layout *d) {
    bool half = a->type == R_16F || a->type == R_16BF;
    if (a->type != b->type) return refuse("A and B of different types");
    if ((op->compute == COMPUTE_64F) != (a->type == R_64F)) return refuse("compute type for A");
    if (op->compute == COMPUTE_TF32 && a->type != R_32F) return refuse("TF32 of what is not fp32");
    if (d->type != a->type && !(half && d->type == R_32F)) return refuse("type of D");
    return OK;
}

static int check_batches(const layout *a, const layout *b, const layout *d) {
    if (a->batch != b->batch || a->batch != d->batch) return refuse("batch counts differ");
    if (d->batch < 1) return refuse("a batch count below 1");
    if (d->batch == 1) return OK;
    int64_t span = (int64_t)(d->cols - 1) * d->ld + (int64_t)d->rows;
    // Rows of one batch's D may lie between those of another's, so the span alone says nothing.
    if (d->offset < (int64_t)d->rows) return refuse("matrices of D's batch overlap");
    if (d->offset < span && d->offset + (int64_t)d->rows > d->ld && d->cols > 1) {
        return refuse("matrices of D's batch overlap");
    }
    if (a->offset < 0 || b->offset < 0) return refuse("a negative batch stride");
    return OK;
}

static int check_epilogue(const desc *op, const layout *a, const layout *d) {
    uint32_t e = op->epilogue;
    if (!known_epilogue(e)) return refuse("an epilogue that is not in this stand-in");
    if (e == 1) return OK;
    if (a->type == R_64F) return UNSUPPORTED;
    if (d->batch != 1) return UNSUPPORTED;
    size_t size = size_of(d->type);
    if (e & (BIAS | BGRADB)) {
        if (!op->bias || (uintptr_t)op->bias % size) return refuse("the bias' pointer");
        size_t count = e & BGRADB ? d->cols : d->rows;
        if (!vcuda_is_device(op->bias, count * size)) return refuse("the bias is not the device's");
    }
    if (e & AUX) {
        if (op->aux_ld % 8 || op->aux_ld < (int64_t)d->rows) return refuse("the auxiliary's ld");
        if (!op->aux || (uintptr_t)op->aux % 16) return refuse("the auxiliary's pointer");
        size_t count = (size_t)op->aux_ld * (d->cols - 1) + d->rows;
        if (!vcuda_is_device(op->aux, count * size)) return refuse("aux is not the device's");
    }
    return OK;
}

static int check_call(const desc *op, const layout *a, const layout *b, const layout *c,
                      const layout *d) {
    if (!op || op->magic != DESC) return refuse("no operation");
    const layout *all[] = {a, b, c, d};
    for (int i = 0; i < 4; i++) {
        if (!all[i] || all[i]->magic != LAYOUT || all[i]->order != 0) return refuse("a layout");
    }
    if (c->type != d->type || c->ld != d->ld) return refuse("C is not as D");
    if ((uint32_t)op->trans_a > 1 || (uint32_t)op->trans_b > 1) return refuse("a transposition");
    uint64_t m = op->trans_a ? a->cols : a->rows, ka = op->trans_a ? a->rows : a->cols;
    uint64_t n = op->trans_b ? b->rows : b->cols, kb = op->trans_b ? b->cols : b->rows;
    if (ka != kb || m != d->rows || n != d->cols) return refuse("the shapes do not fit");
    int st = check_types(op, a, b, d);
    if (st == OK) st = check_batches(a, b, d);
    return st == OK ? check_epilogue(op, a, d) : st;
}

// ---- Algorithms ---------------------------------------------------------------------------------

// What an algorithm was proposed for, so that one for another call is seen.
static uint64_t shape_of(const desc *op, const layout *a, const layout *b, const layout *d) {
    const uint64_t words[] = {(uint64_t)op->compute,
                              (uint64_t)op->trans_a,
                              (uint64_t)op->trans_b,
                              op->epilogue,
                              a->rows,
                              a->cols,
                              b->rows,
                              b->cols,
                              (uint64_t)d->ld,
                              (uint64_t)a->type,
                              (uint64_t)d->type,
                              (uint64_t)d->batch};
    uint64_t h = 14695981039346656037u;
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) h = (h ^ words[i]) * 1099511628211u;
    return h;
}

static void propose(uint64_t number, uint64_t shape, heuristic *out) {
    *out = (heuristic){.algo = {.magic = ALGO, .number = number, .shape = shape}, .waves = 1.0f};
    out->workspace = number ? number * ALGORITHM_WORKSPACE : 0;
}

EXPORT int cublasLtMatmulAlgoGetHeuristic(void *handle, desc *op, layout *a, layout *b, layout *c,
                                          layout *d, preference *p, int wanted, heuristic *out,
                                          int *count);
EXPORT int cublasLtMatmulAlgoGetHeuristic(void *handle, desc *op, layout *a, layout *b, layout *c,
                                          layout *d, preference *p, int wanted, heuristic *out,
                                          int *count) {
    if (!handle || !p || p->magic != PREF || wanted < 1) return refuse("a question for algorithms");
    if (p->reduction_mask & ~2u) return refuse("sums in an order that may vary were not excluded");
    const layout *all[] = {a, b, c, d};
    for (int i = 0; i < 4; i++) {
        if (p->align[i] & (p->align[i] - 1)) return refuse("an alignment is no power of two");
        if (p->align[i] < size_of(all[i]->type)) return refuse("an alignment below an element's");
    }
    int st = check_call(op, a, b, c, d);
    *count = 0;
    if (st != OK) return st;
    const char *limit = getenv("VCUDA_CUBLASLT_ONLY");  // for tests
    if (limit && (strcmp(limit, "nothing") == 0 || op->epilogue != 1)) return UNSUPPORTED;
    for (int i = 0; i < ALGORITHMS && i < wanted; i++) {
        propose((uint64_t)i, shape_of(op, a, b, d), &out[i]);
        out[i].state = out[i].workspace <= p->workspace ? OK : UNSUPPORTED;
        ++*count;
    }
    return OK;
}

EXPORT int cublasLtMatmulAlgoCheck(void *handle, desc *op, layout *a, layout *b, layout *c,
                                   layout *d, const algorithm *algo, heuristic *out);
EXPORT int cublasLtMatmulAlgoCheck(void *handle, desc *op, layout *a, layout *b, layout *c,
                                   layout *d, const algorithm *algo, heuristic *out) {
    int st = handle ? check_call(op, a, b, c, d) : INVALID;
    if (st != OK) return st;
    bool known = algo->magic == ALGO && algo->number < ALGORITHMS;
    if (!known || algo->shape != shape_of(op, a, b, d)) return INVALID;  // a test's, silently
    propose(algo->number, algo->shape, out);
    return OK;
}

// ---- The product --------------------------------------------------------------------------------

typedef struct product {
    desc op;
    layout a, b, d;
    const char *pa, *pb;
    char *pd, *workspace;
    size_t workspace_nbytes;
    double beta;
} product;

// op(X) as doubles, element (r, c) at c * rows + r.
static double *load(const layout *l, bool transposed, const char *p, int compute) {
    int64_t rows = (int64_t)l->rows, cols = (int64_t)l->cols;
    double *out = malloc((size_t)(rows * cols) * sizeof *out);
    for (int64_t c = 0; c < cols; c++) {
        for (int64_t r = 0; r < rows; r++) {
            double v = widen(l->type, p, c * l->ld + r);
            out[transposed ? r * cols + c : c * rows + r] =
                compute == COMPUTE_TF32 ? as_tf32(v) : v;
        }
    }
    return out;
}

// Sums as the compute type keeps them: float, or double.
static void add_column(bool wide, double *sums, const double *a, double b, int64_t m) {
    if (wide) {
        for (int64_t i = 0; i < m; i++) sums[i] += a[i] * b;
    } else {
        for (int64_t i = 0; i < m; i++) sums[i] = (double)((float)sums[i] + (float)(a[i] * b));
    }
}

static void finish_column(const product *p, char *pd, double *sums, int64_t j) {
    const desc *op = &p->op;
    int64_t m = (int64_t)p->d.rows;
    for (int64_t i = 0; i < m; i++) {
        double v = sums[i];
        if (p->beta != 0.0) v += p->beta * widen(p->d.type, pd, j * p->d.ld + i);
        if (op->epilogue & BIAS) v += widen(p->d.type, op->bias, i);
        int64_t at = j * op->aux_ld + i;
        if (op->epilogue == DGELU) {
            v *= gelu_slope(widen(p->d.type, op->aux, at));
        } else if (op->epilogue & AUX) {
            narrow(p->d.type, op->aux, at, v);
        }
        if (op->epilogue & GELU) v = gelu(v);
        narrow(p->d.type, pd, j * p->d.ld + i, v);
    }
}

static void multiply(const product *p, int64_t batch) {
    const char *pa = p->pa + batch * p->a.offset * (int64_t)size_of(p->a.type);
    const char *pb = p->pb + batch * p->b.offset * (int64_t)size_of(p->b.type);
    char *pd = p->pd + batch * p->d.offset * (int64_t)size_of(p->d.type);
    int64_t m = (int64_t)p->d.rows, n = (int64_t)p->d.cols;
    int64_t k = (int64_t)(p->op.trans_a ? p->a.rows : p->a.cols);
    double *a = load(&p->a, p->op.trans_a, pa, p->op.compute);
    double *b = load(&p->b, p->op.trans_b, pb, p->op.compute);
    double *sums = malloc((size_t)m * sizeof *sums);
    for (int64_t j = 0; j < n; j++) {
        memset(sums, 0, (size_t)m * sizeof *sums);
        double gradient = 0.0;
        for (int64_t l = 0; l < k; l++) {
            add_column(p->a.type == R_64F, sums, a + l * m, b[j * k + l], m);
            gradient += b[j * k + l];
        }
        finish_column(p, pd, sums, j);
        if (p->op.epilogue & BGRADB) narrow(p->d.type, p->op.bias, j, gradient);
    }
    free(sums);
    free(b);
    free(a);
}

static void run(void *context) {
    const product *p = context;
    memset(p->workspace, 0xFF, p->workspace_nbytes);  // whoever else uses it notices
    for (int64_t i = 0; i < p->d.batch; i++) multiply(p, i);
}

static size_t span(const layout *l) {
    int64_t one = (int64_t)(l->cols - 1) * l->ld + (int64_t)l->rows;
    return (size_t)((l->batch - 1) * l->offset + one) * size_of(l->type);
}

static int check_memory(const layout *l, const void *p) {
    if (!p || (uintptr_t)p % size_of(l->type)) return refuse("a matrix is not aligned");
    return vcuda_is_device(p, span(l)) ? OK : refuse("a matrix is not in the device's memory");
}

EXPORT int cublasLtMatmul(void *handle, desc *op, const void *alpha, const void *pa, layout *a,
                          const void *pb, layout *b, const void *beta, const void *pc, layout *c,
                          void *pd, layout *d, const algorithm *algo, void *workspace,
                          size_t workspace_nbytes, void *stream);
EXPORT int cublasLtMatmul(void *handle, desc *op, const void *alpha, const void *pa, layout *a,
                          const void *pb, layout *b, const void *beta, const void *pc, layout *c,
                          void *pd, layout *d, const algorithm *algo, void *workspace,
                          size_t workspace_nbytes, void *stream) {
    heuristic how;
    int st = algo ? cublasLtMatmulAlgoCheck(handle, op, a, b, c, d, algo, &how) : INVALID;
    if (st != OK) return refuse("this product with this algorithm");
    if (how.workspace > workspace_nbytes) return refuse("the workspace is too small");
    bool aligned = workspace && (uintptr_t)workspace % 256 == 0;
    if (!aligned || !vcuda_is_device(workspace, workspace_nbytes)) return refuse("the workspace");
    bool wide = op->scale == R_64F;
    double one = wide ? *(const double *)alpha : (double)*(const float *)alpha;
    double more = wide ? *(const double *)beta : (double)*(const float *)beta;
    if (one != 1.0 || (more != 0.0 && more != 1.0)) return refuse("alpha or beta");
    if (pc != pd) return refuse("C elsewhere than D");
    if (check_memory(a, pa) != OK || check_memory(b, pb) != OK || check_memory(d, pd) != OK) {
        return INVALID;
    }
    const char *refuses = getenv("VCUDA_CUBLASLT_REFUSES");  // for tests: a status, late
    if (refuses && op->epilogue != 1) return atoi(refuses);
    const product p = {*op, *a, *b, *d, pa, pb, pd, workspace, how.workspace, more};
    vcuda_enqueue(stream, run, &p, sizeof p);
    return OK;
}

// SPDX-License-Identifier: Apache-2.0
// Stable sort along the last dimension. Elements become 64-bit keys whose unsigned order is the
// wanted one (NaN above all numbers; complemented for descending), then keys with their places are
// sorted by bytes from the lowest, skipping bytes that are all equal; short rows by insertion.

#include <math.h>
#include <string.h>

#include "cpu/cpu.h"
#include "cpu/walk.h"

#define SHORT_ROW 48

typedef struct item {
    uint64_t key;
    int64_t place;
} item;

// Floats of one sign order as their bits; flipping the negative ones (all bits) and the positive
// (the sign) makes one order. -0 equals 0, and NaNs equal one another.
static uint64_t float_key(double v) {
    if (isnan(v)) return UINT64_MAX;
    v = v == 0.0 ? 0.0 : v;
    uint64_t u;
    memcpy(&u, &v, sizeof(u));
    return u >> 63 ? ~u : u | (uint64_t)1 << 63;
}

static uint64_t key_of(pl_compute c, const void *chunk, int64_t i) {
    if (c == PL_C_I64) return (uint64_t)((const int64_t *)chunk)[i] ^ (uint64_t)1 << 63;
    return float_key(c == PL_C_F64 ? ((const double *)chunk)[i]
                                   : (double)((const float *)chunk)[i]);
}

static void insertion_sort(item *a, int64_t n) {
    for (int64_t i = 1; i < n; i++) {
        item x = a[i];
        int64_t j = i;
        for (; j > 0 && a[j - 1].key > x.key; j--) a[j] = a[j - 1];
        a[j] = x;
    }
}

// Sorts a with b as scratch; gives whichever of the two holds the result.
static item *radix_sort(item *a, item *b, int64_t n) {
    for (int shift = 0; shift < 64; shift += 8) {
        int64_t count[256] = {0};
        for (int64_t i = 0; i < n; i++) count[a[i].key >> shift & 255]++;
        if (count[a[0].key >> shift & 255] == n) continue;
        int64_t at = 0;
        for (int k = 0; k < 256; k++) {
            int64_t here = count[k];
            count[k] = at;
            at += here;
        }
        for (int64_t i = 0; i < n; i++) b[count[a[i].key >> shift & 255]++] = a[i];
        item *t = a;
        a = b;
        b = t;
    }
    return a;
}

typedef struct job {
    const pl_tensor *x;
    bool descending;
    pl_tensor *values;
    int64_t *indices;
    int64_t n;
    item *scratch;  // two rows of n per piece of work
    int64_t each;   // rows per piece
} job;

// x is contiguous in the last dimension; this is where row r starts.
static const char *row_start(const pl_tensor *x, int64_t r) {
    int64_t offset = 0;
    for (int d = x->ndim - 2; d >= 0; d--) {
        offset += r % x->shape[d] * x->strides[d];
        r /= x->shape[d];
    }
    return (const char *)x->data + offset * (int64_t)pl_dtype_size(x->dtype);
}

static void sort_row(const job *j, int64_t r, item *a, item *b) {
    _Alignas(64) char chunk[PL_CHUNK * 8];
    const char *x = row_start(j->x, r);
    pl_compute c = pl__cpu_compute(j->x->dtype);
    int64_t size = (int64_t)pl_dtype_size(j->x->dtype);
    for (int64_t i = 0; i < j->n; i += PL_CHUNK) {
        int64_t m = j->n - i < PL_CHUNK ? j->n - i : PL_CHUNK;
        pl__cpu_convert()->load[j->x->dtype](m, x + i * size, 1, chunk);
        for (int64_t k = 0; k < m; k++) {
            uint64_t key = key_of(c, chunk, k);
            a[i + k] = (item){j->descending ? ~key : key, i + k};
        }
    }
    if (j->n <= SHORT_ROW) {
        insertion_sort(a, j->n);
    } else {
        a = radix_sort(a, b, j->n);
    }
    char *values = (char *)j->values->data + r * j->n * size;
    for (int64_t i = 0; i < j->n; i++) {
        j->indices[r * j->n + i] = a[i].place;
        memcpy(values + i * size, x + a[i].place * size, (size_t)size);
    }
}

static void piece_range(int64_t begin, int64_t end, void *ctx) {
    const job *j = ctx;
    int64_t rows = j->x->numel / j->n;
    for (int64_t p = begin; p < end; p++) {
        item *a = j->scratch + p * 2 * j->n;
        for (int64_t r = p * j->each; r < rows && r < (p + 1) * j->each; r++) {
            sort_row(j, r, a, a + j->n);
        }
    }
}

pl_status pl_cpu_sort(const pl_tensor *x, bool descending, pl_tensor *values, pl_tensor *indices) {
    if (x->numel == 0) return PL_OK;
    job j = {.x = x, .descending = descending, .values = values, .indices = indices->data};
    j.n = x->ndim == 0 ? 1 : x->shape[x->ndim - 1];
    int64_t rows = x->numel / j.n;
    int64_t pieces = x->numel < PL_SERIAL / 8 ? 1 : pl_num_threads();
    if (pieces > rows) pieces = rows;
    j.each = (rows + pieces - 1) / pieces;
    void *scratch;
    PL_TRY(pl_alloc((size_t)(pieces * 2 * j.n) * sizeof(item), &scratch));
    j.scratch = scratch;
    pl_parallel_for(pieces, 1, piece_range, &j);
    pl_free(scratch);
    return PL_OK;
}

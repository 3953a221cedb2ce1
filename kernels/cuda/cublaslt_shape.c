// SPDX-License-Identifier: Apache-2.0
// cublaslt_shape: tensors as calls of cuBLASLt. Views are not copied: a transposed matrix is one
// whose columns are adjacent, which the library reads as such. Batch dimensions of size 1 are
// dropped, neighbours that can be are merged, a batch over which b does not change becomes more
// rows of a; of what is left the last is the library's strided batch, the others are looped over.
#include <string.h>

#include "cuda/cublaslt_internal.h"

enum { MOST_BATCHES = 65535 };  // what a grid's third dimension holds

// One matrix of the last two dimensions: rows adjacent (plain) or columns.
typedef struct matrix {
    int64_t ld;
    bool plain;
} matrix;

static bool matrix_of(const pl_tensor *t, matrix *out) {
    int64_t rows = t->shape[t->ndim - 2], cols = t->shape[t->ndim - 1];
    int64_t row = t->strides[t->ndim - 2], col = t->strides[t->ndim - 1];
    if ((col == 1 || cols == 1) && (row >= cols || rows == 1)) {
        *out = (matrix){rows == 1 && row < cols ? cols : row, true};
        return true;
    }
    if ((row == 1 || rows == 1) && (col >= rows || cols == 1)) {
        *out = (matrix){cols == 1 && col < rows ? rows : col, false};
        return true;
    }
    return false;
}

bool pl__blas_readable(const pl_tensor *t) {
    matrix m;
    return matrix_of(t, &m);
}

// A batch dimension: its size and the elements to its next of a, b and out.
typedef struct dim {
    int64_t size, a, b, d;
} dim;

static bool continues(const dim *outer, const dim *inner) {
    return outer->a == inner->a * inner->size && outer->b == inner->b * inner->size &&
           outer->d == inner->d * inner->size;
}

static int batch_dims(const pl_tensor *a, const pl_tensor *b, const pl_tensor *out, dim *dims) {
    int n = 0;
    for (int d = 0; d < out->ndim - 2; d++) {
        dim next = {out->shape[d], a->strides[d], b->strides[d], out->strides[d]};
        if (next.size == 1) continue;
        if (n > 0 && continues(&dims[n - 1], &next)) {
            next.size *= dims[--n].size;
        }
        dims[n++] = next;
    }
    return n;
}

// a's rows and out's run on over the last batch dimension, and b stays: one matrix of more rows.
static bool fold_rows(const dim *last, int64_t m, matrix *a, matrix *out) {
    if (last->b != 0 || !a->plain) return false;
    if (m == 1) {  // then the matrices' own strides say nothing
        if (last->a < a->ld || last->d < out->ld) return false;
        a->ld = last->a;
        out->ld = last->d;
        return true;
    }
    return last->a == m * a->ld && last->d == m * out->ld;
}

// The last dimension becomes the call's batch, whole or (if it is too long) in equal parts over
// which a new last dimension runs. Gives the number of dimensions left.
static int take_batch(dim *dims, int n, pl_blas_call *c) {
    dim *last = &dims[n - 1];
    int64_t part = last->size;
    while (part > MOST_BATCHES || last->size % part != 0) part--;
    c->batch = part;
    c->stride_a = last->b;
    c->stride_b = last->a;
    c->stride_d = last->d;
    *last = (dim){last->size / part, last->a * part, last->b * part, last->d * part};
    return last->size == 1 ? n - 1 : n;
}

static pl_status check_sizes(const pl_blas_call *c) {
    int64_t largest = 0, sizes[] = {c->m, c->n, c->k, c->lda, c->ldb, c->ldd};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        if (sizes[i] > largest) largest = sizes[i];
    }
    if (largest <= INT32_MAX) return PL_OK;
    return pl_fail(PL_ENOSUP,
                   "[matmul] a matrix is too large for the GPU's library: got a size or stride of "
                   "%lld, expected at most %d; split the product",
                   (long long)largest, INT32_MAX);
}

pl_status pl__blas_product(const pl_tensor *a, const pl_tensor *b, bool accumulate, pl_tensor *out,
                           pl_blas_product *p) {
    matrix ma, mb, md;
    int nd = out->ndim;
    PL_ASSERT(matrix_of(a, &ma) && matrix_of(b, &mb) && matrix_of(out, &md));
    PL_ASSERT(md.plain);
    PL_ASSERT(a->dtype == b->dtype);
    dim dims[PL_MAX_DIMS];
    int n = batch_dims(a, b, out, dims);
    int64_t m = out->shape[nd - 2];
    if (n > 0 && fold_rows(&dims[n - 1], m, &ma, &md)) m *= dims[--n].size;
    memset(p, 0, sizeof *p);
    pl_blas_call *c = &p->call;
    c->m = out->shape[nd - 1];
    c->n = m;
    c->k = a->shape[nd - 1];
    c->batch = 1;
    c->lda = mb.ld;
    c->ldb = ma.ld;
    c->ldd = md.ld;
    c->transposed_a = !mb.plain;
    c->transposed_b = !ma.plain;
    c->type_ab = a->dtype;
    c->type_d = out->dtype;
    c->accumulate = accumulate;
    c->tf32 = pl__blas_tf32(a->dtype);
    c->epilogue = PL_LT_EPILOGUE_DEFAULT;
    p->data = (pl_blas_data){.a = b->data, .b = a->data, .d = out->data};
    if (n > 0) n = take_batch(dims, n, c);
    int64_t size_ab = (int64_t)pl_dtype_size(a->dtype), size_d = (int64_t)pl_dtype_size(out->dtype);
    p->ndim = n;
    for (int i = 0; i < n; i++) {
        p->outer[i] = dims[i].size;
        p->a[i] = dims[i].b * size_ab;
        p->b[i] = dims[i].a * size_ab;
        p->d[i] = dims[i].d * size_d;
    }
    return check_sizes(c);
}

// Of a pointer, and of the strides by which it is moved; 16 where there is none.
static int64_t alignment(const void *p, int64_t stride_nbytes) {
    uint64_t bits = (uint64_t)(uintptr_t)p | (uint64_t)stride_nbytes | 16;
    return (int64_t)(bits & -bits);
}

void pl__blas_align(pl_blas_call *c, const pl_blas_data *data) {
    int64_t size_ab = (int64_t)pl_dtype_size((pl_dtype)c->type_ab);
    c->align_a = alignment(data->a, c->stride_a * size_ab);
    c->align_b = alignment(data->b, c->stride_b * size_ab);
    c->align_d = alignment(data->d, c->stride_d * (int64_t)pl_dtype_size((pl_dtype)c->type_d));
    c->align_bias = alignment(data->bias, 0);
    c->align_aux = alignment(data->aux, 0);
}

pl_status pl__blas_product_run(pl_cuda_blas *blas, const pl_blas_product *p) {
    int64_t at[PL_MAX_DIMS] = {0};
    for (;;) {
        pl_blas_data data = p->data;
        const char *a = data.a, *b = data.b;
        char *d = data.d;
        for (int i = 0; i < p->ndim; i++) {
            a += at[i] * p->a[i];
            b += at[i] * p->b[i];
            d += at[i] * p->d[i];
        }
        data.a = a;
        data.b = b;
        data.d = d;
        pl_blas_call call = p->call;
        pl__blas_align(&call, &data);
        PL_TRY(pl__blas_run(blas, &call, &data));
        int i = p->ndim - 1;
        for (; i >= 0 && ++at[i] == p->outer[i]; i--) at[i] = 0;
        if (i < 0) return PL_OK;
    }
}

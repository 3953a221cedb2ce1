// SPDX-License-Identifier: Apache-2.0
// Tensors and views: shapes, strides, versions, and that nothing outlives its last reference.
#include "tensor/tensor.h"
#include "test.h"

static pl_tensor *make(int ndim, const int64_t *shape) {
    pl_tensor *t = NULL;
    CHECK_OK(pl_tensor_zeros(PL_F32, ndim, shape, &t));
    for (int64_t i = 0; i < t->numel; i++) ((float *)t->data)[i] = (float)i;
    return t;
}

static float at(const pl_tensor *t, int64_t i, int64_t j) {
    return ((const float *)t->data)[i * t->strides[0] + j * t->strides[1]];
}

TEST(a_view_keeps_the_storage) {
    pl_tensor *t = make(2, (int64_t[]){3, 4}), *v = NULL;
    CHECK_OK(pl_tensor_transpose(t, 0, 1, &v));
    pl_tensor_release(t);
    CHECK(at(v, 1, 2) == 9.0f);
    pl_tensor_release(v);
    CHECK_EQ(pl_live(PL_KIND_TENSOR), 0);
    CHECK_EQ(pl_live(PL_KIND_STORAGE), 0);
}

TEST(view_of_what_is_not_contiguous) {
    pl_tensor *t = make(2, (int64_t[]){4, 6}), *s = NULL, *v = NULL;
    CHECK_OK(pl_tensor_slice(t, 1, 0, 4, 1, &s));
    CHECK_EQ(pl_tensor_view(s, 1, (int64_t[]){16}, &v), PL_ERUNTIME);
    CHECK(strstr(pl_error_message(), "reshape") != NULL);
    // Splitting a dimension is a view even there.
    CHECK_OK(pl_tensor_view(s, 3, (int64_t[]){2, 2, -1}, &v));
    CHECK_EQ(v->strides[0], 12);
    CHECK_EQ(v->strides[1], 6);
    CHECK_EQ(v->shape[2], 4);
    pl_tensor_release(v);
    pl_tensor_release(s);
    pl_tensor_release(t);
}

TEST(slices_clamp_as_python_does) {
    pl_tensor *t = make(2, (int64_t[]){5, 2}), *s = NULL;
    CHECK_OK(pl_tensor_slice(t, 0, -2, 100, 1, &s));
    CHECK_EQ(s->shape[0], 2);
    CHECK(at(s, 0, 0) == 6.0f);
    pl_tensor_release(s);
    CHECK_OK(pl_tensor_slice(t, 0, 4, 2, 1, &s));
    CHECK_EQ(s->numel, 0);
    pl_tensor_release(s);
    CHECK_EQ(pl_tensor_slice(t, 0, 0, 5, 0, &s), PL_EINVAL);
    CHECK_EQ(pl_tensor_slice(t, 2, 0, 5, 1, &s), PL_EINDEX);
    pl_tensor_release(t);
}

TEST(shapes_that_do_not_broadcast_are_named) {
    int n;
    int64_t out[PL_MAX_DIMS];
    CHECK_OK(pl_shape_broadcast("add", 2, (int64_t[]){3, 1}, 1, (int64_t[]){4}, &n, out));
    CHECK_EQ(n, 2);
    CHECK_EQ(out[1], 4);
    CHECK_EQ(pl_shape_broadcast("add", 1, (int64_t[]){3}, 1, (int64_t[]){4}, &n, out), PL_ERUNTIME);
    CHECK(strstr(pl_error_message(), "[3] and [4]") != NULL);
}

TEST(sizes_that_overflow) {
    pl_tensor *t = NULL;
    int64_t huge[3] = {(int64_t)1 << 40, (int64_t)1 << 40, 4};
    CHECK_EQ(pl_tensor_empty(PL_F32, 3, huge, &t), PL_ENOMEM);
    CHECK_EQ(pl_tensor_empty(PL_F32, 1, (int64_t[]){-1}, &t), PL_EINVAL);
    CHECK_EQ(pl_tensor_empty(PL_F32, PL_MAX_DIMS + 1, huge, &t), PL_EINVAL);
}

TEST(every_failing_allocation_of_a_tensor) {
    for (uint64_t n = 1;; n++) {
        pl_tensor *t = NULL;
        pl_alloc_fail_at(n, false);
        pl_status st = pl_tensor_zeros(PL_F32, 1, (int64_t[]){8}, &t);
        pl_alloc_fail_at(0, false);
        if (st == PL_OK) {
            CHECK(n > 2);  // data, storage and tensor are allocations of their own
            pl_tensor_release(t);
            break;
        }
        CHECK_EQ(st, PL_ENOMEM);
        CHECK_EQ(pl_live(PL_KIND_TENSOR), 0);
        CHECK_EQ(pl_live(PL_KIND_STORAGE), 0);
    }
    CHECK_EQ(pl_alloc_in_use(), 0);
}

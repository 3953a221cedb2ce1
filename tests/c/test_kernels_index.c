// SPDX-License-Identifier: Apache-2.0
// Indexing, gather and scatter, nonzeros and sorting of "cpu" against "ref".
#include "test.h"

#include "kernel_cases.h"

// Indices in [-n, n), or [0, n) where negative ones are not allowed.
static void fill_index(pl_tensor *t, int64_t n, bool negative) {
    if (t->numel == 0) return;
    int64_t at[PL_MAX_DIMS] = {0};
    do {
        int64_t r = (int64_t)(next_random() >> 33);
        ref_set_int(t, ref_offset(t, at), negative ? r % (2 * n) - n : r % n);
    } while (ref_next(t->ndim, t->shape, at));
}

static void one_take(pl_dtype dt, int64_t rows, int64_t width, int64_t count, layout l) {
    pl_tensor *x = make_raw(dt, (shape){2, {rows, width + (l == SLICED ? 3 : 0)}}, DENSE);
    fill_case(x, MODERATE);
    x->shape[1] = width;  // SLICED here: rows with a gap after them
    x->numel = rows * width;
    pl_tensor *index = make_raw(PL_I64, (shape){1, {count}}, DENSE);
    fill_index(index, rows, true);
    shape s = {2, {count, width}}, table = {2, {rows, width}};
    pl_tensor *got = make_raw(dt, s, DENSE), *want = make_raw(dt, s, DENSE);
    CHECK_OK(pl_kernels_cpu()->take(x, index, got));
    CHECK_OK(pl_kernels_ref()->take(x, index, want));
    check_close("take", got, want, 0.0, 0.0);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        pl_tensor *a = make_case(dt, table, DENSE, MODERATE), *b = make_raw(dt, table, DENSE);
        CHECK_OK(pl_kernels_cpu()->copy(a, b));
        CHECK_OK(pl_kernels_cpu()->take_grad(got, index, rows / 2, accumulate, a));
        CHECK_OK(pl_kernels_ref()->take_grad(got, index, rows / 2, accumulate, b));
        // Each sum is rounded to the dtype, in the order of rows, by both: the same bits.
        check_close("take_grad", a, b, 0.0, 0.0);
        release_all(2, (pl_tensor *[]){a, b});
    }
    release_all(4, (pl_tensor *[]){x, index, got, want});
}

TEST(take_and_its_gradient) {
    for (int dt = PL_U8; dt < PL_DTYPE_COUNT; dt++) {
        one_take(dt, 7, 5, 20, DENSE);
        one_take(dt, 7, 5, 20, SLICED);
        one_take(dt, 1, 1, 1, DENSE);
        one_take(dt, 4, 0, 3, DENSE);
        one_take(dt, 4, 3, 0, DENSE);
        one_take(dt, 40, 515, 130, SLICED);
    }
}

TEST(take_names_a_wrong_index) {
    pl_tensor *x = make_case(PL_F32, (shape){2, {5, 2}}, DENSE, MODERATE);
    pl_tensor *index = make_raw(PL_I64, (shape){1, {3}}, DENSE);
    pl_tensor *out = make_raw(PL_F32, (shape){2, {3, 2}}, DENSE);
    static const int64_t wrong[] = {5, -6, INT64_MAX, INT64_MIN};
    const pl_kernels *tables[] = {pl_kernels_cpu(), pl_kernels_ref()};
    for (int i = 0; i < 8; i++) {
        ((int64_t *)index->data)[1] = wrong[i / 2];
        char text[32];
        snprintf(text, sizeof(text), "got %lld", (long long)wrong[i / 2]);
        CHECK_FAILS(tables[i % 2]->take(x, index, out), PL_EINDEX, text);
        CHECK_FAILS(tables[i % 2]->take_grad(out, index, -1, true, x), PL_EINDEX, text);
    }
    release_all(3, (pl_tensor *[]){x, index, out});
}

static void one_gather(pl_dtype dt, shape s, layout l, int dim) {
    shape picks = s, table = s;
    if (s.ndim > 0) table.size[dim] += 2;
    int64_t n = s.ndim > 0 ? table.size[dim] : 1;
    pl_tensor *x = make_case(dt, table, l, MODERATE);
    pl_tensor *index = make_raw(PL_I64, picks, (l + 1) % EXPANDED);
    fill_index(index, n, false);
    pl_tensor *got = make_raw(dt, picks, l % EXPANDED), *want = make_raw(dt, picks, DENSE);
    CHECK_OK(pl_kernels_cpu()->gather(x, dim, index, got));
    CHECK_OK(pl_kernels_ref()->gather(x, dim, index, want));
    check_close("gather", got, want, 0.0, 0.0);
    pl_tensor *a = make_raw(dt, table, DENSE), *b = make_raw(dt, table, DENSE);
    CHECK_OK(pl_kernels_cpu()->scatter_add(got, dim, index, a));
    CHECK_OK(pl_kernels_ref()->scatter_add(got, dim, index, b));
    check_close("scatter_add", a, b, 0.0, 0.0);  // the same order, the same rounding
    release_all(6, (pl_tensor *[]){x, index, got, want, a, b});
}

TEST(gather_and_scatter_add) {
    for (int i = 0; i < SHAPE_COUNT; i++) {
        for (int dim = 0; dim < (all_shapes[i].ndim > 0 ? all_shapes[i].ndim : 1); dim++) {
            for (int dt = PL_U8; dt < PL_DTYPE_COUNT; dt++) {
                one_gather(dt, all_shapes[i], (layout)((dt + dim) % LAYOUT_COUNT), dim);
            }
        }
    }
    pl_tensor *x = make_case(PL_F32, (shape){2, {2, 3}}, DENSE, MODERATE);
    pl_tensor *index = make_raw(PL_I64, (shape){2, {2, 3}}, DENSE);
    pl_tensor *out = make_raw(PL_F32, (shape){2, {2, 3}}, DENSE);
    ((int64_t *)index->data)[4] = 3;
    CHECK_FAILS(pl_kernels_cpu()->gather(x, 1, index, out), PL_EINDEX, "got 3, expected [0, 3)");
    CHECK_FAILS(pl_kernels_ref()->gather(x, 1, index, out), PL_EINDEX, "got 3, expected [0, 3)");
    ((int64_t *)index->data)[4] = -1;
    CHECK_FAILS(pl_kernels_cpu()->scatter_add(x, 1, index, out), PL_EINDEX, "got -1");
    CHECK_FAILS(pl_kernels_ref()->scatter_add(x, 1, index, out), PL_EINDEX, "got -1");
    release_all(3, (pl_tensor *[]){x, index, out});
}

TEST(nonzero) {
    for (int i = 0; i < SHAPE_COUNT; i++) {
        for (int dt = 0; dt < PL_DTYPE_COUNT; dt++) {
            shape s = all_shapes[i];
            pl_tensor *x = make_case(dt, s, (layout)((dt + i) % LAYOUT_COUNT), CHOICES);
            int64_t got_n = -1, want_n = -1;
            CHECK_OK(pl_kernels_cpu()->count_nonzero(x, &got_n));
            CHECK_OK(pl_kernels_ref()->count_nonzero(x, &want_n));
            CHECK_EQ(got_n, want_n);
            shape r = {2, {want_n, s.ndim}};
            pl_tensor *got = make_raw(PL_I64, r, DENSE), *want = make_raw(PL_I64, r, DENSE);
            CHECK_OK(pl_kernels_cpu()->nonzero(x, got));
            CHECK_OK(pl_kernels_ref()->nonzero(x, want));
            check_close("nonzero", got, want, 0.0, 0.0);
            release_all(3, (pl_tensor *[]){x, got, want});
        }
    }
}

static void one_sort(pl_dtype dt, shape s, values v, bool descending) {
    pl_tensor *x = make_case(dt, s, DENSE, v);
    pl_tensor *got[2] = {make_raw(dt, s, DENSE), make_raw(PL_I64, s, DENSE)};
    pl_tensor *want[2] = {make_raw(dt, s, DENSE), make_raw(PL_I64, s, DENSE)};
    CHECK_OK(pl_kernels_cpu()->sort(x, descending, got[0], got[1]));
    CHECK_OK(pl_kernels_ref()->sort(x, descending, want[0], want[1]));
    check_close("sorted values", got[0], want[0], 0.0, 0.0);
    check_close("places", got[1], want[1], 0.0, 0.0);  // so equals stay in order
    release_all(5, (pl_tensor *[]){x, got[0], got[1], want[0], want[1]});
}

TEST(sort) {
    static const shape shapes[] = {{0, {0}},    {1, {0}},      {1, {1}},
                                   {1, {47}},   {1, {49}},     {1, {1500}},
                                   {2, {3, 0}}, {2, {90, 60}}, {3, {2, 3, 5}}};
    for (int i = 0; i < 9; i++) {
        for (int dt = 0; dt < PL_DTYPE_COUNT; dt++) {
            for (int descending = 0; descending < 2; descending++) {
                one_sort(dt, shapes[i], CHOICES, descending);
                one_sort(dt, shapes[i], SPECIAL, descending);
            }
        }
    }
}

TEST(sort_rows_with_gaps) {
    pl_tensor *wide = make_case(PL_F32, (shape){2, {6, 70}}, DENSE, MODERATE), *x = NULL;
    CHECK_OK(pl_tensor_slice(wide, 1, 3, 63, 1, &x));
    shape s = {2, {6, 60}};
    pl_tensor *got = make_raw(PL_F32, s, DENSE), *want = make_raw(PL_F32, s, DENSE);
    pl_tensor *i = make_raw(PL_I64, s, DENSE), *j = make_raw(PL_I64, s, DENSE);
    CHECK_OK(pl_kernels_cpu()->sort(x, false, got, i));
    CHECK_OK(pl_kernels_ref()->sort(x, false, want, j));
    check_close("values", got, want, 0.0, 0.0);
    check_close("places", i, j, 0.0, 0.0);
    release_all(6, (pl_tensor *[]){wide, x, got, want, i, j});
}

// SPDX-License-Identifier: Apache-2.0
// Tests of csrc/comm/shape.c: what fits in 32 bits is printed again, what does not is told apart.
#include "test.h"

#include "comm/internal.h"

static const char *text_of(int ndim, const int64_t *dims) {
    static char buf[96];
    uint64_t count = 1;
    for (int i = 0; i < ndim; i++) count *= (uint64_t)dims[i];
    pl__shape_text(pl_site_shape(ndim, dims), count, buf, sizeof buf);
    return buf;
}

TEST(what_fits_is_printed_again) {
    CHECK_STR_EQ(text_of(0, NULL), "()");
    CHECK_STR_EQ(text_of(1, (int64_t[]){0}), "(0,)");
    CHECK_STR_EQ(text_of(1, (int64_t[]){INT64_C(1) << 40}), "(1099511627776,)");
    CHECK_STR_EQ(text_of(2, (int64_t[]){2, 3}), "(2, 3)");
    CHECK_STR_EQ(text_of(2, (int64_t[]){(1 << 28) - 1, 0}), "(268435455, 0)");
    CHECK_STR_EQ(text_of(3, (int64_t[]){16383, 1, 70000}), "(16383, 1, 70000)");
    CHECK_STR_EQ(text_of(4, (int64_t[]){8, 6, 256, 64}), "(8, 6, 256, 64)");
    CHECK_STR_EQ(text_of(8, (int64_t[]){1, 2, 3, 4, 5, 6, 7, 8}), "(1, 2, 3, 4, 5, 6, 7, 8)");
}

TEST(what_does_not_fit_is_told_apart) {
    const int64_t large[] = {INT64_C(1) << 28, 2}, larger[] = {(INT64_C(1) << 28) + 1, 2};
    CHECK(strncmp(text_of(2, large), "(#", 2) == 0);
    CHECK(pl_site_shape(2, large) != pl_site_shape(2, larger));
    const int64_t empty[] = {0, 3}, other[] = {0, 4};
    CHECK(pl_site_shape(2, empty) != pl_site_shape(2, other));
    int64_t many[12] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2};
    uint32_t before = pl_site_shape(12, many);
    many[0] = 2;
    CHECK(pl_site_shape(12, many) != before);
}

TEST(no_shape_is_zero) {
    CHECK(pl_site_shape(0, NULL) != 0);
    CHECK(pl_site_shape(1, (int64_t[]){1}) != pl_site_shape(0, NULL));
    CHECK(pl_site_shape(2, (int64_t[]){6, 1}) != pl_site_shape(2, (int64_t[]){1, 6}));
}

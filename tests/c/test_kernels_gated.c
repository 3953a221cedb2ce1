// SPDX-License-Identifier: Apache-2.0
// Tests of kernels/cpu/swiglu.c and rotary.c against the oracle, and of the oracle's rotary
// embedding against its formula.
#include "kernels_check.h"

static const pl_dtype FLOATS[] = {PL_F32, PL_BF16, PL_F16, PL_F64};

// Six roundings in the sums' unit at most (e^x counts for two), one to the dtype.
static double bound(pl_dtype dt) { return check_eps(dt) + 16.0 * check_sum_eps(dt); }

// ---- swiglu

typedef struct swiglu_data {
    pl_tensor *x, *g, *out, *dx, *want, *want_dx;
} swiglu_data;

static void swiglu_make(pl_dtype dt, int64_t m, int64_t n, swiglu_data *d) {
    d->x = check_tensor(dt, 2, (int64_t[]){m, 2 * n}, 8.0);
    d->g = check_tensor(dt, 2, (int64_t[]){m, n}, 1.0);
    CHECK_OK(pl_tensor_empty(dt, 2, d->g->shape, &d->out));
    CHECK_OK(pl_tensor_empty(dt, 2, d->x->shape, &d->dx));
    CHECK_OK(pl_tensor_empty(PL_F64, 2, d->g->shape, &d->want));
    CHECK_OK(pl_tensor_empty(PL_F64, 2, d->x->shape, &d->want_dx));
}

// Both sides; the gradient once more in place.
static void swiglu_run(const swiglu_data *d) {
    CHECK_OK(pl_kernels_ref()->swiglu(d->x, d->want));
    CHECK_OK(pl_kernels_cpu()->swiglu(d->x, d->out));
    CHECK_OK(pl_kernels_ref()->swiglu_grad(d->g, d->x, d->want_dx));
    CHECK_OK(pl_kernels_cpu()->swiglu_grad(d->g, d->x, d->dx));
    CHECK_OK(pl_kernels_cpu()->swiglu_grad(d->g, d->x, d->x));
    check_same_bits("in place", d->x, d->dx);
}

static void swiglu_free(swiglu_data *d) {
    pl_tensor *all[] = {d->x, d->g, d->out, d->dx, d->want, d->want_dx};
    for (int i = 0; i < 6; i++) pl_tensor_release(all[i]);
}

static void swiglu_case(pl_dtype dt, int64_t m, int64_t n) {
    swiglu_data d;
    swiglu_make(dt, m, n, &d);
    swiglu_run(&d);
    double tol = bound(dt), tiny = dt == PL_F16 ? 0x1p-25 : 0.0;  // f16 below its normal numbers
    check_close("swiglu", d.out, d.want, tol, tiny);
    // A slope s * (1 + z * (1 - s)) cancels near its zero at -1.28: its terms are below 1.1.
    check_close("swiglu_grad", d.dx, d.want_dx, tol, tiny + 16.0 * 8.0 * check_sum_eps(dt));
    swiglu_free(&d);
}

TEST(swiglu_agrees_with_the_oracle) {
    for (int d = 0; d < 4; d++) {
        swiglu_case(FLOATS[d], 5, 48);  // packs
        swiglu_case(FLOATS[d], 3, 37);
        swiglu_case(FLOATS[d], 2, 1);
        swiglu_case(FLOATS[d], 1, 2056);  // pieces of a row
        swiglu_case(FLOATS[d], 0, 4);
        swiglu_case(FLOATS[d], 3, 0);
    }
}

// Far tails are 0 and the gate itself, at infinity too; NaN stays in its element.
TEST(swiglu_of_extreme_gates) {
    static const double gates[] = {-INFINITY, -3e38, -800, -120, -90, -0.0, 90, 800, 3e38, NAN};
    for (int f = 0; f < 4; f++) {
        swiglu_data d;
        swiglu_make(FLOATS[f], 1, 10, &d);
        for (int i = 0; i < 10; i++) check_set(d.x, i, gates[i]);
        for (int i = 0; i < 10; i++) check_set(d.x, 10 + i, 0.25);
        swiglu_run(&d);
        double tiny = FLOATS[f] == PL_F64 ? 1e-300 : 1e-34;
        check_close("swiglu", d.out, d.want, 2.0 * bound(FLOATS[f]), tiny);
        check_close("swiglu_grad", d.dx, d.want_dx, 2.0 * bound(FLOATS[f]), tiny);
        swiglu_free(&d);
    }
}

// ---- rotary embedding

enum { POSITIONS = 9 };

// Cosines and sines of angles of all sizes, f32 (f64 for f64).
static void make_tables(pl_dtype dt, int64_t half, pl_tensor **c, pl_tensor **s) {
    pl_dtype real = dt == PL_F64 ? PL_F64 : PL_F32;
    CHECK_OK(pl_tensor_empty(real, 2, (int64_t[]){POSITIONS, half}, c));
    CHECK_OK(pl_tensor_empty(real, 2, (int64_t[]){POSITIONS, half}, s));
    for (int64_t i = 0; i < (*c)->numel; i++) {
        check_set(*c, i, cos(0.37 * (double)i));
        check_set(*s, i, sin(0.37 * (double)i));
    }
}

typedef enum place { ALONE, PACKED, HEADS_FIRST, STEPPED, PLACES } place;

// A (B, T, H, D): alone, the queries of a packed (B, T, 3, H, D), with the heads outside the
// positions in memory, or every second number.
static pl_tensor *heads_in(place at, pl_dtype dt, const int64_t n[4]) {
    pl_tensor *base, *view;
    if (at == ALONE) return check_tensor(dt, 4, n, 1.0);
    if (at == PACKED) {
        base = check_tensor(dt, 5, (int64_t[]){n[0], n[1], 3, n[2], n[3]}, 1.0);
        CHECK_OK(pl_tensor_select(base, 2, 0, &view));
    } else if (at == HEADS_FIRST) {
        base = check_tensor(dt, 4, (int64_t[]){n[0], n[2], n[1], n[3]}, 1.0);
        CHECK_OK(pl_tensor_transpose(base, 1, 2, &view));
    } else {
        base = check_tensor(dt, 4, (int64_t[]){n[0], n[1], n[2], 2 * n[3]}, 1.0);
        CHECK_OK(pl_tensor_slice(base, 3, 0, 2 * n[3], 2, &view));
    }
    pl_tensor_release(base);
    return view;
}

static void rotary_case(pl_dtype dt, place at, int64_t width) {
    const int64_t n[4] = {2, 5, 3, width}, first = 4;
    pl_tensor *x = heads_in(at, dt, n), *out = heads_in(at, dt, n), *dense, *again, *want, *c, *s;
    make_tables(dt, width / 2, &c, &s);
    CHECK_OK(pl_tensor_empty(dt, 4, n, &dense));
    CHECK_OK(pl_tensor_empty(dt, 4, n, &again));
    CHECK_OK(pl_tensor_empty(PL_F64, 4, n, &want));
    for (int back = 0; back < 2; back++) {
        CHECK_OK(pl_kernels_ref()->rotary(x, c, s, first, back, want));
        CHECK_OK(pl_kernels_cpu()->rotary(x, c, s, first, back, dense));
        CHECK_OK(pl_kernels_cpu()->rotary(x, c, s, first, back, out));
        check_close("rotary", dense, want, bound(dt), bound(dt));
        check_close("into the same layout", out, dense, 0.0, 0.0);
    }
    CHECK_OK(pl_kernels_cpu()->rotary(out, c, s, first, false, again));
    // The tables are rounded: cosine^2 + sine^2 is 1 within 2^-23.
    check_close("there and back", again, x, 2.0 * bound(dt), 4.0 * bound(dt) + 0x1p-23);
    CHECK_OK(pl_kernels_cpu()->rotary(x, c, s, first, true, x));
    check_close("in place", x, out, 0.0, 0.0);
    pl_tensor *all[] = {x, out, dense, again, want, c, s};
    for (int i = 0; i < 7; i++) pl_tensor_release(all[i]);
}

TEST(rotary_agrees_with_the_oracle) {
    for (int d = 0; d < 4; d++) {
        for (int at = 0; at < PLACES; at++) {
            rotary_case(FLOATS[d], (place)at, 48);
            rotary_case(FLOATS[d], (place)at, 2);
            rotary_case(FLOATS[d], (place)at, 14);
        }
    }
}

TEST(the_oracle_turns_pairs_by_their_position) {
    const int64_t n[4] = {1, 3, 2, 8}, half = 4, first = 2;
    pl_tensor *x = check_tensor(PL_F64, 4, n, 1.0), *out, *c, *s;
    make_tables(PL_F64, half, &c, &s);
    CHECK_OK(pl_tensor_empty(PL_F64, 4, n, &out));
    CHECK_OK(pl_kernels_ref()->rotary(x, c, s, first, false, out));
    for (int64_t i = 0; i < out->numel; i++) {
        int64_t d = i % 8, row = i / 16, pair = d % half, base = i - d;
        double low = check_get(x, base + pair), high = check_get(x, base + pair + half);
        double angle = 0.37 * (double)((first + row) * half + pair);
        double turned =
            d < half ? low * cos(angle) - high * sin(angle) : high * cos(angle) + low * sin(angle);
        CHECK_NEAR(check_get(out, i), turned, 1e-14);
    }
    pl_tensor *all[] = {x, out, c, s};
    for (int i = 0; i < 4; i++) pl_tensor_release(all[i]);
}

TEST(rotary_of_nothing_is_nothing) {
    for (int d = 0; d < 4; d++) {
        int64_t n[4] = {2, 5, 3, 8};
        pl_tensor *x, *c, *s;
        n[d] = 0;
        make_tables(PL_F32, n[3] / 2, &c, &s);
        CHECK_OK(pl_tensor_empty(PL_F32, 4, n, &x));
        CHECK_OK(pl_kernels_cpu()->rotary(x, c, s, 0, false, x));
        pl_tensor *all[] = {x, c, s};
        for (int i = 0; i < 3; i++) pl_tensor_release(all[i]);
    }
}

TEST(the_thread_count_changes_no_bit) {
    const int64_t n[4] = {2, POSITIONS, 40, 32};
    pl_tensor *x = check_tensor(PL_F32, 4, n, 2.0),
              *wide = check_tensor(PL_F32, 2, (int64_t[]){300, 128}, 4);
    pl_tensor *turned[2], *gated[2], *c, *s;
    make_tables(PL_F32, 16, &c, &s);
    for (int i = 0; i < 2; i++) {
        CHECK_OK(pl_set_num_threads(i ? 3 : 1));
        CHECK_OK(pl_tensor_empty(PL_F32, 4, n, &turned[i]));
        CHECK_OK(pl_tensor_empty(PL_F32, 2, (int64_t[]){300, 64}, &gated[i]));
        CHECK_OK(pl_kernels_cpu()->rotary(x, c, s, 0, false, turned[i]));
        CHECK_OK(pl_kernels_cpu()->swiglu(wide, gated[i]));
    }
    check_same_bits("rotary", turned[0], turned[1]);
    check_same_bits("swiglu", gated[0], gated[1]);
    pl_tensor *all[] = {x, wide, c, s, turned[0], turned[1], gated[0], gated[1]};
    for (int i = 0; i < 8; i++) pl_tensor_release(all[i]);
}

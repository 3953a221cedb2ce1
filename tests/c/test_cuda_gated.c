// SPDX-License-Identifier: Apache-2.0
// SwiGLU and rotary embedding of kernels/cuda on the host stand-in, against formulas in double.
#include "cuda_on_host.h"

#include "kernels_check.h"

static const pl_dtype FLOATS[] = {PL_F32, PL_BF16, PL_F16, PL_F64};

static pl_status on_host_swiglu(const pl_tensor *x, pl_tensor *out) {
    host_run r = {0};
    host_writes(&r, out, false, NULL);
    ON_HOST(r, pl_cuda_swiglu(x, out, &r.q));
}

static pl_status on_host_swiglu_grad(const pl_tensor *g, const pl_tensor *x, pl_tensor *dx) {
    host_run r = {0};
    host_writes(&r, dx, false, x);
    ON_HOST(r, pl_cuda_swiglu_grad(g, x, dx, &r.q));
}

static pl_status on_host_rotary(const pl_tensor *x, const pl_tensor *cosine, const pl_tensor *sine,
                                int64_t first, bool back, pl_tensor *out) {
    host_run r = {0};
    host_writes(&r, out, false, x);
    ON_HOST(r, pl_cuda_rotary(x, cosine, sine, first, back, out, &r.q));
}

// Five or six roundings in the sums' unit, one to the dtype; factors are below 4.
static double bound(pl_dtype dt) { return check_eps(dt) + 16.0 * check_sum_eps(dt); }

static void swiglu_case(pl_dtype dt, int64_t m, int64_t n) {
    pl_tensor *x = check_tensor(dt, 2, (int64_t[]){m, 2 * n}, 4.0), *dx, *out;
    pl_tensor *g = check_tensor(dt, 2, (int64_t[]){m, n}, 1.0);
    CHECK_OK(pl_tensor_empty(dt, 2, g->shape, &out));
    CHECK_OK(pl_tensor_empty(dt, 2, x->shape, &dx));
    CHECK_OK(on_host_swiglu(x, out));
    CHECK_OK(on_host_swiglu_grad(g, x, dx));
    double tol = bound(dt), tiny = dt == PL_F16 ? 0x1p-25 : 0.0;  // f16 below its normal numbers
    for (int64_t i = 0; i < m * n; i++) {
        int64_t at = i / n * 2 * n + i % n;
        double z = check_get(x, at), up = check_get(x, at + n), s = 1.0 / (1.0 + exp(-z));
        double gi = check_get(g, i), slope = s * (1.0 + z * (1.0 - s));
        CHECK_NEAR(check_get(out, i), z * s * up, tol * fabs(z * s * up) + tiny);
        CHECK_NEAR(check_get(dx, at), gi * up * slope, tol * fabs(gi * up) * 4.0 + tiny);
        CHECK_NEAR(check_get(dx, at + n), gi * z * s, tol * fabs(gi * z * s) + tiny);
    }
    CHECK_OK(on_host_swiglu_grad(g, x, x));
    check_same_bits("in place", x, dx);
    pl_tensor *all[] = {x, dx, out, g};
    for (int i = 0; i < 4; i++) pl_tensor_release(all[i]);
}

TEST(swiglu_and_its_gradient) {
    for (int d = 0; d < 4; d++) {
        swiglu_case(FLOATS[d], 5, 48);  // packs
        swiglu_case(FLOATS[d], 3, 37);
    }
}

static void rotary_case(pl_dtype dt, bool packed) {
    int64_t b = 2, t = 5, h = 3, w = 12, first = 4;
    // Queries are the first third of a packed (B, T, 3, H, D), or alone.
    pl_tensor *base = check_tensor(
        dt, packed ? 5 : 4, packed ? (int64_t[]){b, t, 3, h, w} : (int64_t[]){b, t, h, w}, 1.0);
    pl_tensor *x = pl_tensor_retain(base), *out, *c, *s, *again;
    if (packed) {
        pl_tensor_release(x);
        CHECK_OK(pl_tensor_select(base, 2, 0, &x));
    }
    CHECK_OK(pl_tensor_empty(dt, 4, x->shape, &out));
    CHECK_OK(pl_tensor_empty(dt, 4, x->shape, &again));
    CHECK_OK(pl_tensor_empty(PL_F32, 2, (int64_t[]){9, w / 2}, &c));
    CHECK_OK(pl_tensor_empty(PL_F32, 2, (int64_t[]){9, w / 2}, &s));
    for (int64_t i = 0; i < c->numel; i++) {
        check_set(c, i, cos(0.37 * (double)i));
        check_set(s, i, sin(0.37 * (double)i));
    }
    CHECK_OK(on_host_rotary(x, c, s, first, false, out));
    CHECK_OK(on_host_rotary(out, c, s, first, true, again));
    double tol = 2.0 * bound(dt);
    // The table is f32: its cosine^2 + sine^2 is 1 within 2^-23.
    check_close("there and back", again, x, tol, 2.0 * tol + 0x1p-23);
    for (int64_t i = 0; i < out->numel; i++) {
        int64_t d = i % w, head = i / w % h, row = i / w / h % t, j = d % (w / 2);
        int64_t at = i / w / h / t * x->strides[0] + row * x->strides[1] + head * x->strides[2];
        double low = check_get(x, at + j), high = check_get(x, at + j + w / 2);
        double co = check_get(c, (first + row) * (w / 2) + j);
        double si = check_get(s, (first + row) * (w / 2) + j);
        double want = d < w / 2 ? low * co - high * si : high * co + low * si;
        CHECK_NEAR(check_get(out, i), want, tol);
    }
    CHECK_OK(on_host_rotary(x, c, s, first, false, x));
    check_close("in place", x, out, 0.0, 0.0);
    CHECK_FAILS(on_host_rotary(x, c, s, 5, false, out), PL_EINVAL, "got 5 to 10, expected within");
    pl_tensor *all[] = {base, x, out, c, s, again};
    for (int i = 0; i < 6; i++) pl_tensor_release(all[i]);
}

TEST(rotary_turns_and_turns_back) {
    for (int d = 0; d < 4; d++) {
        rotary_case(FLOATS[d], false);
        rotary_case(FLOATS[d], true);
    }
}

TEST(rotary_refuses_an_odd_width) {
    pl_tensor *x = check_tensor(PL_F32, 4, (int64_t[]){1, 1, 1, 3}, 1.0);
    CHECK_FAILS(on_host_rotary(x, x, x, 0, false, x), PL_EINVAL, "got 3, expected an even number");
    pl_tensor_release(x);
}

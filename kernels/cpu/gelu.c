// SPDX-License-Identifier: Apache-2.0
// gelu: see gelu.h.
#include "gelu.h"

#include "walk.h"

typedef struct job {
    pl_gelu_fn fn;
    const char *g, *x;
    char *out;
    int64_t size;  // of an element
} job;

static void range(int64_t begin, int64_t end, void *ctx) {
    const job *j = ctx;
    int64_t at = begin * j->size;
    j->fn(end - begin, j->g ? j->g + at : NULL, j->x + at, j->out + at);
}

static bool fits(const pl_tensor *t, pl_dtype dt) {
    return t->dtype == dt && pl_tensor_is_contiguous(t);
}

bool pl__gelu(bool by_tanh, const pl_tensor *g, const pl_tensor *x, pl_tensor *out) {
    pl_dtype dt = x->dtype;
    if ((dt != PL_F32 && dt != PL_BF16) || !fits(x, dt) || !fits(out, dt)) return false;
    if (g && !fits(g, dt)) return false;
    job j = {
        .fn = dt == PL_F32 ? pl__gelu_f32(g != NULL, by_tanh) : pl__gelu_dot(g != NULL, by_tanh),
        .g = g ? g->data : NULL,
        .x = x->data,
        .out = out->data,
        .size = (int64_t)pl_dtype_size(dt)};
    if (!j.fn) return false;
    pl_parallel_for(x->numel, pl__cpu_grain(x->numel), range, &j);
    return true;
}

// SPDX-License-Identifier: Apache-2.0
// The loops of optimizer.c; included by each_isa.h only. One pass: every array is read and written
// once. The constants are computed in double and rounded to T before the loop.

#define ADAM(T, SQRT)                                                                  \
    ISA_TARGET static void ISA(adam_##T)(const adam_constants *c, int64_t n, void *pp, \
                                         const void *pg, void *pm, void *pv) {         \
        T *restrict p = pp;                                                            \
        const T *restrict g = pg;                                                      \
        T *restrict m = pm;                                                            \
        T *restrict v = pv;                                                            \
        const T scale = (T)c->scale, decay = (T)c->decay, shrink = (T)c->shrink;       \
        const T beta1 = (T)c->beta1, rest1 = (T)c->rest1, beta2 = (T)c->beta2;         \
        const T rest2 = (T)c->rest2, step = (T)c->step, root = (T)c->root;             \
        const T eps = (T)c->eps;                                                       \
        for (int64_t i = 0; i < n; i++) {                                              \
            T grad = g[i] * scale + decay * p[i];                                      \
            T m1 = beta1 * m[i] + rest1 * grad;                                        \
            T v1 = beta2 * v[i] + rest2 * grad * grad;                                 \
            m[i] = m1;                                                                 \
            v[i] = v1;                                                                 \
            p[i] = p[i] * shrink - step * m1 / (SQRT(v1) * root + eps);                \
        }                                                                              \
    }

// momentum == 0: buf is not touched. `blend` multiplies the old buffer, `fresh` the gradient.
#define SGD(T)                                                                          \
    ISA_TARGET static void ISA(sgd_##T)(const sgd_constants *c, int64_t n, void *pp,    \
                                        const void *pg, void *pbuf) {                   \
        T *restrict p = pp;                                                             \
        const T *restrict g = pg;                                                       \
        T *restrict buf = pbuf;                                                         \
        const T scale = (T)c->scale, decay = (T)c->decay, blend = (T)c->blend;          \
        const T fresh = (T)c->fresh, ahead = (T)c->ahead, direct = (T)c->direct;        \
        const T lr = (T)c->lr;                                                          \
        if (!c->momentum) {                                                             \
            for (int64_t i = 0; i < n; i++) p[i] -= lr * (g[i] * scale + decay * p[i]); \
            return;                                                                     \
        }                                                                               \
        for (int64_t i = 0; i < n; i++) {                                               \
            T grad = g[i] * scale + decay * p[i];                                       \
            T b = c->first ? grad : blend * buf[i] + fresh * grad;                      \
            buf[i] = b;                                                                 \
            p[i] -= lr * (direct * grad + ahead * b);                                   \
        }                                                                               \
    }

ADAM(float, __builtin_sqrtf)
ADAM(double, __builtin_sqrt)
SGD(float)
SGD(double)

static const optimizer_loops ISA(loops) = {ISA(adam_float), ISA(adam_double), ISA(sgd_float),
                                           ISA(sgd_double)};

#undef ADAM
#undef SGD

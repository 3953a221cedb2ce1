// SPDX-License-Identifier: Apache-2.0
// The loops of optimizer.c; included by each_isa.h only. One pass: every array is read and written
// once. The constants are computed in double and rounded to T before the loop. Each gives whether a
// gradient was NaN or infinite; the comparisons cost nothing next to the memory. I is an integer as
// wide as T, so that the comparisons stay in vectors.

#define BAD(ABS, MAX, x) (!(ABS(x) <= (MAX)))

#define ADAM(T, I, ABS, MAX, SQRT)                                                     \
    ISA_TARGET static bool ISA(adam_##T)(const adam_constants *c, int64_t n, void *pp, \
                                         const void *pg, void *pm, void *pv) {         \
        T *restrict p = pp;                                                            \
        const T *restrict g = pg;                                                      \
        T *restrict m = pm;                                                            \
        T *restrict v = pv;                                                            \
        const T scale = (T)c->scale, decay = (T)c->decay, shrink = (T)c->shrink;       \
        const T beta1 = (T)c->beta1, rest1 = (T)c->rest1, beta2 = (T)c->beta2;         \
        const T rest2 = (T)c->rest2, step = (T)c->step, root = (T)c->root;             \
        const T eps = (T)c->eps;                                                       \
        I bad = 0;                                                                     \
        for (int64_t i = 0; i < n; i++) {                                              \
            bad |= BAD(ABS, MAX, g[i]);                                                \
            T grad = g[i] * scale + decay * p[i];                                      \
            T m1 = beta1 * m[i] + rest1 * grad;                                        \
            T v1 = beta2 * v[i] + rest2 * grad * grad;                                 \
            m[i] = m1;                                                                 \
            v[i] = v1;                                                                 \
            p[i] = p[i] * shrink - step * m1 / (SQRT(v1) * root + eps);                \
        }                                                                              \
        return bad != 0;                                                               \
    }

// momentum == 0: buf is not touched. `blend` multiplies the old buffer, `fresh` the gradient.
#define SGD(T, I, ABS, MAX)                                                          \
    ISA_TARGET static bool ISA(sgd_##T)(const sgd_constants *c, int64_t n, void *pp, \
                                        const void *pg, void *pbuf) {                \
        T *restrict p = pp;                                                          \
        const T *restrict g = pg;                                                    \
        T *restrict buf = pbuf;                                                      \
        const T scale = (T)c->scale, decay = (T)c->decay, blend = (T)c->blend;       \
        const T fresh = (T)c->fresh, ahead = (T)c->ahead, direct = (T)c->direct;     \
        const T lr = (T)c->lr;                                                       \
        I bad = 0;                                                                   \
        if (!c->momentum) {                                                          \
            for (int64_t i = 0; i < n; i++) {                                        \
                bad |= BAD(ABS, MAX, g[i]);                                          \
                p[i] -= lr * (g[i] * scale + decay * p[i]);                          \
            }                                                                        \
            return bad != 0;                                                         \
        }                                                                            \
        for (int64_t i = 0; i < n; i++) {                                            \
            bad |= BAD(ABS, MAX, g[i]);                                              \
            T grad = g[i] * scale + decay * p[i];                                    \
            T b = c->first ? grad : blend * buf[i] + fresh * grad;                   \
            buf[i] = b;                                                              \
            p[i] -= lr * (direct * grad + ahead * b);                                \
        }                                                                            \
        return bad != 0;                                                             \
    }

#define UNSCALE(T, I, ABS, MAX)                                                   \
    ISA_TARGET static bool ISA(unscale_##T)(double factor, int64_t n, void *pg) { \
        T *restrict g = pg;                                                       \
        const T k = (T)factor;                                                    \
        I bad = 0;                                                                \
        if (factor == 1.0) {                                                      \
            for (int64_t i = 0; i < n; i++) bad |= BAD(ABS, MAX, g[i]);           \
            return bad != 0;                                                      \
        }                                                                         \
        for (int64_t i = 0; i < n; i++) {                                         \
            bad |= BAD(ABS, MAX, g[i]);                                           \
            g[i] *= k;                                                            \
        }                                                                         \
        return bad != 0;                                                          \
    }

ADAM(float, int32_t, __builtin_fabsf, FLT_MAX, __builtin_sqrtf)
ADAM(double, int64_t, __builtin_fabs, DBL_MAX, __builtin_sqrt)
SGD(float, int32_t, __builtin_fabsf, FLT_MAX)
SGD(double, int64_t, __builtin_fabs, DBL_MAX)
UNSCALE(float, int32_t, __builtin_fabsf, FLT_MAX)
UNSCALE(double, int64_t, __builtin_fabs, DBL_MAX)

static const optimizer_loops ISA(loops) = {ISA(adam_float),    ISA(adam_double),
                                           ISA(sgd_float),     ISA(sgd_double),
                                           ISA(unscale_float), ISA(unscale_double)};

#undef BAD
#undef ADAM
#undef SGD
#undef UNSCALE

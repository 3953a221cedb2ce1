// SPDX-License-Identifier: Apache-2.0
// The loops of reduce_table.c; included by each_isa.h only. A run is folded in LANES interleaved
// parts, then these by halves.

#define LANES 32

// comb(a, b) joins two values of type A; in(v) makes one from an element.
#define ROW(id, T, A, start, comb, member)                                                       \
    ISA_TARGET static void ISA(row_##T##_##id)(int64_t n, const void *px, pl_accumulator *acc) { \
        const T *restrict x = px;                                                                \
        A lane[LANES];                                                                           \
        for (int k = 0; k < LANES; k++) lane[k] = start;                                         \
        int64_t i = 0;                                                                           \
        for (; i + LANES <= n; i += LANES) {                                                     \
            for (int k = 0; k < LANES; k++) {                                                    \
                A a = lane[k], b = (A)x[i + k];                                                  \
                lane[k] = comb;                                                                  \
            }                                                                                    \
        }                                                                                        \
        for (int k = 0; i + k < n; k++) {                                                        \
            A a = lane[k], b = (A)x[i + k];                                                      \
            lane[k] = comb;                                                                      \
        }                                                                                        \
        for (int w = LANES / 2; w > 0; w /= 2) {                                                 \
            for (int k = 0; k < w; k++) {                                                        \
                A a = lane[k], b = lane[k + w];                                                  \
                lane[k] = comb;                                                                  \
            }                                                                                    \
        }                                                                                        \
        A a = (A)acc->member, b = lane[0];                                                       \
        acc->member = comb;                                                                      \
    }

#define COL(id, T, comb)                                                                \
    ISA_TARGET static void ISA(col_##T##_##id)(int64_t n, const void *px, void *pacc) { \
        const T *restrict x = px;                                                       \
        T *restrict acc = pacc;                                                         \
        for (int64_t j = 0; j < n; j++) {                                               \
            T a = acc[j], b = x[j];                                                     \
            acc[j] = comb;                                                              \
        }                                                                               \
    }

#define BOTH(id, T, start, comb, member) \
    ROW(id, T, T, start, comb, member)   \
    COL(id, T, comb)

// NaN wins over every number, and the first NaN over the others.
#define MAXIMUM ((((b > a) | (b != b)) & (a == a)) ? b : a)
#define MINIMUM ((((b < a) | (b != b)) & (a == a)) ? b : a)
#define ANY_OF (a != 0) | (b != 0)
#define ALL_OF (a != 0) & (b != 0)

#define SELECTIONS(T, lowest, highest, member) \
    BOTH(MAX, T, lowest, (MAXIMUM), member)    \
    BOTH(MIN, T, highest, (MINIMUM), member)   \
    BOTH(ANY, T, 0, (ANY_OF), member)          \
    BOTH(ALL, T, 1, (ALL_OF), member)
// Rows of floats: the extreme of the numbers by the one instruction for it, NaN noticed beside it.
#define EXTREME(id, T, M, start, better, nan)                                                    \
    ISA_TARGET static void ISA(row_##T##_##id)(int64_t n, const void *px, pl_accumulator *acc) { \
        const T *restrict x = px;                                                                \
        T lane[LANES], best = (T)acc->f;                                                         \
        M bad[LANES] = {0}, any = best != best;                                                  \
        for (int k = 0; k < LANES; k++) lane[k] = start;                                         \
        int64_t i = 0;                                                                           \
        for (; i + LANES <= n; i += LANES) {                                                     \
            for (int k = 0; k < LANES; k++) {                                                    \
                T b = x[i + k];                                                                  \
                bad[k] |= b != b;                                                                \
                lane[k] = b better lane[k] ? b : lane[k];                                        \
            }                                                                                    \
        }                                                                                        \
        for (int k = 0; i + k < n; k++) {                                                        \
            T b = x[i + k];                                                                      \
            bad[k] |= b != b;                                                                    \
            lane[k] = b better lane[k] ? b : lane[k];                                            \
        }                                                                                        \
        for (int k = 0; k < LANES; k++) {                                                        \
            any |= bad[k];                                                                       \
            best = lane[k] better best ? lane[k] : best;                                         \
        }                                                                                        \
        acc->f = any ? (double)nan : (double)best;                                               \
    }
EXTREME(MAX, float, int32_t, -__builtin_inff(), >, __builtin_nanf(""))
EXTREME(MIN, float, int32_t, __builtin_inff(), <, __builtin_nanf(""))
EXTREME(MAX, double, int64_t, -__builtin_inf(), >, __builtin_nan(""))
EXTREME(MIN, double, int64_t, __builtin_inf(), <, __builtin_nan(""))
COL(MAX, float, MAXIMUM)
COL(MIN, float, MINIMUM)
COL(MAX, double, MAXIMUM)
COL(MIN, double, MINIMUM)
BOTH(ANY, float, 0, (ANY_OF), f)
BOTH(ALL, float, 1, (ALL_OF), f)
BOTH(ANY, double, 0, (ANY_OF), f)
BOTH(ALL, double, 1, (ALL_OF), f)
SELECTIONS(int64_t, INT64_MIN, INT64_MAX, i)

#define WRAPPED(op) (int64_t)((uint64_t)a op(uint64_t) b)
BOTH(SUM, double, 0.0, a + b, f)
BOTH(PROD, double, 1.0, a *b, f)
BOTH(SUM, int64_t, 0, WRAPPED(+), i)
BOTH(PROD, int64_t, 1, WRAPPED(*), i)
COL(SUM, float, a + b)

// A run's sum in f32 lanes; runs are added up in f64.
ROW(SUM_RUN, float, float, 0.0f, a + b, f)
ISA_TARGET static void ISA(row_float_SUM)(int64_t n, const void *x, pl_accumulator *acc) {
    pl_accumulator run = {0.0, 0};
    ISA(row_float_SUM_RUN)(n, x, &run);
    acc->f += run.f;
}

ISA_TARGET static void ISA(add4)(int64_t n, const float *const x[4], float *restrict acc) {
    const float *restrict a = x[0], *restrict b = x[1], *restrict c = x[2], *restrict d = x[3];
    for (int64_t j = 0; j < n; j++) acc[j] += (a[j] + b[j]) + (c[j] + d[j]);
}

ISA_TARGET static void ISA(add_wide)(int64_t n, const float *restrict x, double *restrict acc) {
    for (int64_t j = 0; j < n; j++) acc[j] += (double)x[j];
}

// One core alone does not ask for memory soon enough by itself.
#define AHEAD 2048  // elements
#define SQUARES(id, T)                                                                  \
    ISA_TARGET static double ISA(squares_##id)(int64_t n, const T *restrict x) {        \
        double lane[LANES] = {0.0};                                                     \
        int64_t i = 0;                                                                  \
        for (; i + LANES <= n; i += LANES) {                                            \
            for (int k = 0; k < LANES; k += 64 / (int)sizeof(T)) {                      \
                __builtin_prefetch(x + i + k + AHEAD);                                  \
            }                                                                           \
            for (int k = 0; k < LANES; k++) {                                           \
                double v = (double)x[i + k];                                            \
                lane[k] += v * v;                                                       \
            }                                                                           \
        }                                                                               \
        for (int k = 0; i + k < n; k++) lane[k] += (double)x[i + k] * (double)x[i + k]; \
        for (int w = LANES / 2; w > 0; w /= 2) {                                        \
            for (int k = 0; k < w; k++) lane[k] += lane[k + w];                         \
        }                                                                               \
        return lane[0];                                                                 \
    }
SQUARES(f32, float)
SQUARES(f64, double)

#define R(T, id) [PL_REDUCE_##id] = ISA(row_##T##_##id)
#define C(T, id) [PL_REDUCE_##id] = ISA(col_##T##_##id)
#define SAME(F, T) F(T, SUM), F(T, MAX), F(T, MIN), F(T, ANY), F(T, ALL)

static const pl_reduce_loops ISA(reduce_loops) = {
    .row = {[PL_C_F32] = {SAME(R, float), [PL_REDUCE_MEAN] = ISA(row_float_SUM)},
            [PL_C_F64] = {SAME(R, double), R(double, PROD), [PL_REDUCE_MEAN] = ISA(row_double_SUM)},
            [PL_C_I64] = {SAME(R, int64_t), R(int64_t, PROD),
                          [PL_REDUCE_MEAN] = ISA(row_int64_t_SUM)}},
    .col = {[PL_C_F32] = {SAME(C, float), [PL_REDUCE_MEAN] = ISA(col_float_SUM)},
            [PL_C_F64] = {SAME(C, double), C(double, PROD), [PL_REDUCE_MEAN] = ISA(col_double_SUM)},
            [PL_C_I64] = {SAME(C, int64_t), C(int64_t, PROD),
                          [PL_REDUCE_MEAN] = ISA(col_int64_t_SUM)}},
    .add4 = ISA(add4),
    .add_wide = ISA(add_wide),
    .squares_f32 = ISA(squares_f32),
    .squares_f64 = ISA(squares_f64),
};

#undef LANES
#undef ROW
#undef COL
#undef BOTH
#undef MAXIMUM
#undef MINIMUM
#undef ANY_OF
#undef ALL_OF
#undef SELECTIONS
#undef EXTREME
#undef WRAPPED
#undef SQUARES
#undef AHEAD
#undef R
#undef C
#undef SAME

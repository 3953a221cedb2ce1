// SPDX-License-Identifier: Apache-2.0
// Includes the file that PL_LOOPS names once per instruction set: plain x86-64 (or any other
// processor), AVX2 with FMA, AVX-512. That file defines `ISA_TARGET static` functions named
// ISA(x), plain loops which the compiler vectorises, and MADD(a, b, c) is a * b + c, fused where
// the set can. PL_ISA_PICK (isa.h) picks at run time. Included on purpose more than once: no guard.
// Inside, ISA_LEVEL is 0, 1 or 2.

#define ISA(name) name##_plain
#define ISA_LEVEL 0
#define ISA_TARGET
#define MADD(a, b, c) ((a) * (b) + (c))
#define MADDD(a, b, c) ((a) * (b) + (c))
#include PL_LOOPS
#undef ISA
#undef ISA_LEVEL
#undef ISA_TARGET
#undef MADD
#undef MADDD

#if defined(__x86_64__)
#define MADD(a, b, c) __builtin_fmaf(a, b, c)
#define MADDD(a, b, c) __builtin_fma(a, b, c)

#define ISA(name) name##_avx2
#define ISA_LEVEL 1
#define ISA_TARGET __attribute__((target("avx2,fma,f16c")))
#include PL_LOOPS
#undef ISA
#undef ISA_LEVEL
#undef ISA_TARGET

// Without the preferred width both compilers may stay at 256 bits.
#define ISA(name) name##_avx512
#define ISA_LEVEL 2
#if defined(__clang__)
#define ISA_TARGET                                                                      \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,f16c"), \
                   min_vector_width(512)))
#else
#define ISA_TARGET                                                          \
    __attribute__((                                                         \
        target("avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,f16c," \
               "prefer-vector-width=512")))
#endif
#include PL_LOOPS
#undef ISA
#undef ISA_LEVEL
#undef ISA_TARGET
#undef MADD
#undef MADDD
#endif

#undef PL_LOOPS

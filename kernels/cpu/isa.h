// SPDX-License-Identifier: Apache-2.0
// isa: which of the instances that each_isa.h made is to run. Private to kernels/cpu.
#ifndef PL_KERNELS_CPU_ISA_H
#define PL_KERNELS_CPU_ISA_H

#include "base/base.h"

// 0: plain, 1: AVX2 and FMA, 2: AVX-512.
static inline int pl__cpu_isa(void) {
    const pl_cpu_features *f = pl_cpu();
    return f->avx512 ? 2 : f->avx2_fma ? 1 : 0;
}

// Of three tables `name_plain`, `name_avx2`, `name_avx512`, the address of the one to use.
#if defined(__x86_64__)
#define PL_ISA_PICK(name) \
    (pl__cpu_isa() == 2 ? &name##_avx512 : pl__cpu_isa() == 1 ? &name##_avx2 : &name##_plain)
#else
#define PL_ISA_PICK(name) (&name##_plain)
#endif

#endif

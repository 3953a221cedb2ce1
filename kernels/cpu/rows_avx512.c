// SPDX-License-Identifier: Apache-2.0
// The inner loops for x86-64 with AVX-512; elsewhere an empty getter.
#include "rows.h"

#if defined(__x86_64__)
#define PL_SIMD_LEVEL 3
#include "rows_body.h"

const pl_rows *pl__rows_avx512(void) { return &table; }
#else
const pl_rows *pl__rows_avx512(void) { return NULL; }
#endif

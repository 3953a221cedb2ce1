// SPDX-License-Identifier: Apache-2.0
// The inner loops for x86-64 with AVX2; elsewhere an empty getter.
#include "rows.h"

#if defined(__x86_64__)
#define PL_SIMD_LEVEL 2
#include "rows_body.h"

const pl_rows *pl__rows_avx2(void) { return &table; }
#else
const pl_rows *pl__rows_avx2(void) { return NULL; }
#endif

// SPDX-License-Identifier: Apache-2.0
// The instances of the conversion loops, one per instruction set.

#include "cpu/convert.h"

#include "cpu/isa.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define PL_LOOPS "cpu/convert_loops.h"
#include "cpu/each_isa.h"

const pl_convert *pl__cpu_convert(void) { return PL_ISA_PICK(convert); }

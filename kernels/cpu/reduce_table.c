// SPDX-License-Identifier: Apache-2.0
// The instances of the reduction loops, one per instruction set.

#include "cpu/isa.h"
#include "cpu/reduce.h"

#define PL_LOOPS "cpu/reduce_loops.h"
#include "cpu/each_isa.h"

const pl_reduce_loops *pl__cpu_reduce_loops(void) { return PL_ISA_PICK(reduce_loops); }

pl_accumulator pl__cpu_identity(pl_reduce op) {
    switch (op) {
        case PL_REDUCE_PROD:
        case PL_REDUCE_ALL:
            return (pl_accumulator){1.0, 1};
        case PL_REDUCE_MAX:
            return (pl_accumulator){-__builtin_inf(), INT64_MIN};
        case PL_REDUCE_MIN:
            return (pl_accumulator){__builtin_inf(), INT64_MAX};
        default:
            return (pl_accumulator){0.0, 0};
    }
}

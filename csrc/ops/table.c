// SPDX-License-Identifier: Apache-2.0
// The table of differentiable operators: what the tests of value, gradient and speed walk over.
#include "ops/ops.h"

#define X(name) &pl_op_##name,
const pl_op *const pl_op_table[] = {PL_OP_MAP(X)};
#undef X
const int pl_op_count = (int)(sizeof pl_op_table / sizeof *pl_op_table);

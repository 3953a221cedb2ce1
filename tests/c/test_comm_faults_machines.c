// SPDX-License-Identifier: Apache-2.0
// Every test of failure again, with the ranks spread over two machines: what is promised inside a
// machine holds between machines.
#define RANKS_MACHINES 2
#include "test_comm_faults.c"

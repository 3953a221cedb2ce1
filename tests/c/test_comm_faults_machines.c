// SPDX-License-Identifier: Apache-2.0
// Every test of failure again, with the ranks spread over two machines: what is promised inside a
// machine holds between machines.
#ifdef __SANITIZE_THREAD__
// The ranks are processes, and what orders a machine's inbox thread and its other threads goes
// through them, where ThreadSanitizer does not see it.
#include "test.h"
TEST(nothing_to_see_here) {}
#else
#define RANKS_MACHINES 2
#include "test_comm_faults.c"
#endif

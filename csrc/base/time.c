// SPDX-License-Identifier: Apache-2.0
// time: the monotonic clock. Any thread.
#include <time.h>

#include "base/base.h"

int64_t pl_now_ns(void) {
    struct timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

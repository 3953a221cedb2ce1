// SPDX-License-Identifier: Apache-2.0
// lost: the failure after which a device answers nothing else. CUDA tells its kind alone; what the
// virtual GPU knows more goes to stderr.
#include <stdio.h>

#include <atomic>

#include "device.h"

static std::atomic<int> lost{cudaSuccess};

cudaError_t vcuda_lost(void) { return (cudaError_t)lost.load(); }

void vcuda_lose(cudaError_t e, const char *why) {
    int none = cudaSuccess;
    if (lost.compare_exchange_strong(none, (int)e)) fprintf(stderr, "vcuda: %s\n", why);
}

void vcuda_fail(const char *why) { vcuda_lose(cudaErrorLaunchFailure, why); }

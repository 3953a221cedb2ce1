// SPDX-License-Identifier: Apache-2.0
// Which table serves tensors. On the CPU: "cpu", until a test asks for the oracle "ref". One atomic
// pointer for the process; a kernel in flight keeps the table it was called through.

#include <stdatomic.h>
#include <string.h>

#include "kernels.h"

static _Atomic(const pl_kernels *) active;  // NULL: nobody chose

const pl_kernels *pl_kernels_active(void) {
    const pl_kernels *k = atomic_load_explicit(&active, memory_order_acquire);
    return k != NULL ? k : pl_kernels_cpu();
}

const pl_kernels *pl_kernels_on(pl_device d) {
    return d.type == PL_CPU ? pl_kernels_active() : pl_device_find(d)->kernels;
}

pl_status pl_kernels_use(const char *name) {
    const pl_kernels *tables[] = {pl_kernels_cpu(), pl_kernels_ref()};
    for (size_t i = 0; i < sizeof(tables) / sizeof(tables[0]); i++) {
        if (name != NULL && strcmp(name, tables[i]->name) == 0) {
            atomic_store_explicit(&active, tables[i], memory_order_release);
            return PL_OK;
        }
    }
    return pl_fail(PL_EINVAL, "[kernels] unknown table: got \"%s\", expected \"cpu\" or \"ref\"",
                   name != NULL ? name : "(null)");
}

// SPDX-License-Identifier: Apache-2.0
// dnnl, left out of this build (PACELINE_ONEDNN=0): every product runs in the blocked loops.
#include "cpu.h"
#include "dnnl.h"

bool pl__dnnl_built(void) { return false; }
void pl_cpu_set_dnnl_path(const char *path) { (void)path; }
const char *pl_cpu_matmul_library(void) { return "blocked loops"; }

pl_status pl__dnnl_open(void) {
    return pl_fail(PL_ENOSUP,
                   "[oneDNN] left out of this build: got PACELINE_ONEDNN=0, expected a "
                   "build with PACELINE_ONEDNN=1");
}

pl_status pl__dnnl_matmul(const pl_dnnl_product *p, const void *a, const void *b, const void *bias,
                          void *out, bool *done) {
    (void)p, (void)a, (void)b, (void)bias, (void)out;
    *done = false;
    return PL_OK;
}

// SPDX-License-Identifier: Apache-2.0
// rows: picks the table of inner loops for this processor. Any thread.
#include "rows.h"

const pl_rows *pl__rows(void) {
    const pl_cpu_features *cpu = pl_cpu();
    const pl_rows *rows = NULL;
    if (cpu->avx512) rows = pl__rows_avx512();
    if (!rows && cpu->avx2_fma) rows = pl__rows_avx2();
    return rows ? rows : pl__rows_any();
}

// SPDX-License-Identifier: Apache-2.0
// cublaslt_memory: the choices of algorithms as records of choices.h. What they hold of the
// library's is checked again before it is used.
#include <string.h>

#include "cuda/cublaslt_internal.h"

_Static_assert(sizeof(pl_blas_call) == PL_BLAS_KEY * sizeof(int64_t), "a key has no padding");

static bool read_choice(const char *line, void *record) {
    pl_blas_choice *out = record;
    uint64_t value;
    uint64_t key[PL_BLAS_KEY];
    *out = (pl_blas_choice){.measured = true};
    for (int i = 0; i < PL_BLAS_KEY; i++) {
        if (!pl__choices_number(&line, 10, &key[i])) return false;
    }
    memcpy(&out->call, key, sizeof key);
    if (!pl__choices_number(&line, 10, &value) || value > 1) return false;
    out->possible = value != 0;
    if (!pl__choices_number(&line, 10, &value) || value > PL_BLAS_SEPARATE) return false;
    out->route = (pl_blas_route)value;
    if (!pl__choices_number(&line, 10, &out->workspace)) return false;
    for (int i = 0; i < 8; i++) {
        if (!pl__choices_number(&line, 16, &out->algo.data[i])) return false;
    }
    return strcmp(line, "\n") == 0;
}

static bool write_choice(const void *record, pl_choices_line *line) {
    const pl_blas_choice *c = record;
    uint64_t key[PL_BLAS_KEY];
    if (!c->measured) return false;
    memcpy(key, &c->call, sizeof key);
    for (int i = 0; i < PL_BLAS_KEY; i++) pl__choices_put(line, key[i], false);
    pl__choices_put(line, c->possible, false);
    pl__choices_put(line, (uint64_t)c->route, false);
    pl__choices_put(line, c->workspace, false);
    for (int i = 0; i < 8; i++) pl__choices_put(line, c->algo.data[i], true);
    return true;
}

const pl_choices_form pl__blas_form = {.library = "cuBLASLt",
                                       .file = "cublaslt",
                                       .format = 1,
                                       .nbytes = sizeof(pl_blas_choice),
                                       .key_bytes = sizeof(pl_blas_call),
                                       .read = read_choice,
                                       .write = write_choice};

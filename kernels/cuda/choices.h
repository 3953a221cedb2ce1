// SPDX-License-Identifier: Apache-2.0
// choices: what was measured to be the fastest way of a call, in memory and in a file of the user's
// cache folder, one file per library, version of it and kind of GPU. The file is text: a first line
// that says for what it is, one line of numbers per choice, a last line with their count. It is
// replaced whole (written beside, then renamed), so a reader sees an old one or a new one; anything
// unexpected in it makes it count as empty. Knows no library: who uses it checks what it read. Not
// thread-safe.
//
// Note [one choice in a job]: ranks must not compute the same in different ways. A job of several
// ranks therefore never measures nor writes; on one machine its ranks read the one file, on
// several, where files may differ, none: there what is not chosen by measuring is taken, which
// depends on nothing but version, GPU and shape. PACELINE_BLAS_MEASURE=0 does that everywhere, =1
// measures in any job, at the price of this promise.
#ifndef PL_CUDA_CHOICES_H
#define PL_CUDA_CHOICES_H

#include "base/base.h"

typedef struct pl_choices_line pl_choices_line;

// What the choices of one library are.
typedef struct pl_choices_form {
    const char *library;       // in the first line: "cuBLASLt"
    const char *file;          // begins the file's name: "cublaslt"
    int format;                // of a line; counts up when it changes
    size_t nbytes, key_bytes;  // of a record, which begins with its key; a key has no padding
    // A line, to its end, as a record; false: it is none.
    bool (*read)(const char *line, void *record);
    // false: not for the file (it was not measured).
    bool (*write)(const void *record, pl_choices_line *line);
} pl_choices_form;

typedef struct pl_choices {
    const pl_choices_form *form;
    void *records;
    int count, room;
    bool reads, measures;  // what PACELINE_BLAS_MEASURE and the place in the job allow
    char path[1024];       // of the file; empty: none
    char device[128];
    size_t version;
} pl_choices;

// Reads the file, if any. `form` must outlive it.
pl_status pl__choices_init(pl_choices *c, const pl_choices_form *form, const char *device,
                           size_t version) PL_MUST_USE;
void pl__choices_deinit(pl_choices *c);
void *pl__choices_find(const pl_choices *c, const void *key);  // a record, or NULL
// Adds or replaces. One for the file goes there; that it cannot be written is no failure.
pl_status pl__choices_keep(pl_choices *c, const void *record) PL_MUST_USE;

// For form->read and form->write: numbers with a space before each.
bool pl__choices_number(const char **at, int base, uint64_t *out);
void pl__choices_put(pl_choices_line *line, uint64_t value, bool hex);

#endif

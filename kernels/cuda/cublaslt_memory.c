// SPDX-License-Identifier: Apache-2.0
// cublaslt_memory: choices of algorithms, in memory and in a file of the user's cache folder, one
// per version of the library and kind of GPU. The file is text: a first line that says for what it
// is, one line of numbers per choice, a last line with their count. It is replaced whole (written
// beside, then renamed), so a reader sees an old one or a new one; anything unexpected in it makes
// it count as empty. What it holds of the library's is checked again before it is used.
//
// Note [one choice in a job]: ranks must not compute the same by different algorithms. A job of
// several ranks therefore never measures nor writes; on one machine its ranks read the one file, on
// several, where files may differ, none: there the library's first proposal is taken, which depends
// on nothing but version, GPU and shape. PACELINE_BLAS_MEASURE=0 does that everywhere, =1 measures
// in any job, at the price of this promise.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cuda/cublaslt_internal.h"

enum { FORMAT = 1, MOST_CHOICES = 4096, LINE = 1024 };

_Static_assert(sizeof(pl_blas_call) == PL_BLAS_KEY * sizeof(int64_t), "a key has no padding");

// ---- In memory
// -----------------------------------------------------------------------------------

pl_blas_choice *pl__blas_memory_find(const pl_blas_memory *m, const pl_blas_call *call) {
    for (int i = 0; i < m->count; i++) {
        if (memcmp(&m->choices[i].call, call, sizeof *call) == 0) return &m->choices[i];
    }
    return NULL;
}

static pl_status add(pl_blas_memory *m, const pl_blas_choice *choice) {
    pl_blas_choice *old = pl__blas_memory_find(m, &choice->call);
    if (old) {
        *old = *choice;
        return PL_OK;
    }
    if (m->count == MOST_CHOICES) return PL_OK;  // shapes that change all the time
    if (m->count == m->room) {
        int room = m->room ? 2 * m->room : 64;
        void *more;
        PL_TRY(pl_alloc((size_t)room * sizeof *choice, &more));
        if (m->count) memcpy(more, m->choices, (size_t)m->count * sizeof *choice);
        pl_free(m->choices);
        m->choices = more;
        m->room = room;
    }
    m->choices[m->count++] = *choice;
    return PL_OK;
}

// ---- Reading
// -------------------------------------------------------------------------------------

static void first_line(const pl_blas_memory *m, char *out, size_t cap) {
    (void)snprintf(out, cap, "paceline cuBLASLt choices %d, library %zu, %s\n", FORMAT, m->version,
                   m->device);
}

static bool read_number(const char **at, int base, uint64_t *out) {
    char *end;
    errno = 0;
    *out = strtoull(*at, &end, base);
    if (end == *at || errno != 0) return false;
    *at = end;
    return true;
}

static bool read_choice(const char *line, pl_blas_choice *out) {
    uint64_t value;
    uint64_t key[PL_BLAS_KEY];
    *out = (pl_blas_choice){.measured = true};
    for (int i = 0; i < PL_BLAS_KEY; i++) {
        if (!read_number(&line, 10, &key[i])) return false;
    }
    memcpy(&out->call, key, sizeof key);
    if (!read_number(&line, 10, &value) || value > 1) return false;
    out->possible = value != 0;
    if (!read_number(&line, 10, &value) || value > PL_BLAS_SEPARATE) return false;
    out->route = (pl_blas_route)value;
    if (!read_number(&line, 10, &out->workspace)) return false;
    for (int i = 0; i < 8; i++) {
        if (!read_number(&line, 16, &out->algo.data[i])) return false;
    }
    return strcmp(line, "\n") == 0;
}

// False where anything is not as it was written.
static bool read_file(pl_blas_memory *m, FILE *f) {
    char line[LINE], want[LINE];
    first_line(m, want, sizeof want);
    if (!fgets(line, sizeof line, f) || strcmp(line, want) != 0) return false;
    while (fgets(line, sizeof line, f)) {
        int count, used = 0;
        if (sscanf(line, "end %d\n%n", &count, &used) == 1 && used > 0) {
            return count == m->count && !fgets(line, sizeof line, f);
        }
        pl_blas_choice choice;
        if (!read_choice(line, &choice) || add(m, &choice) != PL_OK) return false;
    }
    return false;
}

// ---- Writing
// -------------------------------------------------------------------------------------

// A line of numbers, put together piece by piece.
typedef struct writer {
    char text[LINE];
    size_t used;
} writer;

static void put(writer *w, uint64_t value, bool hex) {
    size_t room = sizeof w->text - w->used;
    char *at = w->text + w->used;
    int n = hex ? snprintf(at, room, " %" PRIx64, value) : snprintf(at, room, " %" PRIu64, value);
    if (n > 0 && (size_t)n < room) w->used += (size_t)n;
}

static void write_choice(const pl_blas_choice *c, FILE *f) {
    uint64_t key[PL_BLAS_KEY];
    writer w = {.used = 0};
    memcpy(key, &c->call, sizeof key);
    for (int i = 0; i < PL_BLAS_KEY; i++) put(&w, key[i], false);
    put(&w, c->possible, false);
    put(&w, (uint64_t)c->route, false);
    put(&w, c->workspace, false);
    for (int i = 0; i < 8; i++) put(&w, c->algo.data[i], true);
    fputs(w.text, f);
    fputc('\n', f);
}

static void write_file(const pl_blas_memory *m) {
    char beside[sizeof m->path + 32], line[LINE];
    (void)snprintf(beside, sizeof beside, "%s.%ld", m->path, (long)getpid());
    FILE *f = fopen(beside, "wxe");
    if (!f) return;
    first_line(m, line, sizeof line);
    fputs(line, f);
    int count = 0;
    for (int i = 0; i < m->count; i++) {
        if (!m->choices[i].measured) continue;
        write_choice(&m->choices[i], f);
        count++;
    }
    (void)snprintf(line, sizeof line, "end %d\n", count);
    fputs(line, f);
    bool whole = !ferror(f);
    whole = fclose(f) == 0 && whole;
    if (!whole || rename(beside, m->path) != 0) (void)unlink(beside);
}

pl_status pl__blas_memory_keep(pl_blas_memory *m, const pl_blas_choice *choice) {
    PL_TRY(add(m, choice));
    if (choice->measured && m->measures && m->path[0]) write_file(m);
    return PL_OK;
}

// ---- The file's place
// ----------------------------------------------------------------------------

static bool more_than(const char *name, long limit) {
    const char *text = getenv(name);
    return text && strtol(text, NULL, 10) > limit;
}

// Note [one choice in a job].
static void set_rules(pl_blas_memory *m) {
    const char *rule = getenv("PACELINE_BLAS_MEASURE"), *here = getenv("LOCAL_WORLD_SIZE");
    if (rule && strcmp(rule, "0") == 0) return;
    bool always = rule && strcmp(rule, "1") == 0;
    bool ranks = more_than("WORLD_SIZE", 1);
    bool machines = here && more_than("WORLD_SIZE", strtol(here, NULL, 10));
    m->measures = always || !ranks;
    m->reads = always || !machines;
}

// Makes the folder and its parents; letters, digits, '-' and '.' of the GPU's name stay.
static void set_path(pl_blas_memory *m) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char folder[512], name[sizeof m->device];
    bool own = cache && cache[0] == '/';  // the specification: a relative one is ignored
    if (!own && (!home || home[0] != '/')) return;
    int n =
        snprintf(folder, sizeof folder, "%s%s/paceline", own ? cache : home, own ? "" : "/.cache");
    if (n < 0 || (size_t)n >= sizeof folder) return;
    size_t i = 0;
    for (; m->device[i] && i < sizeof name - 1; i++) {
        char c = m->device[i];
        bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        name[i] = plain || c == '-' || c == '.' ? c : '_';
    }
    name[i] = 0;
    for (char *at = strchr(folder + 1, '/'); m->measures && at; at = strchr(at + 1, '/')) {
        *at = 0;
        (void)mkdir(folder, 0700);
        *at = '/';
    }
    if (m->measures) (void)mkdir(folder, 0700);
    (void)snprintf(m->path, sizeof m->path, "%s/cublaslt-%zu-%s.txt", folder, m->version, name);
}

pl_status pl__blas_memory_init(pl_blas_memory *m, const char *device, size_t version) {
    memset(m, 0, sizeof *m);
    m->version = version;
    (void)snprintf(m->device, sizeof m->device, "%s", device);
    set_rules(m);
    if (!m->reads) return PL_OK;
    set_path(m);
    FILE *f = m->path[0] ? fopen(m->path, "re") : NULL;
    if (!f) return PL_OK;
    if (!read_file(m, f)) m->count = 0;
    (void)fclose(f);
    return PL_OK;
}

void pl__blas_memory_deinit(pl_blas_memory *m) {
    pl_free(m->choices);
    memset(m, 0, sizeof *m);
}

// SPDX-License-Identifier: Apache-2.0
// See choices.h.
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cuda/choices.h"

enum { MOST_CHOICES = 4096, LINE = 1024, MOST_BYTES = 1024 };  // of a record

// ---- In memory ----------------------------------------------------------------------------------

static void *at(const pl_choices *c, int i) {
    return (char *)c->records + (size_t)i * c->form->nbytes;
}

void *pl__choices_find(const pl_choices *c, const void *key) {
    for (int i = 0; i < c->count; i++) {
        if (memcmp(at(c, i), key, c->form->key_bytes) == 0) return at(c, i);
    }
    return NULL;
}

static pl_status add(pl_choices *c, const void *record) {
    size_t nbytes = c->form->nbytes;
    void *old = pl__choices_find(c, record);
    if (old) {
        memcpy(old, record, nbytes);
        return PL_OK;
    }
    if (c->count == MOST_CHOICES) return PL_OK;  // shapes that change all the time
    if (c->count == c->room) {
        int room = c->room ? 2 * c->room : 64;
        void *more;
        PL_TRY(pl_alloc((size_t)room * nbytes, &more));
        if (c->count) memcpy(more, c->records, (size_t)c->count * nbytes);
        pl_free(c->records);
        c->records = more;
        c->room = room;
    }
    memcpy(at(c, c->count++), record, nbytes);
    return PL_OK;
}

// ---- Reading ------------------------------------------------------------------------------------

static void first_line(const pl_choices *m, char *out, size_t cap) {
    (void)snprintf(out, cap, "paceline %s choices %d, library %zu, %s\n", m->form->library,
                   m->form->format, m->version, m->device);
}

bool pl__choices_number(const char **from, int base, uint64_t *out) {
    char *end;
    errno = 0;
    *out = strtoull(*from, &end, base);
    if (end == *from || errno != 0) return false;
    *from = end;
    return true;
}

// False where anything is not as it was written.
static bool read_file(pl_choices *m, FILE *f) {
    char line[LINE], want[LINE];
    first_line(m, want, sizeof want);
    if (!fgets(line, sizeof line, f) || strcmp(line, want) != 0) return false;
    while (fgets(line, sizeof line, f)) {
        int count, used = 0;
        if (sscanf(line, "end %d\n%n", &count, &used) == 1 && used > 0) {
            return count == m->count && !fgets(line, sizeof line, f);
        }
        _Alignas(16) char record[MOST_BYTES];
        if (!m->form->read(line, record) || add(m, record) != PL_OK) return false;
    }
    return false;
}

// ---- Writing ------------------------------------------------------------------------------------

// A line of numbers, put together piece by piece.
struct pl_choices_line {
    char text[LINE];
    size_t used;
};

void pl__choices_put(pl_choices_line *w, uint64_t value, bool hex) {
    size_t room = sizeof w->text - w->used;
    char *end = w->text + w->used;
    int n = hex ? snprintf(end, room, " %" PRIx64, value) : snprintf(end, room, " %" PRIu64, value);
    if (n > 0 && (size_t)n < room) w->used += (size_t)n;
}

static void write_file(const pl_choices *m) {
    char beside[sizeof m->path + 32], line[LINE];
    (void)snprintf(beside, sizeof beside, "%s.%ld", m->path, (long)getpid());
    FILE *f = fopen(beside, "wxe");
    if (!f) return;
    first_line(m, line, sizeof line);
    fputs(line, f);
    int count = 0;
    for (int i = 0; i < m->count; i++) {
        pl_choices_line w = {.used = 0};
        if (!m->form->write(at(m, i), &w)) continue;
        fputs(w.text, f);
        fputc('\n', f);
        count++;
    }
    (void)snprintf(line, sizeof line, "end %d\n", count);
    fputs(line, f);
    bool whole = !ferror(f);
    whole = fclose(f) == 0 && whole;
    if (!whole || rename(beside, m->path) != 0) (void)unlink(beside);
}

pl_status pl__choices_keep(pl_choices *m, const void *record) {
    pl_choices_line w = {.used = 0};
    PL_TRY(add(m, record));
    if (m->measures && m->path[0] && m->form->write(record, &w)) write_file(m);
    return PL_OK;
}

// ---- The file's place ---------------------------------------------------------------------------

static bool more_than(const char *name, long limit) {
    const char *text = getenv(name);
    return text && strtol(text, NULL, 10) > limit;
}

// Note [one choice in a job].
static void set_rules(pl_choices *m) {
    const char *rule = getenv("PACELINE_BLAS_MEASURE"), *here = getenv("LOCAL_WORLD_SIZE");
    if (rule && strcmp(rule, "0") == 0) return;
    bool always = rule && strcmp(rule, "1") == 0;
    bool ranks = more_than("WORLD_SIZE", 1);
    bool machines = here && more_than("WORLD_SIZE", strtol(here, NULL, 10));
    m->measures = always || !ranks;
    m->reads = always || !machines;
}

// Makes the folder and its parents; letters, digits, '-' and '.' of the GPU's name stay.
static void set_path(pl_choices *m) {
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
    for (char *end = strchr(folder + 1, '/'); m->measures && end; end = strchr(end + 1, '/')) {
        *end = 0;
        (void)mkdir(folder, 0700);
        *end = '/';
    }
    if (m->measures) (void)mkdir(folder, 0700);
    (void)snprintf(m->path, sizeof m->path, "%s/%s-%zu-%s.txt", folder, m->form->file, m->version,
                   name);
}

pl_status pl__choices_init(pl_choices *m, const pl_choices_form *form, const char *device,
                           size_t version) {
    memset(m, 0, sizeof *m);
    if (form->nbytes > MOST_BYTES) return pl_fail(PL_EBUG, "[choices] a record is too large");
    m->form = form;
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

void pl__choices_deinit(pl_choices *m) {
    pl_free(m->records);
    memset(m, 0, sizeof *m);
}

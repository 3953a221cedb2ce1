// SPDX-License-Identifier: Apache-2.0
// status: names of the status codes and this thread's last message. Knows nothing but text.
// Thread rule: the message is thread-local; whoever hands work to another thread carries the text
// across with pl_error_message() and pl_error_set().
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"

enum { MESSAGE_MAX = 1024, WHERE_MAX = 96 };

static _Thread_local char tl_message[MESSAGE_MAX];
static _Thread_local char tl_where[WHERE_MAX];

const char *pl_status_name(pl_status st) {
    static const char *const names[] = {
#define X(name, exc, text) "PL_" #name,
        PL_STATUS_MAP(X)
#undef X
    };
    return (unsigned)st < PL_STATUS_COUNT ? names[st] : "PL_?";
}

const char *pl_status_exception(pl_status st) {
    static const char *const names[] = {
#define X(name, exc, text) exc,
        PL_STATUS_MAP(X)
#undef X
    };
    return (unsigned)st < PL_STATUS_COUNT ? names[st] : "RuntimeError";
}

pl_status pl_fail_at(pl_status st, const char *file, int line, const char *fmt, ...) {
    // Formatted aside first: an argument may be the previous message, when one wraps another.
    char text[MESSAGE_MAX];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    if (n < 0) text[0] = '\0';
    memcpy(tl_message, text, sizeof text);
    const char *slash = strrchr(file, '/');
    (void)snprintf(tl_where, sizeof tl_where, "%s:%d", slash ? slash + 1 : file, line);
    return st;
}

const char *pl_error_message(void) { return tl_message; }

const char *pl_error_where(void) { return tl_where; }

void pl_error_set(const char *message) {
    size_t n = strlen(message);
    if (n >= MESSAGE_MAX) n = MESSAGE_MAX - 1;
    memmove(tl_message, message, n);
    tl_message[n] = '\0';
    tl_where[0] = '\0';
}

#ifdef PL_DEBUG
void pl_assert_failed(const char *cond, const char *file, int line) {
    char text[MESSAGE_MAX];
    int n = snprintf(text, sizeof text, "%s:%d: assertion failed: %s\n", file, line, cond);
    if (n > 0) (void)!write(2, text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
    __builtin_trap();
}
#endif

// SPDX-License-Identifier: Apache-2.0
// fault: an access that is not allowed. Inside of a task it ends the task, as on a GPU; on the host
// it ends the process, after saying that it was memory of the device.
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <mutex>

#include "device.h"
#include "simt_control.h"

namespace {

struct sigaction before[2];
const int signals[2] = {SIGSEGV, SIGBUS};
thread_local bool guarded;
thread_local sigjmp_buf way_out;
char text[640];  // of the one task that runs

__attribute__((format(printf, 1, 2))) void say(const char *format, ...) {
    char line[160];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    if (write(STDERR_FILENO, line, (size_t)n) < 0) return;
}

void on_fault(int signal, siginfo_t *info, void *) {
    if (guarded) {
        if (simt_fault(info->si_addr)) return;  // which does not return
        snprintf(text, sizeof(text), "illegal access at %p", info->si_addr);
        siglongjmp(way_out, 1);
    }
    if (vcuda_in_arena(info->si_addr)) {
        say("vcuda: the host touched memory of the device at %p\n", info->si_addr);
    }
    sigaction(signal, &before[signal == SIGBUS], nullptr);  // and the access faults once more
}

// No stack of its own for the handler: inside of a kernel it leaves by switching stacks.
void install() {
    struct sigaction act;
    memset(&act, 0, sizeof(act));
    act.sa_sigaction = on_fault;
    act.sa_flags = SA_SIGINFO | SA_NODEFER;
    for (int i = 0; i < 2; i++) sigaction(signals[i], &act, &before[i]);
}

}  // namespace

void vcuda_catch_faults(void) {
    static std::once_flag once;
    std::call_once(once, install);
}

const char *vcuda_guarded(void (*fn)(void *), void *context) {
    text[0] = 0;
    guarded = true;
    if (sigsetjmp(way_out, 0) == 0) fn(context);
    guarded = false;
    if (text[0] == 0 && simt_error()[0] != 0) {
        snprintf(text, sizeof(text), "%s", simt_error());
        simt_clear_error();
    }
    return text[0] == 0 ? nullptr : text;
}

// SPDX-License-Identifier: Apache-2.0
// simt_control: what a test says to the host stand-in for a GPU (simt.cc): in which order the
// threads of a block run, and what went wrong. C and C++. One thread only: the state is global.
#ifndef PL_SIMT_CONTROL_H
#define PL_SIMT_CONTROL_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Between two synchronisations the threads of a block may run in any order, and so may the blocks
// of a grid. A right kernel gives the same bits in each of these.
typedef enum simt_schedule {
    SIMT_FORWARD,
    SIMT_REVERSE,
    SIMT_RANDOM,  // a new order after every synchronisation, from the seed
    SIMT_SCHEDULES
} simt_schedule;

void simt_set_schedule(simt_schedule schedule, uint64_t seed);

// The first complaint since the last simt_clear_error, or "". Launches do nothing after one.
const char *simt_error(void);
void simt_clear_error(void);
// From a signal's handler on the thread that launched: false unless a kernel's thread runs, else it
// does not return: a complaint, and the launch ends.
bool simt_fault(const void *address);
// Kernel launches and synchronisations of one thread so far: that a test tested something.
uint64_t simt_launches(void);
uint64_t simt_switches(void);

#ifdef __cplusplus
}
#endif
#endif

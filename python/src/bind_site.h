// SPDX-License-Identifier: Apache-2.0
// The place in the user's program from which a collective is called. Needs the GIL.
#ifndef PL_BIND_SITE_H
#define PL_BIND_SITE_H

#include "bind.h"
#include "comm/comm.h"

// The call site `depth` Python frames above the function that called into C (0: that function
// itself). Never fails: a place that cannot be told is {0, NULL}. The text is interned for good.
pl_site pl_call_site(int depth);
// The same with the shape of the buffer that is passed.
pl_site pl_call_site_of(int depth, const pl_buffer *b);

#endif

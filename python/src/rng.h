// SPDX-License-Identifier: Apache-2.0
// Random streams as Python objects. A generator is advanced with the GIL held.
#ifndef PL_RNG_H
#define PL_RNG_H

#include "bind.h"

pl_generator *pl_default_generator(void);
// None (the default generator) or a Generator; NULL with an exception.
pl_generator *pl_arg_generator(PyObject *obj);
#endif

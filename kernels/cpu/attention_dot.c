// SPDX-License-Identifier: Apache-2.0
#include "attention.h"
pl_range_fn pl__attention_dot(bool backward) { (void)backward; return NULL; }

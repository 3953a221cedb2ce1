// SPDX-License-Identifier: Apache-2.0
// A shape in 32 bits, for the fingerprint: comm moves counts, but (2, 3) on one rank and (3, 2) on
// another is a mistake that it can see. Pure functions.
//
// The upper four bits are the number of dimensions plus one, the others hold all dimensions but
// the last, in equal parts; the last follows from the count. A shape that does not fit so is
// HASHED: told apart still, but not printed.
#include <stdio.h>

#include "comm/internal.h"

#define FIELD_BITS 28
#define FIELD_MASK ((UINT32_C(1) << FIELD_BITS) - 1)
#define HASHED UINT32_C(15)
#define MOST_DIMS 8

static uint32_t hashed(int ndim, const int64_t *dims) {
    uint64_t h = UINT64_C(14695981039346656037) ^ (uint64_t)ndim;
    for (int i = 0; i < ndim; i++) h = (h ^ (uint64_t)dims[i]) * UINT64_C(1099511628211);
    return HASHED << FIELD_BITS | (uint32_t)(h >> 32 & FIELD_MASK);
}

uint32_t pl_site_shape(int ndim, const int64_t *dims) {
    uint32_t packed = (uint32_t)(ndim + 1) << FIELD_BITS;
    if (ndim < 2) return packed;
    if (ndim > MOST_DIMS) return hashed(ndim, dims);
    int bits = FIELD_BITS / (ndim - 1);
    for (int i = 0; i < ndim - 1; i++) {
        // With a zero among them the last dimension would not follow from the count.
        if (dims[i] <= 0 || dims[i] >> bits) return hashed(ndim, dims);
        packed |= (uint32_t)dims[i] << (i * bits);
    }
    return packed;
}

void pl__shape_text(uint32_t shape, uint64_t count, char *buf, size_t cap) {
    uint32_t kind = shape >> FIELD_BITS;
    if (kind == HASHED) {
        (void)snprintf(buf, cap, "(#%x)", shape & FIELD_MASK);
        return;
    }
    int ndim = (int)kind - 1;
    if (ndim < 2) {
        (void)snprintf(buf, cap, ndim == 1 ? "(%llu,)" : "()", (unsigned long long)count);
        return;
    }
    int bits = FIELD_BITS / (ndim - 1);
    size_t at = (size_t)snprintf(buf, cap, "(");
    for (int i = 0; i < ndim - 1; i++) {
        uint32_t dim = (shape & FIELD_MASK) >> (i * bits) & ((UINT32_C(1) << bits) - 1);
        if (at < cap) at += (size_t)snprintf(buf + at, cap - at, "%u, ", dim);
        count /= dim ? dim : 1;
    }
    if (at < cap) (void)snprintf(buf + at, cap - at, "%llu)", (unsigned long long)count);
}

// SPDX-License-Identifier: Apache-2.0
// The table of kernels for a GPU has every member that the CPU's has, so that no operator of the
// one calls nothing on the other.
#include <stddef.h>
#include <string.h>

#include "cuda/state.h"
#include "test.h"

// Members that their callers ask for first.
static const size_t optional[] = {offsetof(pl_kernels, linear_rounds)};

static bool is_optional(size_t offset) {
    for (size_t i = 0; i < sizeof optional / sizeof *optional; i++) {
        if (optional[i] == offset) return true;
    }
    return false;
}

static bool is_there(const pl_kernels *table, size_t offset) {
    void *member;
    memcpy(&member, (const char *)table + offset, sizeof member);
    return member != NULL;
}

TEST(every_member_of_the_cpus_table_is_there) {
    int members = 0;
    for (size_t at = 0; at < sizeof(pl_kernels); at += sizeof(void *)) {
        if (!is_there(pl_kernels_cpu(), at) || is_optional(at)) continue;
        CHECK(is_there(&pl__cuda_kernels, at));
        members++;
    }
    CHECK(members > 30);
    CHECK_STR_EQ(pl__cuda_kernels.name, "cuda");
}

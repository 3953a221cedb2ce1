// SPDX-License-Identifier: Apache-2.0
// alike: whether two declarations of one C function or value are called and laid out alike. Names
// of types may differ (an int here, an enum there; void * for a pointer to what is not declared);
// number, size, kind and signs of what is passed may not. For the compiler alone: nothing runs.
#ifndef REAL_ALIKE_H
#define REAL_ALIKE_H

#include <cstddef>
#include <type_traits>

template <class A, class B>
constexpr bool alike() {
    if constexpr (std::is_pointer_v<A> && std::is_pointer_v<B>) {
        using P = std::remove_cv_t<std::remove_pointer_t<A>>;
        using Q = std::remove_cv_t<std::remove_pointer_t<B>>;
        if constexpr (std::is_void_v<P> || std::is_void_v<Q>) {
            return true;
        } else if constexpr (std::is_class_v<P> && std::is_class_v<Q>) {
            return true;  // what it points to is compared by SAME_PLACE
        } else {
            return alike<P, Q>();
        }
    } else if constexpr (std::is_class_v<A> && std::is_class_v<B>) {
        return sizeof(A) == sizeof(B) && alignof(A) == alignof(B) &&
               std::is_trivially_copyable_v<A> && std::is_trivially_copyable_v<B>;
    } else if constexpr (std::is_enum_v<A> || std::is_enum_v<B>) {
        return sizeof(A) == sizeof(B) && (std::is_enum_v<A> || std::is_integral_v<A>) &&
               (std::is_enum_v<B> || std::is_integral_v<B>);
    } else if constexpr (std::is_integral_v<A> && std::is_integral_v<B>) {
        return sizeof(A) == sizeof(B) && std::is_signed_v<A> == std::is_signed_v<B>;
    } else {
        return std::is_same_v<A, B>;
    }
}

template <class R, class... A, class S, class... B>
constexpr bool called_alike(R (*)(A...), S (*)(B...)) {
    if constexpr (sizeof...(A) != sizeof...(B)) {
        return false;
    } else {
        return alike<R, S>() && (alike<A, B>() && ...);
    }
}

#define SAME_VALUE(ours, theirs) \
    static_assert((long long)(ours) == (long long)(theirs), #ours " is not " #theirs)
#define SAME_PLACE(ours, member, theirs, named)                                    \
    static_assert(offsetof(ours, member) == offsetof(theirs, named) &&             \
                      sizeof(((ours *)0)->member) == sizeof(((theirs *)0)->named), \
                  #ours "." #member " does not lie where " #theirs "." #named " does")

// It must see what it is for.
static_assert(called_alike((int (*)(void **, const int *))0, (int (*)(int **, int *))0));
static_assert(!called_alike((int (*)(int))0, (int (*)(int, int))0));
static_assert(!called_alike((int (*)(int))0, (int (*)(long))0));
static_assert(!called_alike((int (*)(unsigned))0, (int (*)(int))0));
static_assert(!called_alike((int (*)(int *))0, (int (*)(int))0));
static_assert(!called_alike((int (*)(size_t *))0, (int (*)(int *))0));
static_assert(!called_alike((int (*)(float))0, (int (*)(int))0));

#endif

// SPDX-License-Identifier: Apache-2.0
// Names by which one body of code serves float and double: R the number, VR its vector of VN
// lanes, V(fma) the vector function, FN(tile) the name of what is being defined. Included before
// each pass over the *_body.h files, with PL_REAL_IS_DOUBLE 0 or 1.
#undef R
#undef VR
#undef VN
#undef V
#undef FN
#undef PL_EACH_DTYPE
#if PL_REAL_IS_DOUBLE
#define R double
#define VR vd
#define VN VD
#define V(op) vd_##op
#define FN(name) name##_f64
// Calls fn(dt, ...) with dt a constant, so that conversions are chosen outside the loops.
#define PL_EACH_DTYPE(dtype, fn, ...) ((void)(dtype), fn(PL_F64, __VA_ARGS__))
#else
#define R float
#define VR vf
#define VN VF
#define V(op) vf_##op
#define FN(name) name##_f32
#define PL_EACH_DTYPE(dtype, fn, ...)   \
    do {                                \
        if ((dtype) == PL_BF16) {       \
            fn(PL_BF16, __VA_ARGS__);   \
        } else if ((dtype) == PL_F16) { \
            fn(PL_F16, __VA_ARGS__);    \
        } else {                        \
            fn(PL_F32, __VA_ARGS__);    \
        }                               \
    } while (0)
#endif

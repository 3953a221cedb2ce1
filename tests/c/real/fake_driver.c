// SPDX-License-Identifier: Apache-2.0
// fake_driver: a libcuda.so.1 that has no GPU, for probe_cudnn: cuDNN refuses to make a plan where
// it cannot load the kernels it has compiled. Here they are "loaded" and never run. By its soname
// it takes the place of the driver's library in a process that has opened it.
#define EXPORT __attribute__((visibility("default")))
enum { NO_DEVICE = 100 };

#define WITHOUT_A_DEVICE(name) \
    EXPORT int name(void);     \
    EXPORT int name(void) { return NO_DEVICE; }

WITHOUT_A_DEVICE(cuInit)
WITHOUT_A_DEVICE(cuDeviceGetCount)
WITHOUT_A_DEVICE(cuGetErrorString)
WITHOUT_A_DEVICE(cuCtxGetCurrent)
WITHOUT_A_DEVICE(cuCtxGetLimit)
WITHOUT_A_DEVICE(cuCtxPopCurrent)
WITHOUT_A_DEVICE(cuCtxPushCurrent)
WITHOUT_A_DEVICE(cuDeviceGet)
WITHOUT_A_DEVICE(cuDriverGetVersion)
WITHOUT_A_DEVICE(cuGetErrorName)
WITHOUT_A_DEVICE(cuKernelGetAttribute)
WITHOUT_A_DEVICE(cuKernelSetAttribute)
WITHOUT_A_DEVICE(cuLaunchCooperativeKernel)
WITHOUT_A_DEVICE(cuLaunchKernel)
WITHOUT_A_DEVICE(cuLaunchKernelEx)
WITHOUT_A_DEVICE(cuLibraryLoadFromFile)
WITHOUT_A_DEVICE(cuLinkAddData)
WITHOUT_A_DEVICE(cuLinkComplete)
WITHOUT_A_DEVICE(cuLinkCreate)
WITHOUT_A_DEVICE(cuLinkDestroy)
WITHOUT_A_DEVICE(cuOccupancyMaxPotentialClusterSize)
WITHOUT_A_DEVICE(cuStreamGetCtx)

EXPORT int cuLibraryLoadData(void **library);
EXPORT int cuLibraryLoadData(void **library) {
    static char loaded;
    *library = &loaded;
    return 0;
}

EXPORT int cuLibraryGetKernel(void **kernel, void *library);
EXPORT int cuLibraryGetKernel(void **kernel, void *library) {
    *kernel = library;
    return 0;
}

EXPORT int cuLibraryUnload(void *library);
EXPORT int cuLibraryUnload(void *library) {
    (void)library;
    return 0;
}

// SPDX-License-Identifier: Apache-2.0
// cuda_runtime: of CUDA's header what kernels/cuda/{backend,runtime}.cu use, for the virtual GPU
// (vcuda.h). Names, numbers and texts are CUDA's; a name that is missing here is one that nobody
// used so far. C++.
#ifndef VCUDA_CUDA_RUNTIME_H
#define VCUDA_CUDA_RUNTIME_H

#include <stddef.h>

extern "C" {

#define VCUDA_ERRORS(X)                                                              \
    X(cudaSuccess, 0, "no error")                                                    \
    X(cudaErrorInvalidValue, 1, "invalid argument")                                  \
    X(cudaErrorMemoryAllocation, 2, "out of memory")                                 \
    X(cudaErrorInitializationError, 3, "initialization error")                       \
    X(cudaErrorNoDevice, 100, "no CUDA-capable device is detected")                  \
    X(cudaErrorInvalidDevice, 101, "invalid device ordinal")                         \
    X(cudaErrorECCUncorrectable, 214, "uncorrectable ECC error encountered")         \
    X(cudaErrorNvlinkUncorrectable, 220, "uncorrectable NVLink error detected")      \
    X(cudaErrorContained, 226,                                                       \
      "Invalid access of peer GPU memory over nvlink or a hardware error")           \
    X(cudaErrorInvalidResourceHandle, 400, "invalid resource handle")                \
    X(cudaErrorNotReady, 600, "device not ready")                                    \
    X(cudaErrorIllegalAddress, 700, "an illegal memory access was encountered")      \
    X(cudaErrorLaunchTimeout, 702, "the launch timed out and was terminated")        \
    X(cudaErrorAssert, 710, "device-side assert triggered")                          \
    X(cudaErrorHardwareStackError, 714, "hardware stack error")                      \
    X(cudaErrorIllegalInstruction, 715, "an illegal instruction was encountered")    \
    X(cudaErrorMisalignedAddress, 716, "misaligned address")                         \
    X(cudaErrorInvalidAddressSpace, 717, "operation not supported on global memory") \
    X(cudaErrorInvalidPc, 718, "invalid program counter")                            \
    X(cudaErrorLaunchFailure, 719, "unspecified launch failure")                     \
    X(cudaErrorTensorMemoryLeak, 721, "tensor memory not completely freed")          \
    X(cudaErrorExternalDevice, 911, "async error occurred in external process")

#define X(name, number, text) name = number,
typedef enum cudaError { VCUDA_ERRORS(X) } cudaError_t;
#undef X

typedef struct vcuda_stream *cudaStream_t;
typedef struct vcuda_event *cudaEvent_t;

typedef enum cudaMemcpyKind {
    cudaMemcpyHostToDevice = 1,
    cudaMemcpyDeviceToHost = 2,
    cudaMemcpyDeviceToDevice = 3,
} cudaMemcpyKind;

enum { cudaStreamNonBlocking = 1, cudaEventDefault = 0, cudaEventDisableTiming = 2 };

typedef struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem;
    int major, minor, multiProcessorCount;
} cudaDeviceProp;

const char *cudaGetErrorString(cudaError_t e);
const char *cudaGetErrorName(cudaError_t e);
cudaError_t cudaGetLastError(void);

cudaError_t cudaDriverGetVersion(int *version);
cudaError_t cudaGetDeviceCount(int *count);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *out, int device);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest);

cudaError_t cudaMalloc(void **out, size_t nbytes);
cudaError_t cudaFree(void *p);
cudaError_t cudaMallocHost(void **out, size_t nbytes);
cudaError_t cudaFreeHost(void *p);
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes);

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int priority);
cudaError_t cudaStreamSynchronize(cudaStream_t s);
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags);
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s);
cudaError_t cudaEventQuery(cudaEvent_t e);
cudaError_t cudaEventSynchronize(cudaEvent_t e);
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to);
cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t nbytes, cudaMemcpyKind kind,
                            cudaStream_t s);
cudaError_t cudaMemsetAsync(void *dst, int value, size_t nbytes, cudaStream_t s);

}  // extern "C"

#endif

# SPDX-License-Identifier: Apache-2.0
# paceline/_cuda.so: the kernels of kernels/cuda for real GPUs, built with PACELINE_CUDA=1 (needs
# nvcc 13). A plain shared object without Python in it: static cudart, nothing of CUDA in NEEDED,
# one exported symbol. sm_80 serves Ampere and Ada, sm_90a Hopper, the PTX whatever comes later.
paceline_option(PACELINE_CUDA_ARCHS "80-real;90a-real;90-virtual"
                "architectures of _cuda.so, in CMake's words")
set(CMAKE_CUDA_ARCHITECTURES "${PACELINE_CUDA_ARCHS}")
include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
    message(FATAL_ERROR "PACELINE_CUDA=1: nvcc is missing; expected a CUDA 13 toolkit on PATH, or "
                        "CUDACXX=/path/to/nvcc (PACELINE_CUDA=auto or 0 builds for the CPU)")
endif()
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 13.0)
    message(FATAL_ERROR "PACELINE_CUDA=1: nvcc is too old: got ${CMAKE_CUDA_COMPILER_VERSION}, "
                        "expected 13.0 or later")
endif()

file(GLOB cuda_kernels CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/kernels/cuda/*.cu")
add_library(_cuda MODULE ${cuda_kernels})
set(cuda_exports "${CMAKE_CURRENT_SOURCE_DIR}/cmake/cuda_exports.map")
set_target_properties(_cuda PROPERTIES PREFIX "" SUFFIX ".so" CUDA_STANDARD 17
                      CUDA_STANDARD_REQUIRED ON CUDA_RUNTIME_LIBRARY Static
                      CUDA_VISIBILITY_PRESET hidden LINK_DEPENDS "${cuda_exports}")
target_include_directories(_cuda PRIVATE csrc kernels)
# No fused arithmetic but where fma() says so, as on the CPU; -Xptxas -v is what the checks read.
target_compile_options(_cuda PRIVATE -O3 -fmad=false -Xptxas=-v
                       -Xcompiler=-Wall,-Wextra,-fno-exceptions)
target_link_options(_cuda PRIVATE "LINKER:--version-script=${cuda_exports}"
                    "LINKER:--exclude-libs,ALL" "LINKER:--gc-sections" LINKER:-z,defs
                    LINKER:-z,relro LINKER:-z,now LINKER:-z,noexecstack)
if(PACELINE_INPLACE)
    set_target_properties(_cuda PROPERTIES LIBRARY_OUTPUT_DIRECTORY
                          "${CMAKE_CURRENT_SOURCE_DIR}/python/paceline")
endif()
install(TARGETS _cuda LIBRARY DESTINATION .)

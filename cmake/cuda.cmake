# SPDX-License-Identifier: Apache-2.0
# paceline/_cuda.so: the kernels of kernels/cuda for real GPUs, built where there is nvcc 13. A plain
# shared object without Python in it: static cudart, nothing of CUDA in NEEDED, one exported symbol.
# sm_80 serves Ampere and Ada, sm_90a Hopper, the PTX whatever comes later. Sets cuda_off where it
# is not built (PACELINE_CUDA=auto only).
paceline_option(PACELINE_CUDA_ARCHS "80-real;90a-real;90-virtual"
                "architectures of _cuda.so, in CMake's words")
set(CMAKE_CUDA_ARCHITECTURES "${PACELINE_CUDA_ARCHS}")

# Where a kept folder remembers that there was none, look again.
if(NOT CMAKE_CUDA_COMPILER)
    unset(CMAKE_CUDA_COMPILER CACHE)
endif()
if(NOT CMAKE_CUDA_COMPILER AND NOT DEFINED ENV{CUDACXX})
    find_program(nvcc nvcc NO_CACHE HINTS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda
                 PATH_SUFFIXES bin)
    if(nvcc)
        set(ENV{CUDACXX} "${nvcc}")
    endif()
endif()
include(CheckLanguage)
check_language(CUDA)
set(cuda_off "")
if(NOT CMAKE_CUDA_COMPILER)
    set(cuda_off "nvcc is missing; expected a CUDA 13 toolkit on PATH, or CUDACXX=/path/to/nvcc")
else()
    execute_process(COMMAND "${CMAKE_CUDA_COMPILER}" --version OUTPUT_VARIABLE nvcc_says)
    if(NOT nvcc_says MATCHES "release ([0-9]+\\.[0-9]+)" OR CMAKE_MATCH_1 VERSION_LESS 13.0)
        set(cuda_off "nvcc is too old: got ${CMAKE_MATCH_1}, expected 13.0 or later")
    endif()
endif()
if(cuda_off)
    if(PACELINE_CUDA STREQUAL "1")
        message(FATAL_ERROR "PACELINE_CUDA=1: ${cuda_off} (PACELINE_CUDA=0 builds for the CPU)")
    endif()
    return()
endif()
enable_language(CUDA)

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

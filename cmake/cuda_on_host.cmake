# SPDX-License-Identifier: Apache-2.0
# kernels/cuda as host C++ for the tests (tests/c/simt): needs a C++ compiler, no CUDA. The kernels;
# the kernels without a barrier that they need, to see it missed; and the virtual GPU, a shared
# library that paceline opens in place of _cuda.so, cuBLASLt and NCCL (tests/c/vcuda).
include(CheckLanguage)
check_language(CXX)
if(NOT CMAKE_CXX_COMPILER)
    message(STATUS "paceline: no C++ compiler: the tests of kernels/cuda are left out")
    return()
endif()
enable_language(CXX)
if(TARGET _cuda)
    message(FATAL_ERROR "PACELINE_TESTS=1 compiles the sources of _cuda.so as host C++: expected "
                        "PACELINE_CUDA=0 with it")
endif()

file(GLOB cuda_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/kernels/cuda/*.cu")
list(FILTER cuda_sources EXCLUDE REGEX "/(backend|runtime)\\.cu$")  # what calls CUDA's run time
file(GLOB simt_sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/tests/c/simt/*.cc")
set(simt_launched "${CMAKE_CURRENT_SOURCE_DIR}/tests/c/simt/launched.cc")
list(REMOVE_ITEM simt_sources "${simt_launched}")  # of the tests that have no run time

# Little optimised, since compiling takes longer than the tests; the flags that decide what a
# result is are those of cmake/compiler.cmake.
add_library(paceline_host_flags INTERFACE)
target_include_directories(paceline_host_flags INTERFACE csrc kernels tests/c tests/c/simt)
target_compile_definitions(paceline_host_flags INTERFACE _GNU_SOURCE)
target_compile_features(paceline_host_flags INTERFACE cxx_std_17)
target_compile_options(paceline_host_flags INTERFACE -O1 -g1 -Wall -Wextra -Wshadow -Wvla
                       -ffp-contract=off -fno-math-errno -fno-exceptions
                       $<$<COMPILE_LANGUAGE:CXX>:-fno-rtti>)
if(PACELINE_WERROR)
    target_compile_options(paceline_host_flags INTERFACE -Werror)
endif()
if(PACELINE_SANITIZE)
    target_compile_options(paceline_host_flags INTERFACE -fsanitize=${PACELINE_SANITIZE}
                           -fno-sanitize-recover=all -fno-omit-frame-pointer)
endif()

foreach(name cuda_on_host cuda_without_sync)
    add_library(pl_${name} OBJECT ${cuda_sources} ${simt_sources})
    target_link_libraries(pl_${name} PRIVATE paceline_host_flags)
endforeach()
add_library(pl_simt_launched OBJECT ${simt_launched})
target_link_libraries(pl_simt_launched PRIVATE paceline_host_flags)
target_compile_definitions(pl_cuda_without_sync PRIVATE PL_CUDA_WITHOUT_SYNC)
set_source_files_properties(${cuda_sources} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")

# ---- The virtual GPU ------------------------------------------------------------------------------

set(vcuda_folder "${CMAKE_CURRENT_SOURCE_DIR}/tests/c/vcuda")
file(GLOB vcuda_sources CONFIGURE_DEPENDS "${vcuda_folder}/*.c" "${vcuda_folder}/*.cc")
set(vcuda_kernels kernels/cuda/backend.cu kernels/cuda/runtime.cu)
set_source_files_properties(${vcuda_kernels} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
add_library(vcuda SHARED ${vcuda_sources} ${vcuda_kernels} $<TARGET_OBJECTS:pl_cuda_on_host>)
set_target_properties(vcuda PROPERTIES LINKER_LANGUAGE CXX C_VISIBILITY_PRESET default
                      CXX_VISIBILITY_PRESET default LINK_DEPENDS "${vcuda_folder}/exports.map")
target_include_directories(vcuda PRIVATE "${vcuda_folder}")
# Its "driver" is what is there anyway.
target_compile_definitions(vcuda PRIVATE "PL_CUDA_DRIVER=\"libc.so.6\"")
target_link_libraries(vcuda PRIVATE paceline_host_flags Threads::Threads m)
target_link_options(vcuda PRIVATE "LINKER:--version-script=${vcuda_folder}/exports.map"
                    LINKER:-z,defs)
if(PACELINE_SANITIZE)  # whose symbols the program that opens it has
    target_link_options(vcuda PRIVATE -fsanitize=${PACELINE_SANITIZE} LINKER:-z,undefs)
endif()

# The stand-ins for cuBLASLt and cuDNN, as a library that is opened by its path (TEST_CUBLASLT).
add_library(fake_cublaslt SHARED tests/c/vcuda/cublaslt.c tests/c/vcuda/cudnn.c
            tests/c/vcuda/cudnn_run.c tests/c/fakes_on_host.c)
target_include_directories(fake_cublaslt PRIVATE tests/c tests/c/vcuda)
target_link_libraries(fake_cublaslt PRIVATE paceline_flags m)

# NVIDIA's own libraries, where they are installed: built by tests/gpu/test_declarations.py.
add_executable(real_libraries EXCLUDE_FROM_ALL tests/c/real/real_libraries.c)
target_include_directories(real_libraries PRIVATE tests/c)
target_link_libraries(real_libraries PRIVATE ${paceline_whole} ${CMAKE_DL_LIBS})
add_library(fake_driver SHARED EXCLUDE_FROM_ALL tests/c/real/fake_driver.c)
set_target_properties(fake_driver PROPERTIES OUTPUT_NAME cuda SUFFIX ".so.1" NO_SONAME 1
                      LIBRARY_OUTPUT_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/fake_driver")
target_link_options(fake_driver PRIVATE LINKER:-soname,libcuda.so.1)
add_dependencies(real_libraries fake_driver)
target_compile_definitions(real_libraries PRIVATE "FAKE_DRIVER=\"$<TARGET_FILE:fake_driver>\"")

# SPDX-License-Identifier: Apache-2.0
# Flags, all in one interface library. Never -march=native and never -ffast-math: one binary serves
# every x86-64, kernels pick instruction sets at run time (function attributes), and a result must
# not depend on what the compiler chose to fuse or reorder.
set(CMAKE_C_STANDARD 17)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
    set(CMAKE_BUILD_TYPE None)  # the flags below are the whole story
endif()

if(NOT CMAKE_C_COMPILER_ID MATCHES "GNU|Clang")
    message(FATAL_ERROR "compiler: got ${CMAKE_C_COMPILER_ID}, expected gcc or clang")
endif()

add_library(paceline_flags INTERFACE)
target_include_directories(paceline_flags INTERFACE "${CMAKE_CURRENT_SOURCE_DIR}/csrc"
                           "${CMAKE_CURRENT_SOURCE_DIR}/kernels")
target_compile_definitions(paceline_flags INTERFACE _GNU_SOURCE)
target_compile_options(paceline_flags INTERFACE
    -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla
    -Werror=implicit-function-declaration -Werror=int-conversion
    -Werror=incompatible-pointer-types
    # errno and the floating-point exception flags are never read; the values stay IEEE's.
    -ffp-contract=off -fno-math-errno -fno-trapping-math
    -ffunction-sections -fdata-sections)
if(PACELINE_WERROR)
    target_compile_options(paceline_flags INTERFACE -Werror)
endif()

if(PACELINE_SANITIZE)
    target_compile_options(paceline_flags INTERFACE -O1 -g -fsanitize=${PACELINE_SANITIZE}
                           -fno-sanitize-recover=all -fno-omit-frame-pointer)
    target_link_options(paceline_flags INTERFACE -fsanitize=${PACELINE_SANITIZE})
elseif(PACELINE_DEBUG)
    target_compile_options(paceline_flags INTERFACE -O0 -g)
else()
    # Hardened: bounds checks where the compiler knows the size, stack canaries, read-only GOT.
    target_compile_options(paceline_flags INTERFACE -O3 -g1 -U_FORTIFY_SOURCE
                           -D_FORTIFY_SOURCE=3 -fstack-protector-strong)
    foreach(flag -fstack-clash-protection -fcf-protection)
        string(MAKE_C_IDENTIFIER "has${flag}" found)
        check_c_compiler_flag(${flag} ${found})
        if(${found})
            target_compile_options(paceline_flags INTERFACE ${flag})
        endif()
    endforeach()
    target_link_options(paceline_flags INTERFACE LINKER:-z,relro LINKER:-z,now
                        LINKER:-z,noexecstack)
endif()
if(PACELINE_DEBUG)
    target_compile_definitions(paceline_flags INTERFACE PL_DEBUG=1)
endif()
if(PACELINE_COVERAGE)
    target_compile_options(paceline_flags INTERFACE --coverage)
    target_link_options(paceline_flags INTERFACE --coverage)
endif()

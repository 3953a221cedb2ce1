# SPDX-License-Identifier: Apache-2.0
# The switches. Each may be given as -DNAME=value or as an environment variable of the same name,
# which is how they pass through `pip install`. The command line wins.
function(paceline_option name default help)
    if(NOT DEFINED CACHE{${name}})
        set(value "${default}")
        if(DEFINED ENV{${name}} AND NOT "$ENV{${name}}" STREQUAL "")
            set(value "$ENV{${name}}")
        endif()
        set(${name} "${value}" CACHE STRING "${help}")
    endif()
endfunction()

paceline_option(PACELINE_ONEDNN 1 "1: matrix products through oneDNN; 0: plain blocked loops")
paceline_option(PACELINE_CUDA auto "1: _cuda.so too, with nvcc 13; auto: where there is one; 0: no")
paceline_option(PACELINE_SANITIZE "" "address,undefined or thread")
paceline_option(PACELINE_DEBUG 0 "1: no optimisation, assertions stop, no memory is cached")
paceline_option(PACELINE_COVERAGE 0 "1: gcov counters")
paceline_option(PACELINE_WERROR 0 "1: warnings are errors")
paceline_option(PACELINE_ABI3 1 "1: stable ABI, one binary for Python 3.11 and later")
paceline_option(PACELINE_PYTHON 1 "0: no Python module (C tests only)")
paceline_option(PACELINE_TESTS 0 "1: build the C tests")
paceline_option(PACELINE_INPLACE 0 "1: put the Python module into python/paceline")

if(NOT PACELINE_CUDA MATCHES "^(auto|0|1)$")
    message(FATAL_ERROR "PACELINE_CUDA: got '${PACELINE_CUDA}', expected auto, 0 or 1")
endif()

find_package(Python 3.11 REQUIRED COMPONENTS Interpreter)
if(PACELINE_PYTHON)
    # A free-threaded interpreter cannot load abi3 modules before Python 3.15 (PEP 803).
    execute_process(COMMAND "${Python_EXECUTABLE}" -c
                    "import sysconfig; print(sysconfig.get_config_var('Py_GIL_DISABLED') or 0)"
                    OUTPUT_VARIABLE free_threaded OUTPUT_STRIP_TRAILING_WHITESPACE)
    if(free_threaded STREQUAL "1" AND PACELINE_ABI3)
        set(PACELINE_ABI3 0)
        message(STATUS "paceline: abi3 off, since this Python is free-threaded")
    endif()
    if(PACELINE_ABI3)
        find_package(Python 3.11 COMPONENTS Interpreter Development.SABIModule)
        set(headers_found "${Python_Development.SABIModule_FOUND}")
    else()
        find_package(Python 3.11 COMPONENTS Interpreter Development.Module)
        set(headers_found "${Python_Development.Module_FOUND}")
    endif()
    if(NOT headers_found)
        message(FATAL_ERROR "Python's headers (Python.h) are missing for ${Python_EXECUTABLE}; "
                "install them (Debian, Ubuntu: python3-dev; Fedora: python3-devel)")
    endif()
endif()
set(THREADS_PREFER_PTHREAD_FLAG ON)
find_package(Threads REQUIRED)

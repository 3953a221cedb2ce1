# SPDX-License-Identifier: Apache-2.0
# What the configure step found, and why something is off.
message(STATUS "paceline: compiler   ${CMAKE_C_COMPILER_ID} ${CMAKE_C_COMPILER_VERSION}")
message(STATUS "paceline: Python     ${Python_VERSION} (${Python_EXECUTABLE}), abi3 ${PACELINE_ABI3}")
if(PACELINE_ONEDNN)
    message(STATUS "paceline: oneDNN     header in ${dnnl_include}; library opened at run time")
else()
    message(STATUS "paceline: oneDNN     off, since PACELINE_ONEDNN=0: plain blocked loops")
endif()
if(TARGET _cuda)
    message(STATUS "paceline: CUDA       nvcc ${CMAKE_CUDA_COMPILER_VERSION}, ${PACELINE_CUDA_ARCHS}: "
                   "_cuda.so is built, but no tensor uses it yet (docs/cuda.md)")
else()
    message(STATUS "paceline: CUDA       off (PACELINE_CUDA=${PACELINE_CUDA}): 1 builds the kernels, "
                   "which no tensor uses yet (docs/cuda.md)")
endif()
if(PACELINE_SANITIZE)
    message(STATUS "paceline: sanitizers ${PACELINE_SANITIZE}")
endif()
if(PACELINE_DEBUG)
    message(STATUS "paceline: debug      assertions stop, no memory is cached")
endif()

# SPDX-License-Identifier: Apache-2.0
# oneDNN: only its header is needed to build; the library is opened at run time, never linked. Only
# kernels/cpu sees either, so that another value of the switch compiles one folder again.
add_library(paceline_onednn INTERFACE)
if(PACELINE_ONEDNN)
    execute_process(COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_LIST_DIR}/find_dnnl.py" header
                    OUTPUT_VARIABLE dnnl_include OUTPUT_STRIP_TRAILING_WHITESPACE
                    RESULT_VARIABLE failed)
    if(failed)
        message(FATAL_ERROR "oneDNN's header (oneapi/dnnl/dnnl.h) is missing: "
                "`pip install onednn-devel-cpu-gomp` brings it (Linux x86-64), or build with "
                "PACELINE_ONEDNN=0 for plain loops, which are slower")
    endif()
    execute_process(COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_LIST_DIR}/find_dnnl.py" library
                    OUTPUT_VARIABLE dnnl_library OUTPUT_STRIP_TRAILING_WHITESPACE)
    target_include_directories(paceline_onednn SYSTEM INTERFACE "${dnnl_include}")
    target_compile_definitions(paceline_onednn INTERFACE PACELINE_ONEDNN=1)
else()
    target_compile_definitions(paceline_onednn INTERFACE PACELINE_ONEDNN=0)
endif()

# A part that is not built is a stub file, not an #ifdef: where X_none.c stands beside X.c, the build
# takes the one that fits.
function(paceline_pick_onednn list)
    set(kept "${${list}}")
    foreach(stub IN LISTS ${list})
        if(stub MATCHES "_none\\.c$")
            string(REGEX REPLACE "_none\\.c$" ".c" real "${stub}")
            if(PACELINE_ONEDNN)
                list(REMOVE_ITEM kept "${stub}")
            else()
                list(REMOVE_ITEM kept "${real}")
            endif()
        endif()
    endforeach()
    set(${list} "${kept}" PARENT_SCOPE)
endfunction()

# SPDX-License-Identifier: Apache-2.0
# oneDNN: only its header is needed to build; the library is opened at run time, never linked.
if(PACELINE_ONEDNN)
    execute_process(COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_LIST_DIR}/dnnl_include.py"
                    OUTPUT_VARIABLE dnnl_include OUTPUT_STRIP_TRAILING_WHITESPACE
                    RESULT_VARIABLE failed)
    if(failed)
        message(FATAL_ERROR "oneDNN's header (oneapi/dnnl/dnnl.h) is missing: "
                "`pip install onednn-devel-cpu-gomp` brings it (Linux x86-64), or build with "
                "PACELINE_ONEDNN=0 for plain loops, which are slower")
    endif()
    target_include_directories(paceline_flags SYSTEM INTERFACE "${dnnl_include}")
    target_compile_definitions(paceline_flags INTERFACE PL_ONEDNN=1)
else()
    target_compile_definitions(paceline_flags INTERFACE PL_ONEDNN=0)
endif()

# A part that is not built is a stub file, not an #ifdef: of X_dnnl.c and X_nodnnl.c (or dnnl.c and
# nodnnl.c) the list keeps the one that fits.
function(paceline_pick_onednn list)
    if(PACELINE_ONEDNN)
        list(FILTER ${list} EXCLUDE REGEX "[/_]nodnnl\\.c$")
    else()
        list(FILTER ${list} EXCLUDE REGEX "[/_]dnnl\\.c$")
    endif()
    set(${list} "${${list}}" PARENT_SCOPE)
endfunction()

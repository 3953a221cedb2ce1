# SPDX-License-Identifier: Apache-2.0
# cmake -DBUILT=FILE -DPLACE=FILE -P in_place.cmake: puts the Python module where it is imported from.
# By a rename: a process that starts while the linker still writes would load half a library, and
# crash. Does nothing where the module is there already.

execute_process(COMMAND "${CMAKE_COMMAND}" -E compare_files "${BUILT}" "${PLACE}"
                RESULT_VARIABLE differs ERROR_QUIET)
if(differs)
    file(COPY_FILE "${BUILT}" "${PLACE}.new")
    file(RENAME "${PLACE}.new" "${PLACE}")
endif()

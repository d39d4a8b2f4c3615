# tidal_precompile(TARGET HEADER...): parses these headers of others once for all sources of the target. CLI11, JSON
# and googletest are most of what a compiler reads here: a build takes about half the time. Sources include what they
# use all the same; the linters read them without.
function(tidal_precompile target)
  target_precompile_headers(${target} PRIVATE ${ARGN})
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    target_compile_options(${target} PRIVATE -fpch-preprocess)  # so that ccache can tell what was read
  endif()
endfunction()

# tidal_by_rooms(TARGET [APART]): with TIDAL_UNITY compiles the sources of each folder, and of the folders in it, as
# one, which takes half the time again; those apart that the pattern APART matches, since they use names of others. For
# builds from nothing; where people work, one changed file should not compile its neighbours.
function(tidal_by_rooms target)
  if(NOT TIDAL_UNITY)
    return()
  endif()
  get_target_property(sources ${target} SOURCES)
  foreach(source ${sources})
    get_filename_component(source ${source} ABSOLUTE)
    file(RELATIVE_PATH source ${CMAKE_CURRENT_SOURCE_DIR} ${source})
    if(source MATCHES "\\.cu$" OR (ARGN AND source MATCHES "${ARGN}"))
      continue()
    endif()
    if(source MATCHES "^(backend/[a-z]+|cli/eval|[a-z]+)/")
      string(REPLACE "/" "_" room ${CMAKE_MATCH_1})
      set_source_files_properties(${source} PROPERTIES UNITY_GROUP ${room})
    endif()
  endforeach()
  set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
endfunction()

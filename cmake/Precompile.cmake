# tidal_precompile(TARGET HEADER...): parses these headers of others once for all sources of the target. CLI11, JSON
# and googletest are most of what a compiler reads here: a build takes about half the time. Sources include what they
# use all the same; the linters read them without.
function(tidal_precompile target)
  target_precompile_headers(${target} PRIVATE ${ARGN})
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    target_compile_options(${target} PRIVATE -fpch-preprocess)  # so that ccache can tell what was read
  endif()
endfunction()

# Install rules: the program, the library, its headers and the CMake package.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(tidal_package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/tidal)
install(TARGETS tidal EXPORT tidalTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT tidalTargets NAMESPACE tidal:: DESTINATION ${tidal_package_folder})
# What backends keep to themselves stays out, and report: its headers speak JSON (nlohmann), which users of the library
# should not need. With it eval/inspect.h, which fills its page. The server is the program's.
install(DIRECTORY ${PROJECT_SOURCE_DIR}/src/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/tidal
        FILES_MATCHING PATTERN "*.h" PATTERN "cli" EXCLUDE PATTERN "report" EXCLUDE PATTERN "server" EXCLUDE
        PATTERN "reference" EXCLUDE PATTERN "cpu" EXCLUDE PATTERN "cuda" EXCLUDE PATTERN "eval/inspect.h" EXCLUDE
        PATTERN "text/jinja.h" EXCLUDE)

configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/tidalConfig.cmake.in ${PROJECT_BINARY_DIR}/tidalConfig.cmake
                              INSTALL_DESTINATION ${tidal_package_folder})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/tidalConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/tidalConfig.cmake ${PROJECT_BINARY_DIR}/tidalConfigVersion.cmake
              ${PROJECT_SOURCE_DIR}/cmake/FindLlamaCommon.cmake
        DESTINATION ${tidal_package_folder})

if(TIDAL_ATTENTION)
  include(InstallAttention)
endif()

if(TIDAL_CLI)
  # The installed program finds llama.cpp where the built one does.
  get_target_property(tidal_llama_library llama LOCATION)
  cmake_path(GET tidal_llama_library PARENT_PATH tidal_llama_folder)
  set_target_properties(tidal-cli PROPERTIES INSTALL_RPATH ${tidal_llama_folder})
  install(TARGETS tidal-cli RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()

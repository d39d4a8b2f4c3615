# Install rules of the shared library alone: its header and a CMake package of its own, tidal_attention, which depends on
# no other. In a Python wheel only the library, beside the modules.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

if(SKBUILD)
  install(TARGETS tidal_attention LIBRARY DESTINATION tidal_attention)
  return()
endif()
set(tidal_attention_folder ${CMAKE_INSTALL_LIBDIR}/cmake/tidal_attention)
install(TARGETS tidal_attention EXPORT tidal_attentionConfig LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES ${PROJECT_SOURCE_DIR}/include/tidal_attention.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT tidal_attentionConfig NAMESPACE tidal:: DESTINATION ${tidal_attention_folder})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/tidal_attentionConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/tidal_attentionConfigVersion.cmake DESTINATION ${tidal_attention_folder})

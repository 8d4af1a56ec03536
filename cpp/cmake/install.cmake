# The installed package: find_package(stan_infer), or pkg-config stan_infer.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/stan_infer)
install(TARGETS stan_infer EXPORT stan_infer
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
        LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY include/stan_infer DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT stan_infer NAMESPACE stan_infer:: DESTINATION ${package_dir})
if(STAN_INFER_PROGRAM)
  install(TARGETS stan_classify DESTINATION ${CMAKE_INSTALL_BINDIR})
endif()

set(is_static ON)
set(flags "")
if(BUILD_SHARED_LIBS)
  set(is_static OFF)
  set(flags " -DSTAN_INFER_SHARED")
endif()
configure_package_config_file(cmake/stan_infer-config.cmake.in stan_infer-config.cmake
                              INSTALL_DESTINATION ${package_dir})
# Before 1.0 a new minor version may change the interface.
write_basic_package_version_file(stan_infer-config-version.cmake COMPATIBILITY SameMinorVersion)
file(RELATIVE_PATH to_prefix ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
# A static library's needs are those of whoever links it. OpenVINO and TensorRT come without .pc
# files: with them, use CMake.
set(requires Requires.private)
if(is_static)
  set(requires Requires)
endif()
string(REPLACE ";" ", " packages "${STAN_INFER_PACKAGES}")
configure_file(cmake/stan_infer.pc.in stan_infer.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/stan_infer-config.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/stan_infer-config-version.cmake
        DESTINATION ${package_dir})
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/stan_infer.pc
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

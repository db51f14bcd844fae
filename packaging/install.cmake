# What is installed, and the Debian package. Components: `programs`, `development` (libraries, headers,
# CMake's configuration).
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

# --- Programs: they know their commit, which is looked up in every build.
set(COTERIE_COMMIT "" CACHE STRING "The commit that --version prints; empty: asked of git")
set(commit_source ${CMAKE_BINARY_DIR}/generated/commit.cpp)
add_custom_target(coterie_commit_source
  COMMAND ${CMAKE_COMMAND} -DSOURCE=${CMAKE_SOURCE_DIR} -DOUTPUT=${commit_source} -DCOMMIT=${COTERIE_COMMIT}
          -P ${CMAKE_SOURCE_DIR}/packaging/commit.cmake
  BYPRODUCTS ${commit_source}
  VERBATIM)
add_library(coterie_commit OBJECT ${commit_source})
add_dependencies(coterie_commit coterie_commit_source)
target_link_libraries(coterie_commit PRIVATE coterie_options)

set(programs)
foreach(program coterie coterie-runtime)
  if(TARGET ${program})
    target_link_libraries(${program} PRIVATE coterie_commit)
    list(APPEND programs ${program})
  endif()
endforeach()
add_custom_target(programs)
if(programs)
  add_dependencies(programs ${programs})
  install(TARGETS ${programs} RUNTIME COMPONENT programs)
  # Loaded when needed (core/module.hpp), from lib/coterie beside bin; not in Debian's multiarch folder.
  foreach(module coterie_simgrid coterie_mpi coterie_ceres)
    if(TARGET ${module})
      install(TARGETS ${module} LIBRARY DESTINATION lib/coterie COMPONENT programs)
    endif()
  endforeach()
  install(FILES ${CMAKE_SOURCE_DIR}/packaging/completion.bash RENAME coterie
    DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions COMPONENT programs)
  install(FILES ${CMAKE_SOURCE_DIR}/packaging/completion.zsh RENAME _coterie
    DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/vendor-completions COMPONENT programs)
endif()

# Man pages come from the programs' own --help, when they are installed. A coterie-runtime that was
# cross-built may not run here; then it has none.
foreach(program IN LISTS programs)
  install(CODE "
    execute_process(
      COMMAND ${CMAKE_COMMAND} -DPROGRAM=$<TARGET_FILE:${program}> -DNAME=${program}
              -DVERSION=${PROJECT_VERSION} -DFOLDER=${CMAKE_BINARY_DIR}/man
              -P ${CMAKE_SOURCE_DIR}/packaging/man.cmake
      COMMAND_ERROR_IS_FATAL ANY)
    file(GLOB pages ${CMAKE_BINARY_DIR}/man/*.1)
    file(INSTALL \${pages} DESTINATION \"\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_MANDIR}/man1\")
  " COMPONENT programs)
endforeach()

# Presets are compiled in; they lie there to be read and extended, beside examples and recorders.
install(DIRECTORY topologies/presets topologies/calibrated DESTINATION ${CMAKE_INSTALL_DATADIR}/coterie/topologies
  COMPONENT programs FILES_MATCHING PATTERN "*.yaml")
install(DIRECTORY workloads/models DESTINATION ${CMAKE_INSTALL_DATADIR}/coterie COMPONENT programs
  FILES_MATCHING PATTERN "*.yaml")
install(DIRECTORY workloads/examples DESTINATION ${CMAKE_INSTALL_DATADIR}/coterie COMPONENT programs)
install(DIRECTORY workloads/recorders DESTINATION ${CMAKE_INSTALL_DATADIR}/coterie COMPONENT programs
  PATTERN "__pycache__" EXCLUDE)
install(FILES LICENSE README.md CHANGELOG.md DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT programs)

# --- The library.
set(libraries coterie_options coterie_core coterie_topologies coterie_workloads)
set(header_folders core topologies workloads)
if(COTERIE_HAS_SIM)
  list(APPEND libraries coterie_sim)
  list(APPEND header_folders sim)
endif()
if(COTERIE_HAS_SIM)
  target_link_options(coterie_sim INTERFACE $<INSTALL_INTERFACE:-Wl,-rpath,$<INSTALL_PREFIX>/lib/coterie>)
endif()
install(TARGETS ${libraries} EXPORT coterieTargets ARCHIVE COMPONENT development)
install(DIRECTORY ${header_folders} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/coterie COMPONENT development
  FILES_MATCHING PATTERN "*.hpp" PATTERN "cli" EXCLUDE)
set(config_folder ${CMAKE_INSTALL_LIBDIR}/cmake/coterie)
install(EXPORT coterieTargets NAMESPACE coterie:: DESTINATION ${config_folder} COMPONENT development)
set(COTERIE_HAS_SIM_NUMBER 0)
if(COTERIE_HAS_SIM)
  set(COTERIE_HAS_SIM_NUMBER 1)
endif()
if(NOT LIBZIP_FOUND)
  set(LIBZIP_FOUND 0)
endif()
configure_package_config_file(packaging/coterieConfig.cmake.in ${CMAKE_BINARY_DIR}/coterieConfig.cmake
  INSTALL_DESTINATION ${config_folder})
write_basic_package_version_file(${CMAKE_BINARY_DIR}/coterieConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/coterieConfig.cmake ${CMAKE_BINARY_DIR}/coterieConfigVersion.cmake
  DESTINATION ${config_folder} COMPONENT development)
install(DIRECTORY packaging/example DESTINATION ${CMAKE_INSTALL_DOCDIR} COMPONENT development)

# --- Debian packages: `cpack -G DEB` in the build folder writes coterie and coterie-dev. Dependencies of
# the programs are those that dpkg-shlibdeps finds (dpkg-dev).
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME coterie)
set(CPACK_PACKAGE_CONTACT "The Coterie developers <coterie@localhost>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_COMPONENTS_ALL programs development)
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_DEBIAN_ENABLE_COMPONENT_DEPENDS OFF)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PROGRAMS_PACKAGE_NAME coterie)
set(CPACK_DEBIAN_PROGRAMS_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PROGRAMS_PACKAGE_SECTION science)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_NAME coterie-dev)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_DEPENDS
  "coterie (= ${PROJECT_VERSION}), libfmt-dev, libspdlog-dev, nlohmann-json3-dev, libyaml-cpp-dev, libprotobuf-dev, libboost-graph-dev, zlib1g-dev, libzip-dev, libdeflate-dev, libpugixml-dev, libceres-dev, libsimgrid-dev, pkg-config")
include(CPack)

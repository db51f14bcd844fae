# coterie_embed(NAME [FOLDERS dir...] [FILES file...]): compiles every *.yaml of the folders, and the
# files, into a program.
#
# Sets NAME_SOURCE to a generated C++ file that defines
#   namespace coterie::embedded { extern const std::vector<std::pair<std::string, std::string>> NAME; }
# with names and contents, ordered by name: the stem of what is found in a folder, name and extension of a
# file that is listed. `embedded.hpp` is not needed: declare the variable where it is used.
function(coterie_embed name)
  cmake_parse_arguments(EMBED "" "" "FOLDERS;FILES" ${ARGN})
  set(files)
  foreach(folder IN LISTS EMBED_FOLDERS)
    file(GLOB found CONFIGURE_DEPENDS ${folder}/*.yaml)
    list(APPEND files ${found})
  endforeach()
  set(output ${CMAKE_CURRENT_BINARY_DIR}/${name}.cpp)
  set(content "#include <string>\n#include <utility>\n#include <vector>\nnamespace coterie::embedded {\n")
  string(APPEND content "using Files = std::vector<std::pair<std::string, std::string>>;\n")
  string(APPEND content "extern const Files ${name};\nconst Files ${name} = {\n")
  set(entries)
  foreach(path IN LISTS files)
    get_filename_component(stem ${path} NAME_WE)
    list(APPEND entries "${stem}=${path}")  # "=" sorts before every character of a longer stem
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${path})
  endforeach()
  foreach(path IN LISTS EMBED_FILES)
    get_filename_component(file_name ${path} NAME)
    list(APPEND entries "${file_name}=${path}")
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${path})
  endforeach()
  list(SORT entries)
  foreach(entry IN LISTS entries)
    string(REGEX REPLACE "=.*" "" stem "${entry}")
    string(REGEX REPLACE "^[^=]*=" "" path "${entry}")
    file(READ ${path} text)
    string(APPEND content "    {\"${stem}\", R\"__file__(${text})__file__\"},\n")
  endforeach()
  string(APPEND content "};\n}  // namespace coterie::embedded\n")
  # Not file(CONFIGURE): it would replace what looks like @A_VARIABLE@ in the files.
  set(before)
  if(EXISTS ${output})
    file(READ ${output} before)
  endif()
  if(NOT content STREQUAL before)
    file(WRITE ${output} "${content}")
  endif()
  set(${name}_SOURCE ${output} PARENT_SCOPE)
endfunction()

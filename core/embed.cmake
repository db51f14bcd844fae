# coterie_embed(NAME FOLDERS dir...): compiles every *.yaml of the folders into a program.
#
# Sets NAME_SOURCE to a generated C++ file that defines
#   namespace coterie::embedded { extern const std::vector<std::pair<std::string, std::string>> NAME; }
# with the files' stems and contents, ordered by stem. `embedded.hpp` is not needed: declare the variable
# where it is used.
function(coterie_embed name)
  cmake_parse_arguments(EMBED "" "" "FOLDERS" ${ARGN})
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
  list(SORT entries)
  foreach(entry IN LISTS entries)
    string(REGEX REPLACE "=.*" "" stem "${entry}")
    string(REGEX REPLACE "^[^=]*=" "" path "${entry}")
    file(READ ${path} text)
    string(APPEND content "    {\"${stem}\", R\"__yaml__(${text})__yaml__\"},\n")
  endforeach()
  string(APPEND content "};\n}  // namespace coterie::embedded\n")
  file(CONFIGURE OUTPUT ${output} CONTENT "${content}" @ONLY)
  set(${name}_SOURCE ${output} PARENT_SCOPE)
endfunction()

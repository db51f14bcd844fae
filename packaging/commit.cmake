# Writes OUTPUT, a C++ file with the commit that is being built, and touches it only when that changes.
# COMMIT, where given (a source package has no history), is taken as it is.
#   cmake -DSOURCE=DIR -DOUTPUT=FILE [-DCOMMIT=...] -P commit.cmake
if(NOT COMMIT)
  set(COMMIT "unknown")
  find_program(GIT git)
  if(GIT)
    execute_process(COMMAND ${GIT} -C ${SOURCE} describe --always --dirty --abbrev=12 --exclude=*
      OUTPUT_VARIABLE found OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
    if(NOT failed)
      set(COMMIT ${found})
    endif()
  endif()
endif()
set(content "#include \"core/provenance.hpp\"\nnamespace coterie {\nstd::string commit() { return \"${COMMIT}\"; }\n}\n")
set(before "")
if(EXISTS ${OUTPUT})
  file(READ ${OUTPUT} before)
endif()
if(NOT content STREQUAL before)
  file(WRITE ${OUTPUT} "${content}")
endif()

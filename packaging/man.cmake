# Writes man pages from a program's own --help: FOLDER/NAME.1, NAME-COMMAND.1 for every command, and
# NAME-COMMAND-COMMAND.1 where that has commands of its own.
#   cmake -DPROGRAM=FILE -DNAME=coterie -DVERSION=0.2.0 -DFOLDER=DIR -P man.cmake

# Backslashes, and lines that begin with a dot or an apostrophe, mean something to roff.
function(to_roff output text)
  string(REPLACE "\\" "\\e" text "${text}")
  string(REGEX REPLACE "\n([.'])" "\n\\\\&\\1" text "${text}")
  string(REPLACE "-" "\\-" text "${text}")
  set(${output} "${text}" PARENT_SCOPE)
endfunction()

function(write_page page arguments see_also)
  execute_process(COMMAND ${PROGRAM} ${arguments} --help
    OUTPUT_VARIABLE help ERROR_VARIABLE error RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "${page}: ${PROGRAM} ${arguments} --help failed: ${error}")
  endif()
  string(FIND "${help}" "\n" end_of_line)
  string(SUBSTRING "${help}" 0 ${end_of_line} summary)
  string(SUBSTRING "${help}" ${end_of_line} -1 rest)
  to_roff(summary "${summary}")
  to_roff(rest "${rest}")
  string(STRIP "${summary}" summary)
  string(TOUPPER ${page} title)
  file(WRITE ${FOLDER}/${page}.1
    ".TH ${title} 1 \"\" \"Coterie ${VERSION}\"\n.SH NAME\n${page} \\- ${summary}\n"
    ".SH DESCRIPTION\n.nf\n${rest}\n.fi\n.SH \"SEE ALSO\"\n${see_also}\n")
  set(help "${help}" PARENT_SCOPE)
endfunction()

# The page of a command, and those of the commands below it: the indented lines behind "Subcommands:".
function(write_pages page arguments see_also)
  write_page(${page} "${arguments}" "${see_also}")
  if(NOT help MATCHES "\nSubcommands:\n(  [^\n]*\n)+")
    return()
  endif()
  string(REGEX MATCHALL "\n  [a-z]+[a-z-]* " commands "${CMAKE_MATCH_0}")
  foreach(command IN LISTS commands)
    string(STRIP "${command}" command)
    write_pages(${page}-${command} "${arguments};${command}" ".BR ${page} (1)")
  endforeach()
endfunction()

file(MAKE_DIRECTORY ${FOLDER})
write_pages(${NAME} "" "\\fB${NAME} \\fICOMMAND\\fB \\-\\-help\\fR")

#pragma once
// What the programs' `main` functions share.

#include <exception>
#include <functional>
#include <optional>
#include <string>

#include "core/error.hpp"

namespace coterie {

// Puts /dev/null in the place of each of the descriptors 0 to 2 that is closed. The first thing that
// `main` does.
void prepare_standard_descriptors();

// Throws InputError if something that was printed on stdout cannot be written: a full disk, a closed
// descriptor.
void flush_standard_output();

// The InputError that an exception of std::filesystem stands for: path and cause. Absent for others.
std::optional<InputError> file_system_fault(const std::exception& error);

// Runs `body` and maps what it throws to an exit code: prints "<program>: error: <sentence>" on
// stderr, and returns the error's code (2 for failures of the file system; 1 for anything else that is
// not a coterie::Error). What was printed on stdout and cannot be written is an InputError too.
int run_guarded(const std::string& program, const std::function<int()>& body);

// Warnings and notes go to stderr as "warning: ...", coloured on a terminal only, and never where the
// variable NO_COLOR is set to anything (no-color.org).
void set_up_messages(const std::string& program);

}  // namespace coterie

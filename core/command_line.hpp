#pragma once
// What the programs' `main` functions share.

#include <functional>
#include <string>

namespace coterie {

// Runs `body` and maps what it throws to an exit code: prints "<program>: error: <sentence>" on
// stderr, and returns the error's code (1 for anything that is not a coterie::Error).
int run_guarded(const std::string& program, const std::function<int()>& body);

}  // namespace coterie

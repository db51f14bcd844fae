#pragma once
// Parts of a program that are loaded when they are first needed, because they bring libraries that
// take long to load.

#include <string>

namespace coterie {

enum class ModuleScope {
  kLocal,   // its libraries stay out of the sight of all others
  kGlobal,  // libraries loaded later see its own
};

// The address of `symbol` in the module `name`, which is looked for in ../lib/coterie, as seen from
// the folder of the running program: there it is in the build tree as well as where it is installed.
// A program that links the installed library finds it by its run path, which find_package(coterie) sets.
// A module stays loaded. Thread-safe. Throws Error with ExitCode::kInternalError where it cannot be
// loaded.
void* module_symbol(const std::string& name, const char* symbol,
                    ModuleScope scope = ModuleScope::kLocal);

}  // namespace coterie

#include "core/module.hpp"

#include <dlfcn.h>
#include <fmt/format.h>

#include <filesystem>

#include "core/error.hpp"

namespace coterie {

void* module_symbol(const std::string& name, const char* symbol, ModuleScope scope) {
  std::error_code ignored;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", ignored);
  const auto file =
      (program.parent_path().parent_path() / "lib" / "coterie" / (name + ".so")).lexically_normal();
  const int visibility = scope == ModuleScope::kGlobal ? RTLD_GLOBAL : RTLD_LOCAL;
  const int flags = RTLD_NOW | visibility;
  void* module = ::dlopen(file.c_str(), flags);
  // A program that links the installed library stands elsewhere: its run path leads there.
  if (module == nullptr && !std::filesystem::exists(file, ignored)) {
    module = ::dlopen((name + ".so").c_str(), flags);
  }
  void* const address = module != nullptr ? ::dlsym(module, symbol) : nullptr;
  if (address == nullptr) {
    // dlerror names the file, or the library that it lacks.
    throw Error(ExitCode::kInternalError,
                fmt::format("the module {} cannot be loaded: {}", name, ::dlerror()));
  }
  return address;
}

}  // namespace coterie

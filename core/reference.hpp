#pragma once
// Names that stand for a preset or for a file.

#include <fmt/format.h>

#include <filesystem>
#include <string>

#include "core/file.hpp"

namespace coterie {

// What was found where a name is neither: one that has a folder or an ending was meant as a file, so with
// `path`, where it was looked for, and whether a folder is there. Throws InputError as kind_of does.
inline std::string missing_reference(const std::string& name, const std::filesystem::path& path) {
  if (name.find_first_of("/.") == std::string::npos) return fmt::format("\"{}\"", name);
  return fmt::format("\"{}\", which {}", path.string(),
                     is_folder(path) ? "is a folder" : "does not exist");
}

}  // namespace coterie

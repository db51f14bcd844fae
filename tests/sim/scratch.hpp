#pragma once
// A folder of a test's own, which goes with it.

#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <string>

#include "core/file.hpp"

namespace coterie {

class Scratch {
 public:
  explicit Scratch(const std::string& name)
      : path_(std::filesystem::path(COTERIE_BINARY_DIR) / fmt::format("{}_{}", name, getpid())) {
    std::filesystem::create_directories(path_);
  }
  ~Scratch() { std::filesystem::remove_all(path_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // The path of a file there with this text.
  [[nodiscard]] std::filesystem::path write(const std::string& name,
                                            const std::string& text) const {
    write_file(path_ / name, text);
    return path_ / name;
  }

 private:
  std::filesystem::path path_;
};

}  // namespace coterie

#include "core/file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <system_error>

#include "core/error.hpp"
#include "core/random.hpp"

namespace coterie {
namespace {

std::string reason() {
  return std::strerror(errno);
}

// Pushes the file's bytes to the device, so that the rename never publishes an empty file.
bool sync_to_disk(const std::filesystem::path& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY);
  if (descriptor < 0) return false;
  const bool ok = ::fsync(descriptor) == 0;
  ::close(descriptor);
  return ok;
}

}  // namespace

std::string read_file(const std::filesystem::path& path) {
  std::error_code status;
  if (std::filesystem::is_directory(path, status)) {
    throw InputError(path.string(), "a folder", "a file");
  }
  std::ifstream in(path, std::ios::binary);
  if (!in) throw InputError(fmt::format("{}: cannot be read: {}", path.string(), reason()));
  std::ostringstream content;
  content << in.rdbuf();
  if (in.bad()) throw InputError(fmt::format("{}: reading failed: {}", path.string(), reason()));
  return std::move(content).str();
}

void write_file(const std::filesystem::path& path, std::string_view content) {
  write_file(path, [&](std::ostream& out) {
    out.write(content.data(), static_cast<std::streamsize>(content.size()));
  });
}

void write_file(const std::filesystem::path& path,
                const std::function<void(std::ostream&)>& writer) {
  const std::filesystem::path temporary = fmt::format("{}.tmp{}", path.string(), ::getpid());
  struct Remover {
    const std::filesystem::path& path;
    bool armed = true;
    ~Remover() {
      std::error_code ignored;
      if (armed) std::filesystem::remove(path, ignored);
    }
  } remover{temporary};
  {
    std::ofstream out(temporary, std::ios::binary | std::ios::trunc);
    if (!out) throw InputError(fmt::format("{}: cannot be written: {}", path.string(), reason()));
    writer(out);
    out.flush();
    if (!out) throw InputError(fmt::format("{}: writing failed: {}", path.string(), reason()));
  }
  if (!sync_to_disk(temporary) || std::rename(temporary.c_str(), path.c_str()) != 0) {
    throw InputError(fmt::format("{}: cannot be written: {}", path.string(), reason()));
  }
  remover.armed = false;
}

void make_folder(const std::filesystem::path& path) {
  std::error_code status;
  std::filesystem::create_directories(path, status);
  if (status || !std::filesystem::is_directory(path)) {
    throw InputError(fmt::format("{}: the folder cannot be created: {}", path.string(),
                                 status ? status.message() : "a file of that name is in the way"));
  }
}

std::uint64_t content_hash(std::string_view bytes) {
  std::uint64_t hash = 0xcbf29ce484222325ULL;
  for (const char byte : bytes) {
    hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3ULL;
  }
  return mix64(hash);
}

std::string hex64(std::uint64_t value) {
  return fmt::format("{:016x}", value);
}

}  // namespace coterie

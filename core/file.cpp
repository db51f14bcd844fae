#include "core/file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstring>
#include <fstream>
#include <sstream>
#include <system_error>

#include "core/error.hpp"

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

// The temporary names of writes in progress, where a signal handler can read them: it may neither
// lock nor allocate. A write beyond the last slot goes without one.
struct Unfinished {
  enum State { kFree, kFilling, kListed };
  std::atomic<State> state = kFree;
  std::array<char, PATH_MAX> path{};
};
static_assert(std::atomic<Unfinished::State>::is_always_lock_free);
std::array<Unfinished, 16> unfinished;

void remove_unfinished_and_end(int signal) {
  for (const Unfinished& file : unfinished) {
    if (file.state == Unfinished::kListed) ::unlink(file.path.data());
  }
  ::raise(signal);  // the default action again, see SA_RESETHAND
}

// A file that is removed unless it was renamed: by the destructor or by a signal.
class Temporary {
 public:
  explicit Temporary(std::filesystem::path path) : path_(std::move(path)) {
    if (path_.native().size() >= PATH_MAX) return;
    for (Unfinished& file : unfinished) {
      auto expected = Unfinished::kFree;
      if (!file.state.compare_exchange_strong(expected, Unfinished::kFilling)) continue;
      *std::copy(path_.native().begin(), path_.native().end(), file.path.begin()) = '\0';
      file.state = Unfinished::kListed;
      slot_ = &file;
      return;
    }
  }
  ~Temporary() {
    std::error_code ignored;
    if (!renamed_) std::filesystem::remove(path_, ignored);
    if (slot_ != nullptr) slot_->state = Unfinished::kFree;
  }
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  bool rename_to(const std::filesystem::path& target) {
    renamed_ = std::rename(path_.c_str(), target.c_str()) == 0;
    return renamed_;
  }

 private:
  std::filesystem::path path_;
  Unfinished* slot_ = nullptr;
  bool renamed_ = false;
};

}  // namespace

void remove_unfinished_files_on_signals() {
  struct sigaction action {};
  action.sa_handler = remove_unfinished_and_end;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction current {};
    // What the parent chose to ignore (nohup) stays ignored.
    if (::sigaction(signal, nullptr, &current) == 0 && current.sa_handler != SIG_IGN) {
      ::sigaction(signal, &action, nullptr);
    }
  }
}

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
  Temporary temporary(fmt::format("{}.tmp{}", path.string(), ::getpid()));
  {
    std::ofstream out(temporary.path(), std::ios::binary | std::ios::trunc);
    if (!out) throw InputError(fmt::format("{}: cannot be written: {}", path.string(), reason()));
    writer(out);
    out.flush();
    if (!out) throw InputError(fmt::format("{}: writing failed: {}", path.string(), reason()));
  }
  if (!sync_to_disk(temporary.path()) || !temporary.rename_to(path)) {
    throw InputError(fmt::format("{}: cannot be written: {}", path.string(), reason()));
  }
}

void make_folder(const std::filesystem::path& path) {
  std::error_code status;
  std::filesystem::create_directories(path, status);
  if (status || !std::filesystem::is_directory(path)) {
    throw InputError(fmt::format("{}: the folder cannot be created: {}", path.string(),
                                 status ? status.message() : "a file of that name is in the way"));
  }
}

}  // namespace coterie

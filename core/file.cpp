#include "core/file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <climits>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <streambuf>
#include <system_error>
#include <utility>
#include <vector>

#include "core/error.hpp"

namespace coterie {
namespace {

namespace fs = std::filesystem;

std::string reason() {
  return std::strerror(errno);
}

InputError cannot(const fs::path& path, std::string_view what, const std::string& cause) {
  return InputError(fmt::format("{}: {}: {}", path.empty() ? "''" : path.string(), what, cause));
}

// The system would take the name to end there.
void refuse_zero_bytes(const fs::path& path) {
  if (path.native().find('\0') == std::string::npos) return;
  throw InputError(path.native().substr(0, path.native().find('\0')),
                   "a name that goes on after a zero byte", "a file's name");
}

class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  void reset(int fd) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = fd;
  }
  [[nodiscard]] int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

// Writes all of it; false with errno set.
bool write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return false;
    bytes.remove_prefix(static_cast<std::size_t>(written));
  }
  return true;
}

// ------------------------------------------------------------ reading

fs::path descriptor_path(int fd) {
  return fmt::format("/proc/self/fd/{}", fd);
}

// What was read from pipes and devices, by their paths: a descriptor of the content in memory. They
// stay open until the program ends.
std::mutex kept_mutex;
std::map<std::string, int>& kept_inputs() {
  static std::map<std::string, int> kept;
  return kept;
}

// The content of something that is no regular file, in an anonymous file.
int keep_content(int from, const fs::path& path) {
  Descriptor memory(::memfd_create("coterie-input", MFD_CLOEXEC));
  if (memory.get() < 0) throw cannot(path, "cannot be kept in memory", reason());
  std::array<char, 1 << 16> buffer;
  std::uint64_t size = 0;
  while (true) {
    const ssize_t got = ::read(from, buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw cannot(path, "reading failed", reason());
    if (got == 0) return memory.release();
    size += static_cast<std::uint64_t>(got);
    if (size > kMaxPipeBytes) {
      throw InputError(path.string(),
                       fmt::format("more than {} MiB from something that is no regular file",
                                   kMaxPipeBytes >> 20),
                       "less, or a regular file");
    }
    if (!write_all(memory.get(), {buffer.data(), static_cast<std::size_t>(got)})) {
      throw cannot(path, "cannot be kept in memory", reason());
    }
  }
}

// ------------------------------------------------------------ writing

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

// ".coterie-PID-COUNT.tmp": short, so that every name that fits the file system can be written, and
// of a form that no user's file has.
constexpr std::string_view kTemporaryPrefix = ".coterie-";
constexpr std::string_view kTemporarySuffix = ".tmp";

fs::path temporary_name(const fs::path& target) {
  static std::atomic<unsigned> count = 0;
  const std::string name =
      fmt::format("{}{}-{}{}", kTemporaryPrefix, ::getpid(), count++, kTemporarySuffix);
  return target.parent_path() / name;
}

// The process in a temporary file's name.
std::optional<pid_t> writer_of(const fs::path& path) {
  std::string name = path.filename().string();
  if (!name.starts_with(kTemporaryPrefix) || !name.ends_with(kTemporarySuffix)) return std::nullopt;
  const char* begin = name.data() + kTemporaryPrefix.size();
  const char* end = name.data() + name.size() - kTemporarySuffix.size();
  pid_t pid = 0;
  unsigned count = 0;
  const auto [dash, status] = std::from_chars(begin, end, pid);
  if (status != std::errc{} || pid <= 0 || dash == end || *dash != '-') return std::nullopt;
  const auto [last, count_status] = std::from_chars(dash + 1, end, count);
  if (count_status != std::errc{} || last != end) return std::nullopt;
  return pid;
}

// A file that is removed unless it was renamed: by the destructor, by a signal, or where the process
// was killed, by the next one that writes to the folder. It is locked as long as its writer lives.
class Temporary {
 public:
  // In the folder of `target`.
  explicit Temporary(const fs::path& target) {
    constexpr int kMostTries = 1000;  // a process of the same number may have left some
    for (int i = 0; i < kMostTries && descriptor_.get() < 0; ++i) {
      path_ = temporary_name(target);
      descriptor_.reset(::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
      if (descriptor_.get() < 0 && errno != EEXIST) return;
    }
    if (descriptor_.get() < 0) return;
    (void)::flock(descriptor_.get(), LOCK_EX | LOCK_NB);
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
    if (descriptor_.get() >= 0 && !renamed_) ::unlink(path_.c_str());
    if (slot_ != nullptr) slot_->state = Unfinished::kFree;
  }
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;

  [[nodiscard]] int descriptor() const { return descriptor_.get(); }
  bool rename_to(const fs::path& target) {
    renamed_ = std::rename(path_.c_str(), target.c_str()) == 0;
    return renamed_;
  }

 private:
  fs::path path_;
  Descriptor descriptor_;
  Unfinished* slot_ = nullptr;
  bool renamed_ = false;
};

// A stream onto a descriptor that remembers why writing failed.
class DescriptorBuffer : public std::streambuf {
 public:
  explicit DescriptorBuffer(int fd) : fd_(fd), buffer_(1 << 18) {
    setp(buffer_.data(), buffer_.data() + buffer_.size());
  }
  [[nodiscard]] int error() const { return error_; }

 protected:
  int overflow(int c) override {
    if (sync() != 0) return traits_type::eof();
    if (c != traits_type::eof()) {
      *pptr() = static_cast<char>(c);
      pbump(1);
    }
    return traits_type::not_eof(c);
  }
  int sync() override {
    const std::string_view bytes(pbase(), static_cast<std::size_t>(pptr() - pbase()));
    if (error_ == 0 && !write_all(fd_, bytes)) error_ = errno;
    setp(buffer_.data(), buffer_.data() + buffer_.size());
    return error_ == 0 ? 0 : -1;
  }

 private:
  int fd_;
  std::vector<char> buffer_;
  int error_ = 0;
};

void write_through(int fd, const fs::path& path, const std::function<void(std::ostream&)>& writer) {
  DescriptorBuffer buffer(fd);
  std::ostream out(&buffer);
  writer(out);
  out.flush();
  if (buffer.error() != 0 || !out) {
    throw cannot(path, "writing failed", std::strerror(buffer.error() != 0 ? buffer.error() : EIO));
  }
}

// Where a path ends once its symbolic links are followed.
struct Target {
  fs::path path;
  std::optional<int> descriptor;  // one of this process, named under /proc/self/fd
};

Target follow_links(const fs::path& path) {
  constexpr int kMostLinks = 40;  // as the kernel follows
  Target target{path, std::nullopt};
  for (int links = 0; links <= kMostLinks; ++links) {
    std::error_code status;
    // /dev/stdout leads to /proc/self/fd/1, where opening the name would start at the beginning.
    const fs::path folder =
        fs::canonical(target.path.has_parent_path() ? target.path.parent_path() : ".", status);
    const std::string name = target.path.filename().string();
    if (!status && folder == fmt::format("/proc/{}/fd", ::getpid())) {
      int fd = -1;
      const auto [end, parsed] = std::from_chars(name.data(), name.data() + name.size(), fd);
      if (parsed == std::errc{} && end == name.data() + name.size()) {
        target.descriptor = fd;
        return target;
      }
    }
    struct stat entry {};
    if (::lstat(target.path.c_str(), &entry) != 0) {
      if (errno == ENOENT) return target;
      throw cannot(path, "cannot be written", reason());
    }
    if (!S_ISLNK(entry.st_mode)) return target;
    const fs::path next = fs::read_symlink(target.path, status);
    if (status) throw cannot(path, "cannot be written", status.message());
    target.path = next.is_absolute() ? next : target.path.parent_path() / next;
  }
  throw cannot(path, "cannot be written", std::strerror(ELOOP));
}

// Cleans every folder once in a process's life: what others leave later is theirs to clean.
void remove_stale_temporaries_once(const fs::path& folder) {
  static std::mutex mutex;
  static std::set<fs::path> cleaned;
  {
    const std::lock_guard guard(mutex);
    if (!cleaned.insert(folder).second) return;
  }
  remove_stale_temporaries(folder);
}

void replace_file(const fs::path& path, const fs::path& target,
                  const std::function<void(std::ostream&)>& writer) {
  const fs::path folder = target.has_parent_path() ? target.parent_path() : fs::path(".");
  remove_stale_temporaries_once(folder);
  // The kernel would find out after the work is done.
  if (const long most = ::pathconf(folder.c_str(), _PC_NAME_MAX);
      most > 0 && target.filename().native().size() > static_cast<std::size_t>(most)) {
    throw cannot(path, "cannot be written", std::strerror(ENAMETOOLONG));
  }
  if (path.empty()) throw InputError("output file", "no name", "a file's name");
  if (!target.has_filename()) throw InputError(path.string(), "a folder", "a file's name");
  Temporary temporary(target);
  if (temporary.descriptor() < 0) throw cannot(path, "cannot be written", reason());
  // Whoever could read the file that is replaced can read the new one.
  struct stat old {};
  if (::stat(target.c_str(), &old) == 0)
    (void)::fchmod(temporary.descriptor(), old.st_mode & 07777);
  write_through(temporary.descriptor(), path, writer);
  // Pushed to the device, so that the rename never publishes an empty file.
  if (::fsync(temporary.descriptor()) != 0 || !temporary.rename_to(target)) {
    throw cannot(path, "cannot be written", reason());
  }
}

}  // namespace

PathKind kind_of(const fs::path& path) {
  refuse_zero_bytes(path);
  struct stat entry {};
  if (::stat(path.c_str(), &entry) != 0) {
    if (errno == ENOENT || errno == ENOTDIR) return PathKind::kNothing;
    throw cannot(path, "cannot be looked at", reason());
  }
  if (S_ISREG(entry.st_mode)) return PathKind::kFile;
  return S_ISDIR(entry.st_mode) ? PathKind::kFolder : PathKind::kSpecial;
}

bool is_input_file(const fs::path& path) {
  const PathKind kind = kind_of(path);
  return kind == PathKind::kFile || kind == PathKind::kSpecial;
}

bool path_exists(const fs::path& path) {
  return kind_of(path) != PathKind::kNothing;
}

bool is_folder(const fs::path& path) {
  return kind_of(path) == PathKind::kFolder;
}

fs::path absolute_path(const fs::path& path) {
  std::error_code status;
  const fs::path absolute = fs::absolute(path, status);
  if (status) throw cannot(path, "has no place", status.message());
  return absolute.lexically_normal();
}

fs::path reopenable(const fs::path& path) {
  refuse_zero_bytes(path);
  const std::lock_guard guard(kept_mutex);
  auto& kept = kept_inputs();
  if (const auto found = kept.find(path.native()); found != kept.end()) {
    return descriptor_path(found->second);
  }
  // Not before the open: a name may be replaced between two looks.
  const Descriptor in(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY));
  struct stat entry {};
  if (in.get() < 0 || ::fstat(in.get(), &entry) != 0) {
    throw cannot(path, "cannot be read", reason());
  }
  if (S_ISDIR(entry.st_mode)) throw InputError(path.string(), "a folder", "a file");
  if (S_ISREG(entry.st_mode)) return path;
  const int memory = keep_content(in.get(), path);
  kept[path.native()] = memory;
  return descriptor_path(memory);
}

std::ifstream open_input(const fs::path& path) {
  const fs::path place = reopenable(path);
  errno = 0;
  std::ifstream in(place, std::ios::binary);
  if (!in) throw cannot(path, "cannot be read", reason());
  return in;
}

std::string read_file(const fs::path& path, std::uint64_t max_bytes) {
  const fs::path place = reopenable(path);
  const Descriptor in(::open(place.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat entry {};
  if (in.get() < 0 || ::fstat(in.get(), &entry) != 0) {
    throw cannot(path, "cannot be read", reason());
  }
  const auto refuse_above = [&](std::uint64_t size) {
    if (size <= max_bytes) return;
    throw InputError(path.string(), fmt::format("{} bytes", size),
                     fmt::format("at most {}", max_bytes));
  };
  refuse_above(static_cast<std::uint64_t>(entry.st_size));
  // The size is a guess: files of /proc say 0, and a file may grow.
  std::string content(static_cast<std::size_t>(entry.st_size) + 1, '\0');
  std::size_t size = 0;
  while (true) {
    const ssize_t got = ::read(in.get(), content.data() + size, content.size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw cannot(path, "reading failed", reason());
    if (got == 0) break;
    size += static_cast<std::size_t>(got);
    refuse_above(size);
    if (size == content.size()) content.resize(size + std::max<std::size_t>(size / 2, 4096));
  }
  content.resize(size);
  return content;
}

LineFile::LineFile(const fs::path& path) : name_(path.string()), in_(open_input(path)) {}

bool LineFile::next(std::string& line) {
  line.clear();
  std::streambuf& buffer = *in_.rdbuf();
  errno = 0;
  int c = buffer.sbumpc();
  if (c == std::char_traits<char>::eof()) {
    if (errno != 0) throw cannot(name_, "reading failed", reason());
    return false;
  }
  ++number_;
  for (; c != std::char_traits<char>::eof() && c != '\n'; c = buffer.sbumpc()) {
    if (line.size() >= kMaxLineBytes) {
      throw InputError(fmt::format("{}: line {}", name_, number_),
                       fmt::format("more than {} MiB", kMaxLineBytes >> 20), "a shorter line");
    }
    line += static_cast<char>(c);
  }
  return true;
}

std::vector<fs::path> list_folder(const fs::path& folder) {
  std::error_code status;
  std::vector<fs::path> paths;
  fs::directory_iterator entry(folder, status);
  for (; !status && entry != fs::directory_iterator(); entry.increment(status)) {
    paths.push_back(entry->path());
  }
  if (status) throw cannot(folder, "the folder cannot be listed", status.message());
  std::sort(paths.begin(), paths.end());
  return paths;
}

void write_file(const fs::path& path, std::string_view content) {
  write_file(path, [&](std::ostream& out) {
    out.write(content.data(), static_cast<std::streamsize>(content.size()));
  });
}

void write_file(const fs::path& path, const std::function<void(std::ostream&)>& writer) {
  const Target target = follow_links(path);
  if (target.descriptor) {
    std::fflush(stdout);  // what was printed before comes first
    write_through(*target.descriptor, path, writer);
    return;
  }
  switch (kind_of(target.path)) {
    case PathKind::kFolder:
      throw cannot(path, "cannot be written", std::strerror(EISDIR));
    case PathKind::kSpecial: {
      const Descriptor out(::open(target.path.c_str(), O_WRONLY | O_CLOEXEC | O_NOCTTY));
      if (out.get() < 0) throw cannot(path, "cannot be written", reason());
      write_through(out.get(), path, writer);
      return;
    }
    case PathKind::kFile:
    case PathKind::kNothing:
      replace_file(path, target.path, writer);
  }
}

bool is_temporary_name(const fs::path& path) {
  return writer_of(path).has_value();
}

void remove_stale_temporaries(const fs::path& folder) {
  std::error_code status;
  std::vector<fs::path> found;
  fs::directory_iterator entry(folder, status);
  for (; !status && entry != fs::directory_iterator(); entry.increment(status)) {
    if (is_temporary_name(entry->path())) found.push_back(entry->path());
  }
  for (const fs::path& path : found) {
    // The lock ends with its writer, wherever that runs. A file may be seen between its creation and
    // its lock, so a young one is left alone if a process of its number lives.
    const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
    if (file.get() < 0 || ::flock(file.get(), LOCK_EX | LOCK_NB) != 0) continue;
    const bool gone = ::kill(*writer_of(path), 0) != 0 && errno == ESRCH;
    struct stat state {};
    constexpr std::time_t kYoung_s = 2;
    if (!gone && (::fstat(file.get(), &state) != 0 ||
                  state.st_mtim.tv_sec + kYoung_s >= std::time(nullptr))) {
      continue;
    }
    ::unlink(path.c_str());
  }
}

void remove_file(const fs::path& path) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
    throw cannot(path, "cannot be removed", reason());
  }
}

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

void make_folder(const fs::path& path) {
  if (path.empty()) throw InputError("output folder", "no name", "a folder's name");
  std::error_code status;
  fs::create_directories(path, status);
  std::error_code look;
  if (status || !fs::is_directory(path, look)) {
    throw InputError(fmt::format("{}: the folder cannot be created: {}", path.string(),
                                 status ? status.message() : "a file of that name is in the way"));
  }
}

}  // namespace coterie

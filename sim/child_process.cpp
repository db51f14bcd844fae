#include "sim/child_process.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <optional>
#include <string_view>

#include "core/error.hpp"

namespace coterie {
namespace {

// First byte of what the child writes: the result follows, or the exit code's digit and a sentence.
constexpr char kResult = 'R';
constexpr char kFailure = 'F';

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() { reset(); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  void reset() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

bool write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      return false;
    }
    bytes.remove_prefix(static_cast<std::size_t>(written));
  }
  return true;
}

[[noreturn]] void run_child(int fd, int log, int parent, const std::function<std::string()>& body) {
  // The child must not outlive an interrupted parent.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(1);
  // What a library prints about a failure goes into the one sentence the user gets.
  ::dup2(log, STDOUT_FILENO);
  ::dup2(log, STDERR_FILENO);
  std::string message;
  try {
    message = kResult + body();
  } catch (const Error& error) {
    message = fmt::format("{}{}{}", kFailure, static_cast<int>(error.exit_code()), error.what());
  } catch (const std::exception& error) {
    message =
        fmt::format("{}{}{}", kFailure, static_cast<int>(ExitCode::kInternalError), error.what());
  }
  const bool written = write_all(fd, message);
  // No destructors of the parent's objects, no flushing of its buffers.
  ::_exit(written ? 0 : 1);
}

struct Outcome {
  std::string bytes;
  bool timed_out = false;
};

Outcome read_until_closed(int fd, double timeout_s) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  Outcome out;
  char buffer[1 << 16];
  while (true) {
    int wait_ms = -1;
    if (timeout_s > 0.0) {
      const double left = timeout_s - std::chrono::duration<double>(Clock::now() - start).count();
      if (left <= 0.0) {
        out.timed_out = true;
        return out;
      }
      wait_ms = static_cast<int>(std::min(left, 1e6) * 1e3) + 1;
    }
    pollfd poller{fd, POLLIN, 0};
    const int ready = ::poll(&poller, 1, wait_ms);
    if (ready < 0 && errno != EINTR) throw Error(ExitCode::kInternalError, std::strerror(errno));
    if (ready <= 0) continue;
    const ssize_t count = ::read(fd, buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return out;
    out.bytes.append(buffer, static_cast<std::size_t>(count));
  }
}

// The first line that the child printed, without time stamps and source places; empty if none.
std::string first_line(int log) {
  char buffer[512];
  const ssize_t count = ::pread(log, buffer, sizeof buffer, 0);
  if (count <= 0) return {};
  std::string line(buffer, static_cast<std::size_t>(count));
  line.resize(std::min(line.size(), line.find('\n')));
  if (const std::size_t tag = line.find("/CRITICAL] "); tag != std::string::npos) {
    line.erase(0, tag + 11);
  }
  return line;
}

int wait_for(pid_t pid) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

}  // namespace

std::string run_in_child(const std::string& what, double timeout_s,
                         const std::function<std::string()>& body) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    throw Error(ExitCode::kInternalError,
                fmt::format("{}: cannot open a pipe: {}", what, std::strerror(errno)));
  }
  Descriptor read_end(ends[0]);
  Descriptor write_end(ends[1]);
  const Descriptor log(::memfd_create("coterie-child", MFD_CLOEXEC));
  const int parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) {
    throw Error(ExitCode::kInternalError,
                fmt::format("{}: cannot start a process: {}", what, std::strerror(errno)));
  }
  if (pid == 0) run_child(write_end.get(), log.get(), parent, body);
  write_end.reset();

  Outcome outcome = read_until_closed(read_end.get(), timeout_s);
  if (outcome.timed_out) ::kill(pid, SIGKILL);
  const int status = wait_for(pid);

  if (outcome.timed_out) {
    throw Error(ExitCode::kInternalError,
                fmt::format("{}: not done after {} s; stopped", what, timeout_s));
  }
  if (WIFSIGNALED(status)) {
    const std::string said = first_line(log.get());
    throw Error(
        ExitCode::kInternalError,
        fmt::format("{}: its process was ended by signal {} ({}){}{}", what, WTERMSIG(status),
                    ::strsignal(WTERMSIG(status)), said.empty() ? "" : ": ", said));
  }
  if (outcome.bytes.empty() || WEXITSTATUS(status) != 0) {
    throw Error(ExitCode::kInternalError,
                fmt::format("{}: its process exited with status {} and without a result", what,
                            WEXITSTATUS(status)));
  }
  if (outcome.bytes[0] == kFailure) {
    const auto code = static_cast<ExitCode>(outcome.bytes[1] - '0');
    throw Error(code, outcome.bytes.substr(2));
  }
  outcome.bytes.erase(0, 1);
  return outcome.bytes;
}

}  // namespace coterie

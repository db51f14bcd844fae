#include "core/child_process.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <utility>

#include "core/child_message.hpp"
#include "core/error.hpp"

namespace coterie {
namespace {

class PipeEnd {
 public:
  explicit PipeEnd(int fd) : fd_(fd) {}
  ~PipeEnd() { reset(); }
  PipeEnd(const PipeEnd&) = delete;
  PipeEnd& operator=(const PipeEnd&) = delete;
  void reset() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

[[noreturn]] void run_child(int fd, int log, int parent, const std::function<std::string()>& body) {
  settle_in_child(parent, log);
  const bool written = write_all(fd, child_message(body));
  // No destructors of the parent's objects, no flushing of its buffers.
  ::_exit(written ? 0 : 1);
}

}  // namespace

ChildProcess::ChildProcess(std::string what, double timeout_s,
                           const std::function<std::string()>& body)
    : what_(std::move(what)), timeout_s_(timeout_s) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    throw Error(ExitCode::kInternalError,
                fmt::format("{}: cannot open a pipe: {}", what_, std::strerror(errno)));
  }
  read_end_ = ends[0];
  PipeEnd write_end(ends[1]);
  log_ = ::memfd_create("coterie-child", MFD_CLOEXEC);
  const int parent = ::getpid();
  pid_ = ::fork();
  if (pid_ < 0) {
    const int reason = errno;
    ::close(read_end_);
    ::close(log_);
    throw Error(ExitCode::kInternalError,
                fmt::format("{}: cannot start a process: {}", what_, std::strerror(reason)));
  }
  if (pid_ == 0) run_child(write_end.get(), log_, parent, body);
}

ChildProcess::~ChildProcess() {
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    wait_for(pid_);
  }
  ::close(read_end_);
  ::close(log_);
}

int ChildProcess::milliseconds_left() const {
  if (timeout_s_ <= 0.0) return -1;
  const double past = std::chrono::duration<double>(Clock::now() - start_).count();
  return static_cast<int>(std::clamp(timeout_s_ - past, 0.0, 1e6) * 1e3);
}

bool ChildProcess::done() {
  char buffer[1 << 16];
  while (!closed_) {
    pollfd poller{read_end_, POLLIN, 0};
    const int ready = ::poll(&poller, 1, 0);
    if (ready < 0 && errno == EINTR) continue;
    if (ready < 0) throw Error(ExitCode::kInternalError, std::strerror(errno));
    if (ready == 0) return milliseconds_left() == 0;
    const ssize_t count = ::read(read_end_, buffer, sizeof buffer);
    if (count < 0 && errno == EINTR) continue;
    closed_ = count <= 0;
    if (count > 0) bytes_.append(buffer, static_cast<std::size_t>(count));
  }
  return true;
}

std::string ChildProcess::result() {
  if (!closed_) ::kill(pid_, SIGKILL);
  const int status = wait_for(std::exchange(pid_, -1));
  if (!closed_) throw child_overstayed(what_, timeout_s_);
  if (WIFSIGNALED(status) || bytes_.empty() || WEXITSTATUS(status) != 0) {
    throw child_ended(what_, status, log_);
  }
  return child_result(std::move(bytes_));
}

void wait_for_any(const std::vector<const ChildProcess*>& children) {
  std::vector<pollfd> pollers;
  int wait_ms = -1;
  for (const ChildProcess* child : children) {
    pollers.push_back({child->descriptor(), POLLIN, 0});
    const int left = child->milliseconds_left();
    // One more, so that it has overstayed when the sleep is over.
    if (left >= 0) wait_ms = wait_ms < 0 ? left + 1 : std::min(wait_ms, left + 1);
  }
  (void)::poll(pollers.data(), pollers.size(),
               wait_ms);  // interrupted: the caller looks and returns
}

void run_in_children(unsigned num_jobs, std::size_t count, double timeout_s,
                     const ChildWork& work) {
  struct Running {
    std::size_t item;
    std::unique_ptr<ChildProcess> child;
  };
  std::vector<Running> running;
  std::size_t next = 0;
  while (next < count || !running.empty()) {
    while (next < count && running.size() < std::max(1U, num_jobs)) {
      const std::size_t item = next++;
      running.push_back({item, std::make_unique<ChildProcess>(work.name(item), timeout_s,
                                                              [&] { return work.body(item); })});
    }
    std::vector<const ChildProcess*> children;
    for (const Running& one : running) children.push_back(one.child.get());
    wait_for_any(children);
    std::erase_if(running, [&](Running& one) {
      if (!one.child->done()) return false;
      work.done(one.item, *one.child);
      return true;
    });
  }
}

std::string run_in_child(const std::string& what, double timeout_s,
                         const std::function<std::string()>& body) {
  ChildProcess child(what, timeout_s, body);
  while (!child.done()) wait_for_any({&child});
  return child.result();
}

}  // namespace coterie

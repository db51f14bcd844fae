#include "runtime/control/launcher.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <optional>

#include "runtime/control/channel.hpp"
#include "runtime/control/mps.hpp"

namespace coterie {
namespace {

using Clock = std::chrono::steady_clock;
constexpr const char* kStatusVariable = "COTERIE_STATUS_FD";
constexpr std::size_t kMaxLine = 4000;  // below PIPE_BUF: a line is written in one piece

// Signals of interest as a readable descriptor; the old mask returns with the destructor.
class SignalWatch {
 public:
  SignalWatch() {
    sigset_t set;
    ::sigemptyset(&set);
    for (const int signal : {SIGCHLD, SIGINT, SIGTERM, SIGHUP}) ::sigaddset(&set, signal);
    ::sigprocmask(SIG_BLOCK, &set, &old_);
    fd_ = Descriptor(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  }
  ~SignalWatch() { ::sigprocmask(SIG_SETMASK, &old_, nullptr); }
  SignalWatch(const SignalWatch&) = delete;
  SignalWatch& operator=(const SignalWatch&) = delete;

  [[nodiscard]] int fd() const { return fd_.get(); }
  [[nodiscard]] const sigset_t& old_mask() const { return old_; }
  std::optional<int> next() const {
    signalfd_siginfo info{};
    if (::read(fd_.get(), &info, sizeof info) != sizeof info) return std::nullopt;
    return static_cast<int>(info.ssi_signo);
  }

 private:
  sigset_t old_{};
  Descriptor fd_;
};

struct Child {
  pid_t pid = 0;
  bool running = true;
};

// In the forked child: becomes the rank.
[[noreturn]] void become_rank(const LaunchRequest& request, std::uint32_t rank, pid_t launcher,
                              const Descriptor& listener, std::uint16_t port, int status_fd,
                              const MpsDaemon* mps, const sigset_t& mask) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != launcher) ::_exit(1);
  ::sigprocmask(SIG_SETMASK, &mask, nullptr);
  const auto set = [](const char* name, const std::string& value) {
    ::setenv(name, value.c_str(), 1);
  };
  set("COTERIE_RANK", std::to_string(rank));
  set("COTERIE_LOCAL_RANK", std::to_string(rank));
  set("COTERIE_NUM_RANKS", std::to_string(request.num_ranks));
  set("COTERIE_NUM_LOCAL_RANKS", std::to_string(request.num_ranks));
  set("COTERIE_PORT", std::to_string(port));
  set("COTERIE_JOB", fmt::format("launch-{}", launcher));
  if (rank == 0) {
    const int fd = ::fcntl(listener.get(), F_DUPFD, 3);  // without close-on-exec
    set("COTERIE_LISTEN_FD", std::to_string(fd));
  } else {
    ::unsetenv("COTERIE_LISTEN_FD");
  }
  set(kStatusVariable, std::to_string(::fcntl(status_fd, F_DUPFD, 3)));
  if (mps != nullptr) {
    set("CUDA_MPS_PIPE_DIRECTORY", mps->folder().string());
    set("CUDA_MPS_LOG_DIRECTORY", mps->folder().string());
    set("COTERIE_MPS", "1");
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    const auto devices = devices_of_clients(visible == nullptr ? "" : visible);
    if (devices) set("CUDA_VISIBLE_DEVICES", *devices);
  }
  // All ranks are on this machine, so the loopback interface serves wherever NCCL needs sockets.
  ::setenv("NCCL_SOCKET_IFNAME", "lo", 0);

  std::vector<std::string> arguments{"coterie-runtime"};
  arguments.insert(arguments.end(), request.arguments.begin(), request.arguments.end());
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  ::execv("/proc/self/exe", argv.data());
  ::_exit(127);
}

struct StatusLine {
  std::uint32_t rank = 0;
  int exit_code = 0;
  std::string sentence;
};

// "RANK CODE SENTENCE"
std::optional<StatusLine> parse_status(std::string_view line) {
  StatusLine status;
  const char* end = line.data() + line.size();
  const auto rank = std::from_chars(line.data(), end, status.rank);
  if (rank.ec != std::errc() || rank.ptr == end) return std::nullopt;
  const auto code = std::from_chars(rank.ptr + 1, end, status.exit_code);
  if (code.ec != std::errc() || code.ptr == end) return std::nullopt;
  status.sentence.assign(code.ptr + 1, end);
  return status;
}

class Ranks {
 public:
  Ranks(const LaunchRequest& request, const MpsDaemon* mps, const SignalWatch& signals)
      : request_(request), signals_(signals) {
    std::array<int, 2> fds{};
    if (::pipe2(fds.data(), O_CLOEXEC) != 0) {
      throw DeviceError(fmt::format("pipe failed: {}", std::strerror(errno)));
    }
    status_read_ = Descriptor(fds[0]);
    const Descriptor status_write(fds[1]);
    set_non_blocking(status_read_.get());
    const Descriptor listener = listen_on("127.0.0.1", 0);
    const std::uint16_t port = bound_port(listener);
    const pid_t launcher = ::getpid();
    for (std::uint32_t rank = 0; rank < request.num_ranks; ++rank) {
      const pid_t pid = ::fork();
      if (pid == 0) {
        become_rank(request, rank, launcher, listener, port, status_write.get(), mps,
                    signals.old_mask());
      }
      if (pid < 0) {
        kill_all();
        throw DeviceError(fmt::format("fork failed: {}", std::strerror(errno)));
      }
      children_.push_back({pid, true});
    }
  }
  ~Ranks() {
    kill_all();
    for (const Child& child : children_) {
      if (child.running) ::waitpid(child.pid, nullptr, 0);
    }
  }
  Ranks(const Ranks&) = delete;
  Ranks& operator=(const Ranks&) = delete;

  LaunchOutcome wait() {
    while (num_running() > 0) {
      std::array<pollfd, 2> waiting{{{signals_.fd(), POLLIN, 0}, {status_read_.get(), POLLIN, 0}}};
      ::poll(waiting.data(), status_open_ ? 2 : 1, 100);
      while (const auto signal = signals_.next()) {
        if (*signal != SIGCHLD && !signal_) {
          signal_ = *signal;
          kill_all();
        }
      }
      read_status();
      reap();
      if (failed_at_ &&
          Clock::now() - *failed_at_ > std::chrono::duration<double>(request_.grace_s)) {
        kill_all();
      }
    }
    read_status();
    if (signal_) {
      return {128 + *signal_,
              fmt::format("ended by signal {} ({})", *signal_, ::strsignal(*signal_))};
    }
    if (status_) return {status_->exit_code, status_->sentence};
    if (abnormal_) return {static_cast<int>(ExitCode::kDeviceFailure), *abnormal_};
    return {};
  }

 private:
  [[nodiscard]] std::size_t num_running() const {
    std::size_t count = 0;
    for (const Child& child : children_) count += child.running ? 1 : 0;
    return count;
  }

  void kill_all() const {
    for (const Child& child : children_) {
      if (child.running) ::kill(child.pid, SIGKILL);
    }
  }

  void read_status() {
    std::array<char, 4096> buffer{};
    while (true) {
      const ssize_t count = ::read(status_read_.get(), buffer.data(), buffer.size());
      if (count == 0) status_open_ = false;
      if (count <= 0) break;
      text_.append(buffer.data(), static_cast<std::size_t>(count));
    }
    for (std::size_t end = text_.find('\n'); end != std::string::npos; end = text_.find('\n')) {
      if (auto line = parse_status(std::string_view(text_).substr(0, end)); line && !status_) {
        status_ = std::move(line);
        note_failure();
      }
      text_.erase(0, end + 1);
    }
  }

  void reap() {
    for (std::size_t rank = 0; rank < children_.size(); ++rank) {
      Child& child = children_[rank];
      int status = 0;
      if (!child.running || ::waitpid(child.pid, &status, WNOHANG) != child.pid) continue;
      child.running = false;
      if (WIFEXITED(status) && WEXITSTATUS(status) == 0) continue;
      if (!abnormal_ && !failed_at_) {
        abnormal_ = WIFSIGNALED(status)
                        ? fmt::format("rank {} was killed by signal {} ({})", rank,
                                      WTERMSIG(status), ::strsignal(WTERMSIG(status)))
                        : fmt::format("rank {} left with exit code {} without saying why", rank,
                                      WEXITSTATUS(status));
      }
      note_failure();
    }
  }

  void note_failure() {
    if (!failed_at_) failed_at_ = Clock::now();
  }

  const LaunchRequest& request_;
  const SignalWatch& signals_;
  Descriptor status_read_;
  std::vector<Child> children_;
  std::string text_;
  bool status_open_ = true;
  std::optional<StatusLine> status_;
  std::optional<std::string> abnormal_;
  std::optional<Clock::time_point> failed_at_;
  std::optional<int> signal_;
};

}  // namespace

LaunchOutcome launch(const LaunchRequest& request) {
  // Before the daemon starts: a signal from here on is handled in order, not by sudden death.
  const SignalWatch signals;
  const bool sharing =
      request.num_gpus > 0 && request.num_ranks > static_cast<std::uint32_t>(request.num_gpus);
  std::optional<MpsDaemon> mps;
  if (request.mps == MpsUse::kOn || (request.mps == MpsUse::kAuto && sharing)) mps.emplace();
  Ranks ranks(request, mps ? &*mps : nullptr, signals);
  return ranks.wait();
}

void report_failure(const std::string& sentence, int exit_code) {
  const char* fd = std::getenv(kStatusVariable);
  const char* rank = std::getenv("COTERIE_RANK");
  if (fd != nullptr && rank != nullptr) {
    std::string line = fmt::format("{} {} {}", rank, exit_code, sentence).substr(0, kMaxLine);
    for (char& c : line) {
      if (c == '\n') c = ' ';
    }
    line += '\n';
    if (::write(std::atoi(fd), line.data(), line.size()) == static_cast<ssize_t>(line.size())) {
      return;
    }
  }
  fmt::print(stderr, "coterie-runtime: error: {}\n", sentence);
}

}  // namespace coterie

#include "runtime/control/mps.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <thread>
#include <vector>

#include "core/error.hpp"

namespace coterie {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kStartDeadline = std::chrono::seconds(20);
constexpr auto kQuitDeadline = std::chrono::seconds(5);
// The guardian ends by its lifeline alone.
constexpr std::array kIgnored{SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGQUIT};

std::string control_program() {
  const char* name = std::getenv("COTERIE_MPS_CONTROL");
  return name != nullptr && *name != '\0' ? name : "nvidia-cuda-mps-control";
}

// Children of this process, those it adopted as subreaper included.
std::vector<pid_t> children() {
  std::ifstream file(fmt::format("/proc/self/task/{}/children", ::getpid()));
  std::vector<pid_t> out;
  for (pid_t pid = 0; file >> pid;) out.push_back(pid);
  return out;
}

// Starts the control program with its output in `log`; `input` is fed to its standard input.
pid_t start_control(const std::vector<std::string>& arguments, const std::string& input,
                    const std::filesystem::path& log) {
  std::array<int, 2> pipe_fds{};
  if (::pipe2(pipe_fds.data(), O_CLOEXEC) != 0) return -1;
  const pid_t pid = ::fork();
  if (pid == 0) {
    for (const int signal : kIgnored) ::signal(signal, SIG_DFL);
    ::dup2(pipe_fds[0], STDIN_FILENO);
    const int out = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    ::dup2(out, STDOUT_FILENO);
    ::dup2(out, STDERR_FILENO);
    std::vector<char*> argv;
    for (const std::string& argument : arguments) {
      argv.push_back(const_cast<char*>(argument.c_str()));  // NOLINT: execvp's signature
    }
    argv.push_back(nullptr);
    ::execvp(argv[0], argv.data());
    const std::string message = fmt::format("{}: {}\n", argv[0], std::strerror(errno));
    [[maybe_unused]] const auto ignored = ::write(STDERR_FILENO, message.data(), message.size());
    ::_exit(127);
  }
  ::close(pipe_fds[0]);
  [[maybe_unused]] const auto ignored = ::write(pipe_fds[1], input.data(), input.size());
  ::close(pipe_fds[1]);
  return pid;
}

// Waits for `pid` alone; its exit status, or nothing after the deadline.
std::optional<int> wait_for(pid_t pid, Clock::duration deadline) {
  const auto start = Clock::now();
  int status = 0;
  while (Clock::now() - start < deadline) {
    const pid_t done = ::waitpid(pid, &status, WNOHANG);
    if (done == pid) return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    if (done < 0) return std::nullopt;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return std::nullopt;
}

// Reaps until no child is left; false after the deadline.
bool reap_all(Clock::duration deadline) {
  const auto start = Clock::now();
  while (Clock::now() - start < deadline) {
    const pid_t done = ::waitpid(-1, nullptr, WNOHANG);
    if (done < 0) return true;
    if (done == 0) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

void end_daemon(const std::filesystem::path& folder) {
  const pid_t quit = start_control({control_program()}, "quit\n", folder / "control.log");
  if (quit > 0) wait_for(quit, kQuitDeadline);
  for (int round = 0; round < 10 && !reap_all(kQuitDeadline / 5); ++round) {
    if (round >= 2) {
      for (const pid_t pid : children()) ::kill(pid, SIGKILL);
    }
  }
  std::error_code ignored;
  std::filesystem::remove_all(folder, ignored);
}

// The guardian's life. `ready`: one line, "ok" or the reason why there is no daemon.
[[noreturn]] void guard(const std::filesystem::path& folder, int lifeline, int ready) {
  ::setsid();
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  ::prctl(PR_SET_NAME, "coterie-mps");
  for (const int signal : kIgnored) ::signal(signal, SIG_IGN);
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::setenv("CUDA_MPS_PIPE_DIRECTORY", folder.c_str(), 1);
  ::setenv("CUDA_MPS_LOG_DIRECTORY", folder.c_str(), 1);
  // The creator may end with its standard streams closed; the daemon must not keep them open.
  const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::dup2(null, fd);

  const pid_t start = start_control({control_program(), "-d"}, "", folder / "control.log");
  const auto status = wait_for(start, kStartDeadline);
  std::string answer = "ok";
  if (status != 0) {
    std::ostringstream log;
    log << std::ifstream(folder / "control.log").rdbuf();
    answer = fmt::format("`{} -d` {}: {}", control_program(),
                         status ? fmt::format("left with code {}", *status) : "did not return",
                         log.str());
  }
  [[maybe_unused]] const auto written = ::write(ready, answer.data(), answer.size());
  ::close(ready);

  char byte = 0;
  while (::read(lifeline, &byte, 1) < 0 && errno == EINTR) {
  }
  end_daemon(folder);
  ::_exit(0);
}

}  // namespace

MpsDaemon::MpsDaemon() {
  std::string pattern = (std::filesystem::temp_directory_path() / "coterie-mps-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) {
    throw DeviceError(fmt::format("cannot make a folder for the MPS daemon at {}: {}", pattern,
                                  std::strerror(errno)));
  }
  folder_ = pattern;
  std::array<int, 2> lifeline{};
  std::array<int, 2> ready{};
  if (::pipe2(lifeline.data(), O_CLOEXEC) != 0 || ::pipe2(ready.data(), O_CLOEXEC) != 0) {
    throw DeviceError(fmt::format("pipe failed: {}", std::strerror(errno)));
  }
  guardian_ = ::fork();
  if (guardian_ == 0) {
    ::close(lifeline[1]);
    ::close(ready[0]);
    guard(folder_, lifeline[0], ready[1]);
  }
  ::close(lifeline[0]);
  ::close(ready[1]);
  lifeline_ = Descriptor(lifeline[1]);
  const Descriptor answer_pipe(ready[0]);
  if (guardian_ < 0) throw DeviceError(fmt::format("fork failed: {}", std::strerror(errno)));

  std::string answer;
  std::array<char, 512> buffer{};
  for (ssize_t count = 1; count > 0;) {
    count = ::read(answer_pipe.get(), buffer.data(), buffer.size());
    if (count > 0) answer.append(buffer.data(), static_cast<std::size_t>(count));
  }
  if (answer != "ok") {
    lifeline_.reset();
    ::waitpid(guardian_, nullptr, 0);
    while (!answer.empty() && answer.back() == '\n') answer.pop_back();
    throw DeviceError("the MPS daemon did not start: " + answer);
  }
}

MpsDaemon::~MpsDaemon() {
  lifeline_.reset();
  ::waitpid(guardian_, nullptr, 0);
}

std::optional<std::string> devices_of_clients(std::string_view visible) {
  std::string devices;
  for (std::size_t count = 0, begin = 0; begin < visible.size(); ++count) {
    const std::size_t end = std::min(visible.find(',', begin), visible.size());
    const std::string_view index = visible.substr(begin, end - begin);
    if (index.empty() || index.find_first_not_of("0123456789") != std::string_view::npos) {
      return std::nullopt;
    }
    devices += (count == 0 ? "" : ",") + std::to_string(count);
    begin = end + 1;
  }
  if (devices.empty()) return std::nullopt;
  return devices;
}

}  // namespace coterie

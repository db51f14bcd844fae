#include "core/child_message.hpp"

#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>

#include "core/command_line.hpp"

namespace coterie {
namespace {

// First byte of a message: the result follows, or the exit code's digit and a sentence.
constexpr char kResult = 'R';
constexpr char kFailure = 'F';

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

}  // namespace

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

std::string child_message(const std::function<std::string()>& body) {
  const auto failure = [](ExitCode code, const char* sentence) {
    return fmt::format("{}{}{}", kFailure, static_cast<int>(code), sentence);
  };
  try {
    return kResult + body();
  } catch (const Error& error) {
    return failure(error.exit_code(), error.what());
  } catch (const std::bad_alloc&) {
    return failure(ExitCode::kInternalError, "out of memory");
  } catch (const std::exception& error) {
    if (const auto fault = file_system_fault(error)) {
      return failure(fault->exit_code(), fault->what());
    }
    return failure(ExitCode::kInternalError, error.what());
  }
}

std::string child_result(std::string message) {
  if (message[0] == kFailure) {
    throw Error(static_cast<ExitCode>(message[1] - '0'), message.substr(2));
  }
  message.erase(0, 1);
  return message;
}

void settle_in_child(int parent, int log) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(1);
  ::dup2(log, STDOUT_FILENO);
  ::dup2(log, STDERR_FILENO);
}

Error child_ended(const std::string& what, int status, int log) {
  if (WIFSIGNALED(status)) {
    const std::string said = first_line(log);
    return {ExitCode::kInternalError,
            fmt::format("{}: its process was ended by signal {} ({}){}{}", what, WTERMSIG(status),
                        ::strsignal(WTERMSIG(status)), said.empty() ? "" : ": ", said)};
  }
  return {ExitCode::kInternalError,
          fmt::format("{}: its process exited with status {} and without a result", what,
                      WEXITSTATUS(status))};
}

Error child_overstayed(const std::string& what, double timeout_s) {
  return {ExitCode::kInternalError,
          fmt::format("{}: not done after {} s; stopped", what, timeout_s)};
}

int wait_for(int pid) {
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

}  // namespace coterie

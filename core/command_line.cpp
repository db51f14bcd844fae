#include "core/command_line.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <iostream>
#include <new>
#include <system_error>

#include "core/error.hpp"
#include "core/file.hpp"

namespace coterie {

void flush_standard_output() {
  errno = 0;
  std::cout.flush();  // passes on to stdio, which is where it fails
  const bool flushed = std::fflush(stdout) == 0;
  int cause = errno;
  if (flushed && std::ferror(stdout) == 0 && std::cout.good()) return;
  std::clearerr(stdout);
  if (cause == 0) {  // it failed earlier; a device, or a descriptor that is closed, fails again
    errno = 0;
    (void)!::write(STDOUT_FILENO, "", 0);
    cause = errno;
  }
  throw InputError(cause != 0
                       ? fmt::format("standard output: writing failed: {}", std::strerror(cause))
                       : "standard output: writing failed");
}

void prepare_standard_descriptors() {
  // A file that is opened later would get the number of a closed one, and what a library prints
  // would end in it. Of /dev/null opened for reading, writes fail: a table that nobody can read is
  // an error, as it is on a full disk.
  for (int fd = 0; fd <= 2; ++fd) {
    if (::fcntl(fd, F_GETFD) >= 0 || errno != EBADF) continue;
    const int opened = ::open("/dev/null", fd == 2 ? O_WRONLY : O_RDONLY);
    if (opened >= 0 && opened != fd) {
      ::dup2(opened, fd);
      ::close(opened);
    }
  }
}

std::optional<InputError> file_system_fault(const std::exception& error) {
  const auto* fault = dynamic_cast<const std::filesystem::filesystem_error*>(&error);
  if (fault == nullptr) return std::nullopt;
  return InputError(fmt::format("{}: {}", fault->path1().string(), fault->code().message()));
}

int run_guarded(const std::string& program, const std::function<int()>& body) {
  const auto fail = [&](const char* kind, const char* message, ExitCode code) {
    std::fflush(stdout);
    std::clearerr(stdout);
    fmt::print(stderr, "{}: {}: {}\n", program, kind, message);
    return static_cast<int>(code);
  };
  try {
    const int code = body();
    flush_standard_output();
    return code;
  } catch (const Error& error) {
    return fail("error", error.what(), error.exit_code());
  } catch (const std::bad_alloc&) {
    return fail("error", "out of memory", ExitCode::kInternalError);
  } catch (const std::exception& error) {
    if (const auto fault = file_system_fault(error)) {
      return fail("error", fault->what(), fault->exit_code());
    }
    if (std::ferror(stdout) != 0) {  // a printer that noticed it before the end
      const auto* system = dynamic_cast<const std::system_error*>(&error);
      const std::string message =
          fmt::format("standard output: writing failed: {}",
                      system != nullptr ? system->code().message() : std::strerror(EIO));
      return fail("error", message.c_str(), ExitCode::kBadInput);
    }
    return fail("internal error", error.what(), ExitCode::kInternalError);
  }
}

void set_up_messages(const std::string& program) {
  const char* no_color = std::getenv("NO_COLOR");
  const bool plain = no_color != nullptr && *no_color != '\0';
  spdlog::set_default_logger(spdlog::stderr_color_mt(
      program, plain ? spdlog::color_mode::never : spdlog::color_mode::automatic));
  spdlog::set_pattern("%^%l%$: %v");
}

}  // namespace coterie

#pragma once
// Errors that reach the user. They are thrown where the fault is found and caught only in `main`,
// which prints the one sentence they carry and exits with their code.

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <string_view>

namespace coterie {

// Exit codes of every program of the project.
enum class ExitCode : int {
  kOk = 0,
  kInternalError = 1,
  kBadInput = 2,
  kDeviceFailure = 3,
  kCheckFailed = 4,
};

class Error : public std::runtime_error {
 public:
  Error(ExitCode exit_code, const std::string& message)
      : std::runtime_error(message), exit_code_(exit_code) {}
  [[nodiscard]] ExitCode exit_code() const { return exit_code_; }

 private:
  ExitCode exit_code_;
};

// Bad input or usage: one sentence that says where, what was found and what was expected.
class InputError : public Error {
 public:
  explicit InputError(const std::string& message) : Error(ExitCode::kBadInput, message) {}
  // "<where>: found <found>, expected <expected>"
  InputError(std::string_view where, std::string_view found, std::string_view expected)
      : InputError(fmt::format("{}: found {}, expected {}", where, found, expected)) {}
};

// A device, driver, communication library or peer process failed.
class DeviceError : public Error {
 public:
  explicit DeviceError(const std::string& message) : Error(ExitCode::kDeviceFailure, message) {}
};

// A check that the user asked for did not hold (a plan that serves an expert twice, say).
class CheckError : public Error {
 public:
  explicit CheckError(const std::string& message) : Error(ExitCode::kCheckFailed, message) {}
};

}  // namespace coterie

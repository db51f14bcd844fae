// Work in a process of its own: its result, and every way in which it may fail.

#include "core/child_process.hpp"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>

#include "core/error.hpp"

namespace coterie {
namespace {

// What a child process may do instead of returning.
std::string failure(double timeout_s, const std::function<std::string()>& body, ExitCode code) {
  try {
    run_in_child("test", timeout_s, body);
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), code);
    return error.what();
  }
  return "no error";
}

TEST(ChildProcess, ReturnsBytes) {
  const std::string large(1 << 20, '\0');
  EXPECT_EQ(run_in_child("test", 0.0, [&] { return large; }), large);
  EXPECT_EQ(run_in_child("test", 10.0, [] { return std::string(); }), "");
}

TEST(ChildProcess, EveryFailureIsOneSentence) {
  EXPECT_EQ(failure(
                0.0, []() -> std::string { throw InputError("x: found 1, expected 2"); },
                ExitCode::kBadInput),
            "x: found 1, expected 2");
  const auto abort_loudly = []() -> std::string {
    std::fputs("[0.1] [root/CRITICAL] no such host\nmore\n", stderr);
    std::abort();
  };
  EXPECT_EQ(failure(0.0, abort_loudly, ExitCode::kInternalError),
            "test: its process was ended by signal 6 (Aborted): no such host");
  EXPECT_EQ(failure(
                0.0, []() -> std::string { std::_Exit(7); }, ExitCode::kInternalError),
            "test: its process exited with status 7 and without a result");
  EXPECT_EQ(failure(
                0.2,
                []() -> std::string {
                  while (true) {
                  }
                },
                ExitCode::kInternalError),
            "test: not done after 0.2 s; stopped");
}

}  // namespace
}  // namespace coterie

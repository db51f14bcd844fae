#include "core/command_line.hpp"

#include <fmt/format.h>

#include <cstdio>
#include <exception>
#include <new>

#include "core/error.hpp"

namespace coterie {

int run_guarded(const std::string& program, const std::function<int()>& body) {
  const auto fail = [&](const char* kind, const char* message, ExitCode code) {
    std::fflush(stdout);
    fmt::print(stderr, "{}: {}: {}\n", program, kind, message);
    return static_cast<int>(code);
  };
  try {
    return body();
  } catch (const Error& error) {
    return fail("error", error.what(), error.exit_code());
  } catch (const std::bad_alloc&) {
    return fail("error", "out of memory", ExitCode::kInternalError);
  } catch (const std::exception& error) {
    return fail("internal error", error.what(), ExitCode::kInternalError);
  }
}

}  // namespace coterie

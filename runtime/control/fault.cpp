#include "runtime/control/fault.hpp"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>

#include "core/error.hpp"

namespace coterie {

bool fault_point(std::uint32_t rank, std::string_view point) {
  const char* variable = std::getenv("COTERIE_FAULT");
  if (variable == nullptr || *variable == '\0') return false;
  const std::string_view text = variable;
  const std::size_t first = text.find(':');
  const std::size_t last = text.rfind(':');
  if (first == std::string_view::npos || first == last) {
    throw InputError("environment variable COTERIE_FAULT", fmt::format("\"{}\"", text),
                     "RANK:POINT:ACTION");
  }
  if (text.substr(0, first) != std::to_string(rank)) return false;
  if (text.substr(first + 1, last - first - 1) != point) return false;
  const std::string_view action = text.substr(last + 1);
  if (action == "kill") {
    ::kill(::getpid(), SIGKILL);
  } else if (action == "stop") {
    ::kill(::getpid(), SIGSTOP);
  } else if (action == "hang") {
    while (true) std::this_thread::sleep_for(std::chrono::hours(1));
  } else if (action == "exit") {
    ::_exit(7);
  } else if (action == "throw") {
    throw DeviceError(fmt::format("injected fault at {}", point));
  } else if (action == "corrupt") {
    return true;
  } else {
    throw InputError("environment variable COTERIE_FAULT", fmt::format("action \"{}\"", action),
                     "kill, stop, hang, exit, throw or corrupt");
  }
  return false;
}

}  // namespace coterie

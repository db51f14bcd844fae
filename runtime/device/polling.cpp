#include "runtime/device/polling.hpp"

#include <chrono>
#include <thread>

namespace coterie {
namespace {

using Clock = std::chrono::steady_clock;
// Most waits are for the host half of a group launch: tens of microseconds, during which a sleep
// would cost more than it saves. Longer ones leave the core to others.
constexpr auto kSpin = std::chrono::microseconds(500);
constexpr auto kPollPause = std::chrono::microseconds(50);
constexpr auto kLookAround = std::chrono::milliseconds(5);

}  // namespace

void poll_until(ControlGroup& group, const std::function<bool()>& done,
                const std::function<void()>& look) {
  const Clock::time_point start = Clock::now();
  Clock::time_point last_look = start;
  while (!done()) {
    const Clock::time_point now = Clock::now();
    if (now - start < kSpin) {
      std::this_thread::yield();
      continue;
    }
    std::this_thread::sleep_for(kPollPause);
    if (now - last_look < kLookAround) continue;
    last_look = now;
    group.check();
    look();
    const double waited_s = std::chrono::duration<double>(now - start).count();
    if (waited_s > group.options().step_s) group.report_stuck(waited_s);
  }
}

void await_verdict(ControlGroup& group) {
  const Clock::time_point start = Clock::now();
  const auto patience = std::chrono::duration<double>(group.options().silence_s + 1.0);
  while (Clock::now() - start < patience) {
    group.check();
    std::this_thread::sleep_for(kLookAround);
  }
}

}  // namespace coterie

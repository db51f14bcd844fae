#pragma once
// What the hub and its clients say to each other, as frames of a Channel.

#include <chrono>
#include <cstdint>
#include <string>

#include "core/error.hpp"
#include "runtime/control/channel.hpp"

namespace coterie {

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

inline constexpr std::uint32_t kProtocolVersion = 1;
inline constexpr auto kTick = std::chrono::milliseconds(100);
inline constexpr double kHeartbeatPeriod = 0.25;  // seconds

enum GroupMessage : std::uint32_t {
  kHello = 1,  // version, job, rank, num_ranks
  kWelcome,    // all ranks have joined
  kHeartbeat,  // to the hub: progress, stage; from the hub: empty
  kSubmit,     // sequence number, name, deadline, one blob per rank
  kResult,     // sequence number, one blob per rank
  kStuck,      // seconds waited
  kFail,       // exit code, sentence
  kAbort,      // exit code, sentence
  kBye,
};

inline std::string pack_failure(ExitCode code, const std::string& sentence) {
  return Packer().number(static_cast<std::int32_t>(code)).text(sentence).take();
}

struct Failure {
  ExitCode code = ExitCode::kDeviceFailure;
  std::string sentence;
};

inline Failure unpack_failure(const std::string& body) {
  Unpacker unpacker(body);
  const auto code = static_cast<ExitCode>(unpacker.number<std::int32_t>());
  return {code, unpacker.text()};
}

}  // namespace coterie

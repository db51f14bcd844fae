#pragma once
// Starts the ranks of a run on this machine and answers for them: when one fails, the others are
// ended, one sentence says what happened, and nothing is left behind.

#include <cstdint>
#include <string>
#include <vector>

#include "core/error.hpp"

namespace coterie {

enum class MpsUse : std::uint8_t { kAuto, kOn, kOff };

struct LaunchRequest {
  std::uint32_t num_ranks = 1;
  MpsUse mps = MpsUse::kAuto;          // auto: where there are more ranks than GPUs, and GPUs
  int num_gpus = 0;                    // of this machine
  double grace_s = 4.0;                // from the first failure to SIGKILL for the rest
  std::vector<std::string> arguments;  // of each rank's coterie-runtime
};

struct LaunchOutcome {
  int exit_code = 0;
  std::string sentence;  // what went wrong
};

// Returns when all ranks have ended. SIGINT, SIGTERM and SIGHUP end the ranks; the outcome is then
// 128 + the signal, as a shell would say.
LaunchOutcome launch(const LaunchRequest& request);

// Says why this rank fails: through the launcher's status pipe where there is one (so that one
// sentence is printed, not one per rank), else on stderr.
void report_failure(const std::string& sentence, int exit_code);

}  // namespace coterie

#include "sim/step/step_times.hpp"

#include <algorithm>

namespace coterie {

void StepTimes::scale(double factor) {
  for (double* const seconds : {&time_s, &communication_s, &exposed_s, &bubble_s, &compute_s,
                                &scale_up_busy_s, &network_busy_s}) {
    *seconds *= factor;
  }
  for (double& part : parts) part *= factor;
  for (CriticalSegment& segment : critical_path) segment.seconds *= factor;
}

void StepTimes::add(const StepTimes& other, double factor) {
  StepTimes more = other;
  more.scale(factor);
  time_s += more.time_s;
  communication_s += more.communication_s;
  exposed_s += more.exposed_s;
  bubble_s += more.bubble_s;
  compute_s += more.compute_s;
  scale_up_busy_s += more.scale_up_busy_s;
  network_busy_s += more.network_busy_s;
  for (std::size_t i = 0; i < kNumStepParts; ++i) parts[i] += more.parts[i];
  for (const CriticalSegment& segment : more.critical_path) {
    const auto same = std::find_if(critical_path.begin(), critical_path.end(),
                                   [&](const auto& own) { return own.name == segment.name; });
    if (same == critical_path.end()) {
      critical_path.push_back(segment);
    } else {
      same->seconds += segment.seconds;
    }
  }
  std::stable_sort(critical_path.begin(), critical_path.end(),
                   [](const auto& a, const auto& b) { return a.seconds > b.seconds; });
  longest_stall_s = std::max(longest_stall_s, more.longest_stall_s);
  num_blocks += more.num_blocks;
  num_operations += more.num_operations;
}

}  // namespace coterie

#include "sim/report/shares.hpp"

#include <algorithm>
#include <numeric>

namespace coterie {
namespace {

std::size_t last_rank(const LayerReport& layer) {
  std::size_t last = 0;
  double last_end_s = 0.0;
  for (const PhaseTimes& times : layer.phases) {
    for (std::size_t rank = 0; rank < times.end_s.size(); ++rank) {
      if (times.end_s[rank] > last_end_s) {
        last_end_s = times.end_s[rank];
        last = rank;
      }
    }
  }
  return last;
}

}  // namespace

double TimeShares::total_s() const {
  return std::accumulate(phase_s.begin(), phase_s.end(), wait_s);
}

double TimeShares::communication_s() const {
  double sum = phase_s[static_cast<std::size_t>(Phase::kNotify)];
  for (const Phase phase : {Phase::kDispatch, Phase::kForward, Phase::kGather, Phase::kCombine}) {
    sum += phase_s[static_cast<std::size_t>(phase)];
  }
  return sum;
}

TimeShares& TimeShares::operator+=(const TimeShares& other) {
  for (std::size_t i = 0; i < phase_s.size(); ++i) phase_s[i] += other.phase_s[i];
  wait_s += other.wait_s;
  return *this;
}

TimeShares shares_of_last_rank(const LayerReport& layer) {
  TimeShares shares;
  const std::size_t rank = last_rank(layer);
  double now_s = 0.0;
  for (const PhaseTimes& times : layer.phases) {
    if (rank >= times.end_s.size() || times.end_s[rank] <= now_s) continue;
    shares.wait_s += std::max(0.0, times.begin_s[rank] - now_s);
    shares.phase_s[static_cast<std::size_t>(times.phase)] +=
        times.end_s[rank] - std::max(now_s, times.begin_s[rank]);
    now_s = times.end_s[rank];
  }
  return shares;
}

TimeShares shares_of_last_rank(const RunReport& run) {
  TimeShares sum;
  for (const LayerReport& layer : run.layers) sum += shares_of_last_rank(layer);
  return sum;
}

}  // namespace coterie

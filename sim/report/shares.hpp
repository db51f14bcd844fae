#pragma once
// Where the time of a layer goes on the rank that ends it.

#include <array>

#include "core/report.hpp"

namespace coterie {

// Seconds of the rank that finishes last, split without overlap: a phase counts from where the
// phases before it have ended, and what no phase covers is waiting. The parts add up to the end of
// that rank.
struct TimeShares {
  std::array<double, kNumPhases> phase_s{};
  double wait_s = 0.0;

  [[nodiscard]] double total_s() const;
  // notify, dispatch, forward, gather and combine
  [[nodiscard]] double communication_s() const;
  TimeShares& operator+=(const TimeShares& other);
};

TimeShares shares_of_last_rank(const LayerReport& layer);
// Sum over the layers.
TimeShares shares_of_last_rank(const RunReport& run);

}  // namespace coterie

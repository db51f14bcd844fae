#pragma once
// The slow, obvious max-min solver and the optimality check that the flow engine's tests use.
// Shares no code with the engine.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <fmt/format.h>

namespace coterie::testing {

struct SlowFlow {
  std::vector<std::uint32_t> route;
  double cap = std::numeric_limits<double>::infinity();
};

// Progressive filling as in the textbook: raise all open flows by the smallest step that fills a
// link or reaches a cap, freeze those flows, repeat. O(steps * flows * links).
inline std::vector<double> slow_max_min(const std::vector<SlowFlow>& flows,
                                        const std::vector<double>& capacity) {
  std::vector<double> rate(flows.size(), 0.0);
  std::vector<bool> frozen(flows.size(), false);
  for (;;) {
    std::vector<double> used(capacity.size(), 0.0);
    std::vector<int> open(capacity.size(), 0);
    bool any_open = false;
    for (std::size_t f = 0; f < flows.size(); ++f) {
      for (const std::uint32_t link : flows[f].route) {
        used[link] += rate[f];
        if (!frozen[f]) ++open[link];
      }
      any_open = any_open || !frozen[f];
    }
    if (!any_open) return rate;
    double step = std::numeric_limits<double>::infinity();
    for (std::size_t link = 0; link < capacity.size(); ++link) {
      if (open[link] > 0) step = std::min(step, (capacity[link] - used[link]) / open[link]);
    }
    for (std::size_t f = 0; f < flows.size(); ++f) {
      if (!frozen[f]) step = std::min(step, flows[f].cap - rate[f]);
    }
    step = std::max(step, 0.0);
    for (std::size_t f = 0; f < flows.size(); ++f) {
      if (frozen[f]) continue;
      rate[f] += step;
      for (const std::uint32_t link : flows[f].route) used[link] += step;
    }
    for (std::size_t f = 0; f < flows.size(); ++f) {
      if (frozen[f]) continue;
      frozen[f] = rate[f] >= flows[f].cap * (1.0 - 1e-12);
      for (const std::uint32_t link : flows[f].route) {
        if (used[link] >= capacity[link] * (1.0 - 1e-12)) frozen[f] = true;
      }
    }
  }
}

// Empty when no link carries more than its capacity and no flow more than its cap.
inline std::string why_infeasible(const std::vector<SlowFlow>& flows,
                                  const std::vector<double>& rate,
                                  const std::vector<double>& capacity) {
  std::vector<double> used(capacity.size(), 0.0);
  for (std::size_t f = 0; f < flows.size(); ++f) {
    if (!(rate[f] >= 0.0)) return fmt::format("flow {} has rate {}", f, rate[f]);
    if (rate[f] > flows[f].cap * (1.0 + 1e-9)) return fmt::format("flow {} above its cap", f);
    for (const std::uint32_t link : flows[f].route) used[link] += rate[f];
  }
  for (std::size_t link = 0; link < capacity.size(); ++link) {
    if (used[link] > capacity[link] * (1.0 + 1e-9)) {
      return fmt::format("link {} carries {} of {}", link, used[link], capacity[link]);
    }
  }
  return {};
}

// Empty when the rates are max-min fair by the textbook's criterion: every flow is at its cap or
// crosses a saturated link on which no flow is faster.
inline std::string why_not_max_min(const std::vector<SlowFlow>& flows,
                                   const std::vector<double>& rate,
                                   const std::vector<double>& capacity) {
  if (const std::string reason = why_infeasible(flows, rate, capacity); !reason.empty()) {
    return reason;
  }
  std::vector<double> used(capacity.size(), 0.0);
  std::vector<double> fastest(capacity.size(), 0.0);
  for (std::size_t f = 0; f < flows.size(); ++f) {
    for (const std::uint32_t link : flows[f].route) {
      used[link] += rate[f];
      fastest[link] = std::max(fastest[link], rate[f]);
    }
  }
  for (std::size_t f = 0; f < flows.size(); ++f) {
    bool stopped = rate[f] >= flows[f].cap * (1.0 - 1e-9);
    for (const std::uint32_t link : flows[f].route) {
      stopped = stopped || (used[link] >= capacity[link] * (1.0 - 1e-9) &&
                            rate[f] >= fastest[link] * (1.0 - 1e-9));
    }
    if (!stopped) return fmt::format("flow {} at {} has no bottleneck", f, rate[f]);
  }
  return {};
}

}  // namespace coterie::testing

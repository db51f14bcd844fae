#pragma once
// Progressive filling on the flow engine's state (Bertsekas and Gallager, Data Networks, 6.5.2).
//
// Raise all rates together from zero. The level at which the next thing stops them is the smallest
// of
//   - the fair share of a link: the capacity its settled flows leave, over its unsettled flows;
//   - the cap of an unsettled flow.
// The flows concerned are settled at that level, and the others go on. A link's share never falls
// while this goes on (a flow settled elsewhere took no more than the share), so a heap of shares
// may hold outdated keys: they are lower bounds, and a link whose key turns out to be outdated goes
// back with its present share. Each (flow, link) pair is visited twice, each link a few times:
// O(pairs + links log links) per solve in practice.

#include <cstdint>
#include <span>
#include <vector>

#include "sim/engines/flow_state.hpp"

namespace coterie::flow {

// The rate of a settled flow is the smallest of its cap and the levels of its saturated links,
// since those levels only grow. Flows without a cap and with few links are therefore not touched
// while levels are found: their links' lists say which other links they cross (Entry).

class MaxMinSolver {
 public:
  // Sets the rates of all flows that are connected to the links of `seeds` (through common links,
  // transitively) to their max-min fair shares of what the links allow, from `now` on. With an
  // `allow_s` of zero that is their capacity; else the links' credit is spent over the next
  // `allow_s` seconds, and the caller moves the horizon, which files the finishes.
  void solve(FlowState& state, std::span<const std::uint32_t> seeds, double now, double allow_s);
  // The same for all flows. Cheaper than walking from link to link where most of them changed.
  void solve_all(FlowState& state, double now, double allow_s);
  // Links and flows of the last solve.
  [[nodiscard]] std::span<const std::uint32_t> links() const { return links_; }
  [[nodiscard]] std::size_t num_flows() const { return num_flows_; }

 private:
  struct Share {
    double level;
    std::uint32_t link;
  };
  void start(FlowState& state, double now, double allow_s);
  void visit_link(FlowState& state, std::uint32_t link);
  void visit_flow(FlowState& state, std::uint32_t slot);
  void fill(FlowState& state);
  void settle(FlowState& state, std::uint32_t slot, double level);
  void apply(FlowState& state, std::span<const std::uint32_t> flows);
  void sift_down(std::size_t at);

  std::uint32_t round_ = 0;
  double now_ = 0.0;
  double allow_s_ = 0.0;
  std::vector<std::uint32_t> links_;  // of this solve
  std::vector<std::uint32_t> flows_;  // slots of this solve, if not all
  std::size_t num_flows_ = 0;
  std::vector<std::uint32_t> mark_;    // [slot] the round that last visited it
  std::vector<double> new_rate_;       // [slot] of flows that are not plain; negative: not settled
  std::vector<Share> heap_;            // by level
  std::vector<std::uint32_t> capped_;  // slots whose cap may bind, by cap
};

}  // namespace coterie::flow

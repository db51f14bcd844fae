#include "sim/engines/flow_maxmin.hpp"

#include <algorithm>
#include <cmath>

namespace coterie::flow {
namespace {

// Rates that differ by less are the same: settling them again would only add rounding errors.
constexpr double kSameRate = 1e-12;

}  // namespace

void MaxMinSolver::visit_link(FlowState& state, std::uint32_t link_id) {
  LinkState& link = state.link(link_id);
  if (link.mark == round_) return;
  link.mark = round_;
  link.open = link.capacity;
  link.open_flows = static_cast<std::uint32_t>(link.entries.size());
  link.level = kNever;
  links_.push_back(link_id);
}

void MaxMinSolver::collect(FlowState& state, std::span<const std::uint32_t> seeds) {
  ++round_;
  links_.clear();
  flows_.clear();
  capped_.clear();
  heap_.clear();
  new_rate_.resize(state.slots().size());
  for (const std::uint32_t seed : seeds) visit_link(state, seed);
  for (std::size_t i = 0; i < links_.size(); ++i) {  // grows while it is walked: breadth first
    for (const std::uint32_t entry : state.link(links_[i]).entries) {
      const std::uint32_t slot = state.slot_of(entry);
      Flow& flow = state.flow(slot);
      if (flow.mark == round_) continue;
      flow.mark = round_;
      flows_.push_back(slot);
      for (const std::uint32_t hop : state.hops(slot)) visit_link(state, hop);
      if (flow.cap < kNever) capped_.push_back(slot);
    }
  }
  std::sort(capped_.begin(), capped_.end(), [&](std::uint32_t a, std::uint32_t b) {
    const double cap_a = state.flow(a).cap;
    const double cap_b = state.flow(b).cap;
    return cap_a != cap_b ? cap_a < cap_b : a < b;
  });
  for (const std::uint32_t link_id : links_) {
    const LinkState& link = state.link(link_id);
    if (link.open_flows > 0) heap_.push_back({link.open / link.open_flows, link_id});
  }
  for (std::size_t i = heap_.size() / 2; i-- > 0;) sift_down(i);
}

void MaxMinSolver::sift_down(std::size_t at) {
  const Share moved = heap_[at];
  const std::size_t size = heap_.size();
  for (std::size_t child = 2 * at + 1; child < size; child = 2 * at + 1) {
    if (child + 1 < size && heap_[child + 1].level < heap_[child].level) ++child;
    if (heap_[child].level >= moved.level) break;
    heap_[at] = heap_[child];
    at = child;
  }
  heap_[at] = moved;
}

void MaxMinSolver::settle(FlowState& state, std::uint32_t slot, double level) {
  state.flow(slot).settled = round_;
  new_rate_[slot] = level;
  for (const std::uint32_t hop : state.hops(slot)) {
    LinkState& link = state.link(hop);
    link.open = std::max(0.0, link.open - level);
    --link.open_flows;
  }
}

void MaxMinSolver::fill(FlowState& state) {
  const auto settled = [&](std::uint32_t slot) { return state.flow(slot).settled == round_; };
  std::size_t next_capped = 0;
  while (!heap_.empty()) {
    const std::uint32_t link_id = heap_.front().link;
    LinkState& link = state.link(link_id);
    if (link.open_flows == 0) {
      heap_.front() = heap_.back();
      heap_.pop_back();
      if (!heap_.empty()) sift_down(0);
      continue;
    }
    const double share = link.open / link.open_flows;
    if (share > heap_.front().level) {  // outdated
      heap_.front().level = share;
      sift_down(0);
      if (heap_.front().link != link_id) continue;
    }
    while (next_capped < capped_.size() && settled(capped_[next_capped])) ++next_capped;
    if (next_capped < capped_.size() && state.flow(capped_[next_capped]).cap <= share) {
      settle(state, capped_[next_capped], state.flow(capped_[next_capped]).cap);
      continue;
    }
    for (const std::uint32_t entry : link.entries) {
      const std::uint32_t slot = state.slot_of(entry);
      if (!settled(slot)) settle(state, slot, share);
    }
    link.open = 0.0;  // what is left is rounding
    link.level = share;
  }
}

void MaxMinSolver::solve(FlowState& state, std::span<const std::uint32_t> seeds, double now) {
  collect(state, seeds);
  fill(state);
  for (const std::uint32_t link_id : links_) {
    LinkState& link = state.link(link_id);
    link.residual = link.open;
  }
  for (const std::uint32_t slot : flows_) {
    const double old_rate = state.flow(slot).rate;
    const double rate = new_rate_[slot];
    if (std::abs(rate - old_rate) > kSameRate * old_rate) state.set_rate(slot, rate, now);
  }
}

}  // namespace coterie::flow

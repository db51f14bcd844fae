#include "sim/engines/flow_maxmin.hpp"

#include <algorithm>
#include <cmath>

namespace coterie::flow {
namespace {

// Rates that differ by less are the same: settling them again would only add rounding errors.
constexpr double kSameRate = 1e-12;

}  // namespace

void MaxMinSolver::start(FlowState& state, double now, double allow_s) {
  ++round_;
  now_ = now;
  allow_s_ = allow_s;
  links_.clear();
  flows_.clear();
  capped_.clear();
  heap_.clear();
  mark_.resize(state.num_slots(), 0);
  new_rate_.resize(state.num_slots());
}

void MaxMinSolver::visit_link(FlowState& state, std::uint32_t link_id) {
  LinkShare& share = state.share(link_id);
  if (share.mark == round_) return;
  share.mark = round_;
  LinkState& link = state.link(link_id);
  link.limit = link.capacity;
  if (allow_s_ > 0.0) {
    // A solve before the horizon ends both the use of the extra rate and the idle time early.
    const double early_s = std::max(0.0, state.horizon() - now_);
    const double credit = link.credit + (link.extra - link.freed) * early_s;
    link.extra = 0.0;
    if (link.entries.size() > kRepairFlows && credit > 0.0) link.extra = credit / allow_s_;
    link.limit += link.extra;
    link.credit = link.freed = 0.0;
  }
  share.open = link.limit;
  share.open_flows = static_cast<std::uint32_t>(link.entries.size());
  share.level = kNever;
  links_.push_back(link_id);
}

void MaxMinSolver::visit_flow(FlowState& state, std::uint32_t slot) {
  if (state.plain(slot)) return;
  new_rate_[slot] = -1.0;
  if (state.cap(slot) < kNever) capped_.push_back(slot);
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
  new_rate_[slot] = level;
  for (const FlowState::Hop& hop : state.hops(slot)) {
    LinkShare& link = state.share(hop.link);
    link.open = std::max(0.0, link.open - level);
    --link.open_flows;
  }
}

void MaxMinSolver::fill(FlowState& state) {
  std::sort(capped_.begin(), capped_.end(), [&](std::uint32_t a, std::uint32_t b) {
    return state.cap(a) != state.cap(b) ? state.cap(a) < state.cap(b) : a < b;
  });
  for (const std::uint32_t link_id : links_) {
    const LinkShare& link = state.share(link_id);
    if (link.open_flows > 0) heap_.push_back({link.open / link.open_flows, link_id});
  }
  for (std::size_t i = heap_.size() / 2; i-- > 0;) sift_down(i);

  const auto settled = [&](std::uint32_t slot) { return new_rate_[slot] >= 0.0; };
  std::size_t next_capped = 0;
  while (!heap_.empty()) {
    const std::uint32_t link_id = heap_.front().link;
    LinkShare& link = state.share(link_id);
    if (link.open_flows == 0) {
      heap_.front() = heap_.back();
      heap_.pop_back();
      if (!heap_.empty()) sift_down(0);
      continue;
    }
    const double level = link.open / link.open_flows;
    if (level > heap_.front().level) {  // outdated
      heap_.front().level = level;
      sift_down(0);
      if (heap_.front().link != link_id) continue;
    }
    while (next_capped < capped_.size() && settled(capped_[next_capped])) ++next_capped;
    if (next_capped < capped_.size() && state.cap(capped_[next_capped]) <= level) {
      settle(state, capped_[next_capped], state.cap(capped_[next_capped]));
      continue;
    }
    for (const Entry& entry : state.link(link_id).entries) {
      if (entry.other[0] == kNoLink) {
        const std::uint32_t slot = state.slot_of(entry);
        if (!settled(slot)) settle(state, slot, level);
        continue;
      }
      LinkShare& a = state.share(entry.other[0]);
      LinkShare& b = state.share(entry.other[1]);
      if (std::min(a.level, b.level) < kNever) continue;
      a.open = std::max(0.0, a.open - level);
      --a.open_flows;
      b.open = std::max(0.0, b.open - level);
      --b.open_flows;
    }
    link.open = 0.0;  // what is left is rounding
    link.open_flows = 0;
    link.level = level;
  }
}

void MaxMinSolver::apply(FlowState& state, std::span<const std::uint32_t> flows) {
  num_flows_ = flows.size();
  for (const std::uint32_t link_id : links_) {
    state.link(link_id).residual = state.share(link_id).open;
  }
  for (const std::uint32_t slot : flows) {
    double rate = kNever;
    if (state.plain(slot)) {
      for (const FlowState::Hop& hop : state.hops(slot)) {
        rate = std::min(rate, state.level(hop.link));
      }
    } else {
      rate = new_rate_[slot];
    }
    const double old_rate = state.rate(slot);
    if (std::abs(rate - old_rate) <= kSameRate * old_rate) continue;
    if (allow_s_ > 0.0) {
      state.change_rate(slot, rate, now_);
    } else {
      state.set_rate(slot, rate, now_);
    }
  }
}

void MaxMinSolver::solve(FlowState& state, std::span<const std::uint32_t> seeds, double now,
                         double allow_s) {
  start(state, now, allow_s);
  for (const std::uint32_t seed : seeds) visit_link(state, seed);
  for (std::size_t i = 0; i < links_.size(); ++i) {  // grows while it is walked: breadth first
    for (const Entry& entry : state.link(links_[i]).entries) {
      const std::uint32_t slot = state.slot_of(entry);
      if (mark_[slot] == round_) continue;
      mark_[slot] = round_;
      flows_.push_back(slot);
      visit_flow(state, slot);
      for (const FlowState::Hop& hop : state.hops(slot)) visit_link(state, hop.link);
    }
  }
  fill(state);
  apply(state, flows_);
}

void MaxMinSolver::solve_all(FlowState& state, double now, double allow_s) {
  start(state, now, allow_s);
  for (std::uint32_t link = 0; link < state.links().size(); ++link) {
    if (!state.link(link).entries.empty()) visit_link(state, link);
  }
  for (const std::uint32_t slot : state.active()) visit_flow(state, slot);
  fill(state);
  apply(state, state.active());
}

}  // namespace coterie::flow

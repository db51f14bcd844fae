#include "sim/engines/flow_maxmin.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <iterator>

namespace coterie::flow {
namespace {

// Rates that differ by less are the same: settling them again would only add rounding errors.
constexpr double kSameRate = 1e-12;

}  // namespace

void ShareQueue::start(double lowest, std::size_t num_links) {
  std::fill(std::begin(used_), std::end(used_), 0);
  heap_.clear();
  listed_.resize(std::max(listed_.size(), num_links));
  base_ = leading_bits(lowest);
  bucket_ = 0;
}

void ShareQueue::add(double level, std::uint32_t link) {
  const std::uint32_t bucket = bucket_of(level);
  if (bucket > bucket_) return list(bucket, level, link);
  heap_.push_back({level, link});
  sift_up(heap_.size() - 1);
}

void ShareQueue::pop() {
  heap_.front() = heap_.back();
  heap_.pop_back();
  if (!heap_.empty()) sift_down(0);
}

void ShareQueue::sift_down(std::size_t at) {
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

void ShareQueue::sift_up(std::size_t at) {
  const Share moved = heap_[at];
  for (; at > 0 && moved.level < heap_[(at - 1) / 2].level; at = (at - 1) / 2) {
    heap_[at] = heap_[(at - 1) / 2];
  }
  heap_[at] = moved;
}

void MaxMinSolver::start(FlowState& state, double now, double allow_s) {
  ++round_;
  now_ = now;
  allow_s_ = allow_s;
  links_.clear();
  flows_.clear();
  capped_.clear();
  if (!state.all_plain()) new_rate_.resize(state.num_slots());
}

void MaxMinSolver::visit_link(FlowState& state, std::uint32_t link_id) {
  LinkShare& share = state.share(link_id);
  if (share.mark == round_) return;
  share.mark = round_;
  LinkState& link = state.link(link_id);
  // A solve before the horizon ends both the use of the extra rate and the idle time early.
  const double early_s = std::max(0.0, state.horizon() - now_);
  const double credit = link.credit + (link.extra - link.freed) * early_s;
  link.extra = 0.0;
  if (link.entries.size() > kRepairFlows && credit > 0.0) link.extra = credit / allow_s_;
  link.limit = link.capacity + link.extra;
  link.credit = link.freed = 0.0;
  share.open = link.limit;
  share.open_flows = static_cast<double>(link.entries.size());
  share.level = kNever;
  links_.push_back(link_id);
}

void MaxMinSolver::visit_flow(FlowState& state, std::uint32_t slot) {
  if (state.plain(slot)) return;
  new_rate_[slot] = -1.0;
  if (state.cap(slot) < kNever) capped_.push_back(slot);
}

void MaxMinSolver::settle(FlowState& state, std::uint32_t slot, double level) {
  new_rate_[slot] = level;
  for (const FlowState::Hop& hop : state.hops(slot)) {
    LinkShare& link = state.share(hop.link);
    link.open = std::max(0.0, link.open - level);
    link.open_flows -= 1.0;
  }
  --num_unsettled_;
}

// Settles the flows of a link that is saturated at `level`.
void MaxMinSolver::saturate(FlowState& state, std::uint32_t link_id, double level) {
  for (const Entry& entry : state.link(link_id).entries) {
    if (entry.other[0] == kLookUp) {
      const std::uint32_t slot = state.slot_of(entry);
      if (new_rate_[slot] < 0.0) settle(state, slot, level);
      continue;
    }
    LinkShare* shares[3];
    std::uint32_t num_others = 0;
    bool settled = false;
    for (const std::uint32_t other : entry.other) {
      if (other == kNoLink) break;
      LinkShare& share = state.share(other);
      settled = settled || share.level < kNever;
      shares[num_others++] = &share;
    }
    if (settled) continue;
    for (std::uint32_t i = 0; i < num_others; ++i) {
      shares[i]->open = std::max(0.0, shares[i]->open - level);
      shares[i]->open_flows -= 1.0;
    }
    --num_unsettled_;
  }
  LinkShare& link = state.share(link_id);
  link.open = 0.0;  // what is left is rounding
  link.open_flows = 0.0;
  link.level = level;
}

void MaxMinSolver::fill(FlowState& state, std::size_t num_flows) {
  num_unsettled_ = num_flows;
  std::sort(capped_.begin(), capped_.end(), [&](std::uint32_t a, std::uint32_t b) {
    return state.cap(a) != state.cap(b) ? state.cap(a) < state.cap(b) : a < b;
  });
  double lowest = kNever;
  for (const std::uint32_t link_id : links_) {
    LinkShare& link = state.share(link_id);
    // A link of no capacity settles its flows first; it must not stretch the range of the queue.
    if (link.open_flows > 0.0 && link.open > 0.0) {
      lowest = std::min(lowest, link.open / link.open_flows);
    }
  }
  queue_.start(lowest, state.links().size());
  for (const std::uint32_t link_id : links_) {
    const LinkShare& link = state.share(link_id);
    if (link.open_flows > 0.0) queue_.add(link.open / link.open_flows, link_id);
  }

  const auto settled = [&](std::uint32_t slot) { return new_rate_[slot] >= 0.0; };
  std::size_t next_capped = 0;
  const auto share_of = [&](std::uint32_t link_id) {
    const LinkShare& link = state.share(link_id);
    return link.open_flows > 0.0 ? link.open / link.open_flows : kNever;
  };
  while (num_unsettled_ > 0 && queue_.settle_front(share_of)) {
    const ShareQueue::Share front = queue_.front();
    const double level = share_of(front.link);
    if (level == kNever) {
      queue_.pop();
      continue;
    }
    if (level > front.level) {  // outdated
      queue_.pop();
      queue_.add(level, front.link);
      continue;
    }
    while (next_capped < capped_.size() && settled(capped_[next_capped])) ++next_capped;
    if (next_capped < capped_.size() && state.cap(capped_[next_capped]) <= level) {
      settle(state, capped_[next_capped], state.cap(capped_[next_capped]));
      continue;
    }
    saturate(state, front.link, level);
    queue_.pop();
  }
}

void MaxMinSolver::apply(FlowState& state, std::span<const std::uint32_t> flows) {
  num_flows_ = flows.size();
  for (const std::uint32_t link_id : links_) {
    state.residual(link_id) = state.share(link_id).open;
  }
  const bool file = flows.size() == state.num_flowing();
  if (file) state.begin_filing(now_ + allow_s_);
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
    if (std::abs(rate - old_rate) > kSameRate * old_rate) state.change_rate(slot, rate, now_);
    if (file) state.file(slot);
  }
  if (!file) {
    state.begin_filing(now_ + allow_s_);
    for (const std::uint32_t slot : state.active()) state.file(slot);
  }
}

void MaxMinSolver::solve(FlowState& state, std::span<const std::uint32_t> seeds, double now,
                         double allow_s) {
  start(state, now, allow_s);
  mark_.resize(state.num_slots(), 0);
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
  fill(state, flows_.size());
  apply(state, flows_);
}

void MaxMinSolver::solve_all(FlowState& state, double now, double allow_s) {
  start(state, now, allow_s);
  for (std::uint32_t link = 0; link < state.links().size(); ++link) {
    if (!state.link(link).entries.empty()) visit_link(state, link);
  }
  if (!state.all_plain()) {
    for (const std::uint32_t slot : state.active()) visit_flow(state, slot);
  }
  fill(state, state.active().size());
  apply(state, state.active());
}

}  // namespace coterie::flow

#include "sim/engines/flow_repair.hpp"

#include <algorithm>

namespace coterie::flow {
namespace {

// Bandwidth below this share of a link is not worth moving.
constexpr double kNegligible = 1e-3;

}  // namespace

void LocalRepair::begin(std::size_t num_links) {
  ++round_;
  nobody_.resize(num_links, 0);
}

void LocalRepair::raise(FlowState& state, std::uint32_t link_id, double now) {
  // Raising only takes room away: where nobody had any in this round, nobody has now.
  if (nobody_[link_id] == round_) return;
  const LinkState& link = state.link(link_id);
  const double negligible = kNegligible * link.capacity;
  if (link.entries.size() > kRepairFlows || state.residual(link_id) <= negligible) return;

  const auto room_of = [&](std::uint32_t slot) {
    double room = state.cap(slot) - state.rate(slot);
    for (const FlowState::Hop& hop : state.hops(slot)) {
      room = std::min(room, state.residual(hop.link));
    }
    return room;
  };
  // Most flows are held back elsewhere, and by the same link as when they were last asked.
  const double* const residual = state.residuals().data();
  const std::uint32_t* const narrow = state.narrow_links().data();
  const auto has_room = [&](std::uint32_t slot) {
    if (residual[narrow[slot]] <= negligible) return false;
    for (const FlowState::Hop& hop : state.hops(slot)) {
      if (residual[hop.link] > negligible) continue;
      state.set_narrow(slot, hop.link);
      return false;
    }
    return state.cap(slot) - state.rate(slot) > negligible;
  };
  candidates_.clear();
  for (const Entry& entry : link.entries) {
    const std::uint32_t slot = state.slot_of(entry);
    if (has_room(slot)) candidates_.push_back({state.rate(slot), slot});
  }
  if (candidates_.empty()) {
    nobody_[link_id] = round_;
    return;
  }
  std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) {
    return a.rate != b.rate ? a.rate < b.rate : a.slot < b.slot;
  });
  // The level of the lowest i candidates if they alone shared the residual.
  double level = 0.0;
  double sum = state.residual(link_id);
  for (std::size_t i = 0; i < candidates_.size(); ++i) {
    sum += candidates_[i].rate;
    level = sum / static_cast<double>(i + 1);
    if (i + 1 < candidates_.size() && level <= candidates_[i + 1].rate) break;
  }
  // What one candidate cannot take goes to those after it.
  std::size_t left = candidates_.size();
  for (const Candidate& candidate : candidates_) {
    if (state.residual(link_id) <= negligible) break;
    const double fair =
        std::max(level - candidate.rate, state.residual(link_id) / static_cast<double>(left));
    const double gain = std::min(room_of(candidate.slot), fair);
    --left;
    if (gain <= negligible) continue;
    state.set_rate(candidate.slot, candidate.rate + gain, now);
    for (const FlowState::Hop& hop : state.hops(candidate.slot)) {
      state.give_back(hop.link, -gain, now);
    }
  }
}

// Of the link's flows but the newcomer.
void LocalRepair::gather_rates(const FlowState& state, const LinkState& link,
                               std::uint32_t newcomer) {
  rates_.clear();
  for (const Entry& entry : link.entries) {
    const std::uint32_t slot = state.slot_of(entry);
    if (slot != newcomer) rates_.push_back(state.rate(slot));
  }
}

double LocalRepair::newcomer_share(FlowState& state, std::uint32_t link_id,
                                   std::uint32_t newcomer) {
  const LinkState& link = state.link(link_id);
  const std::size_t num_flows = link.entries.size();  // the newcomer included
  if (num_flows > kRepairFlows) {
    return std::clamp(state.residual(link_id), 0.0, state.level(link_id));
  }
  gather_rates(state, link, newcomer);
  // Flows below the level keep their rates; the others and the newcomer share what is left. The
  // level only grows while flows leave the shared part, so this ends.
  double level = link.capacity / static_cast<double>(num_flows);
  for (;;) {
    double kept = 0.0;
    std::size_t num_kept = 0;
    for (const double rate : rates_) {
      if (rate < level) {
        kept += rate;
        ++num_kept;
      }
    }
    const double next = (link.capacity - kept) / static_cast<double>(num_flows - num_kept);
    if (next <= level * (1.0 + 1e-9)) return std::max(next, 0.0);
    level = next;
  }
}

void LocalRepair::make_room(FlowState& state, std::uint32_t link_id, std::uint32_t newcomer,
                            double needed, double now, std::vector<std::uint32_t>& slack) {
  const LinkState& link = state.link(link_id);
  const double missing = needed - state.residual(link_id);
  if (missing <= 0.0 || link.entries.size() > kRepairFlows) return;
  gather_rates(state, link, newcomer);
  // The level above which the fastest flows are cut so that they give up `missing` together.
  double level = 0.0;
  for (;;) {
    double sum = -missing;
    std::size_t num_cut = 0;
    for (const double rate : rates_) {
      if (rate <= level) continue;
      sum += rate;
      ++num_cut;
    }
    if (num_cut == 0) return;
    const double next = sum / static_cast<double>(num_cut);
    if (next <= level * (1.0 + 1e-9)) break;
    level = next;
  }
  for (const Entry& entry : link.entries) {
    const std::uint32_t slot = state.slot_of(entry);
    const double rate = state.rate(slot);
    if (slot == newcomer || rate <= level) continue;
    state.set_rate(slot, level, now);
    for (const FlowState::Hop& hop : state.hops(slot)) {
      state.give_back(hop.link, rate - level, now);
      if (hop.link != link_id) slack.push_back(hop.link);
    }
  }
}

void LocalRepair::insert(FlowState& state, std::uint32_t slot, double now,
                         std::vector<std::uint32_t>& slack) {
  double rate = state.cap(slot);
  for (const FlowState::Hop& hop : state.hops(slot)) {
    rate = std::min(rate, newcomer_share(state, hop.link, slot));
  }
  for (const FlowState::Hop& hop : state.hops(slot))
    make_room(state, hop.link, slot, rate, now, slack);
  for (const FlowState::Hop& hop : state.hops(slot)) {
    rate = std::min(rate, std::max(0.0, state.residual(hop.link)));
  }
  state.set_rate(slot, rate, now);
  for (const FlowState::Hop& hop : state.hops(slot)) {
    state.give_back(hop.link, -rate, now);
  }
}

}  // namespace coterie::flow

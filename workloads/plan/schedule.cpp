#include "workloads/plan/schedule.hpp"

#include <algorithm>

namespace coterie {

std::vector<PlanMessage> stage_messages(const Stage& stage, Direction direction) {
  const bool back = direction == Direction::kCombine;
  const std::vector<std::uint32_t>& from = back ? stage.dst : stage.src;
  const std::vector<std::uint32_t>& to = back ? stage.src : stage.dst;
  std::vector<PlanMessage> messages;
  messages.reserve(stage.parent.empty() ? stage.num_transfers() : 0);
  for (std::uint32_t place = 0; place < stage.num_transfers(); ++place) {
    const std::uint32_t i = back ? stage.answer_order[place] : place;
    if (messages.empty() || messages.back().src != from[i] || messages.back().dst != to[i] ||
        messages.back().round != stage.round[i]) {
      messages.push_back({from[i], to[i], stage.round[i], 0, 0, place, 0});
    }
    PlanMessage& message = messages.back();
    message.num_rows += stage.num_rows[i];
    message.num_copies += stage.num_copies[i];
    ++message.count;
  }
  return messages;
}

std::vector<Step> plan_steps(const LayerPlan& plan) {
  std::vector<Step> steps;
  // Stage `later` follows stage `earlier` one round behind.
  const auto add = [&](Direction direction, std::size_t earlier, std::size_t later) {
    for (std::uint32_t round = 0; round < plan.num_rounds; ++round) {
      steps.push_back({direction, earlier, round});
      if (round > 0) steps.push_back({direction, later, round - 1});
    }
    steps.push_back({direction, later, plan.num_rounds - 1});
  };
  if (plan.stages.size() == 1) {
    for (const Direction direction : {Direction::kDispatch, Direction::kCombine}) {
      for (std::uint32_t round = 0; round < plan.num_rounds; ++round) {
        steps.push_back({direction, 0, round});
      }
    }
    return steps;
  }
  add(Direction::kDispatch, 0, 1);
  add(Direction::kCombine, 1, 0);
  return steps;
}

std::vector<Step> prerequisites(const LayerPlan& plan, const Step& step) {
  const std::size_t last = plan.stages.size() - 1;
  if (step.direction == Direction::kDispatch) {
    if (step.stage == 0) return {};
    return {{Direction::kDispatch, step.stage - 1, step.round}};
  }
  if (step.stage < last) return {{Direction::kCombine, step.stage + 1, step.round}};
  std::vector<Step> dispatch;
  for (std::uint32_t round = 0; round < plan.num_rounds; ++round) {
    dispatch.push_back({Direction::kDispatch, last, round});
  }
  return dispatch;
}

Phase phase_of(const Stage& stage, Direction direction) {
  return direction == Direction::kDispatch ? stage.out : stage.back;
}

std::optional<std::uint32_t> HopPeers::number_of(std::uint32_t rank) const {
  if (rank < first || (rank - first) % stride != 0) return std::nullopt;
  const std::uint32_t number = (rank - first) / stride;
  if (number >= num_peers) return std::nullopt;
  return number;
}

HopPeers hop_peers(const LayerPlan& plan, HopKind hop, std::uint32_t rank) {
  const std::uint32_t node_size = plan.ranks_per_node;
  const std::uint32_t node = rank / node_size;
  const std::uint32_t local = rank % node_size;
  switch (hop) {
    case HopKind::kRail:
      return {plan.num_ranks / node_size, node, local, node_size};
    case HopKind::kNode:
      return {node_size, local, node * node_size, 1};
    case HopKind::kGroup:
      break;
  }
  return {plan.num_ranks, rank, 0, 1};
}

// A stable counting sort by (answering rank, round) leaves each bucket with the senders ascending;
// what is left is to turn it, so that it begins with the answering rank itself.
void order_answers(std::uint32_t num_ranks, std::uint32_t num_rounds, Stage& stage) {
  const auto bucket = [&](std::size_t i) {
    return std::size_t{stage.dst[i]} * num_rounds + stage.round[i];
  };
  const std::size_t num_transfers = stage.num_transfers();
  std::vector<std::uint32_t> begin(std::size_t{num_ranks} * num_rounds + 1, 0);
  for (std::size_t i = 0; i < num_transfers; ++i) ++begin[bucket(i) + 1];
  for (std::size_t b = 1; b < begin.size(); ++b) begin[b] += begin[b - 1];
  stage.answer_order.resize(num_transfers);
  std::vector<std::uint32_t> next(begin.begin(), begin.end() - 1);
  for (std::uint32_t i = 0; i < num_transfers; ++i) stage.answer_order[next[bucket(i)]++] = i;
  for (std::uint32_t rank = 0; rank < num_ranks; ++rank) {
    for (std::uint32_t round = 0; round < num_rounds; ++round) {
      const std::size_t b = std::size_t{rank} * num_rounds + round;
      const auto first = stage.answer_order.begin() + begin[b];
      const auto last = stage.answer_order.begin() + begin[b + 1];
      const auto own = std::lower_bound(
          first, last, rank, [&](std::uint32_t i, std::uint32_t r) { return stage.src[i] < r; });
      std::rotate(first, own, last);
    }
  }
}

}  // namespace coterie

// Hierarchical dispatch: one row per token and destination node, to the rank of the source's local
// index there (its relay: the same rail), then one row from the relay to each rank of its node.
//
//   source s = (node a, local i)  --stage 0-->  relay (node b, i)  --stage 1-->  (node b, j)
//
// A row of stage 1 is a (source, destination rank) row of dedup that takes the way over the relay.
// So stage 1 is the dedup grouping in another order: by relay, round, destination and then source.

#include <algorithm>

#include "workloads/plan/grouping.hpp"

namespace coterie {
namespace {

struct Relayed {
  Stage stage;
  std::vector<std::uint32_t> transfer_of_group;  // [num_groups] of the grouping by rank
};

// Stage 1 without its rows. `stage0` are the groups by node, which become the parents.
Relayed relay(const Deliveries& deliveries, const Groups& stage0, const Groups& by_rank) {
  const std::uint32_t num_ranks = deliveries.num_ranks;
  const std::uint32_t num_rounds = deliveries.num_rounds;
  const std::uint32_t node_size = deliveries.ranks_per_node;
  // Bucket of a group: its relay and round, and within them the place of the destination in send
  // order.
  const auto bucket = [&](std::uint32_t source, std::uint32_t round, std::uint32_t target) {
    const std::uint32_t local = source % node_size;
    const std::uint32_t relay_rank = target / node_size * node_size + local;
    const std::uint32_t step = (target % node_size + node_size - local) % node_size;
    return (std::size_t{relay_rank} * num_rounds + round) * node_size + step;
  };
  // Visits (source, round, part, group) with the sources ascending in every bucket.
  const auto for_each_part = [&](const auto& visit) {
    for (std::uint32_t source = 0; source < num_ranks; ++source) {
      for (std::uint32_t round = 0; round < num_rounds; ++round) {
        visit(source, round, std::size_t{source} * num_rounds + round);
      }
    }
  };
  std::vector<std::uint32_t> next(std::size_t{num_ranks} * num_rounds * node_size + 1);
  for_each_part([&](std::uint32_t source, std::uint32_t round, std::size_t part) {
    for (std::uint64_t i = by_rank.part_begin[part]; i < by_rank.part_begin[part + 1]; ++i) {
      ++next[bucket(source, round, by_rank.target[i]) + 1];
    }
  });
  for (std::size_t b = 1; b < next.size(); ++b) next[b] += next[b - 1];

  Relayed result;
  Stage& stage = result.stage;
  stage.hop = HopKind::kNode;
  stage.out = Phase::kForward;
  stage.back = Phase::kGather;
  for (auto* column : {&stage.src, &stage.dst, &stage.round, &stage.num_rows, &stage.num_copies,
                       &stage.parent, &result.transfer_of_group}) {
    column->resize(by_rank.size());
  }
  std::vector<std::uint32_t> parent_of_node(num_ranks / node_size);
  for_each_part([&](std::uint32_t source, std::uint32_t round, std::size_t part) {
    for (std::uint64_t i = stage0.part_begin[part]; i < stage0.part_begin[part + 1]; ++i) {
      parent_of_node[stage0.target[i]] = static_cast<std::uint32_t>(i);
    }
    for (std::uint64_t i = by_rank.part_begin[part]; i < by_rank.part_begin[part + 1]; ++i) {
      const std::uint32_t target = by_rank.target[i];
      const std::uint32_t node = target / node_size;
      const std::uint32_t transfer = next[bucket(source, round, target)]++;
      result.transfer_of_group[i] = transfer;
      stage.src[transfer] = node * node_size + source % node_size;
      stage.dst[transfer] = target;
      stage.round[transfer] = round;
      stage.num_rows[transfer] = by_rank.num_rows[i];
      stage.num_copies[transfer] = by_rank.num_copies[i];
      stage.parent[transfer] = parent_of_node[node];
    }
  });
  return result;
}

}  // namespace

std::uint32_t hierarchical_rounds(const LayerPlan& plan, const PlanRequest& request) {
  const std::uint32_t num_nodes = plan.num_ranks / plan.ranks_per_node;
  if (!request.rows_per_round || num_nodes == 1) return 1;
  std::uint64_t most_tokens = 0;
  for (std::uint32_t rank = 0; rank < plan.num_ranks; ++rank) {
    most_tokens = std::max(most_tokens, plan.num_tokens(rank));
  }
  // A token goes to at most num_topk of the nodes, so that with nodes hit alike, one of them gets
  // no more than this share of a rank's tokens.
  const std::uint64_t most_rows = most_tokens * std::min(plan.num_topk, num_nodes) / num_nodes;
  const std::uint64_t rows_per_round = std::max(1U, *request.rows_per_round);
  const std::uint64_t rounds = (most_rows + rows_per_round - 1) / rows_per_round;
  return static_cast<std::uint32_t>(
      std::clamp<std::uint64_t>(rounds, 1, std::max<std::uint64_t>(most_tokens, 1)));
}

std::vector<Stage> plan_hierarchical(const Deliveries& deliveries) {
  const std::uint32_t node_size = deliveries.ranks_per_node;
  const GroupBy node_wise{.ranks_per_target = node_size, .merge = true};
  const GroupBy rank_wise{.ranks_per_target = 1, .merge = true};
  const Groups by_node = group(deliveries, node_wise);
  const Groups by_rank = group(deliveries, rank_wise);
  Relayed relayed = relay(deliveries, by_node, by_rank);

  Stage to_node;
  to_node.hop = HopKind::kRail;
  for (auto* column : {&to_node.src, &to_node.dst, &to_node.round}) column->resize(by_node.size());
  for (std::size_t part = 0; part + 1 < by_node.part_begin.size(); ++part) {
    const auto source = static_cast<std::uint32_t>(part / deliveries.num_rounds);
    const auto round = static_cast<std::uint32_t>(part % deliveries.num_rounds);
    for (std::uint64_t i = by_node.part_begin[part]; i < by_node.part_begin[part + 1]; ++i) {
      to_node.src[i] = source;
      to_node.dst[i] = by_node.target[i] * node_size + source % node_size;
      to_node.round[i] = round;
    }
  }
  to_node.num_rows = by_node.num_rows;
  to_node.num_copies = by_node.num_copies;
  if (deliveries.detail == PlanDetail::kRows) {
    fill_rows(deliveries, node_wise, by_node, {}, to_node);
    fill_rows(deliveries, rank_wise, by_rank, relayed.transfer_of_group, relayed.stage);
  }
  std::vector<Stage> stages;
  stages.push_back(std::move(to_node));
  stages.push_back(std::move(relayed.stage));
  return stages;
}

}  // namespace coterie

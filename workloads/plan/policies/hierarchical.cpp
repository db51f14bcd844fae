// Hierarchical dispatch: one row per token and destination node, to the rank of the source's local
// index there (its relay: the same rail), then one row from the relay to each rank of its node.
//
//   source s = (node a, local i)  --stage 0-->  relay (node b, i)  --stage 1-->  (node b, j)
//
// A row of stage 1 is a (source, destination rank) row of dedup that takes the way over the relay.
// So stage 1 is the dedup grouping in another order: by relay, destination and then source.

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
  const std::uint32_t node_size = deliveries.ranks_per_node;
  // Bucket of a group: its relay, and within it the place of the destination in send order.
  const auto bucket = [&](std::uint32_t source, std::uint32_t target) {
    const std::uint32_t local = source % node_size;
    const std::uint32_t relay_rank = target / node_size * node_size + local;
    const std::uint32_t step = (target % node_size + node_size - local) % node_size;
    return std::size_t{relay_rank} * node_size + step;
  };
  const auto for_each_group = [&](const auto& visit) {
    for (std::uint32_t source = 0; source < num_ranks; ++source) {
      for (std::uint64_t i = by_rank.source_begin[source]; i < by_rank.source_begin[source + 1];
           ++i) {
        visit(source, i);
      }
    }
  };
  std::vector<std::uint32_t> next(std::size_t{num_ranks} * node_size + 1);
  for_each_group([&](std::uint32_t source, std::uint64_t i) {
    ++next[bucket(source, by_rank.target[i]) + 1];
  });
  for (std::size_t b = 1; b < next.size(); ++b) next[b] += next[b - 1];

  Relayed result;
  Stage& stage = result.stage;
  for (auto* column : {&stage.src, &stage.dst, &stage.num_rows, &stage.num_copies, &stage.parent,
                       &result.transfer_of_group}) {
    column->resize(by_rank.size());
  }
  std::vector<std::uint32_t> parent_of_node(num_ranks / node_size);
  for (std::uint32_t source = 0; source < num_ranks; ++source) {
    for (std::uint64_t i = stage0.source_begin[source]; i < stage0.source_begin[source + 1]; ++i) {
      parent_of_node[stage0.target[i]] = static_cast<std::uint32_t>(i);
    }
    for (std::uint64_t i = by_rank.source_begin[source]; i < by_rank.source_begin[source + 1];
         ++i) {
      const std::uint32_t target = by_rank.target[i];
      const std::uint32_t node = target / node_size;
      const std::uint32_t transfer = next[bucket(source, target)]++;
      result.transfer_of_group[i] = transfer;
      stage.src[transfer] = node * node_size + source % node_size;
      stage.dst[transfer] = target;
      stage.num_rows[transfer] = by_rank.num_rows[i];
      stage.num_copies[transfer] = by_rank.num_copies[i];
      stage.parent[transfer] = parent_of_node[node];
    }
  }
  return result;
}

}  // namespace

std::vector<Stage> plan_hierarchical(const Deliveries& deliveries) {
  const std::uint32_t node_size = deliveries.ranks_per_node;
  const GroupBy node_wise{.ranks_per_target = node_size, .merge = true};
  const GroupBy rank_wise{.ranks_per_target = 1, .merge = true};
  const Groups by_node = group(deliveries, node_wise);
  const Groups by_rank = group(deliveries, rank_wise);
  Relayed relayed = relay(deliveries, by_node, by_rank);

  Stage to_node;
  to_node.src.resize(by_node.size());
  to_node.dst.resize(by_node.size());
  for (std::uint32_t source = 0; source < deliveries.num_ranks; ++source) {
    for (std::uint64_t i = by_node.source_begin[source]; i < by_node.source_begin[source + 1];
         ++i) {
      to_node.src[i] = source;
      to_node.dst[i] = by_node.target[i] * node_size + source % node_size;
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

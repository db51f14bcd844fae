// Greedy packing by expert load, as EPLB does (github.com/deepseek-ai/EPLB): every extra slot goes
// to the expert with the highest load per replica, then the replicas, heaviest first, each go to
// the least loaded rank with a free slot. Unlike EPLB, two replicas of an expert never share a
// rank, because the second would serve nothing.

#include <algorithm>
#include <optional>

#include "workloads/placement/replicas.hpp"
#include "workloads/placement/strategies.hpp"

namespace coterie {
namespace {

bool holds(const std::vector<ExpertIdx>& experts, ExpertIdx expert) {
  return std::find(experts.begin(), experts.end(), expert) != experts.end();
}

// All free slots are on ranks that hold the expert already: trades with a rank that does not.
void place_by_trade(RankExperts& ranks, std::span<const std::uint32_t> free_slots,
                    ExpertIdx expert) {
  for (std::size_t full = 0; full < ranks.size(); ++full) {
    if (holds(ranks[full], expert)) continue;
    for (std::size_t open = 0; open < ranks.size(); ++open) {
      if (free_slots[open] == 0) continue;
      for (ExpertIdx& other : ranks[full]) {
        if (holds(ranks[open], other)) continue;
        ranks[open].push_back(other);
        other = expert;
        return;
      }
    }
  }
}

}  // namespace

RankExperts place_load_balanced(const LayerTask& task) {
  const std::vector<std::uint32_t> replicas =
      replicas_by_load(task.load, task.request.num_ranks, task.request.num_replicas);
  struct Item {
    double load;
    ExpertIdx expert;
  };
  std::vector<Item> items;
  for (std::uint32_t expert = 0; expert < task.num_experts; ++expert) {
    const double load =
        static_cast<double>(task.load[expert]) / static_cast<double>(replicas[expert]);
    items.insert(items.end(), replicas[expert], Item{load, static_cast<ExpertIdx>(expert)});
  }
  std::stable_sort(items.begin(), items.end(),
                   [](const Item& a, const Item& b) { return a.load > b.load; });

  const std::uint32_t num_ranks = task.request.num_ranks;
  const auto capacities = rank_capacities(static_cast<std::uint32_t>(items.size()), num_ranks);
  std::vector<std::uint32_t> free_slots = capacities;
  std::vector<double> rank_load(num_ranks, 0.0);
  RankExperts result(num_ranks);
  for (const Item& item : items) {
    std::optional<std::uint32_t> best;
    for (std::uint32_t rank = 0; rank < num_ranks; ++rank) {
      if (free_slots[rank] == 0 || holds(result[rank], item.expert)) continue;
      if (!best || rank_load[rank] < rank_load[*best]) best = rank;
    }
    if (best) {
      result[*best].push_back(item.expert);
      rank_load[*best] += item.load;
    } else {
      place_by_trade(result, free_slots, item.expert);
    }
    for (std::uint32_t rank = 0; rank < num_ranks; ++rank) {
      free_slots[rank] = capacities[rank] - static_cast<std::uint32_t>(result[rank].size());
    }
  }
  return result;
}

}  // namespace coterie

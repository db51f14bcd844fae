// A random permutation of the experts, cut into blocks. Every (seed, layer) has its own.

#include <numeric>

#include "core/random.hpp"
#include "workloads/placement/strategies.hpp"

namespace coterie {

RankExperts place_random(const LayerTask& task) {
  std::vector<ExpertIdx> order(task.num_experts);
  std::iota(order.begin(), order.end(), ExpertIdx{0});
  Random random(task.request.seed, task.layer);
  random.shuffle(std::span(order));
  const auto capacities = rank_capacities(task.num_experts, task.request.num_ranks);
  RankExperts result(capacities.size());
  std::size_t next = 0;
  for (std::size_t rank = 0; rank < capacities.size(); ++rank) {
    for (std::uint32_t i = 0; i < capacities[rank]; ++i) result[rank].push_back(order[next++]);
  }
  return result;
}

}  // namespace coterie

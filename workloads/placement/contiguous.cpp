// Experts in order of their ids, each rank the next block: what every framework does by default.

#include "workloads/placement/strategies.hpp"

namespace coterie {

RankExperts place_contiguous(const LayerTask& task) {
  const auto capacities = rank_capacities(task.num_experts, task.request.num_ranks);
  RankExperts result(capacities.size());
  std::uint32_t expert = 0;
  for (std::size_t rank = 0; rank < capacities.size(); ++rank) {
    for (std::uint32_t i = 0; i < capacities[rank]; ++i) {
      result[rank].push_back(static_cast<ExpertIdx>(expert++));
    }
  }
  return result;
}

}  // namespace coterie

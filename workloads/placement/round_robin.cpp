// Expert e on rank e mod P.

#include "workloads/placement/strategies.hpp"

namespace coterie {

RankExperts place_round_robin(const LayerTask& task) {
  RankExperts result(task.request.num_ranks);
  for (std::uint32_t expert = 0; expert < task.num_experts; ++expert) {
    result[expert % task.request.num_ranks].push_back(static_cast<ExpertIdx>(expert));
  }
  return result;
}

}  // namespace coterie

#include "workloads/plan/policies/flat.hpp"

#include "workloads/plan/grouping.hpp"

namespace coterie {

std::vector<Stage> plan_flat(const Deliveries& deliveries, bool merge) {
  const GroupBy by{.ranks_per_target = 1, .merge = merge};
  Groups groups = group(deliveries, by);
  std::vector<Stage> stages(1);
  Stage& stage = stages[0];
  stage.src.resize(groups.size());
  for (std::uint32_t source = 0; source < deliveries.num_ranks; ++source) {
    for (std::uint64_t i = groups.part_begin[source]; i < groups.part_begin[source + 1]; ++i) {
      stage.src[i] = source;
    }
  }
  stage.round.assign(groups.size(), 0);
  stage.num_rows = std::move(groups.num_rows);
  stage.num_copies = std::move(groups.num_copies);
  if (deliveries.detail == PlanDetail::kRows) fill_rows(deliveries, by, groups, {}, stage);
  stage.dst = std::move(groups.target);
  return stages;
}

}  // namespace coterie

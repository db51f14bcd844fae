// De-duplicated dispatch: one row per token and destination rank, expanded to the experts there.

#include "workloads/plan/policies/flat.hpp"

namespace coterie {

std::vector<Stage> plan_dedup(const Deliveries& deliveries) {
  return plan_flat(deliveries, /*merge=*/true);
}

}  // namespace coterie
